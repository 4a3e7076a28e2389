"""What holds for all that pytest collects: in tests, in the package and in the documentation."""

import gc
import getpass
import importlib.util
import os
import tempfile
from pathlib import Path

# Inductor keeps its code from one run to the next, and takes what it wrote for another capability for its own.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    kept = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}_{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))

# Half of what the first compilation of a process costs: a pool of processes, and whether each instruction set that the
# processor names can be compiled for.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# To look often through a million objects, which torch's modules are, is a tenth of the time.
gc.set_threshold(200_000, 20, 20)

# Nothing in these can be run without Triton, nor even be imported.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["src/dcem/kernels/gpu*.py"]


def pytest_collectstart() -> None:
    """Import the package before pytest imports its files one by one: a function may be named as the module it is in.

    Not above, as the process that hands the tests out to others needs neither it nor PyTorch.
    """
    import dcem  # noqa: F401


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector looks at it no more."""
    gc.collect()
    gc.freeze()
