"""Read what a run has left: each file is named if it is missing or damaged, and none is changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dcem.experiments import ConfigError
from dcem.experiments.harness.settings import require

CHECKPOINT, CONFIG, METRICS, SUMMARY = "checkpoint.pt", "config.yaml", "metrics.jsonl", "summary.json"


class Finished(NamedTuple):
    """A run that has come to its end."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    records: list[dict[str, Any]]


def finished_runs(folder: str, key: str = "runs") -> list[Finished]:
    """The finished runs in a folder, at any depth, but no parts of runs; `key` is the setting that names the folder."""
    root = Path(folder)
    require(root.is_dir(), key, "a folder of run folders", folder)
    places = [path.parent for path in sorted(root.rglob(SUMMARY))]
    within = {place: [root / part for part in place.relative_to(root).parents] for place in places}
    runs = [place for place in places if not any((above / METRICS).exists() for above in within[place])]
    require(bool(runs), key, f"folders of finished runs, with a {SUMMARY}", f"none in {folder}")
    return [finished(place) for place in runs]


def finished(folder: Path) -> Finished:
    """A finished run."""
    summary = summary_of(folder)
    return Finished(folder, settings_of(folder, summary), summary["metrics"], records_of(folder))


def settings_of(folder: Path, summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a run had: its `config.yaml`, or what its summary says."""
    from omegaconf import OmegaConf

    path = folder / CONFIG
    if not path.exists() and summary is not None:
        return dict(summary["config"])
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise ConfigError(f"{path}: expected the settings of a run; {_first_line(error)}") from None
    return {str(name): value for name, value in plain.items()}


def summary_of(folder: Path) -> dict[str, Any]:
    """What a run has written at its end."""
    path = folder / SUMMARY
    try:
        summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return summary
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected the summary of a run; {_first_line(error)}") from None


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path}: expected JSON in line {number}; {_first_line(error)}") from None
    return records


def checkpoint_of(folder: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The state in a run's checkpoint."""
    path = folder / CHECKPOINT
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        state["tracked"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: expected the whole checkpoint of a run; {_first_line(error)}") from None
    return state


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
