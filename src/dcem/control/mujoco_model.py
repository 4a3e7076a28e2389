"""The MuJoCo simulator as a model to plan with: batches of trajectories, and no gradient through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcem._check import check_count

if TYPE_CHECKING:
    import numpy as np

_LARGEST_CONTROL = 1e10  # mjMAXVAL: what MuJoCo calls a bad control


class MujocoModel:
    """Roll out action sequences in MuJoCo: dynamics for :class:`dcem.control.MPC`, simulated in C on several threads.

    A state is one vector ``(qpos, qvel, act, sensors, carried)``: what MuJoCo integrates, then the ``sensors`` asked
    for, which are functions of it and are there for a cost to be written on, then numbers that stay as they are.

    The simulator is a black box. Gradients reach whatever a cost depends on beside the states, through the weights of
    the samples, with ``MPC(gradient=Truncate(last=1))``; asking for one through the simulation is an error in the
    backward pass.

    Args:
        source: a ``mujoco.MjModel``, a dm_control ``Environment`` or ``Physics``, or a Gymnasium MuJoCo environment.
            The model is shared with it, not copied.
        frame_skip: simulation steps for which an action is held; by default the environment's own, else 1.
        sensors: names of sensors of the model whose readings are part of the state. Where a model lacks one (the
            position of a site, a body's velocity), add it to its ``mujoco.MjSpec`` and compile.
        num_carried: how many trailing numbers of a state are carried along unchanged: a goal, say, that differs between
            environments.
        num_threads: threads to simulate on; by default as many as torch uses.

    Attributes:
        state_shape: ``(state,)``.
        action_shape: ``(nu,)``.
        bounds: ``(low, high)`` of the actions, each ``(nu,)``; infinite where an actuator has no limit.
        dt: seconds that an action is held for.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: a sensor that the model does not have; a state or action of the wrong size.

    A simulation that diverges (MuJoCo's warnings of bad positions, velocities, accelerations or controls) has the state
    NaN from there on, so that a planner takes it as failed.

    Example:
        >>> import mujoco, torch
        >>> model = MujocoModel(mujoco.MjModel.from_xml_string('''
        ...     <mujoco><option timestep="0.01" gravity="0 0 0"/>
        ...       <worldbody><body>
        ...         <joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/>
        ...       </body></worldbody>
        ...       <actuator><motor joint="x" ctrlrange="-1 1" ctrllimited="true"/></actuator>
        ...     </mujoco>'''), frame_skip=5)
        >>> states = model.rollout(torch.zeros(3, 2), torch.ones(3, 4, 1))  # a unit mass, a unit force, 0.2 s
        >>> states.shape, states[0, -1]
        (torch.Size([3, 5, 2]), tensor([0.0210, 0.2000]))

    Source: Todorov, Erez & Tassa, "MuJoCo: a physics engine for model-based control", 2012.
    """

    def __init__(
        self,
        source: Any,
        *,
        frame_skip: int | None = None,
        sensors: Sequence[str] = (),
        num_carried: int = 0,
        num_threads: int | None = None,
    ) -> None:
        import mujoco  # type: ignore[import-untyped]

        model, own_frame_skip = _model_of(source)
        self.model = model
        self.frame_skip = own_frame_skip if frame_skip is None else frame_skip
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        check_count("frame_skip", self.frame_skip)
        check_count("num_threads", self.num_threads)
        self.sensors, self.num_carried = tuple(sensors), num_carried
        self.num_physical = model.nq + model.nv + model.na
        simulated = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        if simulated != 1 + self.num_physical:
            raise ValueError(
                f"source: expected a model whose state is (qpos, qvel, act), {self.num_physical} numbers; this one has "
                f"{simulated - 1}, of plugins or delays"
            )
        self._readings = [i for name in self.sensors for i in _sensor(model, name)]
        self.state_shape = (self.num_physical + len(self._readings) + num_carried,)
        self.action_shape = (model.nu,)
        self.dt = model.opt.timestep * self.frame_skip
        limits = torch.tensor(model.actuator_ctrlrange, dtype=torch.get_default_dtype())
        limited = torch.tensor(model.actuator_ctrllimited, dtype=torch.bool)
        unlimited = torch.tensor([-torch.inf, torch.inf]).to(limits)
        low, high = torch.where(limited[:, None], limits, unlimited).unbind(-1)
        self.bounds = (low, high)
        self._pool: Any = None
        self._data: list[Any] = []

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state: ``(*batch, s)`` and ``(*batch, nu)`` to ``(*batch, s)``."""
        return self.rollout(state, action.unsqueeze(-2))[..., 1, :]

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """Whole trajectories: ``(*batch, s)`` and ``(*batch, H, nu)`` to ``(*batch, H + 1, s)``, the first of them
        ``state`` with its sensors read anew.
        """
        if state.shape[-1:] != self.state_shape:
            raise ValueError(f"state: expected (*batch, {self.state_shape[0]}), got {tuple(state.shape)}")
        if actions.dim() < 2 or actions.shape[-1:] != self.action_shape:
            raise ValueError(f"actions: expected (*batch, H, {self.action_shape[0]}), got {tuple(actions.shape)}")
        batch = torch.broadcast_shapes(state.shape[:-1], actions.shape[:-2])  # type: ignore[no-untyped-call]
        horizon = actions.shape[-2]
        flat = state.expand(*batch, -1).reshape(-1, *self.state_shape)
        sequences = actions.expand(*batch, -1, -1).reshape(-1, horizon, *self.action_shape)
        states: Tensor = _Simulation.apply(flat, sequences, self)  # type: ignore[no-untyped-call]
        if self.num_carried:
            carried = flat[:, None, -self.num_carried :].expand(-1, horizon + 1, -1)
            states = torch.cat([states, carried], -1)
        return states.reshape(*batch, horizon + 1, *self.state_shape)

    def state_of(self, source: Any, carried: Any = ()) -> Tensor:
        """The state that an environment, a dm_control ``Physics`` or an ``MjData`` is in, ``(s,)``.

        Args:
            source: what to read.
            carried: the ``num_carried`` last numbers.
        """
        import numpy as np

        source = getattr(source, "unwrapped", source)
        source = getattr(source, "physics", source)
        data = getattr(source, "data", source)
        readings = np.asarray(data.sensordata)[self._readings]
        state = np.concatenate([data.qpos, data.qvel, data.act, readings, np.asarray(carried, dtype=float).reshape(-1)])
        if state.shape != self.state_shape:
            raise ValueError(f"carried: expected {self.num_carried} numbers, got {carried!r}")
        return torch.tensor(state, dtype=torch.get_default_dtype())

    def simulate(self, state: np.ndarray[Any, Any], actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Physical states ``(B, p)`` and actions ``(B, H, nu)`` to states and sensors ``(B, H + 1, p + r)``."""
        import numpy as np

        horizon, dt = actions.shape[1], self.model.opt.timestep
        initial = np.concatenate([np.full((len(state), 1), dt), state], axis=1)  # the first number is the time
        control = np.repeat(actions, self.frame_skip, axis=1)
        usable = np.isfinite(initial).all(1) & (np.abs(control) < _LARGEST_CONTROL).all((1, 2))
        initial[~usable, 1:], control[~usable] = self._rest(), 0.0
        if self._readings:  # a sensor is read at the start of a step: one more step, to read the last state's
            control = np.concatenate([control, control[:, -1:]], axis=1)
        with _quiet():
            trajectory, readings = self._simulator().rollout(self.model, self._data, initial, control)
        # A simulation that diverges is set back to time 0, or stopped: its clock, started at dt, is never right again.
        steps = horizon * self.frame_skip
        on_time = np.abs(trajectory[:, :steps, 0] - dt * np.arange(2, steps + 2)) < 0.5 * dt
        going = (on_time & usable[:, None])[:, self.frame_skip - 1 :: self.frame_skip]
        states = trajectory[:, self.frame_skip - 1 : steps : self.frame_skip, 1:]
        states = np.where(going[..., None], states, np.nan)
        states = np.concatenate([state[:, None], states], axis=1)
        if not self._readings:
            return states
        going = np.concatenate([usable[:, None], going], axis=1)
        readings = readings[:, : steps + 1 : self.frame_skip, self._readings]
        return np.concatenate([states, np.where(going[..., None], readings, np.nan)], axis=-1)

    def _rest(self) -> np.ndarray[Any, Any]:
        """A physical state that is certain to be possible."""
        import numpy as np

        return np.concatenate([self.model.qpos0, np.zeros(self.model.nv + self.model.na)])

    def _simulator(self) -> Any:
        """The pool of threads, started when it is first needed and kept."""
        import mujoco
        from mujoco.rollout import Rollout  # type: ignore[import-untyped]

        if self._pool is None:
            self._pool = Rollout(nthread=self.num_threads if self.num_threads > 1 else 0)
            self._data = [mujoco.MjData(self.model) for _ in range(self.num_threads)]
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_data": []}  # threads are neither copied nor pickled


class _Simulation(torch.autograd.Function):
    """States of the black box; a node in the graph whose backward pass says what cannot be had."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, actions: Tensor, model: MujocoModel) -> Tensor:
        physical = state[:, : model.num_physical].detach().cpu().double().numpy()
        states = model.simulate(physical, actions.detach().cpu().double().numpy())
        return torch.from_numpy(states).to(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "MujocoModel: a gradient through the simulator was asked for, which is a black box and has none. To plan "
            "only, use MPC(gradient=Detach()); to train what the cost depends on, use MPC(gradient=Truncate(last=1)) "
            "and a loss on plan.action or plan.actions, which reaches the cost through the weights of the samples; to "
            "differentiate dynamics, plan with differentiable ones (dcem.control.systems, or a learned model)"
        )


def _model_of(source: Any) -> tuple[Any, int]:
    """The ``MjModel`` of a source, and for how many of its steps the source holds an action."""
    import mujoco

    source = getattr(source, "unwrapped", source)  # of Gymnasium's wrappers
    if isinstance(source, mujoco.MjModel):
        return source, 1
    if hasattr(source, "control_timestep") and hasattr(source, "physics"):
        physics = source.physics
        return physics.model.ptr, round(source.control_timestep() / physics.timestep())
    model: Any = getattr(source, "model", None)
    model = getattr(model, "ptr", model)
    if not isinstance(model, mujoco.MjModel):
        raise TypeError(
            "source: expected a mujoco.MjModel, a dm_control Environment or Physics, or a Gymnasium MuJoCo "
            f"environment; got {type(source).__name__}"
        )
    return model, getattr(source, "frame_skip", 1)


def _sensor(model: Any, name: str) -> range:
    """Where in ``sensordata`` the readings of a sensor are."""
    names = [model.sensor(i).name for i in range(model.nsensor)]
    if name not in names:
        raise ValueError(
            f"sensors: expected some of {', '.join(names) or 'none, as the model has no sensor'}; got {name!r}"
        )
    start = int(model.sensor(name).adr[0])
    return range(start, start + int(model.sensor(name).dim[0]))


@contextmanager
def _quiet() -> Iterator[None]:
    """MuJoCo reports every candidate that diverges on the terminal and in a file; its NaN states say it already."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
