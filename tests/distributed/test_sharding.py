"""One solve by several processes is that of one process: answers, statuses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shared_cases import PROBLEMS, SAMPLES, several

import dcem
from dcem.distributed.outside import Outside, OwnWork
from dcem.distributed.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {
        "samples": {k: case(None) for k, case in SAMPLES.items()},
        "problems": {k: case(None) for k, case in PROBLEMS.items()},
    }


SIZES = [1, 2, 3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for size in SIZES:
        assert all(code == 0 for code in several(size, folder / str(size)))
    return folder


@pytest.fixture(scope="module", params=SIZES)
def together(request: pytest.FixtureRequest, ranks: Path) -> list[dict[str, Any]]:
    """What each of several processes found."""
    size = request.param
    return [torch.load(ranks / str(size) / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("kind", ["samples", "problems"])
def test_answers_and_gradients_are_those_of_one_process(
    kind: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert len(together[0][kind]) >= 2
    for rank, found in enumerate(together):
        for name, answers in found[kind].items():
            assert all(answer.isfinite().all() for answer in answers if answer.dim() > 1), name
            torch.testing.assert_close(
                answers, alone[kind][name], rtol=1e-8, atol=1e-10, msg=lambda said, at=(rank, name): f"{at}: {said}"
            )


def test_what_is_gathered_is_what_the_processes_have(together: list[dict[str, Any]]) -> None:
    """Of every dtype and size: they travel as bytes."""
    for found in together:
        for name, gathered in found["gathered"].items():
            expected = [torch.arange(int(name.split()[-1])).add(rank) for rank in range(len(together))]
            torch.testing.assert_close(gathered, torch.cat(expected).unsqueeze(-1).to(gathered.dtype), rtol=0, atol=0)
            assert name.startswith(str(gathered.dtype))


@pytest.mark.parametrize("size", [2, 3, 1000])
def test_the_tags_of_many_processes_add_up(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision, in which whole numbers end at 2**24; and another tag on one of them is noticed."""
    ranks, odd = object.__new__(Ranks), 0
    ranks.rank, ranks.size, ranks.backends = 0, size, {"cpu": "gloo"}

    def one_after_the_other(reduce: Any, x: torch.Tensor) -> None:
        own = x.clone()
        for rank in range(1, size):
            x += own
            x[-1] += odd if rank == size - 1 else 0

    monkeypatch.setattr(ranks, "_exchange", one_after_the_other)
    for tag in (1, 40_001, 65_535, 65_537, 2**24 - 1, 2**24 + 5):
        odd = 0
        assert ranks.mean(torch.ones(2), tag).tolist() == [1, 1]
        odd = 1
        with pytest.raises(RuntimeError, match="got no answer from the others: one of them is elsewhere"):
            ranks.mean(torch.ones(2), tag)


@pytest.mark.parametrize("together", SIZES[1:], indirect=True)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", "ValueError: shard: expected a number of samples that"),
        (
            "seed",
            "ValueError: shard: expected a generator with the same seed on every rank, got another than that of rank 0 on",
        ),
        ("noise", "ValueError: shard: expected the same noise"),
        ("objective", "ValueError: shard: expected the same objective"),
        ("iterations", "ValueError: shard: expected the same solver"),
        ("batch", "ValueError: shard: expected a batch whose first axis"),
        (
            "precision",
            "ValueError: shard: expected the same solver, gradient mode, .*number of iterations and shapes on every",
        ),
        ("start", "ValueError: shard: expected the same start, bounds and settings of the solver on every rank"),
        ("bounds", "ValueError: shard: expected the same start, bounds"),
        ("temperature", "ValueError: shard: expected the same start, bounds"),
        ("selection", "ValueError: shard: expected the same solver"),
        ("captured", "ValueError: shard: expected a solver as it was before dcem.capture"),
        ("unbiased", r"ValueError: shard: expected Samples\(\) for Prune\(unbiased=True\)"),
        ("unseen", "RuntimeError: shard: expected an objective that hands what it closes over to torch's functions"),
        ("unseen by problems", "RuntimeError: shard: expected an objective that hands what"),
        ("transform", r"RuntimeError: shard: expected an objective that takes x\.view_as\(x\) of what it closes over"),
        ("reentrant", "RuntimeError: shard: expected torch.utils.checkpoint with use_reentrant=False in an objective"),
        ("reentrant by problems", "RuntimeError: shard: expected torch.utils.checkpoint with use_reentrant=False"),
        (
            "another parameter",
            "ValueError: shard: expected an objective that uses the same parameters in the same order",
        ),
        ("another order", "ValueError: shard: expected an objective that uses the same parameters in the same order"),
        ("no parameter", "ValueError: shard: expected an objective that uses the same parameters in the same order"),
        (
            "own outside",
            "ValueError: shard: expected an objective that uses the same parameters.*call shard.own within",
        ),
        ("no parameter by problems", "ValueError: shard: expected an objective that uses the same parameters"),
        ("init", "TypeError: init: expected a Tensor of means or a dcem distribution, got list"),
        ("half", "nothing"),
        ("nothing wrong", "nothing"),
        ("lost", "RuntimeError: objective: expected values with a gradient, which the solution was asked for one"),
        ("lost by problems", "RuntimeError: objective: expected values with a gradient, which the solution was asked"),
        ("end", "RuntimeError: shard: rank 0 of . got no answer from the others: one of them has ended"),
    ],
)
def test_what_differs_between_processes_is_said(name: str, message: str, together: list[dict[str, Any]]) -> None:
    import re

    assert re.match(message, together[0]["refusals"][name]), together[0]["refusals"][name]


def test_without_a_process_group() -> None:
    with pytest.raises(ValueError, match="shard: expected a process group"):
        dcem.distributed.Samples()
    with pytest.raises(TypeError, match="shard: expected dcem.distributed"):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), shard="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "device"),
    [("cuda:nccl", "cuda:0"), ("cpu:gloo", "cpu"), ("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu")],
)
def test_the_backend_is_what_the_group_has_whether_or_not_it_was_named(
    config: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init_process_group()` takes NCCL where there is a GPU, and calls itself "undefined"."""
    for name, answer in (
        ("is_initialized", True),
        ("get_rank", 0),
        ("get_world_size", 1),
        ("get_backend", "undefined"),
    ):
        monkeypatch.setattr(torch.distributed, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: config)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert Ranks(None, 1.0)._device == torch.device(device)


def test_what_is_compiled_is_as_written_while_work_is_shared_and_no_longer() -> None:
    from torch._dynamo import eval_frame

    def stance() -> str:
        return str(eval_frame._stance.stance)

    work = OwnWork(Outside(None))  # type: ignore[arg-type]
    assert stance() == "default"  # whatever happens before it is entered
    with work:
        assert stance() == "force_eager"
    assert stance() == "default"
