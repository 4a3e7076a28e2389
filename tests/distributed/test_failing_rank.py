"""One process fails, catches its error and goes on: the others raise, and take nothing of what it does next."""

import functools
import itertools
import re
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_cases import several
from torch import Tensor

import dcem
from dcem.distributed.outside import Outside

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


class Gives(dcem.LML):
    """A selection that is interrupted in one process alone."""

    up = False

    def forward(self, scores: Tensor, k: Any) -> Tensor:
        if Gives.up:
            Gives.up = False
            raise KeyboardInterrupt("selection")
        return super().forward(scores, k)


def draws_once() -> Callable[..., Tensor]:
    """A noise source that raises the second time, before it draws."""
    left = [True]

    def noise(shape: tuple[int, ...], **options: Any) -> Tensor:
        if not left:
            raise Mine("noise")
        left.pop()
        return torch.randn(shape, **options)

    return noise


def writes_into(iteration: dcem.Iteration) -> None:
    iteration.samples.add_(1)


def faults(objective: Callable[[Tensor], Tensor], is_wrong: bool) -> dict[str, dict[str, Any]]:
    """By its message, of what a solve is given where that is wrong, and what in the other processes."""

    def spoiling(x: Tensor) -> Tensor:
        values = objective(x)
        x.zero_()
        return values

    either = {
        "Mine: noise": ({"noise": draws_once()}, {}),
        "ValueError: noise: expected the source": ({"noise": lambda shape, **_: torch.ones(shape[1:])}, {}),
        "ValueError: callback: expected to leave": ({"callback": writes_into}, {"callback": lambda iteration: None}),
        "ValueError: validate: expected booleans": (
            {"validate": lambda x: torch.ones(len(x) + 1, dtype=torch.bool)},
            {"validate": lambda x: torch.ones(len(x), dtype=torch.bool)},
        ),
        "TypeError: validate: expected a callable": ({"validate": 1}, {}),
        "TypeError: callback: expected a callable": ({"callback": 1}, {}),
        "TypeError: objective: expected a callable": ({"of": 1}, {}),
        "TypeError: gradient: expected": ({"gradient": 1}, {}),
        "TypeError: record: expected": ({"record": 1}, {}),
        "ValueError: tolerance: expected": ({"tolerance": -1.0}, {}),
        "ValueError: num_iterations: expected": ({"num_iterations": 0}, {}),
        "ValueError: objective: expected to leave its candidates": ({"of": spoiling}, {}),
        "KeyboardInterrupt: selection": ({}, {}),
    }
    return {message: wrong if is_wrong else right for message, (wrong, right) in either.items()}


def said_by(call: Any, times: int = 2) -> list[Any]:
    said: list[Any] = []
    for _ in range(times):
        try:
            said.append(call().detach())
        except BaseException as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def in_turn(call: Any, *given: dict[str, Any]) -> Any:
    """The call, with other options each time."""
    left = [*given]
    return lambda: call(**left.pop(0))


