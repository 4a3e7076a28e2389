"""The fine-tuning experiment: its plants, its controllers, a tiny run end to end, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dcem

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("torchrl")

from torchrl.envs import check_env_specs  # noqa: E402

from dcem.experiments.finetune import figures, settings  # noqa: E402
from dcem.experiments.finetune.algorithms import ppo, sac  # noqa: E402
from dcem.experiments.finetune.hyperparameters import PPO, SAC  # noqa: E402
from dcem.experiments.finetune.learner import Learner, network  # noqa: E402
from dcem.experiments.finetune.task import TASKS, LearnedCost, LearnedSystem, controller, make_env  # noqa: E402
from dcem.experiments.harness.command import main  # noqa: E402
from dcem.experiments.harness.run import Interrupted, Run  # noqa: E402
from dcem.rl import Actor, SystemEnv  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

TINY = {
    "episode": 8, "num_samples": 4, "num_elites": 2, "num_judged": 2, "num_seeds": 1,
    "ppo.num_steps": 16, "ppo.batch_size": 8, "ppo.num_envs": 2, "ppo.critic_epochs": 1, "ppo.num_epochs": 1,
    "ppo_network.num_steps": 16, "ppo_network.num_envs": 2, "ppo_network.batch_size": 8, "ppo_network.num_epochs": 1,
    "ppo_network.eval_every": 1,
    "sac.num_steps": 8, "sac.num_envs": 2, "sac.warm_up": 4, "sac.batch_size": 4, "sac.eval_every": 8,
    "sac_network.num_steps": 8, "sac_network.warm_up": 4, "sac_network.batch_size": 4, "sac_network.eval_every": 8,
}  # fmt: skip


def arguments(**more: object) -> list[str]:
    return [f"{key}={str(value).replace(' ', '')}" for key, value in {**TINY, **more}.items()]


def test_a_plant_steps_and_is_rewarded_as_gymnasiums() -> None:
    env, theirs = SystemEnv(TASKS["pendulum"].plant(), 1, 0), gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    check_env_specs(make_env(TASKS["pendulum"], 2, 0))
    step = env.reset()
    theirs.state = [
        math.atan2(float(step["observation"][0, 1]), float(step["observation"][0, 0])),
        float(step["observation"][0, 2]),
    ]
    for action in (1.5, -3.0, 0.4):
        step = env.step(step.set("action", torch.tensor([[action]])))
        observation, reward, *_ = theirs.step([action])
        torch.testing.assert_close(step["next", "observation"][0], torch.as_tensor(observation), atol=1e-5, rtol=1e-5)
        assert step["next", "reward"].item() == pytest.approx(reward, rel=1e-4)
        step = env.step_mdp(step)


@pytest.mark.parametrize("name", list(TASKS))
def test_what_is_believed_is_wrong_by_30_to_50_percent_and_the_truth_is_in_reach(name: str) -> None:
    task = TASKS[name]
    for key, true in task.physics.items():
        assert 0.3 - 1e-9 <= abs(task.believed[key] / true - 1) <= 0.5
    plant, learned, cost = task.plant(), LearnedSystem(task, task.physics), LearnedCost(task, task.weights)
    states, actions = plant.sample_states(20), torch.rand(20, 6, 1) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(learned(states, actions[:, 0]), plant(states, actions[:, 0]))
        torch.testing.assert_close(learned.rollout(states, actions), dcem.control.rollout(plant, states, actions))
        ours, theirs = cost(states, actions[:, 0]), plant.cost(states, actions[:, 0])
        torch.testing.assert_close(ours - ours.mean(), theirs - theirs.mean(), atol=0.02, rtol=0.02)
    for wrong in (None, "model", "cost"):
        mpc = controller(task, wrong, dcem.Unroll(), 8, 2)
        trained = {name.split(".")[0] for name, p in mpc.named_parameters() if p.requires_grad}
        assert trained == ({"dynamics"} if wrong == "model" else {"cost"} if wrong == "cost" else set())


def test_a_tiny_run_leaves_everything(tmp_path: Path) -> None:
    assert main(["finetune", *arguments(tasks="[pendulum]"), f"hydra.run.dir={tmp_path}"]) == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert set(metrics) == {"pendulum", "pendulum-model", "pendulum-cost"}
    assert set(metrics["pendulum"]) == {"oracle", "ppo-network", "sac-network"}
    assert set(metrics["pendulum-model"]) == {"untuned", "ppo", "sac", "ppo-likelihood"}
    assert set(metrics["pendulum-cost"]) == {"untuned", "ppo", "sac"}
    assert all(math.isfinite(of["return"]) for methods in metrics.values() for of in methods.values())
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("`dcem finetune")
    assert all(label in table for label in settings.METHODS.values())
    assert {path.stem for path in tmp_path.glob("*.png")} == {"pendulum-model", "pendulum-cost"}
    for name, parts in {
        "pendulum-model-ppo-0": ("mass", "length"),
        "pendulum-cost-sac-0": ("weight_0", "weight_1"),
    }.items():
        first, *_, last = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert any(first[part] != last[part] for part in parts)
        assert {part for part in ("mass", "weight_0") if first[part] != last[part]} <= set(parts)


def learner_and_settings(algorithm: str) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    task = dataclasses.replace(TASKS["pendulum"], num_steps=8)
    if algorithm == "ppo":
        policy: Any = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
        return (
            Learner(task, policy, 0, 2),
            PPO(num_steps=32, num_envs=2, num_epochs=1, critic_epochs=1, batch_size=8),
            ppo,
        )
    policy = network(task, "sac")
    return Learner(task, policy, 0, 2), SAC(num_steps=32, num_envs=2, warm_up=8, batch_size=4, eval_every=8), sac


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_stopped_run_goes_on_to_the_same_result(tmp_path: Path, algorithm: str) -> None:
    """Environments, replay, plans, optimisers and draws included."""

    def play(folder: Path, stop: int | None = None, resume: bool = False) -> list[dict[str, Any]]:
        learner, hyper, learn = learner_and_settings(algorithm)
        with Run(folder, {}, seed=0, resume=resume, quiet=True) as run:
            if stop is not None:
                steps, checkpoint = run.steps, run.checkpoint

                def stopped(total: int, every: int, description: str) -> Any:
                    for step in steps(total, every, description):
                        yield step
                        if step == stop:
                            run.step += 1
                            checkpoint()
                            raise Interrupted(130)

                run.steps = stopped  # type: ignore[method-assign]
            learn(learner, hyper, run)
            return run.records()

    whole = play(tmp_path / "whole")
    with pytest.raises(Interrupted):
        play(tmp_path / "parts", stop=1 if algorithm == "ppo" else 9)
    assert play(tmp_path / "parts", resume=True) == whole


def test_steps_to_the_goal() -> None:
    def seeds(*curves: list[float]) -> list[list[dict[str, Any]]]:
        return [[{"step": 10 * i, "return": value} for i, value in enumerate(of)] for of in curves]

    records = {
        "p": {
            "oracle": [[{"step": 0, "return": -100.0}]],
            "ppo-network": seeds([-900, -300, -104], [-900, -200, -105]),
        },
        "p-model": {"ppo": seeds([-400, -104, -101], [-400, -103, -103])},
    }
    values = figures.metrics(records)
    assert values["p-model"]["ppo"]["steps_to_goal"] == 10
    assert values["p"]["ppo-network"]["steps_to_goal"] == 20
    assert values["p-model"]["ppo"]["return"] == -102
    assert "| 10 |" in figures.table(records, values, settings.METHODS)
    records["p"]["oracle"][0][0]["return"] = 100.0
    assert figures.metrics(records)["p-model"]["ppo"]["steps_to_goal"] is None


@pytest.mark.parametrize(("override", "message"), [
    ("tasks=[acrobot]", "tasks: expected some of pendulum, cartpole; got ['acrobot']"),
    ("methods=[]", "methods: expected some of"),
    ("gradient=implicit", "gradient: expected one of unroll, checkpoint, truncate, prune; got implicit"),
    ("num_elites=99", "num_elites: expected 1 to num_samples; got 99"),
    ("ppo.num_envs=0", "ppo.num_envs: expected at least 1; got 0"),
    ("ppo.batch_size=9999", "ppo.batch_size: expected at most 800; got 9999"),
])  # fmt: skip
def test_settings_that_make_no_sense(capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert main(["finetune", override]) == 2
    assert message in capsys.readouterr().err
