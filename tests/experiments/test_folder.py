"""A run's folder belongs to one process: a second command is refused, and leaves what the first one writes alone."""

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from dcem.experiments.harness.command import main
from dcem.experiments.harness.folder import taken
from dcem.experiments.harness.reading import records_of
from dcem.experiments.harness.run import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
FORK = multiprocessing.get_context("fork")
SMALL = ["regression", "solver=gd", "hidden=[8]", "num_points=12", "batch_size=4", "num_iterations=2"]
SMALL += ["test_iterations=[1,3]", "num_updates=4", "eval_every=2", "checkpoint_every=1"]


def in_another_process(act: Callable[[], int]) -> int | None:
    """What it exits with."""

    def child() -> None:
        GlobalHydra.instance().clear()  # that of the run that goes on here
        code = act()
        sys.stderr.flush()
        os._exit(code)

    process = FORK.Process(target=child)
    process.start()
    process.join(60)
    return process.exitcode


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_goes_on_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    commands = {"hydra.run.dir": [*SMALL, f"hydra.run.dir={folder}"], "resume": ["regression", f"resume={folder}"]}
    refused = []

    def log(run: Run, step: int, _log: Callable[..., None] = Run.log, **values: float) -> None:
        _log(run, step, **values)
        for key in commands if step == 2 else ():
            assert run._tensorboard is not None
            run._tensorboard.flush()  # a thread of its own writes when it comes to it
            before = contents(folder)
            assert in_another_process(lambda key=key: main(commands[key])) == 2
            assert contents(folder) == before
            refused.append(
                f"dcem: regression: {key}: expected a folder in which nothing runs now; a run is writing to {folder}\n"
            )

    monkeypatch.setattr(Run, "log", log)
    assert main(commands["hydra.run.dir"]) == 0
    assert capfd.readouterr().err == "".join(refused)
    assert len(refused) == 2
    assert [record["step"] for record in records_of(folder)] == [0, 2, 4]


def test_of_two_commands_at_once_one_goes_on(tmp_path: Path) -> None:
    """In whatever order the system lets them."""
    folder, start = tmp_path / "run", FORK.Barrier(2)

    def child() -> None:
        start.wait(60)
        os._exit(main([*SMALL, f"hydra.run.dir={folder}"]))

    processes = [FORK.Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == [0, 2]
    assert [record["step"] for record in records_of(folder)] == [0, 2, 4]


def test_of_two_sweeps_at_once_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SMALL, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    with taken(tmp_path / "sweep", "sweep", is_new=True):
        assert main(command) == 2
    assert "hydra.sweep.dir: expected a folder in which nothing runs now" in capsys.readouterr().err


def swept(folder: Path, *more: str) -> list[str]:
    return [*SMALL, "-m", "seed=0,1,2", *more, f"hydra.sweep.dir={folder}"]


def test_a_sweep_that_was_stopped_is_finished_by_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[tuple[int, int]] = []

    def track(run: Run, _track: Callable[..., None] = Run.track, **objects: object) -> None:
        _track(run, **objects)
        begun.append((run.seed, run.step))

    def stop(run: Run, step: int, _log: Callable[..., None] = Run.log, **values: float) -> None:
        _log(run, step, **values)
        if (run.seed, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert main(swept(tmp_path / "sweep")) == 128 + signal.SIGTERM
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("continue with: dcem ")
    assert sorted(shlex.split(told)) == sorted(swept(tmp_path / "sweep"))
    first = {path: data for path, data in contents(tmp_path).items() if path.parts[-2].startswith("0-")}
    monkeypatch.setattr(Run, "track", track)
    assert main(shlex.split(told)) == 0
    assert begun == [(1, 2), (2, 0)]
    assert f"{tmp_path}/sweep/0-" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in first} == first
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert len(folders) == 3
    assert all([record["step"] for record in records_of(folder)] == [0, 2, 4] for folder in folders)


def test_a_sweep_leaves_the_runs_of_another_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, numbered = tmp_path / "sweep", "hydra.sweep.subdir=${hydra.job.num}"
    assert main(swept(folder, numbered)) == 0
    before = contents(tmp_path)
    others = {
        f"hydra.sweep.dir: expected a new folder, or one with runs of this sweep; {folder}/0 holds a run with "
        "lr=0.003, where this one has 0.1": swept(folder, numbered, "lr=0.1"),
        f"{folder}/1 holds a run with seed=1, where this one has 5": swept(folder, numbered, "seed=0,5"),
        f"{folder}/2 holds a run that is not one of them": swept(folder, numbered, "seed=0,1"),
        f"{folder}/0 holds a run with solver.": swept(folder, numbered, "solver=dcem"),
        f"hydra.run.dir: expected a new folder; {folder} holds the runs of a sweep": [
            *SMALL,
            f"hydra.run.dir={folder}",
        ],
        f"resume: expected the folder of one run; a sweep goes on by its own command; got {folder}": [
            "regression",
            f"resume={folder}",
        ],
    }
    for message, command in others.items():
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert contents(tmp_path) == before
    assert main(swept(folder, numbered, "seed=0,1,2,3")) == 0
    assert (folder / "3" / "summary.json").exists()


def test_a_run_of_a_sweep_that_resumes_by_itself_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = swept(tmp_path, "hydra.sweep.subdir=${hydra.job.num}")
    assert main(command) == 0
    with taken(tmp_path / "1", "resume", is_new=False):
        assert main(command) == 2
    assert "expected a folder in which nothing runs now; a run is writing to " in capsys.readouterr().err


def test_a_process_that_is_killed_holds_no_folder(tmp_path: Path) -> None:
    def take(then: Callable[[], int]) -> int:
        with taken(tmp_path, "folder", is_new=True):
            return then()

    def kill() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_another_process(lambda: take(kill)) == -signal.SIGKILL
    assert in_another_process(lambda: take(lambda: 3)) == 3
