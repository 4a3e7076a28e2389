"""Objectives evaluated by workers that die, dawdle and raise."""

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import types
import weakref
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.distributed import PoolObjective, PoolRollout, RayObjective, RayRollout, black_box, pool
from dcem.distributed.black_box import Engine, Lost

SOLVER = dcem.CEM(12, 4)


def bowl(x: Tensor) -> float:
    return float((x - 1).square().sum())


class Perilous:
    """Ends at the candidates whose first number lies between two limits: each time, or the first time only."""

    def __init__(self, folder: Path, *, once: bool) -> None:
        self.folder, self.once = folder, once

    def __call__(self, x: Tensor) -> float:
        mark = self.folder / f"{x.tolist()}"
        if 0.4 < float(x[0]) < 0.7 and not (self.once and mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return bowl(x)


def solve(objective: Any, **options: Any) -> dcem.Solution:
    return dcem.minimize(
        objective, torch.zeros(2, 2), SOLVER, num_iterations=3, generator=torch.Generator().manual_seed(0), **options
    )


def whole(x: Tensor) -> Tensor:
    return (x - 1).square().sum(-1)


def lossy(x: Tensor) -> Tensor:
    return torch.where((x[..., 0] > 0.4) & (x[..., 0] < 0.7), torch.nan, whole(x))


def kinds() -> list[Any]:
    return [
        pytest.param(PoolObjective, id="pool"),
        pytest.param(RayObjective, id="ray", marks=pytest.mark.filterwarnings("ignore")),
    ]


@pytest.fixture(params=kinds())
def pooled(request: pytest.FixtureRequest) -> Any:
    if request.param is RayObjective:
        pytest.importorskip("ray")
    return request.param


def test_killed_workers_are_replaced_and_their_candidates_tried_again(pooled: Any, tmp_path: Path) -> None:
    with pooled(Perilous(tmp_path, once=True), num_workers=2) as objective:
        solution = solve(objective)
    assert objective.num_retried > 0
    assert objective.num_lost == 0
    torch.testing.assert_close(solution.x, solve(whole).x)


def test_what_is_lost_again_has_failed(pooled: Any, tmp_path: Path) -> None:
    with pooled(Perilous(tmp_path, once=False), num_workers=2, retries=1) as objective:
        solution = solve(objective)
    assert objective.num_lost == objective.num_retried > 0
    torch.testing.assert_close(solution.x, solve(lossy).x)
    assert not torch.equal(solution.x, solve(whole).x)


def test_a_worker_that_is_late_is_ended(tmp_path: Path) -> None:
    def waits_once(x: Tensor) -> float:
        mark = tmp_path / "waited"
        if not mark.exists():
            mark.touch()
            threading.Event().wait()  # for ever
        return bowl(x)

    with PoolObjective(waits_once, num_workers=1, timeout=2.0, retries=5) as objective:
        values = objective(torch.zeros(3, 2))
    assert values.tolist() == [2.0] * 3
    assert objective.num_retried >= 1  # more on a machine that is busy


def test_candidates_for_which_the_function_raises_have_failed(pooled: Any) -> None:
    def raises(x: Tensor) -> float:
        if 0.4 < float(x[0]) < 0.7:
            raise ArithmeticError("unstable")
        return bowl(x)

    with pooled(raises, num_workers=2) as objective:
        torch.testing.assert_close(solve(objective).x, solve(lossy).x)
        with pytest.raises(RuntimeError, match="function: raised for every candidate.*ArithmeticError: unstable"):
            objective(torch.full((3, 2), 0.5))
        assert objective(torch.zeros(1, 2)).tolist() == [2.0]  # and goes on


def test_workers_end_with_an_objective_whose_function_raised() -> None:
    def raises(x: Tensor) -> float:
        return 1.0 / float(x[0])

    objective = PoolObjective(raises, num_workers=1)
    gc.disable()
    try:
        assert objective(torch.tensor([[0.0], [1.0]])).isnan().tolist() == [True, False]
        workers = weakref.ref(objective.workers)
        del objective
        assert workers() is None
    finally:
        gc.enable()


def test_batches_events_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    function = lambda some: some.square().sum((-2, -1))  # noqa: E731
    with PoolObjective(function, 2, batch_size=4, event_dims=2, progress=True) as objective:
        torch.testing.assert_close(objective(x), function(x))
    assert "3/3 evaluated, 0 again, 0 lost" in capsys.readouterr().err


def simulate(state: Tensor, actions: Tensor) -> Tensor:
    if float(actions[0, 0]) > 0.9:
        raise ArithmeticError
    return torch.cat([state[None], state + 0.3 * actions.cumsum(0)])


def stepped(x: Tensor, u: Tensor) -> Tensor:
    return x + 0.3 * u


@pytest.mark.parametrize("kind", [PoolRollout, pytest.param(RayRollout, marks=pytest.mark.filterwarnings("ignore"))])
def test_plans_through_a_simulator(kind: Any) -> None:
    if kind is RayRollout:
        pytest.importorskip("ray")

    def planned(dynamics: Any, cost: Any) -> Tensor:
        mpc = dcem.control.MPC(dynamics, cost, 4, 2, (-1.0, 1.0), SOLVER, num_iterations=2)
        return mpc(torch.tensor([[1.0, -0.5], [0.3, 0.2]]), generator=torch.Generator().manual_seed(0)).actions

    cost = lambda x, u: x.square().sum(-1)  # noqa: E731
    failing = lambda x, u: cost(x, u) + torch.where(u[:1, ..., 0] > 0.9, torch.nan, 0.0)  # noqa: E731
    with kind(simulate, 2) as simulator:
        torch.testing.assert_close(planned(simulator, cost), planned(stepped, failing))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"function": 3}, TypeError, "function: expected a callable"),
        ({"num_workers": 0}, ValueError, "num_workers: expected at least 1"),
        ({"timeout": 0.0}, ValueError, "timeout: expected"),
        ({"retries": -1}, ValueError, "retries: expected an int >= 0"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"event_dims": -1}, ValueError, "event_dims: expected an int >= 0"),
        ({"start_method": "clone"}, ValueError, "start_method: expected one of .*, got 'clone'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PoolObjective(**{"function": bowl, "num_workers": 1} | options)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x, ValueError, "function: expected to return 1 numbers, got 2"),
        (lambda x: None, TypeError, "function: expected to return 1 numbers, got None"),  # forgot to return
        (lambda x: "low", TypeError, "function: expected to return 1 numbers, got 'low'"),
        (lambda x: lambda: x, RuntimeError, "function: raised for every candidate, the last time .*local object"),
        (
            lambda x: x.sum() * 1j,
            TypeError,
            "function: expected to return 1 numbers, got complex ones, an ndarray of shape",
        ),
        (lambda x: [np.complex64(2j)], TypeError, "function: expected to return 1 numbers, got complex ones, .*2j"),
        (lambda x: 2j, TypeError, "function: expected to return 1 numbers, got complex ones, 2j"),
    ],
)
def test_a_function_that_returns_something_else(function: Any, error: type[Exception], message: str) -> None:
    with PoolObjective(function, 1) as objective, pytest.raises(error, match=message):
        objective(torch.zeros(3, 2))


