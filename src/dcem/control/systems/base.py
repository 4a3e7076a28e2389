"""What all systems share: checked arguments, actuators that saturate, physical parameters, uniform initial states."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from dcem._check import check_number
from dcem.bounds import clip
from dcem.control.systems.drawing import Shape, View


class System(nn.Module, abc.ABC):
    """A plant in discrete time, `next_state = system(state, action)`, with the cost of its usual task.

    It is a dynamics for [`dcem.control.MPC`][], differentiable (any number of times) in state, action and physical
    parameters. A parameter is a number, which keeps its precision in every dtype and device; a tensor, which becomes
    a buffer; or an `nn.Parameter`, which is learned. A tensor may hold a value a problem, if it broadcasts to the
    leading axes of the states.

    Args:
        dt: seconds a step, above 0.
        bounds: lowest and highest value of each action.
        **parameters: the physical parameters by name.

    Raises:
        TypeError: a parameter is neither a number nor a tensor.
        ValueError: `dt` is not above 0, or the low bound not below the high one; in a call, `state` or `action`
            has another last axis.

    A subclass gives the shapes of states and actions, `_step`, `_cost`, `sample_states`, and how it is drawn:
    `view`, `shapes`.
    """

    state_shape: tuple[int]
    """The last axis of a state; any axes may lead."""
    action_shape: tuple[int]
    """The last axis of an action."""
    bounds: tuple[float, float]
    """Lowest and highest value of each action. Actuators saturate: an action beyond them acts as the nearest within."""
    dt: float
    """Seconds a step."""
    view: View
    """What a picture of the system shows."""

    def __init__(self, *, dt: float, bounds: tuple[float, float], **parameters: Tensor | float):
        super().__init__()
        if not dt > 0:
            raise ValueError(f"dt: expected seconds above 0, got {dt}")
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds: expected the low below the high, got {bounds}")
        self.dt = dt
        self.bounds = bounds
        for name, value in parameters.items():
            value = value if isinstance(value, Tensor) else check_number(name, value, "a number or a Tensor")
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._parameter_names = tuple(parameters)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """The state after `dt` seconds of a constant action.

        Args:
            state: `(*batch, *state_shape)`.
            action: `(*batch, *action_shape)`; leading axes of the two broadcast.

        Returns:
            The next state, `(*batch, *state_shape)`.

        Raises:
            ValueError: `state` or `action` has another last axis.
        """
        return self._step(*self._checked(state, action))

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """The task's cost of a state and the action taken in it.

        Args:
            state: `(*batch, *state_shape)`.
            action: `(*batch, *action_shape)`; leading axes of the two broadcast.

        Returns:
            `(*batch,)`, the lower the better.

        Raises:
            ValueError: `state` or `action` has another last axis.
        """
        return self._cost(*self._checked(state, action))

    @abc.abstractmethod
    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Initial states of the task, `(num, *state_shape)`."""

    @abc.abstractmethod
    def shapes(self, state: Tensor) -> list[Shape]:
        """What one state `(*state_shape,)` looks like, from back to front."""

    @abc.abstractmethod
    def _step(self, state: Tensor, action: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _cost(self, state: Tensor, action: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        """The parameters' values."""
        values = {name: getattr(self, name) for name in self._parameter_names}
        return ", ".join(
            f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}={value.tolist()}"
            for name, value in values.items()
        )

    def _checked(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both with the same leading axes, the action within its bounds. Called at every step: it has to be cheap."""
        state_size, action_size = state.shape, action.shape
        if state_size[-1:] != self.state_shape:
            raise ValueError(f"state: expected shape (*batch, {self.state_shape[0]}), got {tuple(state_size)}")
        if action_size[-1:] != self.action_shape:
            raise ValueError(f"action: expected shape (*batch, {self.action_shape[0]}), got {tuple(action_size)}")
        if state_size[:-1] != action_size[:-1]:
            batch = torch.broadcast_shapes(state_size[:-1], action_size[:-1])  # type: ignore[no-untyped-call]
            state, action = state.expand(*batch, -1), action.expand(*batch, -1)
        return state, clip(action, *self.bounds)


def columns(state: Tensor) -> tuple[Tensor, ...]:
    """The numbers of a state, each `(*batch,)`."""
    return state.movedim(-1, 0).unbind()


def joined(*of: Tensor) -> Tensor:
    """The state of these columns, each contiguous: it halves the time of a step of a large batch."""
    return torch.stack(of).movedim(0, -1)


def is_present(parameter: Tensor | float) -> bool:
    """Whether an optional term has to be computed: it was not left at the number 0."""
    return isinstance(parameter, Tensor) or parameter != 0


def rotated(cos: Tensor, sin: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of an angle after it has turned `by` radians: no angle is unwrapped, the circle is kept."""
    c, s = by.cos(), by.sin()
    return torch.addcmul(cos * c, sin, s, value=-1), torch.addcmul(sin * c, cos, s)


def uniform(
    num: int,
    half_widths: tuple[float, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, ...]:
    """A column `(num,)` a half width: uniform between minus and plus it."""
    unit = torch.rand(num, len(half_widths), generator=generator, dtype=dtype, device=device)
    return tuple((2 * column - 1) * half for column, half in zip(unit.unbind(-1), half_widths, strict=True))
