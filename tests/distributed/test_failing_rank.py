"""One process fails, catches its error and goes on: the others raise, and take nothing of what it does next."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_cases import several
from torch import Tensor

import dcem

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Mine(Exception):
    """Of the user."""


class Hooked(torch.autograd.Function):
    """Whose backward pass raises at that call."""

    raises_at = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Hooked.raises_at -= 1
        if Hooked.raises_at == 0:
            raise Mine("backward")
        return grad


def attempts(rank: int) -> dict[str, list[Any]]:
    """What calls one after the other give, of which rank 0 fails in the first."""
    theta, found, left = torch.tensor([0.5, 1.0], requires_grad=True), {}, 0

    def objective(x: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise Mine("objective")
        return Hooked.apply(x - theta).square().sum(-1)  # type: ignore[no-untyped-call]

    def callback(iteration: Any) -> None:
        if fails and left < 0:
            raise Mine("callback")

    def solve(shard: Any, **options: Any) -> Tensor:
        # As many bytes of values in each process as a digest has.
        return dcem.minimize(
            objective, torch.zeros(2, 2), dcem.CEM(4, 2), num_iterations=3, shard=shard,
            generator=torch.Generator().manual_seed(0), **options,
        ).x  # fmt: skip

    def said_by(call: Any, times: int = 2) -> list[Any]:
        said: list[Any] = []
        for _ in range(times):
            try:
                said.append(call().detach())
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    samples, problems = dcem.distributed.Samples(timeout=20.0), dcem.distributed.Problems(timeout=20.0)
    found["expected"] = [solve(samples).detach()]
    for name, shard, at in (("first call", samples, 1), ("last call", samples, 4), ("problems", problems, 2)):
        for mode in (torch.enable_grad, torch.no_grad):
            left = at if rank == 0 else 0
            with mode():
                found[f"{name}, {mode.__name__}"] = said_by(lambda shard=shard: solve(shard))
    left, answer = 0, solve(samples)
    Hooked.raises_at = 2 if rank == 0 else 0
    found["backward"] = said_by(
        lambda: torch.autograd.grad(answer.sum(), theta, retain_graph=True)[0], 2 if rank == 0 else 1
    )
    found["after backward"] = [solve(samples).detach()]
    fails, short = rank == 0, dcem.distributed.Samples(timeout=1.0)  # last: then the group is of no use any more
    found["callback"] = said_by(lambda: solve(short, callback=callback))
    return found


def work(rank: int, size: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(attempts(rank), folder / f"{rank}.pt")


def test_nobody_takes_what_a_process_that_failed_does_next(tmp_path: Path) -> None:
    assert several(2, tmp_path / "ranks", work) == [0, 0]
    failed, other = (torch.load(tmp_path / "ranks" / f"{rank}.pt", weights_only=True) for rank in range(2))
    expected = failed["expected"][0]
    for name in failed:
        if "grad" in name:  # an error of the objective
            assert failed[name][0] == "Mine: objective", name
            assert re.match(r"RuntimeError: shard: rank 1 of 2 .* was raised on rank \[0\]", other[name][0]), name
            for found in (failed, other):
                torch.testing.assert_close(found[name][1], expected, msg=lambda said, name=name: f"{name}: {said}")
    assert failed["backward"][0] == "Mine: backward"
    for said in (failed["backward"][1], other["backward"][0]):
        assert re.match("RuntimeError: shard: rank . of 2 .* elsewhere", said)
    assert torch.equal(other["after backward"][0], expected)
    assert failed["callback"][0] == "Mine: callback"
    for said in (failed["callback"][1], other["callback"][0]):
        assert "RuntimeError: shard: rank" in said
