"""The settings of a controller, checked whenever one is set: at construction and afterwards."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from dcem._check import check_count, check_number, check_std
from dcem._eager import is_eager
from dcem._given import brief
from dcem.bounds import Bounds
from dcem.control.answer import ANSWERS
from dcem.control.risk import Mean
from dcem.distributions import Distribution
from dcem.distributions.noise import check_noise_source
from dcem.gradients import GradientMode
from dcem.layer import latent_shape_of
from dcem.solvers import Solver

EVENT = "(horizon, *a)"
START = ("init_mean", "init_std", "action_rate_cost")
FUNCTIONS = ("dynamics", "cost")
OPTIONAL_FUNCTIONS = ("decoder", "terminal_cost", "constraint", "noise", "continues", "proposals")
COUNTS = ("horizon", "num_iterations", "num_particles", "num_proposals")


def checked(mpc: Any, name: str, value: Any) -> Any:
    """What the attribute `name` of `mpc` becomes when it is set to `value`."""
    if name in FUNCTIONS or (name in OPTIONAL_FUNCTIONS and value is not None):
        if not callable(value):
            raise TypeError(f"{name}: expected a callable, got {brief(value)}")
        _check_method(name, value)
        if name == "decoder" and "latent_shape" in mpc.__dict__:
            latent_shape_of(value, mpc.latent_shape, mpc.actions_shape, EVENT)
        if name == "noise":
            check_noise_source(value, mpc.latent_shape)
    elif name == "decoder" and "latent_shape" in mpc.__dict__:
        latent_shape_of(None, mpc.latent_shape, mpc.actions_shape, EVENT)
    elif name == "risk":
        value = Mean() if value is None else value
        if not callable(value):
            raise TypeError(f"risk: expected a callable, got {brief(value)}")
    elif name in COUNTS or (name == "chunk_size" and value is not None):
        value = check_count(name, value)
    elif name in START:
        if name != "action_rate_cost" and mpc.__dict__.get("init") is not None:
            raise ValueError(f"{name}: expected to be left alone, init says where a search starts")
        if name != "init_mean" and value is not None:
            check_std(name, value)
        if name == "init_mean" and value is None:
            raise TypeError("init_mean: expected a number or a tensor, got None")
    elif name == "init":
        _check_init(mpc, value)
    elif name == "constraint_weight":
        check_number(name, value)
        check_std(name, value)
    elif name == "discount":
        check_number(name, value)
        if not 0 < value <= 1:
            raise ValueError(f"discount: expected a number in (0, 1], got {value}")
    elif name == "answer":
        if value not in ANSWERS:
            raise ValueError(f"answer: expected one of {', '.join(ANSWERS)}, got {brief(value)}")
    elif name == "gradient":
        if not isinstance(value, GradientMode):
            raise TypeError(f"gradient: expected a gradient mode such as dcem.Unroll(), got {brief(value)}")
    elif name == "solver":
        if not isinstance(value, Solver):
            raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {brief(value)}")
    elif name == "bounds":
        Bounds.check(value, torch.Size(mpc.actions_shape), torch.zeros(()))
    elif name == "latent_bounds":
        if value is not None and mpc.decoder is None:
            raise ValueError(f"latent_bounds: expected None without a decoder, got {brief(value)}")
        Bounds.check(value, torch.Size(mpc.latent_shape), torch.zeros(()))
    return value


def _check_method(name: str, value: Any) -> None:
    """A world model's call is its loss: what is planned with are its methods."""
    method = {"dynamics": "imagine", "proposals": "propose"}.get(name, name)
    forward = getattr(value, "forward", None)
    takes_sequences = callable(forward) and len(inspect.signature(forward).parameters) == 1
    if takes_sequences and all(callable(getattr(value, of, None)) for of in ("observe", "imagine", "loss", method)):
        raise TypeError(f"{name}: expected world_model.{method}, got the model itself, {type(value).__name__}")


def _check_init(mpc: Any, init: Any) -> None:
    if init is None:
        return
    if not isinstance(init, Distribution):
        raise TypeError(f"init: expected a dcem distribution or None, got {brief(init)}")
    if init.batch_shape or tuple(init.event_shape) != mpc.latent_shape:
        raise ValueError(
            f"init: expected a distribution of one problem over {mpc.latent_shape}, got the batch "
            f"{tuple(init.batch_shape)} and events {tuple(init.event_shape)}"
        )
    if mpc.init_std is not None or (is_eager() and mpc.init_mean.is_cpu and mpc.init_mean.any()):
        raise ValueError("init: expected None, or init_mean and init_std left alone, got both")
