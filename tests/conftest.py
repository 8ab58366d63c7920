"""What every test runs under: eight forced host devices, strict shapes, checked annotations.

``MANYHEADS_TYPECHECK=0`` switches the run-time check of annotations off, and
``MANYHEADS_TEST_CACHE=0`` the cache of compiled functions (``.cache/jax``). With
``MANYHEADS_TEST_OPTIMIZE=1`` functions are compiled as a user's are, not in a hurry. With
``MANYHEADS_PLATFORM=cuda`` tests run on a GPU; those that need one skip otherwise. With
``MANYHEADS_EXTRAS=required`` a test whose extra is missing fails rather than skips.
"""

import gc
import importlib.metadata
import importlib.util
import os
import signal
from pathlib import Path

import pytest

PLATFORM = os.environ.get("MANYHEADS_PLATFORM", "cpu")
OPTIMIZE = PLATFORM != "cpu" or os.environ.get("MANYHEADS_TEST_OPTIMIZE", "0") != "0"
# Compilation is about half of what tests take; these and JAX's own switch cut it to a third.
HURRIED = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    HURRIED.append("--xla_cpu_use_fusion_emitters=false")

# Before jax is imported: it reads these once. Subprocesses inherit them.
os.environ["JAX_PLATFORMS"] = PLATFORM
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        "--xla_force_host_platform_device_count=8",
        # Eight devices in each of several workers are threads enough.
        "--xla_cpu_multi_thread_eigen=false",
        *(() if OPTIMIZE else HURRIED),
    ]
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not OPTIMIZE))
# XLA's pool has a thread a device; a second step in flight then waits for one that the first
# holds in a collective, for ever. The name is XLA's own.
os.environ["NPROC"] = "32"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# A shell has Ctrl-C ignored in what it runs in the background, and nohup a terminal's end, which
# processes pass on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tracing makes objects that live; to look for dead ones as often as Python does takes longer.
gc.set_threshold(50_000, 20, 50)

if os.environ.get("MANYHEADS_TEST_CACHE", "1") != "0":
    cache = Path(__file__).parent.parent / ".cache" / "jax"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

if os.environ.get("MANYHEADS_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    import tests.annotations  # noqa: F401, so that its name below is known

    install_import_hook(
        ["text.repeats", "text.rows", "model", "lens", "train"], "tests.annotations.checked"
    )


@pytest.fixture
def extra():
    """Skips a test whose extra is not installed; where extras are required, lets it fail."""

    def need(*modules):
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing and os.environ.get("MANYHEADS_EXTRAS") != "required":
            pytest.skip(f"needs {', '.join(missing)}; see the extras of setup.cfg")

    return need
