"""What a MuJoCo model is made of: models, dm_control's and Gymnasium's environments, and what they would leave out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dcem._extras import needs

_OF_A_FILE = "; of a file it is mujoco.MjModel.from_xml_path(...), of a text mujoco.MjModel.from_xml_string(...)"


def current_model(source: Any) -> Any:
    """The `MjModel` that a source has now."""
    with needs("MujocoModel", "control"):
        import mujoco  # type: ignore[import-untyped]

    source = getattr(source, "unwrapped", source)  # of Gymnasium's wrappers
    if isinstance(source, mujoco.MjModel):
        return source
    model: Any = getattr(getattr(source, "physics", source), "model", None)
    model = getattr(model, "ptr", model)
    if not isinstance(model, mujoco.MjModel):
        raise TypeError(
            "source: expected a mujoco.MjModel, a dm_control Environment or Physics, or a Gymnasium MuJoCo "
            f"environment; got {type(source).__name__}{_OF_A_FILE if isinstance(source, (str, Path)) else ''}"
        )
    return model


def own_frame_skip(source: Any) -> int:
    """For how many of its model's steps a source holds an action."""
    source = getattr(source, "unwrapped", source)
    if hasattr(source, "control_timestep") and hasattr(source, "physics"):
        return round(source.control_timestep() / source.physics.timestep())
    return int(getattr(source, "frame_skip", 1))


def data_of(source: Any) -> Any:
    """The `MjData` of an environment, a `Physics`, or itself."""
    source = getattr(source, "unwrapped", source)
    data = getattr(getattr(source, "physics", source), "data", source)
    data = getattr(data, "ptr", data)
    if not hasattr(data, "qpos"):
        raise TypeError(
            "source: expected an environment, a dm_control Physics or an MjData, whose state is read, got "
            f"{type(source).__name__}"
        )
    return data


def sensor_range(model: Any, name: str) -> range:
    """Where in `sensordata` the readings of a sensor are."""
    names = [model.sensor(i).name for i in range(model.nsensor)]
    if name not in names:
        raise ValueError(
            f"sensors: expected some of {', '.join(names) or 'none, as the model has no sensor'}; got {name!r}"
        )
    start = int(model.sensor(name).adr[0])
    return range(start, start + int(model.sensor(name).dim[0]))


def check_actions(source: Any, model: Any) -> None:
    """Refuse an environment whose actions are something else than the model's controls."""
    import numpy as np

    gymnasium = sys.modules.get("gymnasium")
    wrapper = source
    while gymnasium is not None and isinstance(wrapper, gymnasium.Wrapper):
        if isinstance(wrapper, gymnasium.ActionWrapper) and not isinstance(wrapper, gymnasium.wrappers.ClipAction):
            raise ValueError(
                f"source: expected an environment whose actions are the model's controls, got {source} with the "
                f"wrapper {type(wrapper).__name__}, which changes them: plan for the environment without it"
            )
        wrapper = wrapper.env
    if hasattr(source, "action_spec"):
        spec = source.action_spec()
        low, high = getattr(spec, "minimum", -np.inf), getattr(spec, "maximum", np.inf)
    elif hasattr(source, "action_space"):
        spec = source.action_space
        low, high = getattr(spec, "low", -np.inf), getattr(spec, "high", np.inf)
    else:
        return
    limits = np.where(np.asarray(model.actuator_ctrllimited, dtype=bool)[:, None], model.actuator_ctrlrange, np.nan)
    same = spec.shape == (model.nu,) and all(
        np.allclose(np.where(np.isnan(limit), np.nan, side), limit, rtol=1e-6, equal_nan=True)
        for side, limit in ((low, limits[:, 0]), (high, limits[:, 1]))
    )
    clips = gymnasium is not None and isinstance(source, gymnasium.wrappers.ClipAction)
    if not (same or clips):
        raise ValueError(
            "source: expected an environment whose actions are the model's controls, of the range "
            f"{model.actuator_ctrlrange.tolist()}, got one with the actions {spec}: plan for the environment without "
            "the wrapper that changes them, or for its MjModel"
        )


def check_inputs(model: Any, data: Any) -> None:
    """Refuse data with inputs beside the controls, which a rollout would leave out."""
    import mujoco
    import numpy as np

    if not isinstance(data, mujoco.MjData):
        return
    own = {"xfrc_applied": 0.0, "qfrc_applied": 0.0, "eq_active": model.eq_active0}
    if model.nmocap:
        bodies = [int(np.flatnonzero(model.body_mocapid == i)[0]) for i in range(model.nmocap)]
        own |= {"mocap_pos": model.body_pos[bodies], "mocap_quat": model.body_quat[bodies]}
    for name, expected in own.items():
        if not np.array_equal(getattr(data, name), np.broadcast_to(expected, getattr(data, name).shape)):
            raise ValueError(
                f"source: expected {name} as the model has it, {np.asarray(expected).tolist()}, got "
                f"{getattr(data, name).tolist()}: a rollout has no such inputs"
            )
