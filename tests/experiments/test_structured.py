"""The experiments on structured outputs: their data, their scores, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcem import plotting
from dcem.experiments import ConfigError
from dcem.experiments.harness.run import Run
from dcem.experiments.structured import digits, multilabel, set_valued, training
from dcem.experiments.structured.task import Task


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (digits.Config(models=["spen"]), "models: expected some of feed-forward, spen-gd,"),
        (digits.Config(models=["icnn", "icnn"]), "models: expected no entry twice"),
        (digits.Config(num_train=1797), "num_train: expected at most 1200; got 1797"),
        (multilabel.Config(num_drawn=60), "num_drawn: expected 2 to num_labels; got 60"),
        (set_valued.Config(curves=["circle"]), "curves: expected some of root, spiral; got "),
        (set_valued.Config(noise=0), "noise: expected above 0 and at most 0.1; got 0"),
    ],
)
def test_refuses_what_makes_no_sense(config: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.check()


@pytest.mark.parametrize(
    ("module", "task"),
    [
        (digits, lambda: digits.Digits(digits.Config(device="auto"))),
        (multilabel, lambda: multilabel.MultiLabel(multilabel.Config(device="auto"))),
        (set_valued, lambda: set_valued.SetValued(set_valued.Config(device="auto"), "spiral")),
    ],
    ids=["digits", "multilabel", "set-valued"],
)
def test_data_are_where_the_models_are(module: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `device=auto` they stayed on the CPU, where the models are on the GPU."""
    monkeypatch.setattr(module, "choose_device", lambda name: torch.device("meta"))
    made = task()
    assert {of.device.type for split in (made.train, made.valid, made.test) for of in split} == {"meta"}


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
    *shown, bar = densities.axes
    assert bar.get_ylabel() == "density"
    assert len({axis.collections[0].norm for axis in shown if axis.collections}) == 1  # one scale in all panels
    rows = plotting.image_rows({"truth": torch.rand(3, 8, 8), "net": torch.rand(3, 8, 8)}, 4)
    assert [axis.get_ylabel() for axis in rows.axes[::3]] == ["truth", "net"]
    assert plotting.correlations(torch.eye(3), "label", "correlation").axes[0].get_xlabel() == "label"


def test_the_nets_density_is_a_gaussian_cut_off_at_the_box() -> None:
    """It was normalised over the whole line, while the energies' densities are over the box."""
    task = set_valued.SetValued(set_valued.Config(num_train=8, num_valid=8, num_test=8), "root")
    net, beta = torch.nn.Linear(1, 1), 0.7
    with torch.no_grad():
        found = task.log_density(net, task.test, beta, fine=True)
        normal = torch.distributions.Normal(net(task.test.x), (2 * beta) ** -0.5)
        box = torch.tensor([[-set_valued.BOX, set_valued.BOX]])
        inside = normal.cdf(box[:, 1:]) - normal.cdf(box[:, :1])
        exact = (normal.log_prob(task.test.y) - inside.log())[:, 0]
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


TINY = {
    "num_epochs": 1, "feed_forward_epochs": 1, "eval_every": 1, "batch_size": 4, "hidden": 4, "num_samples": 4, "num_elites": 2,
    "num_iterations": 2, "test_iterations": [1, 2], "num_train": 4, "num_valid": 4, "num_test": 4, "num_seeds": 1,
}  # fmt: skip
TASKS: dict[Any, Callable[[], Task]] = {
    digits: lambda: digits.Digits(digits.Config(**TINY)),
    multilabel: lambda: multilabel.MultiLabel(multilabel.Config(**TINY, num_labels=6, num_drawn=3)),
    set_valued: lambda: set_valued.SetValued(set_valued.Config(**TINY, num_negatives=4), "spiral"),
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in TASKS for name in module.LABELS],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)  # fmt: skip
def test_every_model_learns(module: Any, name: str, tmp_path: Path) -> None:
    if module is not set_valued:
        pytest.importorskip("sklearn")
    task = TASKS[module]()
    torch.manual_seed(0)
    before = task.build(name).state_dict()
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        trained = training.train(task, task.config, run, name, 0)
    assert all(tensor.isfinite().all() for tensor in trained.model.state_dict().values())
    assert any(not torch.equal(tensor, before[key]) for key, tensor in trained.model.state_dict().items())
    assert all(math.isfinite(value) for value in trained.metrics.values() if isinstance(value, float))


@pytest.mark.parametrize(("chosen", "wanted"), [([], list(multilabel.LABELS)), (["icnn"], ["icnn"])])
def test_all_models_are_compared_where_none_is_named(
    chosen: list[str], wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", lambda *_: training.Trained(None, {}, []))
    config = multilabel.Config(**TINY, num_labels=6, num_drawn=3, models=chosen)
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        assert list(training.compare(multilabel.MultiLabel(config), config, run)) == wanted


def test_every_search_of_the_table_has_the_same_iterations() -> None:
    config = set_valued.Config(num_train=8, num_valid=8, num_test=8, test_iterations=[1], hidden=4)
    task = set_valued.SetValued(config, "root")
    for name, trained in {"feed-forward": None, "spen-gd": 5, "icnn": 20, "likelihood": None}.items():
        model = task.build(name)
        metrics = task.report(name, model)
        found = task.predictions(name, model, task.test.x, [20])[20]
        assert metrics["distance"] == task.distance(task.test.x, found)
        assert metrics["mse"] == float((found - task.test.y).square().mean())
        by_iterations = metrics["distance_by_iterations"]
        assert metrics["distance_trained"] == (by_iterations[str(trained)] if trained else None)
