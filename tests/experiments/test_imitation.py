"""The imitation experiment: its expert, its gradients, a tiny run end to end, resuming, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dcem
from dcem.experiments import ConfigError
from dcem.experiments.harness.run import Run
from dcem.experiments.imitation import controller as controllers
from dcem.experiments.imitation import settings, training
from dcem.experiments.imitation.controller import (
    EXPERT,
    Controller,
    Search,
    demonstrate,
    drive,
    parameter_errors,
    residuals,
    running_cost,
)
from dcem.experiments.imitation.study import Study
from dcem.experiments.imitation.task import TASKS, true_plant

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

TINY = {
    "num_demonstrations": [1, 2], "num_steps": 3, "num_seeds": 2, "num_updates": 4, "eval_every": 2, "batch_size": 3,
    "num_samples": 8, "num_elites": 3, "num_iterations": 2, "network_updates": 5, "num_held_out": 2,
    "closed_loop_steps": 2,
}  # fmt: skip


@pytest.fixture
def weak_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert whose plans take no time, for what depends on no plan's quality."""
    monkeypatch.setattr(controllers, "EXPERT", Search(16, 4, 2, dcem.HardTopK(), dcem.Detach()))


def arguments(**more: object) -> list[str]:
    return [f"{key}={str(value).replace(' ', '')}" for key, value in {**TINY, **more}.items()]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": ["fine-tune"]}, "methods: expected one of cost, dynamics,"),
        ({"num_demonstrations": [10, 10]}, "num_demonstrations: expected no entry twice; got"),
        ({"matched_steps": 13}, "matched_steps: expected 1 to 12; got 13"),
        ({"device": "cuda"}, "device: expected cpu; got cuda"),
    ],
)
def test_refuses_what_makes_no_sense(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings.Config(**change).check()


@pytest.mark.usefixtures("weak_expert")
@pytest.mark.parametrize("gradient", settings.GRADIENTS)
def test_plans_are_learned_through_in_every_mode(gradient: str, tmp_path: Path) -> None:
    config = settings.Config(
        **{**TINY, "gradient": gradient, "num_updates": 1, "num_demonstrations": [1], "num_seeds": 1}
    )
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        training.train(Study(config, "matched"), "dynamics", run)
        first, last = run.records()
    moved = first["dynamics_error_1_0"] != last["dynamics_error_1_0"]
    assert moved or gradient == "implicit"  # whose solves would have to converge
    assert math.isfinite(last["imitation_loss_1_0"])


@pytest.mark.parametrize("system", TASKS)
def test_the_expert_is_a_function_of_the_state_and_does_its_task(system: str) -> None:
    task = TASKS[system]
    plant, policy = true_plant(task, True), Controller.true(task).policy()
    states = task.starts(6, torch.Generator().manual_seed(0))
    plans = policy(states)
    assert plans.shape == (6, 12, 1)
    assert plans.abs().max() <= task.max_action
    assert torch.equal(plans, policy(states))
    torch.testing.assert_close(policy(states[2:3])[0], plans[2], rtol=0, atol=1e-3)
    driven = drive(policy, plant, states, 16)
    idle = drive(lambda state: torch.zeros(*state.shape[:-1], 1, 1), plant, states, 16)
    assert running_cost(task, driven) < 0.9 * running_cost(task, idle)
    assert torch.equal(driven.states[:, 1], plant(states, driven.actions[:, 0]))
    first, planned = driven.pairs()
    assert torch.equal(first[17], driven.states[1, 1])
    assert torch.equal(planned[17], driven.plans[1, 1])


@pytest.mark.parametrize("system", TASKS)
def test_runs_of_a_batch_do_not_mix(system: str) -> None:
    task = TASKS[system]
    both = Controller.wrong(task, 0.2, [3, 4])
    states = task.starts(5, torch.Generator().manual_seed(0))
    plans = both.policy()(states.expand(2, *states.shape))
    for i, seed in enumerate((3, 4)):
        alone = Controller.wrong(task, 0.2, [seed])
        assert torch.equal(alone.dynamics[0], both.dynamics[i])
        torch.testing.assert_close(alone.policy()(states.unsqueeze(0))[0], plans[i], rtol=0, atol=1e-3)


@pytest.mark.parametrize("system", TASKS)
def test_errors_ignore_what_no_data_could_tell(system: str) -> None:
    task = TASKS[system]
    controller = Controller.true(task)
    assert all(error == 0 for error in parameter_errors(controller).values())
    with torch.no_grad():
        controller.weights += 1.0  # the scale of a cost changes no plan
    assert parameter_errors(controller)["cost_error"] < 1e-6
    wrong = parameter_errors(Controller.wrong(task, 0.2, range(5)))
    assert (wrong["dynamics_error"] > 0.05).all()
    assert torch.allclose(wrong["goal_error"], torch.tensor(0.1))
    if system == "pendulum":  # lighter in proportion to length², on a planet of gravity in proportion to length
        with torch.no_grad():
            controller.dynamics += torch.tensor([0.3, -0.6, 0.3])
        assert parameter_errors(controller)["dynamics_error"] < 1e-6
        driven = demonstrate(task, True, 2, 4, 0)
        assert residuals(controller.system(), driven).abs().max() < 1e-4


@pytest.mark.usefixtures("weak_expert")
@pytest.mark.parametrize("system", TASKS)
def test_likelihood_finds_the_truth_in_its_class_and_not_outside(system: str) -> None:
    config = settings.Config(**{**TINY, "system": system, "num_demonstrations": [5], "num_steps": 10})
    matched, mismatched = Study(config, "matched"), Study(config, "mismatched")
    errors = {}
    for study in (matched, mismatched):
        controller = study.initial("likelihood")
        study.fit(controller)
        errors[study] = parameter_errors(controller)["dynamics_error"]
    assert (errors[matched] < 0.01).all()
    assert (errors[mismatched] > 0.05).all()


def test_the_gradient_through_the_planner_is_that_of_finite_differences() -> None:
    task = TASKS["cartpole"]
    states, plans = demonstrate(task, True, 2, 4, 0).pairs()
    states, plans = states.double(), plans.double()

    def loss(dynamics: torch.Tensor) -> torch.Tensor:
        wrong = Controller.wrong(task, 0.1, [0])
        controller = Controller(task, dynamics, wrong.weights[0].double(), wrong.goal[0].double())
        del controller.dynamics  # a copy
        controller.dynamics = dynamics
        search = Search(32, 6, 4, dcem.LML(0.3), dcem.Unroll())
        planned = controller.planner(search)(states, generator=torch.Generator().manual_seed(0)).actions
        return ((planned - plans) / task.max_action).square().mean()

    start = Controller.wrong(task, 0.1, [0]).dynamics[0].detach().double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, rtol=1e-4, atol=1e-8)


def test_learning_brings_the_plans_to_the_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "HORIZON", 8)
    config = settings.Config(
        system="cartpole", num_demonstrations=[4], num_steps=8, num_seeds=1, num_updates=20, num_held_out=3,
        closed_loop_steps=2, eval_every=20, num_samples=48, num_elites=8, lr=0.05,
    )  # fmt: skip
    study = Study(config, "matched")
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        training.train(study, "dynamics", run)
        first, last = run.records()
    assert last["imitation_loss_4_0"] < 0.3 * first["imitation_loss_4_0"]
    assert last["dynamics_error_4_0"] < first["dynamics_error_4_0"]


def test_everyone_is_judged_by_the_same_search() -> None:
    assert EXPERT.num_samples >= 100
    config = settings.Config(gradient="implicit")
    assert isinstance(config.search.gradient, dcem.Implicit)
    assert isinstance(config.search.selection, dcem.HardTopK)
    assert isinstance(settings.Config().search.selection, dcem.LML)
