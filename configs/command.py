"""How every command starts and how it fails: absl flags, one sentence, exit status 2."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from configs import base, keyboard
from configs.errors import UserError, nearest
from configs.resolved import fields, values

# The flags defined here belong to the command that asks for them, so that its --help lists them.
flags.disclaim_key_flags()

_SWITCH_WORDS = ("", "true", "false", "1", "0", "t", "f", "yes", "no", "y", "n")


def define_config(default: str | None = None) -> None:
    """Defines ``--config=FILE[:argument]`` and ``--config.section.field=value``."""
    config_flags.DEFINE_config_file("config", default, "The config: FILE.py or FILE.py:argument.")


def config() -> ConfigDict:
    """Returns the config of ``--config``.

    Raises:
      UserError: the flag is missing, or its file gives no config.
    """
    value = flags.FLAGS.config
    if value is None and flags.FLAGS["config"].using_default_value:
        raise UserError("--config is missing; name a file, for example --config=configs/toy.py.")
    if isinstance(value, ConfigDict):
        return value
    path = config_source()
    try:
        # A file that cannot be read leaves a stand-in that raises whenever it is touched.
        value.get_type  # noqa: B018
    except OSError as error:
        raise UserError(_load_mistake(path, error)) from error
    except AttributeError:
        pass
    raise UserError(f"the config {path!r} gives no ConfigDict; return one from its get_config().")


def config_source() -> str:
    """Returns what ``--config`` was given: FILE.py or FILE.py:argument."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def run(
    main: Callable[..., None],
    define_flags: Callable[[], None],
    verbs: tuple[str, ...] = (),
    otherwise: str = "",
    words: str = "",
) -> None:
    """Runs a command: defines and parses its flags, then calls ``main``.

    A ``UserError``, and every mistake in the flags, is printed as one sentence without a
    traceback; the exit status is then 2.

    Args:
      main: the command; called without arguments, or with the verb or the words it takes.
      define_flags: defines the command's flags.
      verbs: the words of which the command line must hold one (``python -m room.command VERB
        --flag=value``); with none, every word that is not a flag is refused.
      otherwise: the verb where there is none.
      words: what the words are called that the command takes, one or more, where it has no verbs.
    """

    def parse(argv: list[str]) -> list[str]:
        logger = logging.get_absl_logger()
        logger.addFilter(_silent)  # ml_collections logs what becomes a sentence below
        try:
            rest = flags.FLAGS(argv)
        except Exception as error:  # a config file may raise anything
            _check_output(error)
            _fail(flag_mistake(error))
        finally:
            logger.removeFilter(_silent)
        if otherwise and len(rest) == 1:
            rest = [*rest, otherwise]
        mistake = _verb_mistake(rest[1:], verbs, words)
        if mistake and not any(flags.FLAGS[name].value for name in ("help", "helpfull")):
            _fail(mistake)
        return rest

    def guarded(argv: list[str]) -> None:
        try:
            main(*argv[1:])
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            _check_output(error)
            raise

    keyboard.end_at_once()
    # absl prints a warning of its own for placeholders that a config file leaves at None.
    warnings.filterwarnings("ignore", module="ml_collections")
    define_flags()
    logging.set_verbosity(logging.WARNING)  # libraries narrate their every save
    try:
        app.run(guarded, flags_parser=parse)
    finally:
        _flush()


def silence(stream: TextIO | None = None) -> None:
    """Sends standard output, or another stream, nowhere; Python flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def _check_output(error: Exception) -> None:
    """Ends the command if standard output is what failed: then it fails again."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        _flush("\n")


def _flush(text: str = "") -> None:
    """Writes out what was printed; ends the command where that cannot be done."""
    try:
        if text:  # to write nothing fails too, where a terminal has been closed
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        sys.exit(1)
    except OSError as error:
        silence()
        _fail(f"standard output cannot be written ({error.strerror}); free space or redirect it.")


