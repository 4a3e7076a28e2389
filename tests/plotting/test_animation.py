"""Pictures of systems: frames, GIFs, paths."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcem
from dcem import plotting
from dcem.control import MPC, Plan
from dcem.control.systems import Acrobot, Cartpole, Pendulum, PointMass, Quadrotor, System


def trajectory(system: System, steps: int) -> torch.Tensor:
    states = list(system.sample_states(1, generator=torch.Generator().manual_seed(0)))
    for _ in range(steps - 1):
        states.append(system(states[-1], torch.full(system.action_shape, 1.0)))
    return torch.stack(states)


@pytest.mark.parametrize("kind", [Acrobot, Cartpole, Pendulum, PointMass, Quadrotor])
def test_frames_show_the_motion(kind: type[System]) -> None:
    system = kind()
    frames = plotting.frames(system, trajectory(system, 4), height=90)
    view = system.view
    assert frames.shape == (4, 90, round(90 * (view.right - view.left) / (view.top - view.bottom)), 3)
    assert frames.dtype == np.uint8
    body = frames[:, 20:]  # below the time
    assert all((before != after).any() for before, after in pairwise(body))
    assert (frames == 255).all(-1).mean() > 0.3  # mostly background
    assert np.array_equal(plotting.frames(system, trajectory(system, 4), height=90), frames)


def test_frames_are_to_scale() -> None:
    """A pole as long as given, upright, then to the right: its orange pixels are where the geometry says."""
    system = Pendulum(length=0.8)
    up, right = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, -1.0, 0.0])
    for state, end in ((up, (0.0, 0.8)), (right, (0.8, 0.0))):
        frame = plotting.frames(system, state[None], height=260)[0]
        rows, columns = np.nonzero((frame == (0xD5, 0x5E, 0x00)).all(-1))
        x, y = (columns + 0.5) / 100 - 1.3, 1.3 - (rows + 0.5) / 100
        tip = 0.8 + 0.07  # with its round end
        along, across = (x, y) if end[0] else (y, x)
        assert along.max() == pytest.approx(tip, abs=0.02)
        assert (across.min(), across.max()) == pytest.approx((-0.07, 0.07), abs=0.02)


def test_gif_holds_every_frame(tmp_path: Path) -> None:
    system = Quadrotor()
    frames = plotting.frames(system, trajectory(system, 12), height=100)
    plotting.save_gif(tmp_path / "a.gif", frames, fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 12
        assert gif.info["duration"] == 50
        assert gif.info["loop"] == 0
        for i in range(12):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB"), dtype=float)
            assert np.abs(shown - frames[i]).mean() < 1
            white = (frames[i] == 255).all(-1)
            assert white.mean() > 0.5
            assert (shown[white] == 255).all()


@pytest.mark.parametrize(("fps", "every", "milliseconds"), [(50, 1, 20), (60, 2, 30), (100, 2, 20), (500, 10, 20)])
def test_gif_runs_in_real_time_whatever_the_format_can_show(fps, every, milliseconds, tmp_path: Path) -> None:
    frames = torch.arange(12, dtype=torch.uint8).mul(20).reshape(-1, 1, 1, 1).expand(12, 4, 6, 3)
    plotting.save_gif(tmp_path / "a.gif", frames, fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == len(frames[::every])
        assert gif.info["duration"] == milliseconds
        gif.seek(1)
        assert abs(gif.convert("RGB").getpixel((0, 0))[0] - 20 * every) <= 2


def test_gif_of_many_colours_is_close_and_keeps_the_small_things(tmp_path: Path) -> None:
    """A simulator's shaded picture: no colour is far off, least of all that of a small object."""
    y, x = np.mgrid[:120, :160]
    picture = np.stack([80 + x // 4, 60 + y // 3, 255 - (x + y) // 4], -1).astype(np.uint8)
    picture[50:54, 50:54] = (255, 0, 0)
    plotting.save_gif(tmp_path / "a.gif", picture[None], fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        shown = np.asarray(gif.convert("RGB"), dtype=float)
    assert np.abs(shown - picture).max() < 16
    assert np.abs(shown[50:54, 50:54] - (255, 0, 0)).max() == 0


def test_paths_with_obstacles_and_a_legend() -> None:
    system = PointMass()
    one = trajectory(system, 10)
    figure = plotting.trajectories(system, {"one": one, "two": torch.stack((one, one + 0.1))})
    (axis,) = figure.axes
    assert len(axis.patches) == 3 + 1  # obstacles and goal
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert axis.get_xlabel() == "x, m"
    path = axis.lines[0].get_xydata()
    np.testing.assert_allclose(path, one[:, :2], rtol=1e-6)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"states: expected shape \(num_frames, 3\), got \(3,\)"):
        plotting.frames(Pendulum(), torch.zeros(3))
    with pytest.raises(ValueError, match="height: expected pixels, at least 1, got 0"):
        plotting.frames(Pendulum(), torch.zeros(2, 3), height=0)
    with pytest.raises(ValueError, match=r"frames: expected shape .*, got \(2, 4, 4\) in uint8"):
        plotting.save_gif(tmp_path / "a.gif", np.zeros((2, 4, 4), np.uint8), 20)
    with pytest.raises(ValueError, match=r"fps: .* got 0"):
        plotting.save_gif(tmp_path / "a.gif", np.zeros((2, 4, 4, 3), np.uint8), 0)
    with pytest.raises(ValueError, match=r"fps: .* got inf"):
        plotting.save_gif(tmp_path / "a.gif", np.zeros((2, 4, 4, 3), np.uint8), float("inf"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda states: plotting.frames(lambda x, u: x, states), "system: expected one of dcem.control.systems"),
        (
            lambda states: plotting.frames(PointMass(), states.numpy()),
            "states: expected a Tensor of states, got ndarray",
        ),
        (
            lambda states: plotting.trajectories(lambda x, u: x, {"plan": states}),
            "system: expected one of dcem.control",
        ),
        (
            lambda states: plotting.trajectories(PointMass(), states),
            r'paths: expected trajectories under labels, such as {"plan": plan.states}, got a Tensor of shape \(3, 4\)',
        ),
        (
            lambda states: plotting.trajectories(PointMass(), {"plan": plan_of(states)}),
            r"paths\['plan'\]: expected a Tensor of states, got Plan; give its \.states",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(call, message) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        call(trajectory(PointMass(), 3))


def plan_of(states: torch.Tensor) -> Plan:
    mpc = MPC(PointMass(), PointMass().cost, 2, 2, solver=dcem.CEM(4, 2), num_iterations=1)
    return mpc(states[0], generator=torch.Generator().manual_seed(0))
