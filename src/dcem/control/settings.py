"""The settings of a controller, checked whenever one is set: at construction and afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from dcem._check import check_count, check_number, check_std, check_weight
from dcem._eager import is_eager
from dcem._given import brief
from dcem._latent import latent_shape_of
from dcem.bounds import Bounds
from dcem.control.answer import ANSWERS
from dcem.control.risk import Mean
from dcem.distributions import Distribution
from dcem.distributions.noise import check_noise_source
from dcem.gradients import GradientMode
from dcem.solvers import Solver

EVENT = "(horizon, *a)"
START = ("init_mean", "init_std", "action_rate_cost")


def checked(mpc: Any, name: str, value: Any) -> Any:
    """What the attribute `name` of `mpc` becomes when it is set to `value`."""
    check = _CHECKS.get(name)
    return value if check is None else check(mpc, name, value)


def _function(mpc: Any, name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, got {brief(value)}")
    _check_method(name, value)
    return value


def _optional_function(mpc: Any, name: str, value: Any) -> Any:
    return None if value is None else _function(mpc, name, value)


def _decoder(mpc: Any, name: str, value: Any) -> Any:
    decoder = _optional_function(mpc, name, value)
    if "latent_shape" in mpc.__dict__:
        latent_shape_of(decoder, mpc.latent_shape, mpc.actions_shape, EVENT)
    return decoder


def _noise(mpc: Any, name: str, value: Any) -> Any:
    if _optional_function(mpc, name, value) is not None:
        check_noise_source(value, mpc.latent_shape)
    return value


def _risk(mpc: Any, name: str, value: Any) -> Any:
    return Mean() if value is None else _function(mpc, name, value)


def _count(mpc: Any, name: str, value: Any) -> int:
    return check_count(name, value)


def _optional_count(mpc: Any, name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value)


def _start(mpc: Any, name: str, value: Any) -> Any:
    if name != "action_rate_cost" and mpc._family is not None:
        raise ValueError(f"{name}: expected to be left alone, init says where a search starts")
    if name == "init_mean":
        if value is None:
            raise TypeError("init_mean: expected a number or a tensor, got None")
    elif value is not None:
        check_std(name, value)
    return value


def _init(mpc: Any, name: str, init: Any) -> Any:
    if init is None:
        return None
    if not isinstance(init, Distribution):
        raise TypeError(f"init: expected a dcem distribution or None, got {brief(init)}")
    if init.batch_shape or tuple(init.event_shape) != mpc.latent_shape:
        raise ValueError(
            f"init: expected a distribution of one problem over {mpc.latent_shape}, got the batch "
            f"{tuple(init.batch_shape)} and events {tuple(init.event_shape)}"
        )
    if mpc._family is not None:
        return init
    if mpc.init_std is not None or (is_eager() and mpc.init_mean.is_cpu and mpc.init_mean.any()):
        raise ValueError("init: expected None, or init_mean and init_std left alone, got both")
    return init


def _weight(mpc: Any, name: str, value: Any) -> Any:
    return check_weight(name, value)


def _discount(mpc: Any, name: str, value: Any) -> float:
    value = check_number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"discount: expected a number in (0, 1], got {value}")
    return value


def _answer(mpc: Any, name: str, value: Any) -> Any:
    if value not in ANSWERS:
        raise ValueError(f"answer: expected one of {', '.join(ANSWERS)}, got {brief(value)}")
    return value


def _gradient(mpc: Any, name: str, value: Any) -> Any:
    if not isinstance(value, GradientMode):
        raise TypeError(f"gradient: expected a gradient mode such as dcem.Unroll(), got {brief(value)}")
    return value


def _solver(mpc: Any, name: str, value: Any) -> Any:
    if not isinstance(value, Solver):
        raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {brief(value)}")
    return value


def _bounds(mpc: Any, name: str, value: Any) -> Any:
    Bounds.check(value, torch.Size(mpc.actions_shape), torch.zeros(()))
    return value


def _latent_bounds(mpc: Any, name: str, value: Any) -> Any:
    if value is not None and mpc.decoder is None:
        raise ValueError(f"latent_bounds: expected None without a decoder, got {brief(value)}")
    Bounds.check(value, torch.Size(mpc.latent_shape), torch.zeros(()))
    return value


_CHECKS: dict[str, Callable[[Any, str, Any], Any]] = {
    **dict.fromkeys(("dynamics", "cost"), _function),
    **dict.fromkeys(("terminal_cost", "constraint", "continues", "proposals"), _optional_function),
    **dict.fromkeys(("horizon", "num_iterations", "num_particles", "num_proposals"), _count),
    **dict.fromkeys(START, _start),
    "decoder": _decoder, "noise": _noise, "risk": _risk, "chunk_size": _optional_count, "init": _init,
    "constraint_weight": _weight, "discount": _discount, "answer": _answer, "gradient": _gradient, "solver": _solver,
    "bounds": _bounds, "latent_bounds": _latent_bounds,
}  # fmt: skip


def _check_method(name: str, value: Any) -> None:
    """A world model's call is its loss: what is planned with are its methods."""
    method = {"dynamics": "imagine", "proposals": "propose"}.get(name, name)
    forward = getattr(value, "forward", None)
    takes_sequences = callable(forward) and len(inspect.signature(forward).parameters) == 1
    if takes_sequences and all(callable(getattr(value, of, None)) for of in ("observe", "imagine", "loss", method)):
        raise TypeError(f"{name}: expected world_model.{method}, got the model itself, {type(value).__name__}")