def _silent(record: object) -> bool:
    del record
    return False


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _verb_mistake(words: list[str], verbs: tuple[str, ...], taken: str) -> str:
    """Returns what is wrong with the words that are not flags, or ``""``."""
    if taken:
        return "" if words else f"{taken} is missing; name one or more, --help lists the flags."
    if verbs and not words:
        return f"the command needs one of the words {', '.join(verbs)}; --help lists its flags."
    if verbs and words[0] not in verbs:
        return f"{words[0]!r} is none of {', '.join(verbs)}{nearest(words[0], verbs)}; choose one."
    extra = words[1:] if verbs else words
    if extra:
        return f"{extra[0]!r} is not a flag; flags begin with --, and values follow =."
    return ""


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error and those beneath it: absl and ml_collections raise others on top."""
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        causes.append(following)
        following = following.__cause__ or following.__context__
    return causes


def flag_mistake(error: Exception) -> str:
    """Turns what absl and ml_collections raise into one sentence with a remedy."""
    root = _chain(error)[-1]
    if isinstance(root, UserError):
        return str(root)
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        return f"--{name} is not a flag{nearest(name, flags.FLAGS)}; --help lists the flags."
    mistake = _override_mistake()
    if mistake is not None:
        return mistake
    path = _config_argument()
    of_config = not re.match(r"flag --(?!config=)", str(error))
    if path and of_config and not isinstance(root, flags.Error):
        return _load_mistake(path, error)
    return str(error).strip().splitlines()[0].rstrip(".") + "; --help lists the flags."


def _load_mistake(path: str, error: BaseException) -> str:
    """Says why a config file gives no config."""
    file, colon, argument = path.partition(":")
    chain = _chain(error)
    root = chain[-1]
    if isinstance(root, UserError):
        return str(root)
    if not os.path.isfile(file):  # which Path would raise for a name too long
        return f"the config {file!r} is not a file; name one such as configs/toy.py."
    text = root.msg if isinstance(root, SyntaxError) else str(root)
    if isinstance(root, TypeError) and text.startswith("get_config() "):
        if colon:
            return f"the config {file!r} takes no argument; leave out ':{argument}'."
        return f"the config {file!r} needs an argument; write --config={file}:ARGUMENT."
    if isinstance(root, AttributeError) and "'get_config'" in text:
        return f"the config {file!r} has no get_config(); write one that returns a ConfigDict."
    reason = f"{type(root).__name__}: {text}".splitlines()[0].rstrip(".")
    lines = [
        frame.lineno
        for link in chain
        for frame in traceback.extract_tb(link.__traceback__)
        if Path(frame.filename).resolve() == Path(file).resolve()
    ]
    if isinstance(root, SyntaxError) and not lines and root.lineno:
        lines = [root.lineno]
    where = f" in line {lines[-1]}" if lines else ""
    return f"the config {file!r} fails{where} ({reason}); put that right."


def _config_argument() -> str:
    """Returns the value of ``--config`` as it was typed, or ``""``."""
    for argument, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        matched = re.match(r"--?config(?:=(.*))?$", argument, re.DOTALL)
        if matched:
            return following if matched[1] is None else matched[1]
    return ""


def _overrides() -> Iterator[tuple[str, str]]:
    """Yields name and value of each ``--config.name=value`` or ``--config.name value``."""
    for argument, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        matched = re.match(r"--?config\.([^=]+)(?:=(.*))?$", argument, re.DOTALL)
        if matched:
            bare = "" if following.startswith("--") else following
            yield matched[1], bare if matched[2] is None else matched[2]


def _override_mistake() -> str | None:
    """Returns what is wrong with the first override that its field refuses, if there is one."""
    trial = base.get_config()
    known, defaults = fields(trial), values(trial)
    for name, value in _overrides():
        inside = [field for field in known if field.startswith(f"{name}.")]
        if inside:
            return (
                f"config.{name} is a section; set one of its fields, such as --config.{inside[0]}."
            )
        if name not in known:
            return f"config.{name} is not a field{nearest(name, known)}; see configs/base.py."
        if value in ("None", "none") and defaults[name] is None:
            return f"config.{name} cannot be set to None here; leave it out or write it in a file."
        if not _accepts(known[name], value):
            return f"config.{name} must be {known[name]}, not {value!r}; see configs/base.py."
    return None


def _accepts(kind: str, value: str) -> bool:
    if kind == "a whole number":
        return bool(re.fullmatch(r"[+-]?\d[\d_]*", value))
    if kind == "a number":
        try:
            float(value)
        except ValueError:
            return False
    if kind == "a switch (true or false)":
        return value.lower() in _SWITCH_WORDS
    return True
