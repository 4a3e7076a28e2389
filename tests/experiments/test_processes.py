"""An experiment by several processes is that of one, and goes on with any number of them."""

import contextlib
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from dcem.experiments import cli
from dcem.experiments.harness import launch
from dcem.experiments.harness.reading import records_of
from dcem.experiments.harness.run import Run

SMALL = ["regression", "hidden=[8]", "num_points=12", "batch_size=4", "num_iterations=2", "test_iterations=[1,3]"]
SMALL += ["num_updates=4", "eval_every=2", "checkpoint_every=1", "solver.num_samples=8", "solver.num_elites=2"]


def stop_after(step: int) -> None:
    """From now on, runs of this process are asked to stop in that step."""
    steps = Run.steps

    def until(self: Run, *arguments: Any) -> Any:
        for at in steps(self, *arguments):
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield at

    Run.steps = until  # type: ignore[method-assign]


def one_of_two(rank: int, port: int, arguments: list[str], stop: int | None) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if stop is not None:
        stop_after(stop)
    os._exit(cli.main(arguments))


def by_two(arguments: list[str], stop: int | None = None) -> list[int | None]:
    """What two processes, as `torchrun` starts them, end with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_of_two, args=(rank, port, arguments, stop)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def state(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was logged but for the clock, and the weights but for the constant in the energy, on which no answer
    depends: its gradient is rounding, which Adam takes for a slope.
    """
    model = torch.load(folder / "checkpoint.pt", weights_only=True)["tracked"]["model"]
    del model["energy.rest.1.bias"]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records_of(folder)], model


def same(folder: Path, other: Path) -> None:
    (records, model), (other_records, other_model) = state(folder), state(other)
    assert [record.keys() for record in records] == [record.keys() for record in other_records]
    for record, other_record in zip(records, other_records, strict=True):
        assert record == pytest.approx(other_record, rel=1e-3)
    torch.testing.assert_close(model, other_model, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_make_the_run_of_one_and_either_goes_on_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main([*SMALL, f"hydra.run.dir={tmp_path}/one"]) == 0
    assert by_two([*SMALL, f"hydra.run.dir={tmp_path}/two"], stop=3) == [143, 143]
    assert torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert cli.main(["regression", f"resume={tmp_path}/two"]) == 0
    same(tmp_path / "two", tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "steps", Run.steps)
        stop_after(1)
        assert cli.main([*SMALL, f"hydra.run.dir={tmp_path}/third"]) == 143
    assert by_two(["regression", f"resume={tmp_path}/third"]) == [0, 0]
    same(tmp_path / "third", tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "third"}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("phase", ["model", "embed"])
def test_two_processes_plan_for_each_other_and_learn_what_one_learns(tmp_path: Path, phase: str) -> None:
    pytest.importorskip("dm_control")
    small = ["planet", "task=cheetah.run", "num_envs=2", "episode_steps=24", "batch_size=4", "updates_per_decision=0.2"]
    small += ["hidden=16", "latent_size=16", "num_rounds=2", "planner.num_samples=8", "planner.num_elites=2"]
    small += [
        "planner.num_iterations=2",
        "planner.num_proposals=2",
        "embedding.num_samples=4",
        "embedding.num_elites=2",
    ]
    small += ["embedding.num_iterations=2", "embedding.batch_size=2"]
    if phase == "embed":
        assert cli.main([*small, f"hydra.run.dir={tmp_path}/model"]) == 0
        small += ["phase=embed", f"start={tmp_path}/model"]
    assert cli.main([*small, f"hydra.run.dir={tmp_path}/one"]) == 0
    assert by_two([*small, f"hydra.run.dir={tmp_path}/two"]) == [0, 0]
    one, two = (records_of(tmp_path / name) for name in ("one", "two"))
    for record, other in zip(one, two, strict=True):
        seconds = {key: record[key] for key in record if key.endswith("_s")}
        assert other | seconds == pytest.approx(record, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "leaves"),
    [
        (["hydra.run.dir=there"], "hydra.run.dir="),
        (["+hydra.run.dir=there"], "+hydra.run.dir="),
        (["++hydra.run.dir='there'"], "++hydra.run.dir="),
        (["hydra.run.dir=here", "++hydra.run.dir=there"], "++hydra.run.dir="),
        (["resume=there"], "resume="),
        ([], "hydra.run.dir="),
    ],
)
def test_the_other_processes_write_elsewhere_however_the_folder_is_given(
    asked: list[str], leaves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "joined", lambda name, is_sweep: contextlib.nullcontext(1))  # as the second of two

    def run(name: str, arguments: list[str]) -> int:
        folder, *others = arguments
        assert others == ["seed=1"]
        assert folder.startswith(leaves)
        own = Path(folder.removeprefix(leaves))
        assert not own.is_relative_to(tmp_path)
        assert (own / "config.yaml").exists() == bool(asked)
        return 0

    monkeypatch.setattr(launch, "_launch", run)
    assert launch.launch("regression", ["seed=1", *asked]) == 0


def test_what_is_not_divided_is_not_made_by_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["embed-synthetic"]) == 2
    assert "embed-synthetic: expected one process: its work is not divided" in capsys.readouterr().err
    assert cli.main(["regression", "-m", "seed=0,1"]) == 2
    assert "regression: -m: expected one process for a sweep" in capsys.readouterr().err
    assert cli.main(["embed-synthetic", "--help"]) == 0
