"""What every experiment keeps: it leaves all its files, resumes to the same result, and refuses what is not its own."""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MUJOCO_GL", "disabled")

import pytest
import torch

from dcem.control.tasks import suite
from dcem.experiments import EXPERIMENTS, ConfigError
from dcem.experiments.benchmark import tasks as benchmark
from dcem.experiments.cartpole_embed import training as cartpole
from dcem.experiments.embed_synthetic import landscape
from dcem.experiments.embed_synthetic import training as embed_synthetic
from dcem.experiments.finetune import task as finetune
from dcem.experiments.gallery.settings import SCENES
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Interrupted, Run
from dcem.experiments.imitation import controller as imitation
from dcem.experiments.imitation import study
from dcem.experiments.imitation.settings import OF_PLANT
from dcem.experiments.mpc import methods as mpc
from dcem.experiments.structured import digits, multilabel, set_valued

# hydra 1.3 and tensorboard 2.21 on newer Pythons
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]
KILLED_AFTER = (1, 3, 7, 11, 19)
"""Steps; odd, as are those after which they stop again: in the middle of parts of two steps."""
CLOCKS = ("seconds", "seconds_per_epoch", "training_seconds", "milliseconds")
CLOCKS += ("planning_s", "stepping_s", "playing_s", "learning_s", "round_s")


@dataclass
class Case:
    """A tiny run of an experiment.

    Attributes:
        arguments: after the name of the experiment.
        pictures: what it draws.
        table: whether it leaves a table.
        also: what else holds of its folder and its metrics.
        needs: packages without which it cannot run.
    """

    arguments: str
    pictures: set[str]
    table: bool = True
    also: Callable[[Path, dict[str, Any]], None] = lambda folder, metrics: None
    needs: tuple[str, ...] = ()


MODELS: dict[Any, tuple[str, ...]] = {
    digits: ("feed-forward", "spen-gd", "spen-embedded"),
    multilabel: ("feed-forward", "spen-dcem", "icnn"),
    set_valued: ("feed-forward", "spen-gd", "likelihood", "contrastive-dcem"),
}
"""Of structured outputs, some, of which one that draws is stopped; all are trained in `test_structured`."""


def some_of(module: Any) -> str:
    return f"models=[{','.join(MODELS[module])}] "


def of_structured(module: Any, *prefixes: str) -> Callable[[Path, dict[str, Any]], None]:
    labels = {model: module.LABELS[model] for model in MODELS[module]}

    def also(folder: Path, metrics: dict[str, Any]) -> None:
        assert metrics.keys() == {prefix + model for prefix in prefixes for model in labels}
        for model, (of_model,) in metrics.items():
            assert of_model["seconds_per_epoch"] >= 0  # of a coarse clock 0
            assert of_model["parameters"] > 0
            by_iterations = next(v for k, v in of_model.items() if k.endswith("_by_iterations"))
            assert bool(by_iterations) is ("feed-forward" not in model)
        assert all(label in (folder / "table.md").read_text() for label in labels.values())

    return also


def of_regression(folder: Path, metrics: dict[str, Any]) -> None:
    assert metrics.keys() == {"mse_1", "mse_2", "mse_4", "mse_deployed"}
    assert all(lines(folder)[-1][name] == metrics[name] for name in ("mse_2", "mse_deployed"))


def of_demo(folder: Path, metrics: dict[str, Any]) -> None:
    assert {label: len(seeds) for label, seeds in metrics["mse"].items()} == {"DCEM": 1, "unrolled gradient descent": 1}
    assert not metrics["points"]["both fit: error at 10 iterations at most 1e-2"]  # two updates do not


