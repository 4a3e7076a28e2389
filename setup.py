"""The optional compiled kernels: where they cannot be built the package installs without them."""

import os
import sys

from setuptools import Extension, setup

flags = ["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-pthread"]
kernels = Extension(
    "dcem.kernels.compiled", ["src/dcem/kernels/kernels.c"],
    depends=["src/dcem/kernels/projection.h", "src/dcem/kernels/refit.h"],
    extra_compile_args=flags, extra_link_args=["-pthread"], optional=True,
)  # fmt: skip
setup(ext_modules=[] if sys.platform == "win32" or os.environ.get("DCEM_NATIVE") == "0" else [kernels])
