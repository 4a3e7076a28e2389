"""Read what a run has left: each file is named if it is missing or damaged, and none is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from dcem.experiments import EXPERIMENTS, ConfigError
from dcem.experiments.harness.plain import from_json
from dcem.experiments.harness.settings import require

CHECKPOINT, CONFIG, METRICS, SUMMARY = "checkpoint.pt", "config.yaml", "metrics.jsonl", "summary.json"
T = TypeVar("T")


class Finished(NamedTuple):
    """A run that has come to its end."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    records: list[dict[str, Any]]


def finished_runs(folder: str, experiment: str | None = None) -> list[Finished]:
    """The finished runs in a folder, at any depth, but no parts of runs; `runs` is the setting that names the folder.
    All of them have to be of the `experiment`, where they say of which they are.
    """
    root = Path(folder)
    require(root.is_dir(), "runs", "a folder of run folders", folder)
    places = [path.parent for path in sorted(root.rglob(SUMMARY))]
    within = {place: [root / part for part in place.relative_to(root).parents] for place in places}
    runs = [place for place in places if not any((above / METRICS).exists() for above in within[place])]
    require(bool(runs), "runs", f"folders of finished runs, with a {SUMMARY}", f"none in {folder}")
    for place in runs if experiment else ():
        require_run_of(str(experiment), place, "runs")
    return [finished(place) for place in runs]


def finished(folder: Path) -> Finished:
    """A finished run."""
    summary = summary_of(folder)
    return Finished(folder, settings_of(folder, summary), summary["metrics"], records_of(folder))


def require_records(found: Finished) -> None:
    """Refuse a run whose records are needed, and gone."""
    if not found.records:
        raise ConfigError(f"{found.folder / METRICS}: expected the records of a run; got none")


def settings_of(folder: Path, summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a run had: its `config.yaml`, or what its summary says."""
    path = folder / CONFIG
    if not path.exists() and summary is not None:
        return dict(summary["config"])
    return {str(name): value for name, value in yaml_of(path, dict, "the settings of a run").items()}


def yaml_of(path: Path, kind: type[T], expected: str) -> T:
    """What a YAML file has, a list or a mapping."""
    from omegaconf import OmegaConf

    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise ConfigError(f"{path}: expected {expected}; {_first_line(error)}") from None
    if not isinstance(plain, kind) or (kind is dict and not plain):
        raise ConfigError(f"{path}: expected {expected}; got {_came(plain)}")
    return plain


def _came(plain: Any) -> str:
    return f"a {type(plain).__name__}" if plain else "nothing"


def experiment_of(folder: Path) -> str | None:
    """The experiment that a run is of, if it says so: in what Hydra has kept of it, or else in its summary."""
    kept, name = folder / ".hydra" / "hydra.yaml", ""
    if kept.exists():
        node: Any = yaml_of(kept, dict, "Hydra's settings of a run")
        for key in ("hydra", "job", "name"):
            node = node.get(key) if isinstance(node, dict) else None
        name = str(node)
    elif (folder / SUMMARY).exists():
        name = " ".join(str(summary_of(folder).get("command")).split()[1:2])
    return name if name in EXPERIMENTS else None


def require_run_of(experiment: str, folder: Path, key: str) -> None:
    """Refuse a run that says that it is of another experiment."""
    came = experiment_of(folder) or experiment
    require(came == experiment, key, f"runs of {experiment}", f"one of {came}, {folder}")


def summary_of(folder: Path) -> dict[str, Any]:
    """What a run has written at its end."""
    path = folder / SUMMARY
    try:
        summary = from_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected the summary of a run; {_first_line(error)}") from None
    if not isinstance(summary, dict) or "metrics" not in summary:
        raise ConfigError(f"{path}: expected the summary of a run; got one without metrics")
    return summary


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(from_json(line))
        except ValueError as error:
            raise ConfigError(f"{path}: expected JSON in line {number}; {_first_line(error)}") from None
    return records


def checkpoint_of(folder: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The state in a run's checkpoint."""
    path = folder / CHECKPOINT
    try:
        state = saved(path, device)
    except OSError as error:
        raise ConfigError(f"{path}: expected the checkpoint of a run; {_first_line(error)}") from None
    if "tracked" not in state:
        raise ConfigError(f"{path}: expected the whole checkpoint of a run; it is damaged, or none")
    return state


def saved(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """What torch has saved by name in a file that is there; nothing, if that is damaged or something else."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:  # of any kind, as the file has anything in it; torch's advice is not to be followed
        return {}
    return state if isinstance(state, dict) else {}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
