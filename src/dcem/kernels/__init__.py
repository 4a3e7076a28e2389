"""Inner loops as registered operators, `torch.ops.dcem`: fast on the CPU, and one node for whoever traces them.

Eager code, `torch.func` transforms, `torch.compile`, `torch.export` and `torch.jit.trace` all reach them
through PyTorch's dispatcher, which finds the derivative and the kernel that a tensor needs. The derivatives and the
reference in Python are registered by the rooms above; a kernel for another device is one more registration with
`operators.compile_for`. The kernels in C are built with the package where there is a compiler, and everything works
without them, as do those in Triton where it is installed. `DCEM_NATIVE=0` in the environment turns both off.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from . import cpu, operators
from .derivatives import differentiate

if torch.version.cuda is not None and importlib.util.find_spec("triton") and os.environ.get("DCEM_NATIVE") != "0":

    def _in_triton(module: str, name: str) -> Callable[..., Any]:
        """The kernel of that name: Triton takes a second to import, and is needed on a GPU alone."""

        def kernel(first: torch.Tensor, *others: Any) -> Any:
            with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]  # Triton launches on the current device, which may be another
                return getattr(importlib.import_module(f"dcem.kernels.{module}"), name)(first, *others)

        return kernel

    for module, name in (
        ("gpu", "project"), ("gpu", "project_backward"), ("gpu_refit", "refit"), ("gpu_refit", "refit_backward"),
        ("gpu_recurrent", "recurrent_rollout"), ("gpu_recurrent", "perceptron"),
    ):  # fmt: skip
        operators.compile_for("cuda", getattr(operators, name), _in_triton(module, name))

__all__ = ["cpu", "differentiate", "operators"]
