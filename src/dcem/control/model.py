"""What a model of a plant is to a controller."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Model(Protocol):
    """A plant in discrete time that says what it takes, so that a controller can be built for it.

    `dcem.control.MPC` needs no more of dynamics than that they can be called, `model(state, action) -> next_state`, on
    any leading axes. What is called by its name here also has shapes, bounds and a step: the systems of
    `dcem.control.systems`, `dcem.control.MujocoModel`, and what `dcem.control.Compiled` makes of one. There is nothing
    to inherit; `isinstance(x, Model)` asks for the names alone.

    Two things are optional. A method `rollout(state, actions) -> states`, from `(*batch, *s)` and `(*batch, H, *a)` to
    `(*batch, H + 1, *s)`, `x_0` first, is asked for whole sequences where there is one. And a model whose step depends
    on the time has a keyword `t`: the number of the step, from 0.

    Attributes:
        state_shape: Shape of one state, the last axes.
        action_shape: Shape of one action, the last axes.
        bounds: `(low, high)` of the actions, each a number or of `action_shape`.
        dt: Seconds a step.

    >>> import torch
    >>> from dcem.control import MPC
    >>> class Slider:
    ...     state_shape, action_shape, bounds, dt = (1,), (1,), (-1.0, 1.0), 0.1
    ...     def __call__(self, state, action):
    ...         return state + self.dt * action
    >>> model = Slider()
    >>> isinstance(model, Model)
    True
    >>> mpc = MPC(model, lambda x, u: x.square().sum(-1), 5, model.action_shape, model.bounds)
    >>> mpc(torch.ones(model.state_shape)).actions.shape
    torch.Size([5, 1])
    """

    @property
    def state_shape(self) -> tuple[int, ...]: ...
    @property
    def action_shape(self) -> tuple[int, ...]: ...
    @property
    def bounds(self) -> tuple[Any, Any]: ...
    @property
    def dt(self) -> float: ...
    def __call__(self, state: Tensor, action: Tensor) -> Any: ...
