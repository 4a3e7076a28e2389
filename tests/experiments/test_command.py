"""The `dcem` command: what it lists, what it refuses and how, and the files that a run leaves."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import operator
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from dcem.experiments import EXPERIMENTS
from dcem.experiments.harness import explain
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Run

# hydra 1.3 and tensorboard 2.21 on newer Pythons
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

SMALL = ["hidden=[8]", "num_points=12", "batch_size=4", "num_iterations=2", "test_iterations=[1,2,4]"]
SMALL += ["num_updates=6", "eval_every=2", "checkpoint_every=2"]
SMALL_DCEM = [*SMALL, "solver.num_samples=8", "solver.num_elites=2"]


def test_lists_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(name in text and experiment.summary in text for name, experiment in EXPERIMENTS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dcem ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["regresion"], "no experiment 'regresion'; did you mean 'regression'?"),
        (["regression", "sed=3"], "no setting 'sed'; did you mean 'seed'?"),
        (["regression", "+extra=3"], "no setting 'extra'; "),
        (
            ["regression", "seed=x"],
            "regression: seed: expected a whole number (no point, no exponent); got x",
        ),
        (
            ["regression", "++seed=1e3"],
            "regression: seed: expected a whole number (no point, no exponent); ",
        ),
        (
            ["planet", "window=2.0"],
            "planet: window: expected a whole number (no point, no exponent); got 2.0",
        ),
        (
            ["regression", "hidden=[8,y]"],
            "hidden: expected a whole number (no point, no exponent) in each entry; got [8,y]",
        ),
        (["regression", "lr=fast"], "regression: lr: expected a number; got fast"),
        (["planet", "=3"], "planet: =3: expected a setting, key=value; got no key"),
        (["regression", "+=3"], "regression: +=3: expected a setting, key=value; got no key"),
        (["regression", "~=3"], "regression: ~=3: expected a setting, key=value; got no key"),
        (["regression", "-m", "=3"], "regression: =3: expected a setting, key=value; got no key"),
        (["regression", "=3", "--cfg", "job"], "regression: =3: expected a setting, key=value; got no key"),
        (["regression", "hydra/launcher=3"], "regression: hydra/launcher: expected a name; got 3"),
        (["regression", "hydra/launcher=null"], "regression: hydra/launcher: expected a name; got None"),
        (["regression", "solver=adam"], "Could not find 'solver/adam' Available options in 'solver': dcem gd light"),
        (
            ["regression", "solver=gd", "solver.temperature=1"],
            "no setting 'solver.temperature'; there are: solver.name, solver.lr, solver.momentum\n",
        ),
        (
            ["regression", "solver.num_sampels=3"],
            "no setting 'solver.num_sampels'; did you mean 'solver.num_samples'? there are: solver.name, solver.num_s",
        ),
        (["regression", "+solver.extra=3"], "no setting 'solver.extra'; there are: solver.name, solver.num_samples, "),
        (["regression", "solvr.num_samples=3"], "did you mean 'solver.num_samples'? there are: seed, device, threads"),
        (["regression", "settin=paper"], "no setting 'settin'; did you mean 'setting'? "),
        (["regression", "defaults=3"], "no setting 'defaults'; there are: seed, device, threads, solver, hidden, "),
        (["planet", "planner.horizn=3"], "no setting 'planner.horizn'; did you mean 'planner.horizon'? there are: pl"),
        (["planet", "+planner.extra=3"], "no setting 'planner.extra'; there are: planner.horizon, planner.num_sampl"),
        (["regression", "seed=1", "sed=2", "lr=x"], "no setting 'sed'; did you mean 'seed'?"),
        (["regression", "lr=-1"], "lr: expected a positive number; got -1"),
        (["regression", "batch_size=500"], "batch_size: expected 1 to num_points; got 500"),
        (["regression", "solver.num_elites=200"], "solver.num_elites: expected 1 to num_samples; got 200"),
        (["regression", "solver.name=gd"], "solver.name: expected dcem"),
        (["regression", "lr=inf"], "lr: expected a finite number; got inf"),
        (["planet", "explore=nan"], "explore: expected a finite number; got nan"),
        (["planet", "updates_per_decision=inf"], "updates_per_decision: expected a finite number; got inf"),
        (["regression", "hidden=[[8]]"], "hidden: expected numbers, at least 1; got [[8]]"),
        (["regression", "threads=100000"], "threads: expected 1 to 1024; got 100000"),
        (["digits", "threads=100000"], "threads: expected 1 to 1024; got 100000"),
        (["regression", f"seed={2**63}"], "seed: expected at least 0 and below "),
        (["regression", "device=meta"], "device: expected auto, or a device that is here; got meta"),
        (["regression", "device=xpu:77"], "device: expected auto, or a device that is here; got xpu:77"),
        (["regression", "solver.temperature=0"], "solver.temperature: expected a positive number; got 0"),
        (["regression", "test_iterations=[1,1]"], "test_iterations: expected no entry twice; got [1, 1]"),
        (["planet", "planner.max_std=-1"], "planner.max_std: expected a positive number; got -1"),
        (["planet", "window=500", "episode_steps=24"], "window: expected at most 12, the decisions of an episode; "),
        (["planet", "window=8", "episode_steps=8"], "window: expected at most 4, the decisions of an episode; got 8"),
        (["planet", "seed_rounds=5", "num_rounds=2"], "seed_rounds: expected at most the 2 of num_rounds, "),
        (["mpc", "tasks=pendulum"], "tasks: expected a list, tasks=[pendulum]; got pendulum\n"),
        (["mpc", f"methods=[{','.join(['cem'] * 200)}]"], "methods: expected "),
        (["regression", "seed"], "missing EQUAL"),
        (["regression", "seed=1,2"], "--multirun"),
        (["regression", "-m", "seed=1,x"], "regression: seed: expected a whole number (no point, no exponent); got x"),
        (
            ["regression", "-m", "solver=dcem,adam"],
            "Could not find 'solver/adam' Available options in 'solver': dcem gd light",
        ),
        (["mpc", "tasks=pendulum", "--cfg", "job"], "tasks: expected a list, tasks=[pendulum]; got pendulum\n"),
        (["regression", "solver=null"], "solver: expected one of dcem, light, gd; got None"),
        (["regression", "solver=3"], "solver: expected one of dcem, light, gd; got 3"),
        (["regression", "-m", "solver=dcem,3"], "solver: expected one of dcem, light, gd; got 3"),
        (["regression", "hydra.run.dir="], "hydra.run.dir: expected a folder; got nothing"),
        (["regression", "-m", "hydra.sweep.dir="], "hydra.sweep.dir: expected a folder; got nothing"),
        (["regression", "-m", "hydra.run.dir=x"], "hydra.run.dir: expected for one run; "),
        (["regression", "hydra.sweep.dir=x"], "hydra.sweep.dir: expected for a sweep; "),
        (["regression", "hydra.job.name=planet"], "hydra.job.name: expected the experiment's, "),
        (["regression", "hydra.output_subdir=null"], "hydra.output_subdir: expected .hydra, "),
        (["regression", "resume=/nowhere"], "resume: expected the folder of a run"),
        (["regression", "resume="], "resume: expected the folder of a run, resume=<folder>; got nothing"),
        (["regression", "resume=/nowhere", "seed=1"], "resume: expected alone"),
    ],
)
def test_refuses_in_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out = capsys.readouterr()
    assert says in out.err
    assert out.err.count("\n") == 1
    assert not out.out


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "hydra", None)
    assert main(["regression"]) == 2
    assert "pip install 'dcem[experiments]'" in capsys.readouterr().err


def test_python_m_dcem_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dcem", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dcem: no experiment 'nope'; there are: demo, ")


@pytest.mark.parametrize("small", [SMALL_DCEM, [*SMALL, "solver=gd", "setting=paper"]])
def test_a_run_leaves_everything(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["regression", *small, f"hydra.run.dir={folder}"]) == 0
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt", "tensorboard"} <= names
    assert {"loss.png", "energy.png", "iterations.png", "predictions.png"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert {"mse_1", "mse_2", "mse_4", "loss", "lr"} <= lines[-1].keys()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["versions"].keys() == {"python", "torch", "dcem"}
    assert summary["metrics"]["mse_2"] == lines[-1]["mse_2"]
    assert summary["command"].startswith("dcem regression hidden=[8]")
    assert summary["seed"] == 0
    assert summary["wall_time_s"] > 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["num_updates"] == 6
    assert any((folder / "tensorboard").iterdir())
    assert "step 6" in capsys.readouterr().out


def test_folders_are_named_by_time_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["num_updates=1", "hidden=[4]", "solver=gd", "test_iterations=[1]"]
    assert main(["regression", *tiny]) == 0
    assert main(["regression", "-m", *tiny, "seed=3"]) == 0
    (run,) = tmp_path.glob("runs/regression/*/config.yaml")
    assert run.parent.name.endswith("-hidden=[4],num_updates=1,solver=gd,test_iterations=[1]")
    (swept,) = tmp_path.glob("runs/regression/*-sweep/*/config.yaml")
    assert swept.parent.name == "0-hidden=[4],num_updates=1,seed=3,solver=gd,test_iterations=[1]"


def test_sweeps(tmp_path: Path) -> None:
    """Each run says what would make it alone, as a shell reads it."""
    swept = ["-m", "seed=0,1", "decay='linear'", f"hydra.sweep.dir={tmp_path}"]
    assert main(["regression", *SMALL_DCEM, *swept]) == 0
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 2
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    own = ["dcem", "regression", *SMALL_DCEM, "decay='linear'"]
    for seed, summary in enumerate(summaries):
        assert sorted(shlex.split(summary["command"])) == sorted([*own, f"seed={seed}"])


def test_the_command_of_a_run_is_one_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    assert main(command := ["regression", *SMALL_DCEM, "num_updates=1", f"hydra.run.dir={folder}"]) == 0
    assert shlex.split(json.loads((folder / "summary.json").read_text())["command"]) == ["dcem", *command]


def state(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What a run has logged, but for what its clock says, and its weights."""
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(one["seconds"] <= other["seconds"] for one, other in itertools.pairwise(lines))
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines], checkpoint["tracked"][
        "model"
    ]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_in_other_processes_makes_the_same_runs(launcher: str, tmp_path: Path) -> None:
    """By the launchers of Hydra that need no cluster; one run, as each process takes seconds to start."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    swept = ["-m", "seed=1", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'swept'}"]
    assert main(["regression", *SMALL_DCEM, *swept]) == 0
    assert main(["regression", *SMALL_DCEM, "seed=1", f"hydra.run.dir={tmp_path / 'alone'}"]) == 0
    (summary,) = (tmp_path / "swept").glob("[!.]*/summary.json")
    lines, weights = state(summary.parent)
    expected, of_one = state(tmp_path / "alone")
    assert lines == [pytest.approx(line, rel=1e-4) for line in expected]
    assert all(torch.allclose(weights[name], of_one[name], rtol=1e-4, atol=1e-6) for name in of_one)


LONG = [*SMALL_DCEM, "setting=paper", "num_updates=21", "eval_every=7", "checkpoint_every=5", "repeats=3"]


def at_step_14(act: Callable[[Run], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen right after the line of step 14, with a checkpoint of step 10."""

    def log(run: Run, step: int, _log: Callable[..., None] = Run.log, **values: float) -> None:
        _log(run, step, **values)
        if step == 14:
            act(run)

    monkeypatch.setattr(Run, "log", log)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run from start to end, and what a SIGKILL in its step 14 would have left: what was on the disk by then."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        at_step_14(lambda run: shutil.copytree(run.folder, f"{run.folder}-killed"), patch)
        assert main(["regression", *LONG, f"hydra.run.dir={folder}"]) == 0
    return folder, folder.with_name(f"{folder.name}-killed")