def test_states_and_events_that_do_not_fit() -> None:
    with PoolRollout(lambda state, actions: None, 1) as simulator:
        with pytest.raises(TypeError, match=r"function: expected to return states \(H \+ 1, s\) = \(4, 1\), got None"):
            simulator.rollout(torch.zeros(1), torch.zeros(3, 1))
        simulator.workers.engine.function = lambda state, actions: torch.zeros(4, 1, dtype=torch.complex64)
        simulator.close()
        with pytest.raises(TypeError, match=r"function: expected to return states .* = \(4, 1\), got complex ones"):
            simulator.rollout(torch.zeros(1), torch.zeros(3, 1))
        with pytest.raises(TypeError, match=r"state: expected a tensor \(\*batch, s\), got dict"):
            simulator.rollout({"position": torch.zeros(1)}, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="event_dims: expected at most 1 for candidates"):
        PoolObjective(bowl, 1, event_dims=2)(torch.zeros(3, 2))


@pytest.mark.parametrize(
    "draw",
    [lambda: float(torch.rand(())), random.random, lambda: float(np.random.rand())],  # noqa: NPY002
    ids=["torch", "python", "numpy"],
)
def test_no_worker_draws_the_random_numbers_of_another(draw: Any) -> None:
    every = multiprocessing.get_context("fork").Barrier(3, timeout=60)  # all are at work at once

    def noisy(x: Tensor) -> float:
        every.wait()
        return draw()

    with PoolObjective(noisy, num_workers=3, start_method="fork") as objective:
        drawn = objective(torch.zeros(9, 2))
        objective.workers.close()
        again = objective(torch.zeros(9, 2))
    assert len({*drawn.tolist(), *again.tolist()}) == 18


