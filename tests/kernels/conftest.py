"""Makes the cases beside the tests importable."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# It is run by `test_gpu_kernels.py`, in a process of its own, and needs Triton to be imported.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") else ["gpu_cases.py"]
