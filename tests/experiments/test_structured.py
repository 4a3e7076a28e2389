"""The experiments on structured outputs: what a tiny run leaves, that a stopped one resumes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dcem import plotting
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Interrupted, Run
from dcem.experiments.structured import digits, multilabel, set_valued, training

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

TINY = ["num_seeds=1", "num_epochs=2", "feed_forward_epochs=2", "eval_every=1", "batch_size=8", "hidden=4"]
TINY += ["num_samples=4", "num_elites=2", "num_iterations=2", "test_iterations=[1,2,3]"]
SIZES = {
    "digits": ["num_train=16", "num_valid=8", "num_test=10"],
    "multilabel": ["num_train=16", "num_valid=16", "num_test=16", "num_labels=8", "num_drawn=4"],
    "set-valued": ["num_train=16", "num_valid=8", "num_test=8", "num_negatives=4"],
}
MODULES = {"digits": digits, "multilabel": multilabel, "set-valued": set_valued}


@pytest.mark.parametrize("name", MODULES)
def test_a_tiny_run_leaves_everything(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [name, *TINY, *SIZES[name], f"hydra.run.dir={tmp_path}"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    curves = [""] if name != "set-valued" else ["root-", "spiral-"]
    expected = {curve + model for curve in curves for model in MODULES[name].LABELS}
    assert summary["metrics"].keys() == expected
    for model, (metrics,) in summary["metrics"].items():
        assert metrics["seconds_per_epoch"] > 0
        assert metrics["parameters"] > 0
        by_iterations = next(v for k, v in metrics.items() if k.endswith("_by_iterations"))
        assert bool(by_iterations) is ("feed-forward" not in model)
        lines = (tmp_path / f"{model}-0" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4]
    table = (tmp_path / "table.md").read_text()
    assert all(label in table for label in MODULES[name].LABELS.values())
    assert table.startswith(f"`dcem {name}")
    assert len(list(tmp_path.glob("*.png"))) == (2 if name != "set-valued" else 4)
    capsys.readouterr()
    assert main([name, f"resume={tmp_path}"]) == 0  # complete already: the same numbers
    again = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert again == summary["metrics"]


@pytest.mark.parametrize("model", ["feed-forward", "spen-dcem", "icnn"])
def test_a_stopped_run_resumes_to_the_same_curve(model: str, tmp_path: Path) -> None:
    config = digits.Config(
        num_train=16, num_valid=4, num_test=4, hidden=4, batch_size=8, num_samples=4, num_elites=2, num_iterations=2,
        num_epochs=3, feed_forward_epochs=3, eval_every=1,
    )  # fmt: skip
    task = digits.Digits(config)

    class Stopping(digits.Digits):
        calls = 0

        def loss(self, *arguments):
            self.calls += 1
            if self.calls == 6:  # after the checkpoint of the second epoch
                raise Interrupted(143)
            return super().loss(*arguments)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with Run(whole, {}, seed=1, quiet=True) as run:
        expected = training.train(task, config, run, model, 1)
    with pytest.raises(Interrupted), Run(stopped, {}, seed=1, quiet=True) as run:
        training.train(Stopping(config), config, run, model, 1)
    with Run(stopped, {}, seed=1, quiet=True, resume=True) as run:
        resumed = training.train(task, config, run, model, 1)
    assert len(expected.records) == 3
    assert resumed.records == expected.records
    ours, theirs = resumed.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert resumed.metrics["mse"] == expected.metrics["mse"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits", "models=[spen]"], "models: expected some of feed-forward, spen-gd,"),
        (["digits", "num_train=1797"], "num_train: expected at most 1200; got 1797"),
        (["digits", "num_elites=500"], "num_elites: expected 1 to num_samples; got 500"),
        (["multilabel", "num_drawn=60"], "num_drawn: expected 2 to num_labels; got 60"),
        (["set-valued", "curves=[circle]"], "curves: expected some of root, spiral; got ['circle']"),
        (["set-valued", "noise=0"], "noise: expected above 0 and at most 0.1; got 0"),
        (["set-valued", "weight_decay=-1"], "weight_decay: expected at least 0; got -1"),
        (["set-valued", "sed=1"], "no setting 'sed'; did you mean 'seed'?"),
    ],
)
def test_refuses_in_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out = capsys.readouterr()
    assert says in out.err
    assert out.err.count("\n") == 1


def test_labels_follow_from_those_that_are_drawn() -> None:
    config = multilabel.Config(num_train=50, num_valid=10, num_test=10)
    x, y = multilabel.examples(config)
    assert (x.shape, y.shape) == ((70, 60), (70, 50))
    assert torch.equal(multilabel.examples(config)[1], y)
    drawn = y[:, : config.num_drawn].bool()
    pairs = [(a, b) for a in range(config.num_drawn) for b in range(a)]
    follows = [any(torch.equal(drawn[:, a] & drawn[:, b], y[:, 15].bool()) for a, b in pairs)]
    assert all(follows)


def test_f1() -> None:
    y = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    perfect = multilabel.f1(y, y)
    assert (perfect["micro"] == 1).all()
    assert (perfect["macro"] == 1).all()
    half = multilabel.f1(torch.tensor([[1.0, 1, 0], [0, 1, 0]]), y)  # 2 right of 3 chosen and 4 true
    assert half["micro"][0].item() == pytest.approx(4 / 7)
    assert half["macro"][0].item() == pytest.approx((1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("curve", ["root", "spiral"])
def test_answers_of_the_curves(curve: str) -> None:
    task = set_valued.SetValued(set_valued.Config(num_train=200, num_valid=8, num_test=8, noise=0.01), curve)
    answers = set_valued.branches(curve, task.train.x)
    assert task.distance(task.train.x, answers[:, 1]) == pytest.approx(0, abs=1e-6)
    assert task.distance(task.train.x, task.train.y) < 0.03
    near = (answers - task.train.y.unsqueeze(1)).square().sum(-1).argmin(1).float().mean()
    assert 0.4 < near < 0.6  # both answers are there


def test_weights_of_an_icnn_do_not_decay_to_steep_ones() -> None:
    model = digits.Digits(digits.Config(num_train=16, num_valid=8, num_test=8, hidden=4)).build("icnn")
    decays, others = training._groups(model, 0.5)
    free = {id(p) for p in model.energy.free}
    assert free
    assert not free & {id(p) for p in decays["params"]}
    assert len(decays["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert (decays["weight_decay"], others["weight_decay"]) == (0.5, 0.0)


def test_figures_have_labelled_axes() -> None:
    grid = torch.linspace(0, 1, 5)
    panel = plotting.Panel("a", grid, grid, torch.rand(5, 5), [torch.rand(3, 2)], torch.rand(2, 2))
    densities = plotting.densities([panel] * 3, "x", "y")
    assert densities.get_supxlabel() == "x"
    assert densities.get_supylabel() == "y"
    rows = plotting.image_rows({"truth": torch.rand(3, 8, 8), "net": torch.rand(3, 8, 8)}, 4)
    assert [axis.get_ylabel() for axis in rows.axes[::3]] == ["truth", "net"]
    assert plotting.correlations(torch.eye(3), "label", "correlation").axes[0].get_xlabel() == "label"
