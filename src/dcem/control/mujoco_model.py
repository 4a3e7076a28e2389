"""The MuJoCo simulator as a model to plan with: batches of trajectories, and no gradient through them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcem._check import Fixed, as_floating, check_count, check_dims
from dcem._given import brief
from dcem.control.mujoco_pool import Pool
from dcem.control.mujoco_source import check_actions, check_inputs, current_model, data_of, own_frame_skip, sensor_range

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 1e10  # mjMAXVAL: beyond it MuJoCo calls a position, a speed or a control bad


class MujocoModel:
    """Roll out action sequences in MuJoCo: dynamics for [`dcem.control.MPC`][], simulated in C on several threads.

    A state is one vector `(qpos, qvel, act, sensors, carried)`: what MuJoCo integrates, then the `sensors` asked
    for, which are functions of it and are there for a cost to be written on, then numbers that stay as they are.

    The simulator is a black box. Gradients reach whatever a cost depends on beside the states, through the weights of
    the samples, with `MPC(gradient=Truncate(last=1))`; asking for one through the simulation is an error in the
    backward pass.

    Args:
        source: a `mujoco.MjModel`, a dm_control `Environment` or `Physics`, or a Gymnasium MuJoCo environment.
            The model is shared with it, not copied: where an environment compiles another one, as those of
            `dm_control.composer` do at each reset, that one is used from then on.
        frame_skip: simulation steps for which an action is held; by default the environment's own, else 1.
        sensors: names of sensors of the model whose readings are part of the state. Where a model lacks one (the
            position of a site, a body's velocity), add it to its `mujoco.MjSpec` and compile.
        num_carried: how many trailing numbers of a state are carried along unchanged: a goal, say, that differs between
            environments.
        num_threads: threads to simulate on; by default as many as torch uses.

    Attributes:
        model: the `mujoco.MjModel` that is simulated.
        state_shape: `(state,)`.
        action_shape: `(nu,)`.
        bounds: `(low, high)` of the actions, each `(nu,)`; infinite where an actuator has no limit.
        dt: seconds that an action is held for.

    Raises:
        TypeError: `source` is none of these, or `sensors` is a single name.
        ValueError: a sensor that the model does not have; an environment whose actions are not the model's controls,
            such as one in a wrapper that scales them; a state or action of the wrong size; an environment's data with
            inputs that a rollout does not have (`state_of`).

    A simulation that diverges (MuJoCo's warnings of bad positions, velocities, accelerations or controls) has the state
    NaN from there on, so that a planner takes it as failed. Several threads may use one model, in turn, and so may a
    process that was forked.

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

    frame_skip = Fixed[int]()
    sensors = Fixed[tuple[str, ...]]()
    num_carried = Fixed[int]()
    num_threads = Fixed[int]()
    num_physical = Fixed[int]()
    state_shape = Fixed[tuple[int]]()
    action_shape = Fixed[tuple[int]]()

    def __init__(
        self,
        source: Any,
        *,
        frame_skip: int | None = None,
        sensors: Sequence[str] = (),
        num_carried: int = 0,
        num_threads: int | None = None,
    ) -> None:
        model = current_model(source)
        import mujoco  # type: ignore[import-untyped]  # after what says how to install it

        check_actions(source, model)
        if isinstance(sensors, str):
            raise TypeError(f"sensors: expected a sequence of names, got {sensors!r}")
        self._source = source
        self.frame_skip = check_count("frame_skip", own_frame_skip(source) if frame_skip is None else frame_skip)
        self.num_threads = check_count("num_threads", torch.get_num_threads() if num_threads is None else num_threads)
        self.sensors, self.num_carried = tuple(sensors), check_dims("num_carried", num_carried)
        self.num_physical = model.nq + model.nv + model.na
        simulated = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        if simulated != 1 + self.num_physical:
            raise ValueError(
                f"source: expected a model whose state is (qpos, qvel, act), {self.num_physical} numbers; this one has "
                f"{simulated - 1}, of plugins or delays"
            )
        self.state_shape = (self.num_physical + len(self._readings(model)) + self.num_carried,)
        self.action_shape = (model.nu,)
        self._pools: dict[int, Pool] = {}  # by process

    @property
    def model(self) -> Any:
        """The `mujoco.MjModel` that is simulated: the one that the source has now."""
        return current_model(self._source)

    @property
    def dt(self) -> float:
        """Seconds that an action is held for."""
        return float(self.model.opt.timestep * self.frame_skip)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest action, each `(nu,)`; infinite where an actuator has no limit."""
        model = self.model
        limits = torch.tensor(model.actuator_ctrlrange, dtype=torch.get_default_dtype())
        limited = torch.tensor(model.actuator_ctrllimited, dtype=torch.bool)
        unlimited = torch.tensor([-torch.inf, torch.inf]).to(limits)
        low, high = torch.where(limited[:, None], limits, unlimited).unbind(-1)
        return low, high

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state: `(*batch, s)` and `(*batch, nu)` to `(*batch, s)`."""
        return self.rollout(state, action.unsqueeze(-2))[..., 1, :]

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """Whole trajectories: `(*batch, s)` and `(*batch, H, nu)` to `(*batch, H + 1, s)`, the first of them
        `state` with its sensors read anew.
        """
        if state.shape[-1:] != self.state_shape:
            raise ValueError(
                f"state: expected (*batch, {self.state_shape[0]}) as state_of(env) returns it, got "
                f"{tuple(state.shape)}; where dcem.control.run plays an environment, give it "
                "state_of=lambda _, env: model.state_of(env)"
            )
        if actions.dim() < 2 or actions.shape[-1:] != self.action_shape:
            raise ValueError(f"actions: expected (*batch, H, {self.action_shape[0]}), got {tuple(actions.shape)}")
        batch = torch.broadcast_shapes(state.shape[:-1], actions.shape[:-2])  # type: ignore[no-untyped-call]
        horizon = actions.shape[-2]
        num = math.prod(batch)
        flat = as_floating(state).expand(*batch, -1).reshape(num, *self.state_shape)
        sequences = actions.expand(*batch, -1, -1).reshape(num, horizon, *self.action_shape)
        states: Tensor = _Simulation.apply(flat, sequences, self)  # type: ignore[no-untyped-call]
        if self.num_carried:
            carried = flat[:, None, -self.num_carried :].expand(-1, horizon + 1, -1)
            states = torch.cat([states, carried], -1)
        return states.reshape(*batch, horizon + 1, *self.state_shape)

    def state_of(self, source: Any, carried: Any = ()) -> Tensor:
        """The state that an environment, a dm_control `Physics` or an `MjData` is in, `(s,)`.

        Args:
            source: what to read. Sensors are read of its present state, which MuJoCo itself does only in its next step.
            carried: the `num_carried` last numbers.

        Raises:
            TypeError: `source` is none of these, such as an observation.
            ValueError: `carried` has another length; or the data has poses of mocap bodies, switched equality
                constraints or applied forces (`xfrc_applied`, `qfrc_applied`) other than the model's own, which a
                rollout would leave out.
        """
        import mujoco
        import numpy as np

        data = data_of(source)
        model = getattr(data, "model", None)  # of an environment beside the one that the model was made of
        model = self.model if model is None else model
        check_inputs(model, data)
        indices = self._readings(model)
        parts = [data.qpos, data.qvel, data.act]
        if indices:
            now = mujoco.MjData(model)  # that of the source stays as it is
            now.time, now.qpos, now.qvel, now.act, now.ctrl = data.time, data.qpos, data.qvel, data.act, data.ctrl
            now.qacc_warmstart = data.qacc_warmstart
            mujoco.mj_forward(model, now)
            parts.append(np.asarray(now.sensordata)[indices])
        state = np.concatenate([*parts, np.asarray(carried, dtype=float).reshape(-1)])
        if state.shape != self.state_shape:
            raise ValueError(f"carried: expected {self.num_carried} numbers, got {brief(carried)}")
        return torch.tensor(state, dtype=torch.get_default_dtype())

    def simulate(self, state: np.ndarray[Any, Any], actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Physical states `(B, p)` and actions `(B, H, nu)` to states and sensors `(B, H + 1, p + r)`."""
        import numpy as np

        model = self.model
        indices = self._readings(model)
        if len(state) == 0:
            return np.zeros((0, actions.shape[1] + 1, self.num_physical + len(indices)))
        (horizon, skip), dt = (actions.shape[1], self.frame_skip), model.opt.timestep
        initial = np.concatenate([np.full((len(state), 1), dt), state], axis=1)  # the first number is the time
        control = np.repeat(actions, skip, axis=1)
        if indices:  # a sensor is read at the start of a step: one more step, to read the last state's
            last = control[:, -1:] if horizon else np.zeros((len(state), 1, model.nu))
            control = np.concatenate([control, last], axis=1)
        usable = np.isfinite(initial).all(1) & (np.abs(control) < _LARGEST).all((1, 2))
        initial[~usable, 1:], control[~usable] = self._rest(model), 0.0
        if control.shape[1] == 0:
            return state[:, None]
        pool = self._pools.setdefault(os.getpid(), Pool(self.num_threads))
        trajectory, readings = pool.rollout(model, initial, control)
        # A simulation that diverges is set back to time 0, or stopped: its clock, started at dt, is never right again.
        on_time = np.abs(trajectory[:, :, 0] - dt * np.arange(2, control.shape[1] + 2)) < 0.5 * dt
        on_time &= usable[:, None]
        states = trajectory[:, skip - 1 : horizon * skip : skip, 1:]
        going = on_time[:, skip - 1 : horizon * skip : skip] & (np.abs(states) < _LARGEST).all(-1)
        states = np.concatenate([state[:, None], np.where(going[..., None], states, np.nan)], axis=1)
        if not indices:
            return states
        # A step that is set back reads its sensors once more, of the model at rest.
        readings = np.where(on_time[:, ::skip, None], readings[:, ::skip, indices], np.nan)
        return np.concatenate([states, readings], axis=-1)

    def _readings(self, model: Any) -> list[int]:
        """Where in `sensordata` the readings of the sensors are."""
        return [i for name in self.sensors for i in sensor_range(model, name)]

    def _rest(self, model: Any) -> np.ndarray[Any, Any]:
        """A physical state that is certain to be possible."""
        import numpy as np

        return np.concatenate([model.qpos0, np.zeros(model.nv + model.na)])

    def __repr__(self) -> str:
        """What a state and an action of it are, and the seconds of a step."""
        return f"MujocoModel(state_shape={self.state_shape}, action_shape={self.action_shape}, dt={self.dt:g})"

    def __getstate__(self) -> dict[str, Any]:
        # Threads are neither copied nor pickled, and of an environment the model is enough.
        return {**self.__dict__, "_pools": {}, "_source": self.model}


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
