"""Compiled programs are kept where the user's caches are, and nowhere else if they say so."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from model.compiled import keep_compiled
print(keep_compiled())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
"""


def run(cache, **environment):
    """Returns the folder that a fresh process names, as it prints it."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    known |= dict(XDG_CACHE_HOME=str(cache), JAX_PLATFORMS="cpu", **environment)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=known, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = run(tmp_path)
    assert folder.startswith(str(tmp_path / "manyheads" / "compiled"))
    assert files(tmp_path)


@pytest.mark.slow
def test_jax_own_settings_come_first(tmp_path):
    other = tmp_path / "other"
    assert run(tmp_path / "xdg", JAX_COMPILATION_CACHE_DIR=str(other)) == str(other)
    assert files(other)
    assert run(tmp_path / "xdg", JAX_ENABLE_COMPILATION_CACHE="0") == "None"
    assert not (tmp_path / "xdg").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(blocked) == "None"
