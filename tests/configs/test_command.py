"""Commands as a person starts them: exit statuses and sentences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMAND = """
from absl import flags
from configs import command
from configs.errors import UserError
from configs.resolved import check

def define_flags():
    command.define_config()
    flags.DEFINE_string("workdir", "runs/a", "Where the run lives.")

def main(verb="none"):
    config = command.config()
    check(config)
    if config.seed == 13:
        raise UserError("config.seed = 13 is unlucky; choose another.")
    print(verb, config.model.num_heads, config.model.window, config.model.head_dim)

if __name__ == "__main__":
    command.run(main, define_flags{verbs})
"""

GOOD = "from configs import base\n\ndef get_config():\n    return base.get_config()\n"

FILES = {
    "good.py": GOOD,
    "argument.py": (
        "from configs import base\n"
        "from configs.errors import UserError\n"
        "def get_config(row):\n"
        "    if row != 'a':\n"
        "        raise UserError(f'there is no row {row!r}; choose a.')\n"
        "    return base.get_config()\n"
    ),
    "unknown_field.py": GOOD.replace(
        "    return base.get_config()",
        "    config = base.get_config()\n    config.model.num_head = 3\n    return config",
    ),
    "ill_typed.py": GOOD.replace(
        "    return base.get_config()",
        "    config = base.get_config()\n    config.seed = 'x'\n    return config",
    ),
    "divides.py": "def get_config():\n    return 1 / 0\n",
    "no_file.py": "def get_config():\n    return open('/no/such/file').read()\n",
    "syntax.py": "def get_config(:\n",
    "imports.py": "import no_such_module\n",
    "nothing.py": "def get_config():\n    pass\n",
    "number.py": "def get_config():\n    return 3\n",
    "empty.py": "",
    "binary.py": "\0\0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    (folder / "plain.py").write_text(COMMAND.replace("{verbs}", ""))
    (folder / "verbs.py").write_text(COMMAND.replace("{verbs}", ', verbs=("create", "delete")'))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT), program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mistake(folder: Path, program: str, *arguments: str) -> str:
    """Runs a command that must fail as a user's mistake does, and returns its sentence."""
    done = run(folder, program, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(".\n")
    return done.stderr.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ((), "none 4 (None,) None"),
        (("--config.model.num_heads=8",), "none 8 (None,) None"),
        (("--config.model.num_heads", "8"), "none 8 (None,) None"),
        (("--config.model.window=(None, 256)",), "none 4 (None, 256) None"),
        (("--config.model.head_dim=48",), "none 4 (None,) 48"),
        (("--noconfig.model.scan_layers", "--workdir=b"), "none 4 (None,) None"),
    ],
)
def test_runs(folder: Path, arguments: tuple[str, ...], printed: str):
    done = run(folder, "plain.py", "--config=good.py", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{printed}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--config=good.py", "--config.model.num_head=8"),
            "config.model.num_head is not a field (did you mean 'model.num_heads'?); "
            "see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.modl.num_heads=8"),
            "config.modl.num_heads is not a field (did you mean 'model.num_heads'?); "
            "see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.model.num_heads=x"),
            "config.model.num_heads must be a whole number, not 'x'; see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.model.num_heads", "8", "--config.seed=1.5"),
            "config.seed must be a whole number, not '1.5'; see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.model.head_dim=wide"),
            "config.model.head_dim must be a whole number, not 'wide'; see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.model.head_dim=None"),
            "config.model.head_dim cannot be set to None here; leave it out or write it in a file.",
        ),
        (
            ("--config=good.py", "--config.optim.learning_rate=fast"),
            "config.optim.learning_rate must be a number, not 'fast'; see configs/base.py.",
        ),
        (
            ("--config=good.py", "--config.model.scan_layers=maybe"),
            "config.model.scan_layers must be a switch (true or false), not 'maybe'; "
            "see configs/base.py.",
        ),
        ((), "--config is missing; name a file, for example --config=configs/toy.py."),
        (
            ("--config=none.py",),
            "the config 'none.py' is not a file; name one such as configs/toy.py.",
        ),
        (
            ("--config=none.py", "--config.seed=3"),
            "the config 'none.py' is not a file; name one such as configs/toy.py.",
        ),
        (("--config=.",), "the config '.' is not a file; name one such as configs/toy.py."),
        (("--config=good.py:a",), "the config 'good.py' takes no argument; leave out ':a'."),
        (("--config=argument.py:b",), "there is no row 'b'; choose a."),
        (
            ("--config=divides.py",),
            "the config 'divides.py' fails in line 2 (ZeroDivisionError: division by zero); "
            "put that right.",
        ),
        (
            ("--config=syntax.py",),
            "the config 'syntax.py' fails in line 1 (SyntaxError: invalid syntax); put that right.",
        ),
        (
            ("--config=imports.py",),
            "the config 'imports.py' fails in line 1 (ModuleNotFoundError: No module named "
            "'no_such_module'); put that right.",
        ),
        (
            ("--config=unknown_field.py",),
            "config.model.num_head is not a field (did you mean 'model.num_heads'?); "
            "see configs/base.py.",
        ),
        (
            ("--config=nothing.py",),
            "the config 'nothing.py' gives no ConfigDict; return one from its get_config().",
        ),
        (
            ("--config=number.py",),
            "the config 'number.py' gives no ConfigDict; return one from its get_config().",
        ),
        (
            ("--config=empty.py",),
            "the config 'empty.py' has no get_config(); write one that returns a ConfigDict.",
        ),
        (
            ("--config=good.py", "--wrkdir=a"),
            "--wrkdir is not a flag (did you mean 'workdir'?); --help lists the flags.",
        ),
        (
            ("--config=good.py", "extra"),
            "'extra' is not a flag; flags begin with --, and values follow =.",
        ),
        (
            ("--config=good.py", "--config.seed=13"),
            "config.seed = 13 is unlucky; choose another.",
        ),
    ],
)
def test_mistakes(folder: Path, arguments: tuple[str, ...], said: str):
    assert mistake(folder, "plain.py", *arguments) == said


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("argument.py", "write --config=argument.py:ARGUMENT"),
        ("ill_typed.py", "line 5"),
        ("no_file.py", "line 2 (FileNotFoundError"),
        ("binary.py", "Error: source code string cannot contain null bytes); put that right."),
        ("a" * 300, "is not a file"),
    ],
)
def test_mistakes_in_other_words(folder: Path, config: str, named: str):
    assert named in mistake(folder, "plain.py", f"--config={config}")