def attempts(rank: int) -> dict[str, list[Any]]:
    """What calls one after the other give, of which rank 0 fails in the first."""
    theta, found, left, raised = torch.tensor([0.5, 1.0], requires_grad=True), {}, 0, Mine("objective")

    def objective(x: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise raised
        return Hooked.apply(x - theta).square().sum(-1)  # type: ignore[no-untyped-call]

    def solve(shard: Any, of: Any = objective, **options: Any) -> Tensor:
        # As many bytes of values in each process as a digest has.
        options = {"generator": torch.Generator().manual_seed(0), "solver": dcem.CEM(4, 2, Gives())} | options
        return dcem.minimize(of, torch.zeros(2, 2), shard=shard, **{"num_iterations": 3, **options}).x

    samples, problems = dcem.distributed.Samples(timeout=20.0), dcem.distributed.Problems(timeout=20.0)
    found["expected"] = [solve(samples).detach()]
    for name, shard, at in (("first call", samples, 1), ("last call", samples, 4), ("problems", problems, 2)):
        for mode in (torch.enable_grad, torch.no_grad):
            for raised in (Mine("objective"), KeyboardInterrupt("objective")):
                left = at if rank == 0 else 0
                with mode():
                    found[f"{name}, {mode.__name__}, {type(raised).__name__}"] = said_by(
                        lambda shard=shard: solve(shard)
                    )
    left, raised = (5 if rank == 0 else 0), Mine("objective")
    found["answer"] = said_by(lambda: solve(samples, gradient=dcem.Implicit(100.0)))
    left, answer = 0, solve(samples)
    Hooked.raises_at = 2 if rank == 0 else 0
    found["backward"] = said_by(
        lambda: torch.autograd.grad(answer.sum(), theta, retain_graph=True)[0], 2 if rank == 0 else 1
    )
    found["after backward"] = [solve(samples).detach()]

    def once(*_: Any) -> Any:
        nonlocal fails
        if fails:
            fails = False
            raise Mine("between")
        return torch.ones(len(_[0]), dtype=torch.bool) if isinstance(_[0], Tensor) else None

    for name, options in (("callback", {"callback": once}), ("validate", {"validate": once})):
        for shard, mode in itertools.product((samples, problems), (torch.enable_grad, torch.no_grad)):
            fails = rank == 0
            with mode():
                call = functools.partial(solve, shard, **options)
                found[f"{name}, {type(shard).__name__}, {mode.__name__}"] = said_by(call)
    stops = [rank == 0, False, False, False]
    found["stops on one rank"] = said_by(lambda: solve(samples, callback=lambda iteration: stops.pop(0)))
    passes = [torch.full((2,), rank == 0), torch.full((2,), True)]
    found["answers differ"] = said_by(lambda: solve(samples, validate=lambda x: passes.pop(0)))
    found["noted"] = said_by(lambda: solve(samples, callback=lambda iteration: object() if rank == 0 else None), 1)
    kept = weakref.ref(solve(problems).grad_fn)
    found["kept"] = [torch.tensor(kept() is not None)]
    wrong = [{"proposals": 1} if rank == 0 else {}, {}]
    found["argument"] = said_by(lambda: solve(samples, **wrong.pop(0)))
    for name, form in FORMS.items():
        of = [lambda x, form=form: form(objective(x)) if rank == 0 else objective(x), objective]
        found[f"form: {name}"] = said_by(lambda of=of: solve(samples, of.pop(0)))
        later = [objective, objective, lambda x, form=form: form(objective(x)) if rank == 0 else objective(x)]
        found[f"later form: {name}"] = said_by(
            lambda later=later: solve(samples, lambda x: (later.pop(0) if later else objective)(x))
        )
    earlier = solve(samples, gradient=dcem.Checkpoint())
    for shard in (samples, problems):
        for message, options in faults(objective, rank == 0).items():
            Gives.up = rank == 0 and "selection" in message
            call = functools.partial(solve, shard, generator=torch.Generator().manual_seed(0))
            found[f"fault, {type(shard).__name__}, {message}"] = said_by(in_turn(call, options, {}))
        noting = {"callback": lambda iteration: None} if rank == 0 else {}
        found[f"noted by one, {type(shard).__name__}"] = said_by(functools.partial(solve, shard, **noting), 1)
        # An earlier solve is evaluated again after a fault: its exchanges are numbered now.
        for fault in (faults(objective, rank == 0)["Mine: noise"], {"num_iterations": 0 if rank == 0 else 3}):
            said_by(functools.partial(solve, shard, **fault), 1)
            slope = torch.autograd.grad(earlier.sum(), theta, retain_graph=True)[0]
            found.setdefault(f"slope, {type(shard).__name__}", []).append(slope)
        # What is recorded has a hook, at numbers of which the answer may not depend, too.
        for options in ({"record": True}, {"callback": lambda iteration: None}):
            of_kernel = solve(shard, solver=dcem.CEM(4, 2, dcem.LML()), **options)
            found[f"slope, {type(shard).__name__}"].append(torch.autograd.grad(of_kernel.sum(), theta)[0])
        found[f"nested, {type(shard).__name__}"] = said_by(
            in_turn(functools.partial(solve, shard), {"of": lambda x, shard=shard: objective(x - solve(shard))}, {})
        )
    found["its slope"] = [torch.autograd.grad(solve(samples).sum(), theta)[0]]
    left, raised = (1 if rank == 0 else 0), Mine("objective")
    found["evaluated again"] = said_by(lambda: torch.autograd.grad(earlier.sum(), theta, retain_graph=True)[0])
    found |= interrupts(rank, samples, problems, solve)
    found |= generators(rank, problems)
    return found | out_of_step(rank, solve)


FORMS = {
    "shape": lambda values: values.unsqueeze(-1),
    "int64": lambda values: values.long(),
    "complex64": lambda values: values.to(torch.complex64),
    "float64": lambda values: values.double(),
}


def has_failed(collective: Any, result: Tensor, message: Tensor, **options: Any) -> bool:
    """Whether another process says in what was gathered that it has failed."""
    return message.dtype == torch.uint8 and int(result.reshape(2, -1)[0, :8].view(torch.int64)) == -1


def interrupted_once(holder: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Have an interrupt come at the end of what `holder` does, once."""
    as_it_was = getattr(holder, name)

    def call(*given: Any, **options: Any) -> Any:
        result = as_it_was(*given, **options)
        if when(*given, **options):
            setattr(holder, name, as_it_was)
            raise KeyboardInterrupt(name)
        return result

    setattr(holder, name, call)


def interrupts(rank: int, samples: Any, problems: Any, solve: Any) -> dict[str, list[Any]]:
    """While a process waits for the others, who then wait for it: in the first exchange, and the first of many.

    Many values travel in two parts: what is raised before them, and an interrupt between the two.
    """
    ranks, many = samples.ranks, functools.partial(solve, samples, solver=dcem.CEM(600, 20, Gives()))
    found = {"many": [many().detach()]}
    Gives.up = rank == 0
    found["many, before"] = said_by(many)
    if rank == 0:
        interrupted_once(ranks, "_check", lambda *_: ranks._awaited < 4096)
    found["many, between"] = said_by(many)
    if rank == 0:
        interrupted_once(ranks, "begin")
    found["interrupt, begin"] = said_by(lambda: solve(samples))
    Gives.up = rank == 0
    if rank == 1:
        interrupted_once(ranks, "_exchange", has_failed)
    found["interrupt of all"] = said_by(lambda: solve(samples))
    if rank == 0:
        interrupted_once(Outside, "agree")
    return found | {"interrupt, agree": said_by(lambda: solve(problems))}


def generators(rank: int, problems: Any) -> dict[str, list[Any]]:
    """Where one of them ends for a problem that takes longer than others, for an error, and for a callback."""
    generator, targets = torch.Generator().manual_seed(1), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    calls: list[Tensor] = []

    def objective(x: Tensor) -> Tensor:
        calls.append(x)
        if fails and len(calls) == 3 and rank == 0:
            raise Mine("objective")
        return (x - (targets if problems is None else problems.own(targets))[:, None]).square().sum(-1)

    def solve(**options: Any) -> Tensor:
        calls.clear()
        return dcem.minimize(
            objective, torch.zeros(2, 2), dcem.CEM(40, 8), num_iterations=40, generator=generator, shard=problems,
            **options,
        ).x  # fmt: skip

    fails = False
    found = {"settled": said_by(lambda: solve(tolerance=0.1))}
    found["state"] = [generator.get_state()]
    found["stopped"] = said_by(lambda: solve(callback=lambda iteration: bool((iteration.std < 0.15).all())))
    fails = True
    found["failed"] = said_by(solve, 1)
    fails = False
    return found | {"after failed": said_by(solve, 1)}


def out_of_step(rank: int, solve: Any) -> dict[str, list[Any]]:
    """Rank 0 is interrupted before the last exchange, which the other is not told: it waits in vain. A new group mends it."""
    short, found, agree = dcem.distributed.Samples(timeout=1.0), {}, Outside.agree

    def interrupted(*_: Any) -> int:
        Outside.agree = agree  # type: ignore[method-assign]
        raise KeyboardInterrupt

    if rank == 0:
        Outside.agree = interrupted  # type: ignore[method-assign]
    found["out of step"] = said_by(lambda: solve(short), 4)
    group = torch.distributed.new_group()
    return found | {"made anew": [solve(dcem.distributed.Samples(group, timeout=20.0)).detach()]}


def work(rank: int, size: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(attempts(rank), folder / f"{rank}.pt")


RAISED = r"RuntimeError: shard: rank 1 of 2 .* was raised on rank \[0\]"
TOLD = {
    "noted by one, Samples": ("ValueError: shard: expected the same solver, gradient mode, use of callback, ",) * 2,
    "answers differ": (r"ValueError: shard: expected the same answer of validate on every rank, .* on \[1\]",) * 2,
    "many, before": ("KeyboardInterrupt: selection", RAISED),
    "many, between": ("KeyboardInterrupt: _check", RAISED),
    "interrupt, begin": ("KeyboardInterrupt: begin", RAISED),
    "interrupt, agree": ("KeyboardInterrupt: agree", RAISED),
    "interrupt of all": ("KeyboardInterrupt: selection", "KeyboardInterrupt: _exchange"),
    "nested": ("RuntimeError: shard: expected no shard of a solve within the objective",) * 2,
    "answer": ("Mine: objective", RAISED),
    "callback": ("Mine: between", RAISED),
    "validate": ("Mine: between", RAISED),
    "stops": (r"ValueError: shard: expected the same answer of callback on every rank, got another .* on \[1\]",) * 2,
    "argument": ("TypeError: proposals", RAISED),
    "later form: float64": (r"ValueError: shard: expected values of the same dtype .* on \[1\]",) * 2,
    "later form": ("(ValueError|TypeError): objective: expected", RAISED),
    "form": (r"ValueError: shard: expected the same objective .* another shape or dtype than on rank 0 on \[1\]",) * 2,
    "grad": ("(Mine|KeyboardInterrupt): objective", RAISED),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Any]]]:
    """What rank 0 and the other say."""
    folder = tmp_path_factory.mktemp("ranks") / "2"
    assert several(2, folder, work) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_nobody_takes_what_a_process_that_failed_does_next(found: list[dict[str, list[Any]]]) -> None:
    failed, other = found
    names = set(TOLD)
    for name in failed:
        kind = next((kind for kind in TOLD if kind in name), None)
        names -= {kind}
        fault = (name.split(", ")[2], RAISED) if name.startswith("fault, ") else TOLD.get(kind, ())
        expected = failed["many" if name.startswith("many") else "expected"][0]
        for said, message in zip(found, fault, strict=False):
            assert re.match(message, said[name][0]), (name, said[name])
            torch.testing.assert_close(
                said[name][1:], [expected] * (len(said[name]) - 1), msg=lambda said, name=name: f"{name}: {said}"
            )
    assert not names
    assert failed["backward"][0] == "Mine: backward"
    for said in (failed["backward"][1], other["backward"][0]):
        assert re.match("RuntimeError: shard: rank . of 2 .* elsewhere", said)
    assert torch.equal(other["after backward"][0], failed["expected"][0])
    for said, shard in itertools.product(found, ("Samples", "Problems")):
        torch.testing.assert_close(said[f"slope, {shard}"], failed["its slope"] * 4)
    for said, message in zip(found, ("Mine: objective", RAISED), strict=True):
        assert re.match(message, said["evaluated again"][0])
        torch.testing.assert_close(said["evaluated again"][1:], failed["its slope"])
    for said in found:  # callbacks that stop in no process, whatever they return
        torch.testing.assert_close([said["noted"][0], said["noted by one, Problems"][0]], failed["expected"] * 2)
    assert not any(said["kept"][0] for said in found)  # the graph of a solution goes with it


def test_generators_end_in_the_same_place_in_all_processes(found: list[dict[str, list[Any]]]) -> None:
    """That of one process, where nobody stops a solve and nothing fails."""
    failed, other = found
    alone = generators(0, None)
    for said in found:
        torch.testing.assert_close(said["settled"], alone["settled"])
        assert torch.equal(said["state"][0], alone["state"][0])
    for name in ("stopped", "after failed"):
        torch.testing.assert_close(failed[name], other[name])
    assert failed["failed"] == ["Mine: objective"]
    assert re.match(RAISED, other["failed"][0])


def test_ranks_that_are_a_solve_apart_say_so(found: list[dict[str, list[Any]]]) -> None:
    """After one of them gave one up, which the other waited for; a new group brings them together."""
    assert found[0]["out of step"][0].startswith("KeyboardInterrupt")
    assert "did not come within 1 s" in found[1]["out of step"][0]
    for of in found:
        assert any(re.search(r"in the same solve, got their solves \[3, 2\]", said) for said in of["out of step"])
        assert all(isinstance(said, str) for said in of["out of step"])
        assert torch.equal(of["made anew"][0], of["expected"][0])