class Slow(Engine):
    """A worker that is there after ten seconds, and answers a second later, by a clock of its own."""

    def __init__(self) -> None:
        self.now, self.is_there = 0.0, False

    def start(self, seed: int) -> str:
        return "worker"

    def give(self, worker: str, arguments: tuple[Any, ...]) -> None:
        pass

    def wait(self, workers: list[str], seconds: float | None) -> list[str]:
        self.now += 1.0 if self.is_there else 10.0
        self.is_there = True
        return workers

    def take(self, worker: str) -> float:
        return 1.0

    def stop(self, worker: str) -> None:
        pass


def test_no_sequences_need_no_simulator() -> None:
    with PoolRollout(lambda state, actions: None, 1) as simulator:
        assert simulator.rollout(torch.zeros(2, 0, 3), torch.zeros(2, 0, 4, 1)).shape == (2, 0, 5, 3)
        assert simulator(torch.zeros(0, 3), torch.zeros(0, 1)).shape == (0, 3)


def test_the_start_of_a_worker_is_no_part_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Slow()
    monkeypatch.setattr(black_box.time, "monotonic", lambda: engine.now)
    workers = black_box.Workers(engine, 1, timeout=2.0, retries=0, progress=False)
    assert workers.call([()]) == [1.0]
    assert workers.num_lost == 0


class Fleeting(Engine):
    """Workers that are there at once, and of which some end before they are given anything."""

    def __init__(self, ends: Callable[[int], bool]) -> None:
        self.ends, self.started = ends, 0

    def start(self, seed: int) -> int:
        self.started += 1
        return self.started

    def give(self, worker: int, arguments: tuple[Any, ...]) -> None:
        if self.ends(worker):
            raise Lost("out of memory")

    def wait(self, workers: list[int], seconds: float | None) -> list[int]:
        assert workers, "waits for nobody"
        return workers

    def take(self, worker: int) -> float:
        return 1.0

    def stop(self, worker: int) -> None:
        pass


@pytest.mark.parametrize("timeout", [None, 3.0])
def test_workers_that_are_gone_before_they_are_given_anything_cost_no_try(timeout: float | None) -> None:
    engine = Fleeting(lambda worker: worker <= 2)
    workers = black_box.Workers(engine, 2, timeout, retries=0, progress=False)
    assert workers.call([(), (), ()]) == [1.0] * 3
    engine.ends = lambda worker: worker <= engine.started - 1  # those that are idle now, and one more
    assert workers.call([(), (), ()]) == [1.0] * 3
    assert workers.num_lost == workers.num_retried == 0
    engine.ends = lambda worker: True
    with pytest.raises(RuntimeError, match="function: expected workers that start, got 5 .* the last: out of memory"):
        workers.call([(), ()])
    engine.ends = lambda worker: False
    assert workers.call([(), ()]) == [1.0] * 2  # and goes on


