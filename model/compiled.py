"""What is compiled is kept on disk, so that the next start of the same program is quick."""

import os
from pathlib import Path
from typing import Any

import jax

from configs.folders import user_cache

# Bytes kept; what was not used for the longest time makes room.
MOST_BYTES = 2 * 2**30


def keep_compiled() -> Path | None:
    """Turns on jax's persistent compilation cache in the user's; returns its folder, or None.

    Jax's own settings, ``JAX_COMPILATION_CACHE_DIR`` and ``JAX_ENABLE_COMPILATION_CACHE=0``, come
    first; its keys tell kinds of processors apart. Without a folder that can be written nothing
    is kept.
    """
    settings: Any = jax.config
    if not settings.jax_enable_compilation_cache:
        return None
    if settings.jax_compilation_cache_dir:
        return Path(settings.jax_compilation_cache_dir)
    folder = user_cache() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    settings.update("jax_compilation_cache_dir", str(folder))
    settings.update("jax_compilation_cache_max_size", MOST_BYTES)
    # Small programs too: a start has dozens of them.
    settings.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder
