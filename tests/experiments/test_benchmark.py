"""`dcem benchmark`: any planner plays, within its budget, and is scored as the guide says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("gymnasium")

from dcem.experiments import ConfigError
from dcem.experiments.benchmark import planners, playing, report, settings, study, tasks
from dcem.experiments.benchmark.playing import Planning, Task, idle, learn, play
from dcem.experiments.harness.command import main
from dcem.experiments.imitation import controller as imitation
from dcem.experiments.imitation import study as imitation_study
from dcem.experiments.mpc import methods

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]
GUIDE = Path(__file__).parents[2] / "docs/guides/benchmark.md"
INSTALLED = [name for name in planners.LABELS if methods.is_installed(name)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tasks, "STRONG", 30)
    monkeypatch.setattr(tasks, "EXPERT", tasks.EXPERT.but(num_samples=40, num_elites=5, num_iterations=3))
    monkeypatch.setattr(imitation, "EXPERT", imitation.EXPERT._replace(num_samples=16, num_elites=4, num_iterations=2))
    monkeypatch.setattr(imitation_study, "FIT_ITERATIONS", 3)
    monkeypatch.setitem(tasks.tasks.SECONDS, "pendulum", 0.5)
    monkeypatch.setitem(tasks.SCENES, "cartpole", tasks.SCENES["cartpole"]._replace(num_steps=10))
    return iter([None])


class Reach(nn.Module):
    """A point is where it was plus what is done, times a strength; it costs to be far from 0."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        path = state.unsqueeze(-2) + self.strength * actions.cumsum(-2)
        return path.square().sum((-2, -1))


def reach(strength: float = 1.0) -> Task:
    """The truth has the strength 1."""

    def training(generator: torch.Generator) -> Any:
        def loss(solve: Any) -> Tensor:
            states = torch.rand(playing.BATCH, 2, generator=generator) - 0.5
            return (states + solve(states)[:, 0]).square().mean()

        return loss

    return Task(
        Reach(strength), 3, 2, 4,
        starts=lambda num, generator: torch.rand(num, 2, generator=generator) - 0.5,
        price=lambda state, action: (state + action).square().sum(-1),
        plant=lambda state, action: state + action,
        reference=lambda starts: torch.zeros(len(starts)),
        training=training,
    )  # fmt: skip


@pytest.mark.parametrize("name", INSTALLED)
def test_every_planner_reaches_the_goal_within_its_budget(name: str) -> None:
    torch.manual_seed(0)
    task = reach()
    starts = task.starts(5, torch.Generator().manual_seed(0))
    made = []

    class Watched(playing.Told):
        def get_cost(self, info: dict[str, Any], actions: Tensor) -> Tensor:
            costs = super().get_cost(info, actions)
            by_hand = sum(
                (info["state"] + actions[..., : t + 1, :].clamp(-1, 1).sum(-2)).square().sum(-1) for t in range(3)
            )
            torch.testing.assert_close(costs, by_hand)
            made.append(actions.shape)
            return costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playing, "Told", Watched)
        costs, milliseconds = play(planners.find(name), task, task.model, starts, 600)
    assert milliseconds > 0
    assert sum(shape[0] * shape[1] for shape in made) <= 600 * 5 * 4
    assert sum(shape[0] * shape[1] for shape in made) > 500 * 5 * 4
    assert costs.mean() < 0.25 * idle(task, starts).mean()


class Stub:
    """Does what it is told to."""

    def __init__(self, model: Any, budget: int, answer: Any = None) -> None:
        self.model, self.answer, self.seen = model, answer, []

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        self.seen.append(
            (action_space.shape, float(action_space.low.min()), n_envs, config.horizon, config.action_block)
        )

    def solve(self, info_dict: Any, init_action: Tensor | None = None) -> dict[str, Any]:
        self.seen.append((info_dict["state"].clone(), init_action))
        return {"actions": self.answer(info_dict["state"])}


def test_a_planner_is_told_what_stable_worldmodel_tells_it() -> None:
    task, stubs = reach(), list[Stub]()

    def make(model: Any, budget: int) -> Stub:
        stubs.append(
            Stub(model, budget, lambda state: torch.full((5, 3, 2), 0.1) * torch.tensor([1.0, 2, 30])[:, None])
        )
        return stubs[-1]

    starts = torch.zeros(5, 2)
    costs, _ = play(make, task, task.model, starts, 10)
    (stub,) = stubs
    assert stub.seen[0] == ((5, 2), -1.0, 5, 3, 1)
    states, warm = zip(*stub.seen[1:], strict=True)
    assert warm[0] is None
    assert all(
        torch.allclose(of, torch.tensor([0.2, 3.0])[:, None].expand(5, 2, 2)) for of in warm[1:]
    )  # as it was said
    assert [float(of[0, 0]) for of in states] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert costs.tolist() == pytest.approx([2 * (0.01 + 0.04 + 0.09 + 0.16)] * 5)