def test_time_between_calls_is_no_part_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker that nobody waited for, as others were faster."""
    engine, waits = Slow(), iter([[], ["worker"], ["worker"]])
    monkeypatch.setattr(black_box.time, "monotonic", lambda: engine.now)
    monkeypatch.setattr(engine, "wait", lambda workers, seconds: next(waits))
    monkeypatch.setattr(engine, "stop", lambda worker: pytest.fail("was ended"))
    workers = black_box.Workers(engine, 1, timeout=2.0, retries=0, progress=False)
    workers._start()
    engine.now += 1e6
    assert workers.call([()]) == [1.0]
    workers._all.clear()


def test_threads_get_the_values_of_their_own_candidates() -> None:
    """Two that call at once waited for the same workers, and took each other's answers for theirs."""
    wrong: list[str] = []
    objective = PoolObjective(lambda x: float(x.sum()), num_workers=2)

    def call(of: int) -> None:
        for i in range(40):
            x = torch.full((8, 1), 100.0 * of + i)
            try:
                values = objective(x)
            except Exception as error:
                wrong.append(repr(error))
            else:
                wrong.extend([] if torch.equal(values, x.squeeze(-1)) else [f"{values} for {x}"])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=call, args=(of,), daemon=True) for of in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    objective.close()
    assert not wrong


def test_a_worker_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Slow()
    monkeypatch.setattr(black_box.time, "monotonic", lambda: engine.now)
    monkeypatch.setattr(engine, "wait", lambda workers, seconds: setattr(engine, "now", engine.now + 10.0) or [])
    workers = black_box.Workers(engine, 1, timeout=2.0, retries=0, progress=False)
    with pytest.raises(RuntimeError, match="function: expected workers that start, .* not there in time"):
        workers.call([()])


@pytest.mark.parametrize("timeout", [None, 3.0])
def test_idle_processes_that_have_died_are_replaced(timeout: float | None) -> None:
    with PoolObjective(whole, 2, batch_size=10, timeout=timeout, retries=0) as objective:
        objective(torch.zeros(20, 2))
        for worker in objective.workers._idle:
            worker.process.kill()
            worker.process.join()
        assert objective(torch.zeros(8, 2)).tolist() == [2.0] * 8
    assert objective.num_lost == 0


def test_processes_that_cannot_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "seed_all", lambda seed: os._exit(3))
    with PoolObjective(bowl, 1) as objective, pytest.raises(RuntimeError, match="expected workers .* exit code 3"):
        objective(torch.zeros(2, 100_000))


class Licensed:
    """Cannot be read in another process."""

    def __reduce__(self) -> Any:
        return exec, ("raise ImportError('no licence here')",)

    def __call__(self, x: Tensor) -> float:
        return 0.0


def answering(engine: Engine, worker: Any) -> bool:
    """Whether it answers; it may have asked for its function before."""
    return engine.wait([worker], 60.0) == [worker] or engine.wait([worker], 60.0) == [worker]


def test_a_function_that_cannot_be_read_in_another_process_says_why() -> None:
    engine = pool.Processes(Licensed(), "spawn")
    worker = engine.start(0)
    assert answering(engine, worker)
    with pytest.raises(Lost, match="^ImportError: no licence here$"):
        engine.take(worker)
    engine.stop(worker)


def test_a_process_says_when_it_is_there() -> None:
    engine = pool.Processes(bowl, None)
    worker = engine.start(0)
    assert answering(engine, worker)
    assert engine.take(worker) is None
    engine.give(worker, (torch.ones(2),))
    assert answering(engine, worker)
    assert engine.take(worker) == 0.0
    engine.stop(worker)


