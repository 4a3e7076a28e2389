"""`dcem mpc`: what a tiny run leaves, that a stopped one resumes to the same, and that every rival plans."""

from __future__ import annotations

import json
import os

os.environ.setdefault("MUJOCO_GL", "disabled")

from pathlib import Path

import numpy as np
import pytest
import torch

from dcem.control import tasks as mpc_tasks
from dcem.control.tasks import costs
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Interrupted, Run
from dcem.experiments.harness.settings import Search
from dcem.experiments.mpc import benchmark as mpc_benchmark
from dcem.experiments.mpc import comparison, settings
from dcem.experiments.mpc import methods as mpc_methods

pytest.importorskip("gymnasium")
pytest.importorskip("dm_control")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]
TINY = ["num_samples=8", "num_elites=2", "num_iterations=2", "length=0.015", "decoder_updates=2", "timing_rounds=1"]
INSTALLED = [method for method in mpc_methods.LABELS if mpc_methods.is_installed(method)]


def test_a_tiny_run_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mpc", *TINY, "tasks=[pendulum,reacher]", "num_seeds=2", f"hydra.run.dir={tmp_path}"]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert list(metrics) == ["pendulum", "reacher"]
    assert list(metrics["pendulum"]) == INSTALLED
    assert list(metrics["reacher"]) == [method for method in INSTALLED if method != "learned"]
    for of_task in metrics.values():
        for of_method in of_task.values():
            assert len(of_method["returns"]) == 2
            assert of_method["milliseconds"] > 0
            assert of_method["replaced"] == 0
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("`dcem mpc")
    assert all(mpc_methods.LABELS[method] in table for method in INSTALLED)
    assert {path.name for path in tmp_path.glob("*.png")} == {"returns.png", "milliseconds.png"}


def test_a_rival_that_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mpc_methods.RIVALS, "torchrl-cem", "a_package_that_nobody_has")
    arguments = ["mpc", *TINY, "tasks=[reacher]", "methods=[cem,torchrl-cem]", "num_seeds=1"]
    assert main([*arguments, f"hydra.run.dir={tmp_path}"]) == 0
    assert "TorchRL CEMPlanner is left out: a_package_that_nobody_has is not installed" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "summary.json").read_text())["metrics"]["reacher"]) == ["cem"]


def test_a_stopped_run_resumes_to_the_same_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings.Config(
        tasks=["pendulum"], methods=["icem", "learned", "pytorch-mppi"], num_samples=8, num_elites=2, num_iterations=2,
        length=0.015, decoder_updates=2, timing_rounds=1, num_seeds=2,
    )  # fmt: skip
    do = mpc_benchmark.Benchmark.do

    def returns(folder: Path, resume: bool = False) -> dict[str, list[float]]:
        with Run(folder, {}, seed=0, quiet=True, resume=resume) as run:
            results = comparison.main(config, run)
        return {method: of_method["returns"] for method, of_method in results["pendulum"].items()}

    whole = returns(tmp_path / "whole")
    done = 0

    def stops(benchmark: mpc_benchmark.Benchmark, job: mpc_benchmark.Job) -> dict[str, float]:
        nonlocal done
        done += 1
        if done == 5:
            raise Interrupted(143)
        return do(benchmark, job)

    monkeypatch.setattr(mpc_benchmark.Benchmark, "do", stops)
    with pytest.raises(SystemExit):
        returns(tmp_path / "stopped")
    monkeypatch.setattr(mpc_benchmark.Benchmark, "do", do)
    assert returns(tmp_path / "stopped", resume=True) == whole


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "reacher", "point-mass"])
def test_costs_are_the_rewards_of_the_tasks_and_what_leads_to_them(name: str) -> None:
    task = mpc_tasks.load(name, 1.0, 1)
    rewarded = 0
    for seed in range(20):
        task.env.task.random.seed(seed)
        task.env.reset()
        with task.env.physics.reset_context():
            task.env.physics.data.qpos[:] *= seed / 20  # but for the reacher, the goals are at 0
        action = torch.rand(task.num_actions, generator=torch.Generator().manual_seed(seed)) - 0.5
        reward = task.env.step(action.numpy()).reward
        rewarded += reward > 0.1
        state = task.state_of(None, task.env)
        cost = float(task.cost(state, action))
        speed = float(state[2:4].square().sum())
        if name == "cartpole":
            assert cost == pytest.approx(-reward, abs=1e-5)
        elif name == "acrobot":
            distance = float(costs.acrobot_distance(state))
            assert distance == pytest.approx(task.env.physics.to_target(), abs=1e-5)
            assert cost == pytest.approx(distance / 4 - reward + 0.001 * speed, abs=1e-5)
        elif name == "reacher":
            distance = float(costs.reacher_distance(state))
            assert distance == pytest.approx(task.env.physics.finger_to_target_dist(), abs=1e-5)
            assert reward == float(distance <= 0.02)
        else:
            distance = float(costs.point_mass_distance(state))
            assert distance == pytest.approx(np.hypot(*task.env.physics.mass_to_target()[:2]), abs=1e-5)
            assert cost == pytest.approx(5 * distance - reward, abs=1e-4)
    assert rewarded or name == "reacher"


@pytest.mark.parametrize("method", INSTALLED)
def test_every_method_swings_the_pendulum_the_cheap_way(method: str) -> None:
    """Near the top, at rest to the left of it, each pushes to the right; none is at its bounds by accident."""
    on = mpc_tasks.load("pendulum", 1.0, 1)
    budget = Search(64, 8, 4)
    torch.manual_seed(0)
    benchmark = mpc_benchmark.Benchmark(settings.Config(decoder_updates=25))
    if method == "learned":
        benchmark.train_decoder()
    policy = mpc_methods.controller(method, on, budget, benchmark.decoder)
    decide = mpc_benchmark.decider(policy)
    state = torch.tensor([[0.9950, 0.0998, 0.0]])
    actions = torch.stack([decide(state)[0, 0] for _ in range(6)])
    assert actions[2:].mean() < -0.2


def test_settings_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in {
        "tasks=[humanoid]": "tasks: expected some of pendulum,",
        "methods=[]": "methods: expected some of cem,",
        "num_elites=100": "num_elites: expected 2 to num_samples; got 100",
        "length=2": "length: expected above 0 and at most 1; got 2",
        "device=cuda": "device: expected cpu",
    }.items():
        assert main(["mpc", arguments]) == 2
        assert says in capsys.readouterr().err
