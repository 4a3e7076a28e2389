"""Inner loops as registered operators, ``torch.ops.dcem``: fast on the CPU, and one node for whoever traces them.

Eager code, ``torch.func`` transforms, ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` all reach them
through PyTorch's dispatcher, which finds the derivative and the kernel that a tensor needs. The derivatives and the
reference in Python are registered by the rooms above; a kernel for another device is one more registration with
`operators.compile_for`. The kernels in C are built with the package where there is a compiler, and everything works
without them, as do those in Triton where it is installed. ``DCEM_NATIVE=0`` in the environment turns both off.
"""

import importlib.util
import os
from typing import Any

import torch

from . import cpu, operators
from .derivatives import differentiate

if torch.version.cuda is not None and importlib.util.find_spec("triton") and os.environ.get("DCEM_NATIVE") != "0":

    def _project(*inputs: Any) -> Any:
        from . import gpu  # Triton takes a second to import, and is needed on a GPU alone

        return gpu.project(*inputs)

    def _project_backward(*inputs: Any) -> Any:
        from . import gpu

        return gpu.project_backward(*inputs)

    operators.compile_for("cuda", operators.project, _project)
    operators.compile_for("cuda", operators.project_backward, _project_backward)

__all__ = ["cpu", "differentiate", "operators"]
