"""The fine-tuning experiment: its plants, its controllers, a tiny run end to end, resuming, refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dcem

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("torchrl")

from torchrl.envs import check_env_specs  # noqa: E402

from dcem.experiments import ConfigError  # noqa: E402
from dcem.experiments.finetune import algorithms, figures, settings  # noqa: E402
from dcem.experiments.finetune.hyperparameters import PPO, SAC  # noqa: E402
from dcem.experiments.finetune.learner import Learner  # noqa: E402
from dcem.experiments.finetune.task import TASKS, LearnedCost, LearnedSystem, controller, make_env  # noqa: E402
from dcem.experiments.harness.run import Run  # noqa: E402
from dcem.rl import Actor, SystemEnv  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]


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


def test_the_policy_is_updated_by_all_steps_at_once_and_the_critic_by_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    minibatches = algorithms._minibatches

    def watched(data: Any, size: int) -> Any:
        drawn.append(size)
        return minibatches(data, size)

    monkeypatch.setattr(algorithms, "_minibatches", watched)
    task = replace(TASKS["pendulum"], num_steps=6, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    tuning = PPO(num_steps=12, num_envs=2, critic_batch_size=4, critic_epochs=3)
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        algorithms.ppo(Learner(task, policy, 0, 2), tuning, run)
        beliefs = [line["mass"] for line in run.records()]
    assert drawn == [4, 4, 4, 12]
    assert abs(math.log(beliefs[1] / beliefs[0])) == pytest.approx(tuning.lr, rel=1e-2)  # Adam's first step, one


def test_rate_and_exploration_fall_along_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(TASKS["pendulum"], num_steps=6, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    stds, rates = [], []

    def watched(loss: Any, data: Any, settings: Any, weights: Any, learner: Any, optimizers: Any) -> float:
        stds.append(data["scale"].unique().tolist())
        rates.append(optimizers[0].param_groups[0]["lr"])
        return 0.0

    monkeypatch.setattr(algorithms, "_improve", watched)
    tuning = PPO(num_steps=36, num_envs=2, critic_batch_size=4, critic_epochs=1, decay=True, final_std=0.25)
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        algorithms.ppo(Learner(task, policy, 0, 2), tuning, run)
    assert stds == [[pytest.approx(share * task.std)] for share in (1.0, 0.625, 0.25)]
    assert rates == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("wrong", [None, "model", "cost"])
def test_the_likelihood_is_highest_at_the_truth(name: str, wrong: str | None) -> None:
    task = TASKS[name]
    learner = Learner(task, Actor(controller(task, wrong, dcem.Unroll(), 4, 2), std=task.std), 0, 2)
    data = learner.envs(3).rollout(5)
    losses = learner.likelihood(data)
    assert losses.keys() == {"loss_dynamics", "loss_reward"}
    assert (losses["loss_dynamics"].item() > 1e-4) is (wrong == "model")
    assert (losses["loss_reward"].item() > 1e-4) is (wrong == "cost")
    if wrong is not None:
        (slope,) = torch.autograd.grad(
            sum(losses.values()), [p for p in learner.policy.parameters() if p.requires_grad]
        )
        assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_the_likelihood_moves_the_model_to_the_truth(tmp_path: Path, algorithm: str) -> None:
    task = replace(TASKS["pendulum"], num_steps=20, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    tuning: Any = PPO(num_steps=1600, num_envs=4, critic_epochs=0, eval_every=1600)
    if algorithm == "sac":
        tuning = SAC(
            num_steps=80, warm_up=8, batch_size=32, critic_first=1.0, lr=0.05, eval_every=80, steps_per_update=1
        )
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        getattr(algorithms, algorithm)(Learner(task, policy, 0, 2), tuning, run, likelihood=1000.0)
        first, last = run.records()[0], run.records()[-1]
    for part in ("mass", "length"):
        assert abs(math.log(last[part])) < 0.3 * abs(math.log(first[part])), part


@pytest.mark.parametrize(("critic_first", "moves"), [(0.0, [False, True, True]), (1 / 3, [False, False, True])])
def test_values_learn_before_the_policy_follows_them(tmp_path: Path, critic_first: float, moves: list[bool]) -> None:
    task = replace(TASKS["pendulum"], num_steps=6, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    tuning = SAC(
        num_steps=24, num_envs=4, warm_up=8, critic_first=critic_first, steps_per_update=4, batch_size=8, eval_every=8
    )
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        algorithms.sac(Learner(task, policy, 0, 2), tuning, run)
        beliefs = [line["mass"] for line in run.records()]
    assert len(beliefs) == 4
    assert [after != before for before, after in itertools.pairwise(beliefs)] == moves


def test_values_learn_from_steps_that_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(TASKS["pendulum"], num_steps=6, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    batches, returns = [], []

    class Watched(algorithms.SACLoss):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            batches.append(batch.clone())
            worthless = batch.clone().set(("next", "state_value"), torch.zeros(*batch.shape, 1))
            returns.append(self.value_estimator.value_estimate(worthless).squeeze(-1))
            return super().forward(batch)

    monkeypatch.setattr(algorithms, "SACLoss", Watched)
    tuning = SAC(num_steps=40, warm_up=0, batch_size=12, slice_length=3, td_lambda=0.5, discount=0.9)
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        algorithms.sac(Learner(task, policy, 0, 2), tuning, run)
    assert len(batches) == (40 - 12) // 4
    for batch, of in zip(batches, returns, strict=True):
        assert batch.names == [None, "time"]
        torch.testing.assert_close(batch["observation"][:, 1:], batch["next", "observation"][:, :-1])
        assert not batch["next", "done"][:, :-1].any()
        rewards = batch["next", "scaled"].squeeze(-1)
        assert rewards.shape == (4, 3)
        torch.testing.assert_close(of, rewards @ torch.tensor([[1, 0, 0], [0.45, 1, 0], [0.45**2, 0.45, 1]]))


def test_rate_and_exploration_of_sac_fall_from_where_the_policy_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(TASKS["pendulum"], num_steps=6, horizon=2)
    policy = Actor(controller(task, "model", dcem.Unroll(), 4, 2), std=task.std)
    rates, stds = [], []

    def watched(optimizer: torch.optim.Optimizer, norm: float) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])
        stds.append(policy.planner.std.item() / task.std)

    monkeypatch.setattr(algorithms, "_clip", watched)
    tuning = SAC(num_steps=24, warm_up=4, critic_first=1 / 3, lr=0.1, critic_lr=0.01, decay=True, batch_size=8)
    tuning.final_std = 0.25
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        algorithms.sac(Learner(task, policy, 0, 2), tuning, run)
    assert rates == [pytest.approx([share * 0.1, 0.01]) for share in (1, 1, 1, 2 / 3, 1 / 3)]
    assert stds == pytest.approx([1, 1, 1, 0.75, 0.5])


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


def test_a_goal_is_shown_to_be_reached_seed_by_seed() -> None:
    """Seeds that differ by themselves say nothing of the difference: the mean is there first, its interval later."""
    oracle = [-60.0, -100.0, -140.0]
    lost = [[300.0, 290.0, 310.0], [0.0, 6.0, 3.0], [2.0, 3.0, 2.5]]
    runs = [
        [{"step": 10 * i, "return": of - step[seed]} for i, step in enumerate(lost)] for seed, of in enumerate(oracle)
    ]
    records = {"p": {"oracle": [[{"step": 0, "return": of}] for of in oracle]}, "p-model": {"sac": runs}}
    values = figures.metrics(records)
    found = values["p-model"]["sac"]
    assert found["steps_to_goal"] == 10
    assert found["steps_until_shown"] == 20  # 3 ± 7.5 of 5 after 10
    assert found["difference"] == pytest.approx((-2.5, 4.302653 * 0.5 / math.sqrt(3)), rel=1e-3)
    assert "| -2.5 ± 1.2 | 10 | 20 |" in figures.table(records, values, settings.METHODS)
    del records["p"]["oracle"][0]
    assert figures.metrics(records)["p-model"]["sac"]["steps_until_shown"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["acrobot"]}, "tasks: expected some of pendulum, cartpole; got \\['acrobot'\\]"),
        ({"tasks": ["pendulum", "pendulum"]}, "tasks: expected no entry twice"),
        ({"methods": []}, "methods: expected some of"),
        ({"methods": ["ppo"], "wrong": []}, r"methods: expected one that runs with wrong=\[\]; got \['ppo'\]"),
        ({"ppo": PPO(num_steps=8, num_envs=0)}, "ppo.num_envs: expected at least 1; got 0"),
        (
            {"ppo": PPO(num_steps=8, batch_size=9999)},
            "ppo.batch_size: expected at most 800, the steps of an iteration; got 9999",
        ),
        (
            {"sac": SAC(batch_size=20, slice_length=8)},
            "sac.batch_size: expected a multiple of sac.slice_length=8; got 20",
        ),
        (
            {"sac_network": SAC(batch_size=101, slice_length=101)},
            "sac_network.slice_length: expected at most 100, the steps of an episode; got 101",
        ),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.Config(**change).check()