def of_synthetic(folder: Path, metrics: dict[str, Any]) -> None:
    assert metrics["training_evaluations"] == 2 * 4 * 4 * (10 * 2 + 1)
    assert metrics["sizes"].keys() == {"10"}
    courses = json.loads((folder / "curves.json").read_text())
    assert courses["evaluations"][-1] == 40
    for size, of_size in metrics["sizes"].items():
        assert of_size["landscape"]["minima_along"] > 1
        assert of_size["methods"].keys() == courses["sizes"][size].keys()
        for name, of_method in of_size["methods"].items():
            assert of_method["final_cost"] == [seed[-1] for seed in courses["sizes"][size][name]["cost"]]
        assert all(seconds > 0 for seconds in of_size["training_seconds"])


def of_gallery(folder: Path, metrics: dict[str, Any]) -> None:
    logged = lines(folder)
    assert [line.pop("step") for line in logged] == [1, 2, 3]
    assert metrics == {key: value for line in logged for key, value in line.items()}
    assert {path.stem for path in folder.glob("*.gif")} == {"pendulum", "cartpole", "point-mass"}


def of_imitation(folder: Path, metrics: dict[str, Any]) -> None:
    assert {plant: tuple(of) for plant, of in metrics.items()} == OF_PLANT
    for of_plant in metrics.values():
        for method, of_method in of_plant.items():
            assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in of_method.values())
            assert ("dynamics_error" in of_method) is (method != "network")
    assert metrics["matched"]["cost"]["dynamics_error"] == [0.0] * 2
    assert metrics["matched"]["dynamics"]["cost_error"] == [0.0] * 2
    assert min(metrics["matched"]["cost"]["cost_error"]) > 0


def of_finetune(folder: Path, metrics: dict[str, Any]) -> None:
    assert set(metrics["pendulum"]) == {"oracle", "ppo-network", "sac-network"}
    assert set(metrics["pendulum-model"]) == {"untuned", "ppo", "sac", "ppo-likelihood", "sac-likelihood"}
    assert metrics["pendulum-cost"].keys() == metrics["pendulum-model"].keys()
    assert all(math.isfinite(of["return"]) for methods in metrics.values() for of in methods.values())
    for name, parts in {
        "pendulum-model-ppo-0": {"mass", "length"},
        "pendulum-cost-sac-0": {"weight_0", "weight_1"},
    }.items():
        first, *_, last = lines(folder / name)
        assert {part for part in ("mass", "length", "weight_0", "weight_1") if first[part] != last[part]} == parts


def of_mismatch(folder: Path, metrics: dict[str, Any]) -> None:
    from dcem.experiments.mismatch.study import LABELS, REFERENCES

    pairs = {f"{kind}-{name}" for kind in LABELS for name in ("width-1", "width-2", "distractors-2")}
    assert metrics.keys() == pairs | {"adversary-1", "recovered-1"} | set(REFERENCES)
    assert metrics["recovered-1"].keys() == {"mse", "task_mse", "return", "return_soft", "return_every_step"}


def of_mpc(folder: Path, metrics: dict[str, Any]) -> None:
    installed = [method for method in ("cem", "dcem", "learned", "pytorch-mppi") if mpc.is_installed(method)]
    assert list(metrics["pendulum"]) == installed
    assert list(metrics["reacher"]) == [method for method in installed if method != "learned"]
    for of_task in metrics.values():
        for of_method in of_task.values():
            assert len(of_method["returns"]) == 1
            assert of_method["milliseconds"] >= 0
            assert of_method["replaced"] == 0


def of_benchmark(folder: Path, metrics: dict[str, Any]) -> None:
    played = {name for name in ("cem", "dcem", "torchrl-cem", "pytorch-mppi") if mpc.is_installed(name)}
    assert metrics["energy"]["scores"].keys() == played | {"dcem learned"}
    assert metrics["embedded"]["scores"].keys() == played
    assert all(len(of) == 2 for task in metrics.values() for of in task["scores"].values())
    assert "| DCEM, model learned through it |" in (folder / "table.md").read_text()


