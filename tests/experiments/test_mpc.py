"""`dcem mpc`: what a tiny run leaves, that a stopped one resumes to the same, and that every rival plans."""

from __future__ import annotations

import json
import os

os.environ.setdefault("MUJOCO_GL", "disabled")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcem.control import tasks as mpc_tasks
from dcem.control.tasks import costs, suite
from dcem.experiments import ConfigError
from dcem.experiments.harness.command import main
from dcem.experiments.harness.settings import Search
from dcem.experiments.mpc import benchmark as mpc_benchmark
from dcem.experiments.mpc import figures, report, settings
from dcem.experiments.mpc import methods as mpc_methods

pytest.importorskip("gymnasium")
pytest.importorskip("dm_control")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]
TINY = ["num_samples=8", "num_elites=2", "num_iterations=2", "length=0.015", "decoder_updates=2", "timing_rounds=1"]
INSTALLED = [method for method in mpc_methods.LABELS if mpc_methods.is_installed(method)]


def test_a_rival_that_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mpc_methods.RIVALS, "torchrl-cem", "a_package_that_nobody_has")
    arguments = ["mpc", *TINY, "tasks=[reacher]", "methods=[cem,torchrl-cem]", "num_seeds=1"]
    assert main([*arguments, f"hydra.run.dir={tmp_path}"]) == 0
    assert "TorchRL CEMPlanner is left out: a_package_that_nobody_has is not installed" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "summary.json").read_text())["metrics"]["reacher"]) == ["cem"]


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
        reward = task.env.env.step(action.numpy()).reward  # of the first of the steps that it is held for
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
def test_every_method_swings_the_pendulum_the_cheap_way(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the top, at rest to the left of it, each pushes to the right; none is at its bounds by accident."""
    monkeypatch.setitem(mpc_tasks.HORIZONS, "pendulum", 10)
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": ["humanoid"]}, "tasks: expected some of pendulum,"),
        ({"methods": ["cem", "cem"]}, "methods: expected no entry twice"),
        ({"num_elites": 100}, "num_elites: expected 2 to num_samples; got 100"),
        ({"length": 2}, "length: expected above 0 and at most 1; got 2"),
        ({"length": 1e-9}, "length: expected at least 0.005, a step of the pendulum; got 1e-09"),
        ({"tasks": ["reacher"], "methods": ["learned"]}, "methods: expected an installed one that runs on reacher; "),
        ({"device": "cuda"}, "device: expected cpu; got cuda"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings.Config(**change).check()


def test_a_table_without_dcem_has_no_times_of_it() -> None:
    """`dcem mpc methods=[icem]` printed nan."""
    icem = {"returns": [-150.0, -160.0], "scores": [0.9, 0.8], "milliseconds": 2.0, "replaced": 0}
    results = {"pendulum": {"icem": icem}}
    head, _, row = report.table(results).splitlines()
    assert "times DCEM's" in head
    assert row == "| Pendulum-v1 | iCEM | -155.0 | 0.85 ± 0.64 |  | 2.0 |  |"
    results["pendulum"] |= {"dcem": {**icem, "milliseconds": 4.0}}
    assert report.table(results).splitlines()[2].endswith("| 2.0 | 0.50 |")
    results["pendulum"]["dcem"]["milliseconds"] = 0.0  # by a coarse clock
    assert report.table(results).splitlines()[2].endswith("| 2.0 |  |")


def test_a_figure_names_other_packages_only_where_there_are_some() -> None:
    of = {"returns": [-150.0, -160.0], "milliseconds": 2.0}
    assert figures.bars({"pendulum": {"cem": of, "icem": of}}, "returns", "return").legends == []
    (legend,) = figures.bars({"pendulum": {"cem": of, "pytorch-mppi": of}}, "returns", "return").legends
    assert [text.get_text() for text in legend.get_texts()] == ["dcem", "other packages"]


@pytest.mark.parametrize(
    "name", ["cartpole", "acrobot", "acrobot-hanging", "reacher", "point-mass", "cheetah", "walker"]
)
def test_an_episode_returns_what_the_task_itself_does(name: str) -> None:
    """An action that is held for several steps earns the rewards of all, and a whole episode lasts a thousand."""
    from dm_control import suite as of_dm_control

    held = mpc_tasks.environment(name, 0.02)
    domain, task = mpc_tasks.LABELS[name].partition(",")[0].split(".")
    plain = of_dm_control.load(domain, task, task_kwargs={"random": 0})
    for env in (held, plain):
        env.task.random.seed(3)
        env.reset()
    with plain.physics.reset_context():
        plain.physics.set_state(held.physics.get_state())
    assert round(mpc_tasks.SECONDS[name] / plain.control_timestep()) == 1000
    skip = suite.HELD[name]
    assert held.control_timestep() == pytest.approx(skip * plain.control_timestep())
    generator = torch.Generator().manual_seed(0)
    for decision in range(20 // skip):
        action = torch.rand(plain.action_spec().shape, generator=generator).numpy() - 0.5
        step = held.step(action)
        reward = sum(plain.step(action).reward for _ in range(skip))
        assert step.reward == pytest.approx(reward)
        assert step.last() == (decision == 20 // skip - 1)
    assert np.allclose(held.physics.get_state(), plain.physics.get_state())


@pytest.mark.parametrize("name", ["cartpole", "cheetah", "walker"])
def test_the_cost_is_the_reward_but_of_who_goes_backwards(name: str) -> None:
    """Of states all over the task's range, after a step, which is when dm_control judges them."""
    task = mpc_tasks.load(name, 1.0, 1)
    env, random = task.env.env, np.random.default_rng(0)
    same = 0
    for seed in range(20):
        env.task.random.seed(seed)
        env.reset()
        with env.physics.reset_context():
            env.physics.data.qvel[:] = 3 * random.standard_normal(env.physics.model.nv)
            if name == "walker":
                env.physics.data.qpos[:3] = random.uniform((-1.0, 0.0, -1.0), (0.3, 1.0, 1.0))
        action = random.uniform(-1, 1, task.num_actions)
        reward = env.step(action).reward
        cost = float(task.cost(task.state_of(None, task.env).double(), torch.from_numpy(action)))
        assert -cost <= reward + 1e-4
        if name == "cartpole" or env.physics.named.data.sensordata["torso_subtreelinvel"][0] > 0:
            assert -cost == pytest.approx(reward, abs=1e-4)
            same += 1
    assert same > 5


def test_the_acrobot_hangs_where_it_is_to() -> None:
    heights = {}
    for name in ("acrobot", "acrobot-hanging"):
        env = mpc_tasks.environment(name, 0.01)
        for seed in range(10):
            env.task.random.seed(seed)
            env.reset()
            heights.setdefault(name, []).append(float(env.physics.named.data.site_xpos["tip", "z"]))
    assert max(heights["acrobot-hanging"]) < 0.1  # of 4 m
    assert max(heights["acrobot"]) - min(heights["acrobot"]) > 2


@pytest.mark.parametrize("name", ["cartpole", "acrobot"])
def test_the_coarse_model_follows_the_plant(name: str) -> None:
    task = mpc_tasks.load(name, 1.0, 1)
    action = torch.full((1, 5, 1), 0.5)
    task.env.task.random.seed(0)
    task.env.reset()
    predicted = task.model.rollout(task.state_of(None, task.env).unsqueeze(0), action)
    assert task.model.dt == pytest.approx(task.env.control_timestep())
    for step in range(5):
        task.env.step(action[0, step].numpy())
        torch.testing.assert_close(predicted[0, step + 1], task.state_of(None, task.env), atol=2e-3, rtol=0)


def test_every_method_starts_where_the_others_do() -> None:
    """And is told from which start which return is."""
    config = settings.Config(num_samples=4, num_elites=2, num_iterations=1, length=0.01, num_seeds=3, seed=5)
    benchmark = mpc_benchmark.Benchmark(config)
    first = {}
    for method in ("", *(of for of in INSTALLED if of != "learned")):
        states = benchmark.episodes("pendulum", method, record=True).states
        first[method] = states[0]
    assert all(torch.equal(states, first[""]) for states in first.values())
    alone = mpc_benchmark.Benchmark(settings.Config(length=0.01, num_seeds=1, seed=6))
    assert torch.equal(alone.episodes("pendulum", "", record=True).states[0, 0], first[""][1])


def test_scores_are_between_doing_nothing_and_the_most() -> None:
    config = settings.Config(tasks=["reacher", "pendulum"], methods=["cem"], num_seeds=2)
    benchmark = mpc_benchmark.Benchmark(config)
    jobs = benchmark.jobs()
    assert [(job.kind, job.task) for job in jobs[:3]] == [
        ("time", "reacher"),
        ("idle", "reacher"),
        ("episodes", "reacher"),
    ]
    of_kind = {
        "time": {"cem": 2.0},
        ("idle", "reacher"): {"return_0": 0.0, "return_1": 200.0, "replaced": 0.0},
        ("episodes", "reacher"): {"return_0": 1000.0, "return_1": 550.0, "replaced": 3.0},
        ("idle", "pendulum"): {"return_0": -1000.0, "return_1": -1000.0, "replaced": 0.0},
        ("episodes", "pendulum"): {"return_0": -250.0, "return_1": -1500.0, "replaced": 0.0},
    }
    records = [{"step": i + 1, **(of_kind.get(job.kind) or of_kind[job.kind, job.task])} for i, job in enumerate(jobs)]
    found = report.collect(benchmark, jobs, records)
    assert found["reacher"]["cem"]["scores"] == [1.0, 0.5]
    assert found["reacher"]["cem"]["replaced"] == 3
    assert found["pendulum"]["cem"]["scores"] == [0.75, -0.5]


def test_methods_are_added_to_a_finished_run_without_playing_its_own_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(methods: str, folder: str, *more: str) -> dict[str, Any]:
        where = f"hydra.run.dir='{tmp_path / folder}'"
        assert main(["mpc", *TINY, "tasks=[pendulum]", f"methods=[{methods}]", "num_seeds=2", where, *more]) == 0
        of: dict[str, Any] = json.loads((tmp_path / folder / "summary.json").read_text())["metrics"]["pendulum"]
        return of

    played, real = [], mpc_benchmark.Benchmark.episodes

    def episodes(self: Any, task: str, method: str) -> Any:
        played.append(method)
        return real(self, task, method)

    def times(self: Any, task: str) -> dict[str, float]:
        timed.append(self.methods(task))
        return dict.fromkeys(self.methods(task), float(len(timed)))

    timed: list[list[str]] = []
    monkeypatch.setattr(mpc_benchmark.Benchmark, "episodes", episodes)
    monkeypatch.setattr(mpc_benchmark.Benchmark, "time", times)
    whole = run("cem,icem", "whole")
    run("cem", "seed=0,of=[first]")  # as folders are named by default
    played.clear()
    added = run("cem,icem", "added", f"reuse={tmp_path / 'seed=0,of=[first]'}")
    assert played == ["", "icem"]
    assert list(added) == ["cem", "icem"]
    for method, of in added.items():
        assert of["returns"] == whole[method]["returns"]
        assert of["scores"] == whole[method]["scores"]
    assert added["cem"]["milliseconds"] == 3.0  # anew, in turn with the others
    capsys.readouterr()
    assert main(["mpc", *TINY, "num_seeds=3", f"reuse={tmp_path / 'seed=0,of=[first]'}"]) == 2
    said = capsys.readouterr().err
    assert (
        "reuse: expected the settings of that run of `dcem mpc` again, tasks=[pendulum] num_seeds=2; got tasks=" in said
    )
    assert main(["mpc", *TINY, f"reuse={tmp_path / 'none'}"]) == 2
    assert "none/summary.json: expected the summary of a run" in capsys.readouterr().err