def test_section_cannot_be_set(folder: Path):
    said = mistake(folder, "plain.py", "--config=good.py", "--config.model=8")
    assert said.startswith("config.model is a section; set one of its fields, such as --config.")


def test_verb(folder: Path):
    done = run(folder, "verbs.py", "create", "--config=good.py", "--config.model.num_heads=2")
    assert (done.returncode, done.stdout) == (0, "create 2 (None,) None\n")
    done = run(folder, "verbs.py", "--config=good.py", "delete")
    assert (done.returncode, done.stdout) == (0, "delete 4 (None,) None\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the command needs one of the words create, delete; --help lists its flags."),
        (("creat",), "'creat' is none of create, delete (did you mean 'create'?); choose one."),
        (
            ("create", "delete"),
            "'delete' is not a flag; flags begin with --, and values follow =.",
        ),
    ],
)
def test_verb_mistakes(folder: Path, arguments: tuple[str, ...], said: str):
    assert mistake(folder, "verbs.py", *arguments) == said


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argument", ["--config=good.py", "--help"])
def test_output_that_cannot_be_written(folder: Path, argument: str, unbuffered: str):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "plain.py", argument],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "standard output cannot be written (No space left on device); free space or redirect it."
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


@pytest.mark.parametrize("program", ["plain.py", "verbs.py"])
def test_help_lists_the_flags(folder: Path, program: str):
    done = run(folder, program, "--help")
    assert "--config: The config: FILE.py or FILE.py:argument." in done.stdout
    assert "--workdir: Where the run lives." in done.stdout
    assert "Traceback" not in done.stderr