def of_cartpole(folder: Path, metrics: dict[str, Any]) -> None:
    assert metrics["factor_hard"] == pytest.approx(metrics["cost_hard"] / metrics["cost_expert"])
    assert metrics["cost_hard"] != metrics["cost_soft"]
    assert [line["step"] for line in lines(folder)] == [0, 1, 2, 3]


STRUCTURED = (
    "num_seeds=1 num_epochs=2 feed_forward_epochs=2 eval_every=1 batch_size=8 hidden=4 num_samples=4 num_elites=2 "
    "num_iterations=2 test_iterations=[1,2,3] num_train=8 num_valid=8 num_test=10 "
)
SMALL_REGRESSION = (
    "hidden=[8] num_points=12 batch_size=4 num_iterations=2 test_iterations=[1,2,4] num_updates=6 eval_every=2 "
)
CASES = {
    "regression": Case(
        SMALL_REGRESSION + "checkpoint_every=2 solver.num_samples=8 solver.num_elites=2",
        {"loss", "energy", "iterations", "predictions"},
        table=False,
        also=of_regression,
    ),
    "demo": Case(
        "num_updates=2 +dcem.hidden=[8] +dcem.batch_size=4 +dcem.test_iterations=[10,20] "
        "+gd.hidden=[8] +gd.batch_size=4 +gd.test_iterations=[10,20]",
        {"loss", "energy", "iterations", "predictions"},
        table=False,
        also=of_demo,
    ),
    "digits": Case(
        STRUCTURED + some_of(digits),
        {"completed", "iterations"},
        also=of_structured(digits, ""),
        needs=("sklearn",),
    ),
    "multilabel": Case(
        STRUCTURED + some_of(multilabel) + "num_labels=8 num_drawn=4",
        {"correlations", "iterations"},
        also=of_structured(multilabel, ""),
        needs=("sklearn",),
    ),
    "set-valued": Case(
        STRUCTURED + some_of(set_valued) + "num_negatives=4",
        {"densities-root", "densities-spiral", "iterations-root", "iterations-spiral"},
        also=of_structured(set_valued, "root-", "spiral-"),
    ),
    "embed-synthetic": Case(
        "sizes=[10] num_train=12 num_solutions=6 num_test=2 num_valid=1 hidden=[8] num_updates=4 batch_size=4 num_samples=10 "
        "num_elites=2 num_iterations=2 checkpoint_every=2 num_seeds=1 budget=40 num_starts=2",
        {"cost", "evaluations", "latent"},
        also=of_synthetic,
    ),
    "cartpole-embed": Case(
        "latent=2 hidden=[8] num_samples=8 num_elites=2 num_iterations=2 batch_size=2 num_updates=3 eval_every=1 "
        "checkpoint_every=1",
        {"convergence"},
        table=False,
        also=of_cartpole,
    ),
    "mpc": Case(
        "num_samples=8 num_elites=2 num_iterations=2 length=0.005 decoder_updates=2 timing_rounds=1 "
        "tasks=[pendulum,reacher] methods=[cem,dcem,learned,pytorch-mppi] num_seeds=1",
        {"returns", "milliseconds"},
        also=of_mpc,
        needs=("gymnasium", "dm_control"),
    ),
    "benchmark": Case(
        "tasks=[energy,embedded] planners=[cem,dcem,torchrl-cem,pytorch-mppi] budget=12 num_problems=2 num_updates=2 "
        "fit_updates=3 num_solved=9",
        {"scores"},
        also=of_benchmark,
        needs=("gymnasium",),
    ),
    "imitation": Case(
        "num_demonstrations=[1,2] num_steps=3 num_seeds=1 num_updates=2 eval_every=1 batch_size=3 num_samples=8 "
        "num_elites=3 num_iterations=2 network_updates=3 num_held_out=2 closed_loop_steps=2",
        {"closed-loop", "loss-matched", "loss-mismatched", "parameters"},
        also=of_imitation,
    ),
    "finetune": Case(
        "tasks=[pendulum] episode=3 num_samples=4 num_elites=2 num_judged=2 num_seeds=1 ppo.num_steps=12 ppo.batch_size=3 "
        "ppo.num_envs=2 ppo.critic_epochs=1 ppo.num_epochs=1 ppo_network.num_steps=12 ppo_network.num_envs=2 "
        "ppo_network.batch_size=3 ppo_network.num_epochs=1 ppo_network.eval_every=1 sac.num_steps=8 sac.num_envs=2 "
        "sac.warm_up=4 sac.batch_size=4 sac.eval_every=8 sac_network.num_steps=8 sac_network.warm_up=4 "
        "sac_network.batch_size=4 sac_network.eval_every=8",
        {"pendulum-model", "pendulum-cost"},
        also=of_finetune,
        needs=("gymnasium", "torchrl"),
    ),
    "mismatch": Case(
        "widths=[1,2] distractors=[2] distractor_width=2 adversary_width=2 adversary_references=[1] num_episodes=4 "
        "episode_length=5 fit_updates=4 num_updates=2 batch_size=3 eval_every=1 num_replans=1 num_executed=2 horizon=4 "
        "num_samples=8 num_elites=2 num_iterations=2 num_steps=2 num_valid=3 num_test=3",
        set(),
        table=False,
        also=of_mismatch,
    ),
    "planet": Case(
        "task=cheetah.run num_envs=2 episode_steps=24 batch_size=4 window=2 updates_per_decision=0.2 hidden=16 "
        "latent_size=16 eval_every=2 num_rounds=3 planner.num_samples=8 planner.num_elites=2 planner.num_iterations=2 "
        "planner.num_proposals=2",
        set(),
        table=False,
        needs=("dm_control", "torchrl"),
    ),
    "gallery": Case(
        "scenes=[pendulum,cartpole,point-mass] num_samples=8 num_elites=2 num_iterations=1",
        set(),
        table=False,
        also=of_gallery,
    ),
}
WITHOUT_CASE = {
    "regression-study",
    "cartpole-embed-study",
    "cartpole-embed-evaluate",
    "mismatch-study",
    "planet-study",
    "planet-evaluate",
}
"""They read what others have left, and are tested beside those."""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def loaded(path: Path) -> dict[str, Any]:
    """A checkpoint that we have written ourselves: to look at each of its names takes most of the time."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=False)
    return checkpoint


def timeless(of: Any) -> Any:
    """Without what clocks have measured."""
    if isinstance(of, dict):
        return {key: timeless(value) for key, value in of.items() if key not in CLOCKS}
    return [timeless(value) for value in of] if isinstance(of, list) else of


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(autouse=True, scope="module")
def small_sets() -> Iterator[None]:
    """Experts, states, plans and films that take no time, where settings do not say how large they are."""
    with pytest.MonkeyPatch.context() as patch:
        states = cartpole.validation_states
        patch.setattr(cartpole, "EXPERT", cartpole.EXPERT.but(num_samples=8, num_elites=2, num_iterations=2))
        patch.setattr(cartpole, "validation_states", lambda: states(2))
        patch.setattr(benchmark, "EXPERT", cartpole.EXPERT)
        some = {method: candidates[:2] for method, candidates in embed_synthetic.CANDIDATES.items()}
        patch.setattr(embed_synthetic, "CANDIDATES", some)
        patch.setattr(landscape, "STEPS", 10)
        patch.setattr(imitation, "EXPERT", imitation.EXPERT._replace(num_samples=16, num_elites=4, num_iterations=2))
        patch.setattr(imitation, "HORIZON", 4)
        patch.setattr(study, "FIT_ITERATIONS", 3)
        patch.setitem(finetune.TASKS, "pendulum", replace(finetune.TASKS["pendulum"], horizon=3))
        for task in ("pendulum", "reacher"):
            patch.setitem(suite.HORIZONS, task, 3)
        patch.setattr(set_valued, "ITERATIONS", 4)
        patch.setattr(set_valued, "INVERSE_TEMPERATURES", set_valued.INVERSE_TEMPERATURES[::6])
        for scene in ("pendulum", "cartpole", "point-mass"):
            patch.setitem(SCENES, scene, SCENES[scene]._replace(num_steps=3))
        yield


class Whole(NamedTuple):
    """A tiny run from start to end.

    Attributes:
        folder: what it has left.
        settings: what Hydra has made of its arguments.
        made: how many steps it and its parts have made.
        killed: after some of these steps, what a process that is killed then leaves: what was on the disk.
    """

    folder: Path
    settings: Any
    made: int
    killed: dict[int, Path]


@pytest.fixture(scope="class")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    name = request.cls.name
    for package in CASES[name].needs:
        pytest.importorskip(package)
    folder, made, killed = tmp_path_factory.mktemp(name), 0, dict[int, Path]()
    steps = Run.steps

    def counted(run: Run, *arguments: Any, **options: Any) -> Iterator[int]:
        nonlocal made
        for step in steps(run, *arguments, **options):
            if made in KILLED_AFTER:
                killed[made] = folder.with_name(f"{folder.name}-{made}")
                shutil.copytree(folder, killed[made])
            yield step
            made += 1

    module, told = importlib.import_module(EXPERIMENTS[name].module), []

    def noted(settings: Any, run: Run, _main: Callable[..., Any] = module.main) -> Any:
        told.append(copy.deepcopy(settings))
        return _main(settings, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "steps", counted)
        patch.setattr(module, "main", noted)
        assert main([name, *CASES[name].arguments.split(), f"hydra.run.dir={folder}"]) == 0
    return Whole(folder, told[0], made, killed)


def go_on(name: str, settings: Any, folder: Path) -> None:
    """Resume a run as the command does, which a test below is about, once Hydra has composed its settings."""
    with Run(folder, {}, seed=settings.seed, resume=True, quiet=True) as run:
        importlib.import_module(EXPERIMENTS[name].module).main(copy.deepcopy(settings), run)


class ExperimentContract:
    """Inherit it with the `name` of an experiment that has a case."""

    name: str

    def test_leaves_all_its_files(self, whole: Whole) -> None:
        folder, case = whole.folder, CASES[self.name]
        there = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "metrics.jsonl", "summary.json", ".hydra"} <= there
        assert {path.stem for path in folder.glob("*.png")} == case.pictures
        assert not list(folder.rglob("*.tmp"))
        logged = [path for path in folder.rglob("metrics.jsonl") if path.stat().st_size]
        assert logged
        assert all((path.parent / "tensorboard").is_dir() for path in logged)
        found = summary(folder)
        assert found["command"].startswith(f"dcem {self.name} {case.arguments.split()[0]}")
        assert found["versions"].keys() == {"python", "torch", "dcem"}
        assert found["wall_time_s"] > 0
        assert found["seed"] == 0
        assert found["metrics"]
        if case.table:
            assert (folder / "table.md").read_text().startswith(f"`{found['command']}`\n")
        case.also(folder, found["metrics"])

    def test_stopped_twice_it_ends_as_in_one_piece(
        self, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed first, and then asked to stop."""
        complete, settings, made, killed = whole
        folder, steps, clock = tmp_path / "stopped", Run.steps, [0.0]
        command = [self.name, *CASES[self.name].arguments.split(), f"hydra.run.dir={folder}"]
        if made:
            done = max(number for number in killed if number <= max(1, 0.6 * made))
            shutil.copytree(killed[done], folder)
            command = [self.name, f"resume={folder}"]
            left = max(1, 2 * round(0.2 * (made - done)))

            def stopping(run: Run, *arguments: Any, **options: Any) -> Iterator[int]:
                nonlocal left
                for step in steps(run, *arguments, **options):
                    if left == 0:
                        raise Interrupted(143)
                    left -= 1
                    yield step

            with monkeypatch.context() as patch:
                patch.setattr(Run, "steps", stopping)
                with pytest.raises(Interrupted):
                    go_on(self.name, settings, folder)
            assert not (folder / "summary.json").exists()
            clock.append(sum(loaded(path)["elapsed"] for path in folder.glob("checkpoint.pt")))
        assert main(command) == 0
        assert summary(folder)["wall_time_s"] >= round(max(clock), 2)
        assert timeless(summary(folder)["metrics"]) == timeless(summary(complete)["metrics"])
        for path in complete.rglob("metrics.jsonl"):
            part = path.parent.relative_to(complete)
            if self.name != "mpc":  # there a line of times has the names of methods
                assert timeless(lines(folder / part)) == timeless(lines(path.parent))
            if (path.parent / "checkpoint.pt").exists():
                ours, theirs = (loaded(of / part / "checkpoint.pt")["tracked"] for of in (folder, complete))
                same(ours, theirs)

    def test_refuses_a_checkpoint_of_something_else(self, whole: Whole, tmp_path: Path) -> None:
        """And leaves everything as it was."""
        shutil.copytree(whole.folder, folder := tmp_path / "other")
        other = {"tracked": {"something": {}}, "step": 1, "elapsed": 0.0, "metrics_bytes": 0}
        checkpoints = sorted(folder.rglob("checkpoint.pt"))
        for path in checkpoints:
            torch.save(other, path)
        for path in folder.rglob("summary.json"):
            path.unlink()
        before = {path: path.read_bytes() for path in folder.rglob("metrics.jsonl")}
        if checkpoints:
            with pytest.raises(ConfigError, match=f"{folder.name}/"):
                go_on(self.name, whole.settings, folder)
        assert {path: path.read_bytes() for path in before} == before

    def test_refuses_settings_beyond_their_limits(self) -> None:
        config = importlib.import_module(EXPERIMENTS[self.name].module).Config
        limited = 0
        for key, value in beyond(config()):
            limited += 1
            settings = of = config()
            *groups, last = key.split(".")
            for group in groups:
                of = getattr(of, group)
            setattr(of, last, value)
            with pytest.raises(ConfigError, match=f"{last}"):  # itself, or what is limited by it
                settings.check()
        assert limited >= 4