def test_draws_are_replayed_and_this_process_goes_on_as_it_would() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        with PoolObjective(lambda x: float(torch.rand(())), num_workers=1, start_method="fork") as objective:
            found.append([*objective(torch.zeros(3, 2)).tolist(), float(torch.rand(()))])
    assert found[0] == found[1]
    torch.manual_seed(0)
    assert found[0][-1] == float(torch.rand(()))


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def forking(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: (before(), fork())[1])


def test_the_generators_of_this_process_are_as_they_were_at_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    then, seen = states(), []
    forking(monkeypatch, lambda: seen.append(states()))
    with PoolObjective(bowl, 2, start_method="fork") as objective:
        objective(torch.zeros(4, 2))
    assert seen == [then] * 2


def test_a_lock_of_numpy_that_is_held_at_a_fork() -> None:
    lock, is_held, over = np.random.get_bit_generator().lock, threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    try:
        with PoolObjective(lambda x: np.random.rand(), 1, timeout=10.0, retries=0, start_method="fork") as objective:  # noqa: NPY002
            assert objective(torch.zeros(2, 2)).isfinite().all()
    finally:
        over.set()
        thread.join()


def test_draws_of_another_thread_at_a_fork() -> None:
    """Of torch's, whose lock they hold nearly all the time."""
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            torch.randn(1_000_000)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        with PoolObjective(lambda x: torch.rand(()), 4, retries=0, timeout=20.0, start_method="fork") as objective:
            assert objective(torch.zeros(4, 2)).isfinite().all()
    finally:
        over.set()
        thread.join()


def test_a_process_that_waits_for_a_lock_from_before_the_fork_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "waited"

    def wait_once(seed: int) -> None:
        if not mark.exists():
            mark.touch()
            threading.Event().wait()  # for ever

    monkeypatch.setattr(pool, "seed_all", wait_once)
    monkeypatch.setattr(pool, "SEEDING", 0.2)
    with PoolObjective(bowl, 1, retries=0, start_method="fork") as objective:
        assert objective(torch.zeros(2, 2)).tolist() == [2.0, 2.0]
    assert mark.exists()


def test_no_worker_inherits_the_pipe_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, others = pool.Processes(bowl, "fork"), []
    thread = threading.Thread(target=lambda: others.append(engine.start(1)))

    def other_first() -> None:
        if threading.current_thread() is not thread:
            thread.start()
            thread.join(0.3)

    forking(monkeypatch, other_first)
    worker = engine.start(0)
    thread.join()
    worker.process.kill()
    assert connection.wait([worker.pipe], 5.0)  # its end is noticed, though the other lives
    assert others[0].process.is_alive()
    engine.stop(worker)
    engine.stop(others[0])


class Large:
    """A function of more bytes than a pipe holds, some of which a process can only inherit."""

    def __init__(self) -> None:
        self.data, self.lock = bytes(1_000_000), multiprocessing.get_context("spawn").Lock()

    def __call__(self, x: Tensor) -> int:
        with self.lock:
            return len(self.data)


def test_processes_that_are_spawned_answer() -> None:
    with PoolObjective(Large(), num_workers=1, start_method="spawn") as objective:
        assert objective(torch.ones(2, 2)).tolist() == [1e6, 1e6]
    with (
        PoolObjective(lambda x: 0.0, num_workers=1, start_method="spawn") as objective,
        pytest.raises(TypeError, match="function: expected what 'spawn' can send to a process"),
    ):
        objective(torch.ones(2, 2))


def test_values_are_numbers_whatever_candidates_are() -> None:
    with PoolObjective(lambda x: 70000.5, num_workers=1) as objective:
        for dtype in (torch.long, torch.float16, torch.float32):
            assert objective(torch.ones(2, 2, dtype=dtype)).tolist() == [70000.5, 70000.5]
        assert objective(torch.ones(3, 0, 2)).shape == (3, 0)


