"""What is compiled is kept on disk, so that the next start of the same program is quick."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from configs.folders import user_cache

# Bytes kept; what was not used for the longest time makes room.
MOST_BYTES = 2 * 2**30


def keep_compiled() -> Path | None:
    """Turns on jax's persistent compilation cache, in a folder of the user's.

    It is ``$XDG_CACHE_HOME/manyheads/compiled`` or ``~/.cache/manyheads/compiled``, with a folder
    for each kind of processor, since a CPU's programs run on its like alone. Jax's own settings,
    ``JAX_COMPILATION_CACHE_DIR`` and ``JAX_ENABLE_COMPILATION_CACHE=0``, come first. Without a
    folder that can be written nothing is kept.

    Returns:
      The folder in use, or None.
    """
    settings: Any = jax.config
    if not settings.jax_enable_compilation_cache:
        return None
    if settings.jax_compilation_cache_dir:
        return Path(settings.jax_compilation_cache_dir)
    folder = user_cache() / "compiled" / _processor()
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


def _processor() -> str:
    """Returns a name for this machine's processor and what it can do."""
    traits = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    traits += [
        next((line for line in lines if line.startswith(name)), "")
        for name in ("model name", "flags", "Features")
    ]
    digest = hashlib.sha256("\n".join(traits).encode()).hexdigest()
    return f"{platform.machine() or 'unknown'}-{digest[:12]}"