def beyond(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings and values that they must not have."""
    for of in fields(config):
        value, limits = getattr(config, of.name), of.metadata.get("limits")
        if is_dataclass(value):
            yield from beyond(value, f"{prefix}{of.name}.")
        if limits is None:
            continue
        bad: list[Any] = []
        if limits.among:
            bad.append("nothing of the kind")
        for bound, step in ((limits.at_least, -1), (limits.above, 0), (limits.below, 0)):
            if bound is not None:
                bad.append(bound + step)
        if isinstance(limits.at_most, str):
            bad.append(getattr(config, limits.at_most) + 1)
        elif limits.at_most is not None:
            bad.append(limits.at_most + 1)
        if isinstance(value, list):
            bad = [[one] for one in bad] + ([] if limits.may_be_empty else [[]])
            bad += [[value[0], value[0]]] if limits.distinct and value else []
        for one in bad:
            yield f"{prefix}{of.name}", one


def same(ours: Any, theirs: Any) -> None:
    """Two states are the same, bit for bit, but for what clocks have measured."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - set(CLOCKS):
            same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs or ours is theirs or (ours != ours and theirs != theirs)


for _name in CASES:
    _class = f"Test{_name.title().replace('-', '')}"
    globals()[_class] = type(_class, (ExperimentContract,), {"name": _name})


def test_every_experiment_keeps_the_contract() -> None:
    assert CASES.keys() | WITHOUT_CASE == EXPERIMENTS.keys()
