"""All benchmarks, one after the other: ``python benchmarks/run.py``. Each writes its JSON under results/benchmarks/."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    for name in ("projections", "overhead", "gradient_modes", "control", "scaling", "tables"):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=True)