def test_answers_of_numpy_leave_the_precision_of_the_task_as_it_is() -> None:
    """Learned models are of single precision, and refuse states of another."""
    task, stubs = reach(), list[Stub]()

    def make(model: Any, budget: int) -> Stub:
        stubs.append(Stub(model, budget, lambda state: np.full((5, 3, 2), 0.1)))
        return stubs[-1]

    play(make, task, task.model, torch.zeros(5, 2), 10)
    states, warm = zip(*stubs[0].seen[1:], strict=True)
    assert {of.dtype for of in (*states, *warm[1:])} == {torch.float32}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            lambda state: torch.zeros(5, 2),
            r"actions \(n_envs, at least 1, action_dim\) = \(5, at least 1, 2\); got \(5, 2\)",
        ),
        (lambda state: torch.zeros(5, 0, 2), "at least 1"),
        (lambda state: torch.zeros(4, 1, 2), "at least 1"),
        (lambda state: torch.full((5, 1, 2), torch.nan), "expected finite actions"),
    ],
)
def test_bad_answers_are_refused(answer: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        play(lambda *of: Stub(*of, answer=answer), reach(), Reach(1.0), torch.zeros(5, 2), 10)


def test_a_planner_changes_nothing_that_it_is_judged_by() -> None:
    """Neither the state, by which its actions are priced, nor the model, which others plan with."""

    def spoil(state: Tensor) -> Tensor:
        state.zero_()
        for parameter in stubs[-1].model.model.parameters():
            parameter.data.fill_(torch.nan)
        return torch.zeros(5, 1, 2)

    def make(*of: Any) -> Stub:
        stubs.append(Stub(*of, answer=spoil))
        return stubs[-1]

    task, stubs, starts = reach(), list[Stub](), torch.ones(5, 2)
    costs, _ = play(make, task, task.model, starts, 10)
    assert costs.tolist() == [8.0] * 5
    assert torch.equal(starts, torch.ones(5, 2))
    assert task.model.strength.item() == 1.0


def test_an_interrupt_is_not_the_planner_s_error() -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(interrupted, reach(), Reach(1.0), torch.zeros(5, 2), 10)


def test_a_planner_that_asks_for_more_than_its_budget_is_refused() -> None:
    def greedy(model: Any, budget: int) -> Any:
        return planners.ours("cem", model, budget + 3)

    task = reach()
    play(lambda model, budget: planners.ours("cem", model, budget), task, task.model, torch.zeros(5, 2), 31)
    with pytest.raises(ConfigError, match="at most 31 evaluations a decision; it made 34"):
        play(greedy, task, task.model, torch.zeros(5, 2), 31)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_model_is_learned_through_those_that_are_differentiable(name: str) -> None:
    torch.manual_seed(0)
    task = reach(strength=3.0)._replace(lr=0.1)
    if name not in ("mppi", "dcem"):
        assert learn(planners.find(name), task, 2, 60, 0) is None
        return
    learned = learn(planners.find(name), task, 40, 60, 0)
    assert learned is not None
    assert task.model.strength.item() == 3.0  # what the others play with
    assert abs(learned.strength.item() - 1) < 0.4
    starts = task.starts(5, torch.Generator().manual_seed(1))
    before, after = (play(planners.find(name), task, model, starts, 600)[0].mean() for model in (task.model, learned))
    assert after < 0.8 * before


@pytest.mark.parametrize("name", settings.TASKS)
def test_every_task_has_a_scale_and_can_be_played(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = imitation.EXPERT._replace(num_samples=32, num_elites=6, num_iterations=2)
    monkeypatch.setattr(imitation, "EXPERT", expert)
    config = settings.Config(fit_updates=20, num_solved=20, num_problems=2)
    task = tasks.load(name, config)
    starts = task.starts(2, torch.Generator().manual_seed(0))
    assert torch.equal(starts, task.starts(2, torch.Generator().manual_seed(0)))
    zero, one = idle(task, starts), task.reference(starts)
    assert zero.shape == one.shape == (2,)
    assert one.mean() < zero.mean()
    if name in settings.LEARNED:
        torch.manual_seed(0)
        learned = learn(planners.find("dcem"), task, 1, 15, 0)
        assert learned is not None
        changed = [not torch.equal(*of) for of in zip(learned.parameters(), task.model.parameters(), strict=True)]
        assert any(changed)
    else:
        assert task.training is None
    actions = torch.rand(2, 3, task.horizon, task.num_actions, generator=torch.Generator().manual_seed(0)) - 0.5
    costs = task.model(starts.unsqueeze(1).expand(-1, 3, -1), actions)
    alone = [
        task.model(starts[i : i + 1].unsqueeze(1), actions[i : i + 1, j : j + 1]) for i in range(2) for j in range(3)
    ]
    torch.testing.assert_close(costs.flatten(), torch.cat(alone).flatten(), rtol=1e-4, atol=1e-4)
    again = tasks.load(name, config)
    for ours, theirs in zip(task.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_planned_with_the_plant_costs_what_it_does() -> None:
    """The price of an episode of given actions is the model's cost, where that is the plant."""
    task = tasks.load("cartpole", settings.Config())._replace(num_decisions=20)
    starts = task.starts(3, torch.Generator().manual_seed(0))
    actions = torch.rand(3, 1, 20, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    left = list(actions[:, 0].unbind(1))
    played = playing.total(task, starts, lambda state: left.pop(0))
    torch.testing.assert_close(played, task.model(starts.unsqueeze(1), actions)[:, 0], rtol=1e-4, atol=1e-4)


def test_scores_are_what_the_guide_says() -> None:
    jobs = [study.Job("scale", "energy"), study.Job("play", "energy", "mine:it"), study.Job("play", "energy", "cem"),
            study.Job("learn", "energy", "mine:it"), study.Job("learn", "energy", "cem")]  # fmt: skip
    lines = [
        {"zero_0": 10.0, "zero_1": 30.0, "one_0": 0.0, "one_1": 20.0},
        {"cost_0": 10.0, "cost_1": 25.0, "milliseconds": 4.0},
        {"cost_0": 0.0, "cost_1": 20.0, "milliseconds": 2.0},
        {},
        {"cost_0": 5.0, "cost_1": 25.0, "milliseconds": 3.0},
    ]
    scores = report.Scores.of(jobs, [{"step": i + 1, **line} for i, line in enumerate(lines)], 2)
    assert scores.scores == {"energy": {"cem": [1.0, 1.0], "mine:it": [0.0, 0.5], "cem learned": [0.5, 0.5]}}
    assert scores.rows == ["cem", "mine:it", "cem learned"]
    assert scores.plain()["energy"]["nothing"] == 20
    *_, head, _, first, mine, learned = report.table(scores, settings.Config(num_problems=2)).splitlines()
    assert head == "| planner | energy | mean | difference | ms |"
    assert first == "| CEM | 1.00 | 1.000 |  | 2.0 |"
    assert mine.startswith("| mine:it | 0.25 ± 3.18 | 0.250 ± 3.177 | -0.750 ± 3.177 | 4.0 |")
    assert learned.startswith("| CEM, model learned through it | 0.50 | 0.500 | -0.500 | 3.0 |")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "no_such_module:make",
            "planner: expected module:name of what makes a planner; got no_such_module:make: No module",
        ),
        ("math:nothing", "no attribute 'nothing'"),
        ("math", "no attribute ''"),
        ("math:pi", "expected a callable"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_before_anything_runs(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        settings.Config(planner=path).check()


BROKEN = """
import numpy as np
import torch
import beside

class Planner:
    fails = beside.FAILS
    def __init__(self, model, budget):
        if self.fails == "made":
            raise KeyError("no weights")
    def configure(self, *, action_space, n_envs, config):
        self.shape = (n_envs, 1, action_space.shape[-1])
        assert self.fails != "configured", "too many"
    def solve(self, info_dict, init_action=None):
        if self.fails == "answer":
            return None
        if self.fails == "tensor":
            return torch.zeros(self.shape)
        if self.fails == "without":
            return {"costs": 1, "status": 2}
        if self.fails == "shape":
            return {"actions": np.zeros(self.shape[1:])}
        if self.fails == "exit":
            raise SystemExit(0)
        if self.fails == "solve":
            return info_dict["nothing"]
        return {"actions": np.full(self.shape, np.nan if self.fails == "nan" else 0.0)}
"""


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("made", "planner: expected it to be made; got KeyError: 'no weights', at broken.py:10"),
        ("configured", "planner: expected configure to work; got AssertionError: too many, at broken.py:13"),
        ("solve", "planner: expected solve to work; got KeyError: 'nothing', at broken.py:26"),
        ("exit", "planner: expected solve to work; got SystemExit: 0, at broken.py:24"),
        ("leave", "planner: expected module:name of what makes a planner; got broken:Planner: SystemExit"),
        ("answer", "planner: expected solve to return a dict with actions; got None (broken"),
        ("tensor", "planner: expected solve to return a dict with actions; got a Tensor of shape (3, 1, 1) (broken"),
        ("without", "planner: expected solve to return a dict with actions; got a dict with costs, status (broken"),
        ("shape", "planner: expected solve to return actions (n_envs, at least 1, action_dim) = (3, at least 1, 1)"),
        ("nan", "planner: expected finite actions; got some that are not"),
        ("import", "planner: expected module:name of what makes a planner; got broken:Planner: ZeroDivisionError"),
        ("", ""),
    ],
)
def test_what_is_wrong_with_a_planner_is_said_before_anything_is_played(
    fails: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a module in the working directory, with one beside it; right answers of NumPy are taken."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "beside.py").write_text({"import": "1 / 0", "leave": "exit(0)"}.get(fails, f"FAILS = {fails!r}"))
    monkeypatch.chdir(tmp_path)
    for module in ("broken", "beside"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    arguments = ["tasks=[energy]", "planners=[cem]", "num_problems=3", "fit_updates=2", "learn=false"]
    status = main(["benchmark", *arguments, "planner=broken:Planner", "hydra.run.dir=run"])
    error = capsys.readouterr().err
    assert says in error
    if not fails:
        assert status == 0
        return
    assert status == 2
    assert error.count("\n") == 1
    assert fails in ("import", "leave") or "(broken:Planner on energy)" in error
    assert not Path("run/metrics.jsonl").exists() or not Path("run/metrics.jsonl").read_text()


@pytest.mark.parametrize("late", [False, True])
def test_a_run_goes_on_with_the_planner_once_it_is_corrected(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that the error names: the folder is not new any more. `late` fails after what has been played."""
    (tmp_path / "broken.py").write_text(BROKEN)
    beside = tmp_path / "beside.py"
    beside.write_text("FAILS = 'shape'")
    monkeypatch.chdir(tmp_path)
    if late:
        monkeypatch.setattr(study.Benchmark, "rehearse", lambda self: None)
    arguments = ["tasks=[energy]", "planners=[cem]", "num_problems=3", "fit_updates=2", "learn=false"]
    for fails in ("shape", ""):
        for module in ("broken", "beside"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        if fails:
            assert main(["benchmark", *arguments, "planner=broken:Planner", "hydra.run.dir='a run'"]) == 2
            said = capsys.readouterr().err.strip()
            (command,) = re.findall(r"; once it is corrected, go on with dcem (.*)$", said)
        else:
            beside.write_text("FAILS = ''")
            assert main(shlex.split(command)) == 0
    scores = json.loads(Path("a run/summary.json").read_text())["metrics"]["energy"]["scores"]
    assert scores.keys() == {"cem", "broken:Planner"}


def test_a_planner_is_rehearsed_in_every_task_and_plays_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the last task alone is told before the first one is played; rows are as they were."""
    monkeypatch.setattr(planners, "load", lambda path: lambda *of: Stub(*of, answer=lambda state: torch.zeros(2, 1, 1)))
    config = settings.Config(
        tasks=["energy", "embedded"], planner="mine:it", fit_updates=2, num_solved=9, num_problems=2
    )
    benchmark = study.Benchmark(config)
    with pytest.raises(ConfigError, match=r"\(2, at least 1, 8\); got \(2, 1, 1\) \(mine:it on embedded\)"):
        benchmark.rehearse()
    assert [job.planner for job in benchmark.jobs() if job.kind == "play"][:2] == ["mine:it", "cem"]


def test_without_any_planner_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="planners: expected some"):
        settings.Config(planners=[]).check()
    monkeypatch.setattr(methods, "is_installed", lambda name: name not in methods.RIVALS)
    settings.Config(planners=["cem", *methods.RIVALS]).check()
    with pytest.raises(ConfigError, match=r"planners: expected some that are installed, .*; got \['torchrl-cem'"):
        settings.Config(planners=[*methods.RIVALS]).check()
    settings.Config(planners=[], planner="math:hypot").check()


def test_the_example_of_the_guide_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not GUIDE.exists():
        pytest.skip("the documentation is not here")
    (code,) = re.findall(r"<!-- shooting.py -->\n```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "shooting.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    arguments = ["tasks=[energy,embedded]", "planners=[cem]", "num_problems=3", "fit_updates=5", "num_solved=9"]
    path = "planner=shooting:RandomShooting"
    assert main(["benchmark", *arguments, "num_updates=1", path, "hydra.run.dir=run"]) == 0
    metrics = json.loads((tmp_path / "run/summary.json").read_text())["metrics"]
    assert metrics["embedded"]["scores"].keys() == {"cem", "shooting:RandomShooting"}
    assert "| shooting:RandomShooting | " in (tmp_path / "run/table.md").read_text()


def test_planning_goes_on_from_nothing_when_told_to() -> None:
    task = reach()
    planning = Planning(planners.find("cem"), task, task.model, 4, 31)
    planning.solve(torch.zeros(4, 2))
    assert planning.left is not None
    seen = []
    planning.planner.solve = lambda info, init_action: seen.append(init_action) or {"actions": torch.zeros(4, 1, 2)}
    planning.solve(torch.zeros(4, 2))
    planning.solve(torch.zeros(4, 2), afresh=True)
    assert seen[0].shape == (4, 2, 2)
    assert seen[1] is None
    assert planning.left is None
