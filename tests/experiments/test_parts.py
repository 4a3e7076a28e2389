"""What the experiments share: the run's folder, schedules, figures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from dcem import plotting
from dcem.experiments import ConfigError
from dcem.experiments.harness import reading, report
from dcem.experiments.harness import run as run_module
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import Schedule
from dcem.plotting import intervals


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


def test_a_checkpoint_of_other_things_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        run.track(model=torch.nn.Linear(1, 1))
        run.checkpoint()
    with pytest.raises(ConfigError, match=r"expected the state of \['net'\], got \['model'\]"):
        Run(tmp_path, {}, seed=0, resume=True, quiet=True).track(net=torch.nn.Linear(1, 1))
    with pytest.raises(FileExistsError, match="holds a run"):
        Run(tmp_path, {}, seed=0, quiet=True)


def test_global_generators_continue(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=3, quiet=True) as run:
        generator = torch.Generator().manual_seed(1)
        run.track(generator=generator)
        torch.rand(5)
        torch.rand(5, generator=generator)
        random.random()
        run.checkpoint()
        state = random.getstate()
        expected = torch.rand(5), torch.rand(5, generator=generator), random.random()
    for by_an_older_version in (False, True):
        if by_an_older_version:  # which kept the state of `random` as it is
            torch.save(torch.load(tmp_path / "checkpoint.pt") | {"random": state}, tmp_path / "checkpoint.pt")
        with Run(tmp_path, {}, seed=3, resume=True, quiet=True) as run:
            generator = torch.Generator()
            run.track(generator=generator)
            assert torch.equal(torch.rand(5), expected[0])
            assert torch.equal(torch.rand(5, generator=generator), expected[1])
            assert random.random() == expected[2]


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        run.track()
        for step in run.steps(3, checkpoint_every=2):
            run.log(step, loss=float(step))
        (tmp_path / "checkpoint.pt").unlink()
    with Run(tmp_path, {}, seed=0, resume=True, quiet=True) as run:
        run.track()
        assert run.records() == []
        assert list(run.steps(2, checkpoint_every=1)) == [1, 2]
        summary = run.finish(loss=1.0)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_numbers_that_are_not_finite_are_read_back_and_by_any_reader(tmp_path: Path) -> None:
    inf, nan = math.inf, math.nan
    with Run(tmp_path, {"grad_clip": inf}, seed=0, quiet=True) as run:
        run.track()
        run.log(1, loss=nan, best=-inf)
        run.checkpoint()
        run.finish(loss=nan, costs={"cem": [1.0, inf], "name": "all"})
    files = [(tmp_path / name).read_text() for name in ("summary.json", "metrics.jsonl")]
    for text in files:
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    finished = reading.finished(tmp_path)
    assert repr(finished.metrics) == "{'loss': nan, 'costs': {'cem': [1.0, inf], 'name': 'all'}}"
    assert finished.settings == {"grad_clip": inf}
    assert repr(finished.records) == "[{'step': 1, 'loss': nan, 'best': -inf}]"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": Infinity}\n')  # of an older version
    assert reading.records_of(tmp_path) == [{"step": 1, "loss": inf}]


def a_run(tmp_path: Path) -> dict[Path, bytes]:
    """The files of a run of three steps, each with a line."""
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        run.track(model=torch.nn.Linear(1, 1))
        for step in run.steps(3, checkpoint_every=1):
            run.log(step, loss=float(step))
    return {path: path.read_bytes() for path in (tmp_path / "metrics.jsonl", tmp_path / "checkpoint.pt")}


@pytest.mark.parametrize(
    ("name", "keep", "says"),
    [
        ("metrics.jsonl", 0.0, r"metrics\.jsonl: expected \d+ bytes, as checkpoint\.pt says; got 0"),
        ("metrics.jsonl", 0.5, r"metrics\.jsonl: expected \d+ bytes, as checkpoint\.pt says; got \d+"),
        ("checkpoint.pt", 0.0, r"checkpoint\.pt: expected the whole checkpoint of a run; "),
        ("checkpoint.pt", 0.5, r"checkpoint\.pt: expected the whole checkpoint of a run; "),
        ("checkpoint.pt", b"garbage\xff", r"checkpoint\.pt: expected the whole checkpoint of a run; it is damaged"),
        ("checkpoint.pt", b"\x80\x02cos\nsystem\n.", r"checkpoint\.pt: expected the whole .* damaged, or none$"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_lost(name: str, keep: float | bytes, says: str, tmp_path: Path) -> None:
    files = a_run(tmp_path)
    whole = files[tmp_path / name]
    files[tmp_path / name] = keep if isinstance(keep, bytes) else whole[: int(keep * len(whole))]
    (tmp_path / name).write_bytes(files[tmp_path / name])
    with pytest.raises(ConfigError, match=says), Run(tmp_path, {}, seed=0, quiet=True, resume=True) as run:
        run.track(model=torch.nn.Linear(1, 1))
    assert {path: path.read_bytes() for path in files} == files


def test_a_model_of_another_size_and_a_missing_checkpoint_are_named(tmp_path: Path) -> None:
    files = a_run(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: expected the state of this run's model; "):
        Run(tmp_path, {}, seed=0, quiet=True, resume=True).track(model=torch.nn.Linear(2, 2))
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: expected the checkpoint of a run, which has a summary"):
        Run(tmp_path, {}, seed=0, quiet=True, resume=True).track(model=torch.nn.Linear(1, 1))
    assert (tmp_path / "metrics.jsonl").read_bytes() == files[tmp_path / "metrics.jsonl"]


def test_the_time_of_parts_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])
    with Run(tmp_path, {}, seed=0, quiet=True) as run, run.part("one", 3) as part:
        assert part.seed == 3
        clock[0] = 10.0
        part.finish()
    clock[0] = 100.0  # another day
    with Run(tmp_path, {}, seed=0, quiet=True, resume=True) as run:
        with run.part("one", 3) as part:
            assert part.finished
        clock[0] = 105.0
        assert run.finish()["wall_time_s"] == 15.0


def test_lines_that_are_no_json_and_summaries_that_are_cut_are_named(tmp_path: Path) -> None:
    for damaged in (b"\0\0", b"\xff\xfe"):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damaged)
        with pytest.raises(ConfigError, match=r"metrics\.jsonl: expected JSON in line 2; "):
            reading.records_of(tmp_path)
    for damaged in (b'{"metrics": ', b"\xff\xfe", b"[]", b"{}"):
        (tmp_path / "summary.json").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"summary\.json: expected the summary of a run; "):
            reading.summary_of(tmp_path)


def test_parts_are_no_runs_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        with Run(tmp_path / "sweep" / str(seed), {}, seed=seed, quiet=True) as run:
            with run.part("a") as part:
                part.finish()
            if seed == 0:
                run.finish(x=1.0)
    assert [of.folder.name for of in reading.finished_runs(str(tmp_path))] == ["0"]


def test_intervals_are_student_s() -> None:
    """The tables of some experiments and their figures had other ones above 11 seeds."""
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 40), 100, 1000):
        assert intervals.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-4)
    values = torch.randn(15, generator=torch.Generator().manual_seed(0)).tolist()
    low, high = stats.t.interval(0.95, 14, loc=np.mean(values), scale=stats.sem(values))
    mean, half = report.interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-3)
    assert report.plus_minus(report.interval([2.0]), ".1f") == "2.0"
    assert report.plus_minus(report.deviation([1.0, 3.0]), ".1f") == "2.0 ± 1.4"


def test_a_table_says_which_numbers_are_not_finite() -> None:
    cells = [report.plus_minus(report.deviation([1.0, other]), ".1f") for other in (np.inf, -np.inf, np.nan)]
    *_, row = report.markdown(["inf", "a", "b", "c", "d"], [["nan", *cells, "1.0 ± inf"]]).splitlines()
    assert row == "| nan | not finite | not finite | not finite | 1.0 ± not finite |"


@pytest.mark.parametrize(("decay", "at"), [("cosine", {40: 0.75, 55: 0.5, 70: 0.25}), ("linear", {28: 0.8, 82: 0.2})])
def test_a_rate_warms_up_over_a_tenth_and_falls_to_zero(decay: str, at: dict[int, float]) -> None:
    schedule = Schedule(torch.optim.SGD(parameters(), lr=1.0), 100, decay)
    rates = []
    for _ in range(101):
        rates.append(schedule.lr)
        schedule.optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert {i: rates[i] for i in at} == pytest.approx(at)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_figures_have_labelled_axes_and_a_band_for_seeds(tmp_path: Path) -> None:
    seeds = [
        [{"step": s, "seconds": 0.1 * s * (1 + i), "loss": 10.0**-s * (1 + i)} for s in range(4)] for i in range(3)
    ]
    x = torch.linspace(0, 1, 5)
    figures = [
        plotting.loss_curves({"a": seeds, "b": seeds[:1]}, "loss", "loss"),
        plotting.by_seconds({"a": seeds, "b": seeds[:1]}, {"loss": "loss"}),
        plotting.error_by_iterations({"a": [{1: 1.0, 10: 0.1}, {1: 2.0, 10: 0.3}]}, 10),
        plotting.predictions_by_iterations(x, x, {"a": {1: x, 10: x}}, 10),
        plotting.energy_surfaces([plotting.Surface("a", x, x, x[:, None] * x, x, x)] * 2),
    ]
    for i, figure in enumerate(figures):
        axis = figure.axes[0]
        assert axis.get_xlabel() or figure.get_supxlabel()
        assert axis.get_ylabel() or figure.get_supylabel()
        assert axis.get_legend() or figure.legends
        if i:  # one of them with its layout, which is the same for all
            figure.set_layout_engine("none")
        figure.savefig(tmp_path / f"{i}.png", dpi=20)
    assert figures[0].legends[0].get_title().get_text() == "1 or 3 seeds: mean and 95 % band"
    ends = [line.get_xdata()[-1] for line in figures[1].axes[0].get_lines()]
    assert ends == pytest.approx([0.6, 0.3])  # the median of the seeds' seconds


def test_curves_say_how_many_iterations_each_was_trained_with() -> None:
    """The regressions' picture said 10 of energies that were trained with 5."""
    errors = {name: [{1: 1.0, 10: 0.1}] for name in ("a", "b")}
    names = [text.get_text() for text in plotting.error_by_iterations(errors, {"a": 5, "b": 10}).legends[0].get_texts()]
    assert names == ["a, trained with 5", "b, trained with 10"]
    names = [text.get_text() for text in plotting.error_by_iterations(errors, 10).legends[0].get_texts()]
    assert names == ["trained with 10", "a", "b"]


def test_a_run_whose_records_are_gone_is_named(tmp_path) -> None:
    (tmp_path / "summary.json").write_text('{"metrics": {}, "config": {"seed": 0}}')
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: expected the records of a run; got none"):
        reading.require_records(reading.finished(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml: expected the settings of a run; got nothing"):
        reading.finished(tmp_path)
