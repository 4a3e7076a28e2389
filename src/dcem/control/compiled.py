"""Dynamics whose whole rollout is one compiled function."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from dcem._given import brief
from dcem._tree import map_tensors
from dcem.control.rollout import Dynamics, batch_of, follow, rolls_out, takes


class Compiled(nn.Module):
    """Plan several times faster through dynamics made of small operations: compile the loop over the horizon.

    An eager rollout pays for every operation of every step; compiled by `torch.compile`, the steps become a few
    loops over all candidates. The first call with each shape takes about ten seconds, so this is for controllers that
    run for long. First derivatives are compiled too; second ones, and `torch.func` transforms, are not to be had.

    Args:
        dynamics: `f(state, action) -> next_state`, in operations that `torch.compile` understands. One with a keyword
            `t` is told the step of the plan.
        state_dims: how many trailing axes of a state are one state, as in [`dcem.control.MPC`][].

    Raises:
        TypeError: `dynamics` is not callable.
        ValueError: `dynamics` rolls out by itself, or draws by a `generator`, which `torch.compile` does not trace.

    Example:
        >>> import torch
        >>> from dcem.control import MPC
        >>> from dcem.control.systems import Pendulum
        >>> system = Pendulum()
        >>> mpc = MPC(Compiled(system), system.cost, 20, 1, system.bounds)  # compiled when it first plans

    Source: Ansel et al., "PyTorch 2: faster machine learning through dynamic Python bytecode transformation and graph
    compilation", ASPLOS 2024.
    """

    def __init__(self, dynamics: Dynamics, *, state_dims: Any = 1) -> None:
        super().__init__()
        if not callable(dynamics):
            raise TypeError(f"dynamics: expected a callable (state, action) -> next_state, got {brief(dynamics)}")
        if rolls_out(dynamics):
            raise ValueError(f"dynamics: expected steps to compile, got {dynamics!r}, which rolls out by itself")
        if takes(dynamics, "generator", 2):
            raise ValueError(
                "dynamics: expected none with a keyword generator, which torch.compile does not trace, got "
                f"{brief(dynamics)}"
            )
        self.dynamics, self.state_dims = dynamics, state_dims
        for name in ("state_shape", "action_shape", "bounds", "dt"):  # what makes it a Model, if the dynamics are one
            if hasattr(dynamics, name):
                setattr(self, name, getattr(dynamics, name))
        self._compiled: Any = None

    @property
    def _follows(self) -> Dynamics:
        """The dynamics, which say what they want to be told."""
        return self.dynamics

    def forward(self, state: Any, action: Tensor, **told: Any) -> Any:
        """One step, as it was."""
        return self.dynamics(state, action, **told)

    def rollout(self, state: Any, actions: Tensor) -> Any:
        """The states `(*batch, H + 1, *s)` of actions `(*batch, H, *a)`."""
        if torch.compiler.is_compiling():  # with what stands around it
            return _rollout(self.dynamics, state, actions, len(batch_of(state, self.state_dims)))
        if self._compiled is None:
            # How often a function is compiled anew is counted, and limited, by its code: each instance has its own.
            own = types.FunctionType(_rollout.__code__.replace(), globals(), f"rollout_of_{id(self)}")
            self._compiled = torch.compile(own)
        return self._compiled(self.dynamics, state, actions, len(batch_of(state, self.state_dims)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": None}  # type: ignore[no-untyped-call]


def _rollout(dynamics: Dynamics, state: Any, actions: Tensor, batch_dims: int) -> Any:
    states = follow(dynamics, state, actions.movedim(batch_dims, 0), batch_dims).states(0, None)
    return map_tensors(lambda leaf: leaf.movedim(0, batch_dims), states)  # in memory, time stays outside
