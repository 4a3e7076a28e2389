"""What modules that solve inside share: the solver's tensors and modules as their own, a start that can be learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from dcem.distributions import Distribution, Gaussian
from dcem.solvers import Solver


def hold_solver(module: nn.Module, solver: Any) -> None:
    """Register the solver's parameters, tensors and modules with ``module``, as ``solver_<name>``."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {solver!r}")
    module.__dict__["_held_solver"] = solver
    for name, value in vars(solver).items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(f"solver_{name}", value)
        elif isinstance(value, Tensor):
            module.register_buffer(f"solver_{name}", value)
        elif isinstance(value, nn.Module):
            module.add_module(f"solver_{name}", value)


def held_solver(module: nn.Module, solver: Solver) -> Solver:
    """The solver with what ``module`` holds of it now: moved, loaded, or put there by ``functional_call``.

    A solver that was put in the place of the one held is used as it is.
    """
    if solver is not module.__dict__["_held_solver"]:
        return solver
    changed = {
        name: now
        for name, value in vars(solver).items()
        if isinstance(value, (Tensor, nn.Module)) and (now := getattr(module, f"solver_{name}")) is not value
    }
    return dataclasses.replace(solver, **changed) if changed else solver


def hold_start(module: nn.Module, name: str, value: float | Tensor | None, shape: tuple[int, ...], what: str) -> None:
    """Keep a number or tensor that broadcasts to ``shape`` as a buffer, a parameter as a parameter."""
    tensor = start_tensor(name, value, shape, what)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def start_tensor(name: str, value: float | Tensor | None, shape: tuple[int, ...], what: str) -> Tensor | None:
    """A number or tensor that broadcasts to ``shape``, as a tensor."""
    tensor = value if value is None or isinstance(value, Tensor) else torch.tensor(float(value))
    if tensor is not None:
        try:
            tensor.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a number or a tensor that broadcasts to {what} {shape}, got {tuple(tensor.shape)}"
            ) from None
    return tensor


def start(mean: Tensor, std: Tensor | None, event_dims: int) -> Distribution | Tensor:
    """Where a solve starts: the means alone where the solver's own spread shall hold, or a Gaussian.

    Of a parameter the magnitude counts, so that no optimiser can make a std negative.
    """
    if std is None:
        return mean
    std = std.abs() if isinstance(std, nn.Parameter) or std.requires_grad else std
    return Gaussian(mean, std.to(mean).expand(mean.shape), event_dims)
