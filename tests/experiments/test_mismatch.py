"""Objective mismatch: its study, its plant and its parts, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcem.control import rollout
from dcem.experiments import ConfigError
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import descend
from dcem.experiments.mismatch import deployment, settings, study
from dcem.experiments.mismatch import task as mismatch_task
from dcem.experiments.mismatch import training as mismatch
from dcem.world import DynamicsNet

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

SIZES: dict[str, Any] = {
    "widths": [1, 2], "distractors": [2], "distractor_width": 2, "adversary_width": 2, "num_episodes": 4,
    "episode_length": 5, "fit_updates": 10, "adversary_references": [2, 1], "num_updates": 4, "batch_size": 3,
    "eval_every": 2, "num_replans": 2, "num_executed": 2, "horizon": 4, "num_samples": 8, "num_elites": 2, "num_iterations": 2,
    "num_steps": 3, "num_valid": 3, "num_test": 3,
}  # fmt: skip
CONFIG = settings.Config(**SIZES)
FEWER: dict[str, Any] = {"fit_updates": 2, "num_updates": 2, "num_replans": 1, "num_steps": 2}
TINY = [f"{key}={value}".replace(" ", "") for key, value in (SIZES | FEWER).items()]
NAMES = ["width-1", "width-2", "distractors-2"]
MODELS = {f"{kind}-{name}" for kind in study.LABELS for name in NAMES} | set(study.phases(SIZES))


def test_a_study_leaves_everything(tmp_path: Path) -> None:
    """Of one run, and of another that differs in its seed and its numbers."""
    first, second = (tmp_path / "runs" / seed for seed in "01")
    assert main(["mismatch", *TINY, f"hydra.run.dir={first}"]) == 0
    shutil.copytree(first, second)
    summary = json.loads((second / "summary.json").read_text())
    assert summary["metrics"].keys() == MODELS | set(study.REFERENCES)
    for of in summary["metrics"].values():
        of.update({key: 1.1 * value for key, value in of.items()})
    (second / "summary.json").write_text(json.dumps(summary))
    (second / "config.yaml").write_text((first / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert main(["mismatch-study", f"runs={tmp_path}/runs", f"hydra.run.dir={tmp_path}/study"]) == 0
    table = (tmp_path / "study" / "table.md").read_text()
    assert table.startswith("`dcem mismatch-study runs=")
    assert "2 seeds" in table
    assert sum(line.startswith(("| 1 |", "| 2 |", "| 0 |")) for line in table.splitlines()) == 4
    trained = json.loads((first / "summary.json").read_text())["metrics"]
    cells = next(line for line in table.splitlines() if line.startswith("| 1 |")).split(" | ")
    for cell, key in zip(cells[-2:], ("return", "return_every_step"), strict=True):
        gain = trained["end-to-end-width-1"][key] - trained["likelihood-width-1"][key]
        assert float(cell.split(" ± ")[0]) == pytest.approx(1.05 * gain, abs=0.51)  # the mean of it and 1.1 times it
    finished = study.load_all(f"{tmp_path}/runs")
    every_step = study.tables([one._replace(config={**one.config, "num_executed": 1}) for one in finished])
    assert "with a plan at every step" in table
    assert "with a plan at every step" not in every_step  # it is what `return` is then
    assert "| hidden width | MSE | return | with the soft selection | gain |" in every_step
    for figure in ("capacity", "adversary", "distractors"):
        assert (tmp_path / "study" / f"{figure}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distractors": [3]}, "distractors: expected even numbers of at least 2; got \\[3\\]"),
        ({"num_executed": 16}, "num_executed: expected 1 to horizon; got 16"),
        ({"adversary_width": 5}, "adversary_references: expected some of widths, and adversary_width too; got"),
        ({"widths": [1, 6, 12, 6]}, "widths: expected no entry twice; got"),
        ({"seed": 2000}, "seed: expected at least 0 and below 1000; got 2000"),
    ],
)
def test_refuses_what_makes_no_sense(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings.Config(**change).check()


def test_a_model_that_is_too_small_for_the_errors_allowed_keeps_the_nearest_weights(tmp_path: Path) -> None:
    """Valid settings: they crashed once everything was trained."""
    config = settings.Config(**(SIZES | {"widths": [1, 8], "adversary_width": 1, "adversary_references": [8]}))
    config.check()
    task = mismatch_task.make_task(config)
    torch.manual_seed(0)
    model, allowed = DynamicsNet(1, task.train), DynamicsNet(8, task.train)
    with Run(tmp_path / "fit", {}, seed=0, quiet=True) as run:
        mismatch.train(
            run, allowed,
            lambda optimizer: descend(optimizer, allowed.squared_errors(task.train).mean()),
            lambda: ({}, allowed.squared_errors(task.valid).mean().item()), 200, 0.03, 50,
        )  # fmt: skip
    with Run(tmp_path / "degrade", {}, seed=0, quiet=True) as run:
        mismatch.degrade(run, task, config, model, allowed)
        errors = [record["mse"] for record in run.records()]
    limit = allowed.squared_errors(task.valid).mean().item()
    assert min(errors) > 1.01 * limit  # out of reach
    assert model.squared_errors(task.valid).mean().item() in [pytest.approx(error) for error in errors]


def test_a_study_names_what_is_missing_or_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mismatch-study", f"runs={tmp_path}/none"]) == 2
    assert "runs: expected a folder of run folders" in capsys.readouterr().err
    assert main(["mismatch-study", f"runs={tmp_path}"]) == 2
    assert "runs: expected folders of finished runs, with a summary.json" in capsys.readouterr().err
    for seed, lr in ((0, 0.1), (1, 0.2)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"config": {"seed": seed, "lr": lr}, "metrics": {}}))
    assert main(["mismatch-study", f"runs={tmp_path}"]) == 2
    assert "expected runs that differ in their seed alone" in capsys.readouterr().err


def test_distractors_go_round_and_leave_the_pendulum_alone() -> None:
    plant, alone = mismatch_task.Plant(6), mismatch_task.Plant()
    generator = torch.Generator().manual_seed(0)
    state = plant.sample_states(5, generator)
    actions = 4 * torch.rand(5, 8, 1, generator=generator) - 2
    states = rollout(plant, state, actions)
    expected = rollout(alone, state[:, :3], actions)
    torch.testing.assert_close(states[..., :3], expected)
    torch.testing.assert_close(plant.cost(states[:, :-1], actions), alone.cost(expected[:, :-1], actions))
    points = states[..., 3:].unflatten(-1, (3, 2))
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(5, 9, 3))
    angles = (points[:, 1:] * points[:, :-1]).sum(-1).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, torch.tensor([0.3, 0.75, 1.2]).expand_as(angles), atol=1e-3, rtol=1e-3)


def test_a_net_rolls_out_as_it_steps_and_its_errors_have_the_unit_of_the_data() -> None:
    plant = mismatch_task.Plant(2)
    data = mismatch_task.explored(plant, 20, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plant(data.state, data.action), data.after)
    model = DynamicsNet(4, data)
    state, actions = data.state[:6].reshape(2, 3, 5), data.action[:24].reshape(2, 3, 4, 1)
    states = state
    for t in range(4):
        x = (torch.cat([states, actions[:, :, t]], -1) - model.input_mean) / model.input_scale
        states = states + model.change_scale * model.outer(model.inner(x).tanh())
        torch.testing.assert_close(model.rollout(state, actions)[:, :, t + 1], states)
    torch.testing.assert_close(model(state, actions[:, :, 0]), model.rollout(state, actions)[:, :, 1])
    torch.nn.init.zeros_(model.outer.weight)
    mean = (data.after - data.state).mean(0) / model.change_scale
    model.outer.bias.data = mean
    torch.testing.assert_close(model.squared_errors(data), torch.ones(5), rtol=0.01, atol=0)


def test_the_cost_of_a_plan_reaches_every_parameter_through_plant_and_planner() -> None:
    config = dataclasses.replace(CONFIG, batch_size=2)
    task = mismatch_task.make_task(config)
    model = DynamicsNet(3, task.train).double()
    plant = mismatch_task.Plant().double()
    mpc = deployment.controller(model, plant, config, soft=True)

    def cost() -> torch.Tensor:
        systems = mismatch.Systems(plant, config)
        systems.states = systems.states.double()
        return systems.cost(mpc)

    cost().backward()
    # The warm start is a constant by contract: with one plan only, finite differences see the same gradient.
    config.num_replans = 1
    model.zero_grad()
    cost().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        index = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * 1e-6
                values.append(cost().item())
                parameter.view(-1)[index] -= sign * 1e-6
        difference = (values[0] - values[1]) / 2e-6
        assert difference == pytest.approx(parameter.grad.view(-1)[index].item(), rel=1e-3, abs=1e-8)
        assert difference != 0


def test_the_adversary_lowers_the_return_at_the_errors_allowed(tmp_path: Path) -> None:
    sizes = {"num_episodes": 20, "fit_updates": 200, "num_updates": 30, "lr": 0.06, "batch_size": 8, "horizon": 8}
    sizes |= {
        "num_samples": 24,
        "num_elites": 4,
        "num_iterations": 2,
        "num_steps": 16,
        "num_valid": 16,
        "eval_every": 10,
    }
    config = dataclasses.replace(CONFIG, **sizes)
    task = mismatch_task.make_task(config)
    with Run(tmp_path / "fit", {}, seed=0, quiet=True) as run:
        model = mismatch.fit(run, task, config, 8)
    torch.manual_seed(0)
    allowed = DynamicsNet(8, task.train)
    before = deployment.evaluation(model, task, config)["return"]
    with Run(tmp_path / "degrade", {}, seed=0, quiet=True) as run:
        mismatch.degrade(run, task, config, model, allowed)
    for data in (task.train, task.valid):
        limit = allowed.squared_errors(data).mean()
        assert model.squared_errors(data).mean() <= 1.0011 * limit
    assert deployment.evaluation(model, task, config)["return"] < 1.1 * before


def test_returns_are_those_of_the_actions_taken() -> None:
    plant = mismatch_task.Plant()
    hanging = torch.tensor([[-1.0, 0.0, 0.0]])
    at_rest = deployment.returns(lambda states: torch.zeros(len(states), 3, 1), plant, hanging, 4)
    assert at_rest == pytest.approx(-4 * torch.pi**2, rel=1e-3)
    seen = []

    def policy(states: torch.Tensor) -> torch.Tensor:
        seen.append(states)
        return torch.ones(len(states), 3, 1)

    deployment.returns(policy, plant, hanging, 4)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], rollout(plant, hanging, torch.ones(1, 3, 1))[:, -1])