def test_the_rate_falls_along_a_straight_line_at_the_papers_setting(whole: tuple[Path, Path]) -> None:
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 7, 14, 21]
    assert [line["lr"] for line in lines[1:]] == pytest.approx([1e-3 * left / 19 for left in (14, 7, 0)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_result(
    number: int, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, stopped = whole
    if number != signal.SIGKILL:
        stopped = tmp_path / "stopped"
        with monkeypatch.context() as patch:
            at_step_14(lambda _: os.kill(os.getpid(), number), patch)
            assert main(["regression", *LONG, f"hydra.run.dir={stopped}"]) == 128 + number
    step = torch.load(stopped / "checkpoint.pt", weights_only=True)["step"]
    assert step == (10 if number == signal.SIGKILL else 14)
    assert json.loads((stopped / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 14
    assert main(["regression", f"resume={stopped}"]) == 0
    (lines, weights), (other_lines, other_weights) = state(complete), state(stopped)
    assert lines == other_lines
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


def test_a_folder_with_a_run_is_not_overwritten(whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = whole
    names = ("metrics.jsonl", "config.yaml", ".hydra/overrides.yaml")
    before = [(folder / name).read_bytes() for name in names]
    assert main(["regression", *LONG, f"hydra.run.dir={folder}", "seed=5"]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert [(folder / name).read_bytes() for name in names] == before
    assert main(["regression", f"resume={folder}"]) == 0  # complete already: figures and summary again
    assert (folder / "metrics.jsonl").read_bytes() == before[0]


def test_a_run_goes_on_with_its_own_settings_whatever_the_defaults_are_today(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole[0], folder := tmp_path / "older")
    settings = OmegaConf.load(folder / "config.yaml")
    today = (folder / "config.yaml").read_text()
    settings.lr = 0.125  # a default of that day
    del settings.eval_every  # a setting that came later
    OmegaConf.save(settings, folder / "config.yaml")
    assert main(["regression", f"resume={folder}"]) == 0
    assert (folder / "config.yaml").read_text() == today.replace(f"lr: {OmegaConf.create(today).lr}", "lr: 0.125")
    for text, message in (("[", "config.yaml"), ("nonsense: 1", "nonsense"), ("lr: slow", "lr")):
        (folder / "config.yaml").write_text(text)
        capsys.readouterr()
        assert main(["regression", f"resume={folder}"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_run_of_another_experiment_or_with_damaged_overrides_is_left_as_it_was(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole[0], folder := tmp_path / "run")

    def refused(name: str) -> str:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert main([name, f"resume={folder}"]) == 2
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    capsys.readouterr()
    for name in ("multilabel", "demo"):
        assert f"resume: expected a run of {name}, got one of regression ({folder})" in refused(name)
    for damaged in ("hydra.yaml", "overrides.yaml"):
        shutil.copytree(whole[0], folder, dirs_exist_ok=True)
        for content in (b"[", b"\xff\xfe\x00", b"3"):
            (folder / ".hydra" / damaged).write_bytes(content)
            assert f"{damaged}: expected " in refused("regression")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_says_of_every_setting_what_it_means(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert EXPERIMENTS[name].summary in text
    module = importlib.import_module(EXPERIMENTS[name].module)
    config, groups = module.Config, getattr(module, "GROUPS", {})
    composed = OmegaConf.to_container(OmegaConf.structured(config()))
    chosen = {key: value for entry in composed.get("defaults", []) if entry != "_self_" for key, value in entry.items()}
    assert "???" not in text
    for group, options in groups.items():
        assert f"{group}=<one of {', '.join(options)}>, {chosen[group]} if nothing is said:" in text
    for key, default, meaning in explain.lines(config):
        assert f"{key}={default}" in text
        value = functools.reduce(operator.getitem, key.split("."), composed)
        value = chosen[key] if key in groups else value
        assert default == (f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value) or "''")
        assert meaning.partition("(")[0], f"{name}: {key} has no meaning"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--foo"], "no option '--foo'; there are: "),
        (["device=cuda"], "device: expected auto, or a device that is here; got cuda"),
        (["hydra.run.dir={file}/runs"], "hydra.run.dir: expected a folder that can be written; got {file}/runs"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    given = [argument.format(file=tmp_path / "file") for argument in arguments]
    assert main(["demo", *given]) == 2
    error = capsys.readouterr().err
    assert says.format(file=tmp_path / "file") in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "file"] in ([], ["runs"])


def test_an_interrupt_before_the_run_has_begun_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcem.experiments.harness.launch.launch", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "dcem: demo: interrupted; a run that had begun goes on with resume=<its folder>\n"


def test_an_interrupt_before_the_first_update_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("dcem.experiments.regression.main", interrupted)
        assert main(["regression", *SMALL_DCEM, f"hydra.run.dir={folder}"]) == 130
    out = capsys.readouterr()
    assert out.out.endswith(f"continue with: dcem regression resume={folder}\n")
    assert not out.err
    assert main(["regression", f"resume={folder}"]) == 0