def test_half_precision(pooled: Any) -> None:
    with pooled(lambda x: x.sum().bfloat16(), 1) as objective:
        assert objective(torch.ones(2, 2, dtype=torch.bfloat16)).tolist() == [2.0, 2.0]


def test_a_copy_has_workers_of_its_own() -> None:
    with PoolObjective(bowl, 1) as objective:
        assert objective(torch.zeros(1, 2)).tolist() == [2.0]
        with copy.deepcopy(objective) as other, pickle.loads(pickle.dumps(objective)) as third:
            assert other(torch.zeros(1, 2)).tolist() == third(torch.zeros(1, 2)).tolist() == [2.0]
        assert objective(torch.zeros(1, 2)).tolist() == [2.0]


def test_spawned_processes_that_cannot_start_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise ImportError('nothing here')")
    main = types.ModuleType("__main__")
    main.__file__, main.__spec__ = str(script), None
    monkeypatch.setitem(sys.modules, "__main__", main)  # which a spawned process imports first
    ends = threading.Timer(60.0, os._exit, [1])  # it would wait for ever
    ends.start()
    try:
        with (
            PoolObjective(Large(), 1, start_method="spawn") as objective,
            pytest.raises(RuntimeError, match=r"expected workers that start, got 3 .* exit code 1 \(what it wrote"),
        ):
            objective(torch.zeros(2, 2))
    finally:
        ends.cancel()
    assert "ImportError: nothing here" in capfd.readouterr().err


def in_a_fork(work: Callable[[], Any], *, daemon: bool = False) -> Any:
    """What it returns in a forked process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(work()), daemon=daemon)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_after_the_first_use_has_workers_of_its_own() -> None:
    objective = PoolObjective(lambda x: os.getpid(), 1)

    def pids(*, close: bool) -> list[int]:
        found = [int(pid) for pid in objective(torch.zeros(2, 2).double())]
        if close:
            objective.close()
        return found

    def refused() -> str:
        with pytest.raises(RuntimeError, match="num_workers: expected .*, got a daemonic process") as error:
            objective(torch.zeros(2, 2))
        return str(error.value)

    with objective:
        before = pids(close=False)
        assert {*before}.isdisjoint(in_a_fork(lambda: pids(close=True)))
        in_a_fork(objective.close)
        in_a_fork(lambda: objective.workers._finalizer())
        assert in_a_fork(refused, daemon=True)
        assert pids(close=False) == before  # nobody ended them


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_worker_outlives_a_process_that_is_killed() -> None:
    def works(pipe: Any) -> None:
        objective = PoolObjective(lambda x: os.getpid(), 2)
        pipe.send([int(pid) for pid in {*objective(torch.zeros(8, 2).double()).tolist()}])
        os.kill(os.getpid(), signal.SIGKILL)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=works, args=(theirs,))
    process.start()
    workers = ours.recv()
    process.join()
    for _ in range(600):
        if not any(map(_is_running, workers)):
            return
        threading.Event().wait(0.1)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    pytest.fail("workers went on")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore")
def test_actors_that_cannot_start_say_why() -> None:
    pytest.importorskip("ray")
    with (
        RayObjective(Licensed(), 1) as objective,
        pytest.raises(RuntimeError, match="workers .*ImportError: no licence"),
    ):
        objective(torch.zeros(2, 2))


def test_ray_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"RayObjective: expected Ray: pip install 'dcem\[ray\]'"):
        RayObjective(bowl, 1)


def dies(x: Any) -> float:
    os._exit(3)


def test_where_no_worker_ever_answers_it_is_said_why() -> None:
    says = pytest.warns(RuntimeWarning, match="function: no worker gave any answer, the last: .*exit code 3")
    with PoolObjective(dies, 2, retries=0) as objective, says:
        values = objective(torch.zeros(3, 2))
    assert not values.isfinite().any()
