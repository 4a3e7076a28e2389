"""glibc gives freed memory back to the system and faults it in again, by chance more often on one side of a comparison
than on the other. Benchmarks run with an allocator that keeps it.
"""

import os
import sys

KEEP = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def keep_freed_memory() -> None:
    """Start this program again with :data:`KEEP` in its environment, unless it is there already."""
    if any(os.environ.get(name) != value for name, value in KEEP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
