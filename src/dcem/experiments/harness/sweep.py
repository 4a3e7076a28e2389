"""A sweep that was stopped is finished by the same command; runs of other sweeps are left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from dcem.experiments import ConfigError
from dcem.experiments.harness.reading import CONFIG, settings_of

KEY = "hydra.sweep.dir"
EXPECTED = f"{KEY}: expected a new folder, or one with runs of this sweep"


def require_its_own(
    folder: Path, sweeper: DictConfig, overrides: Sequence[str], compose: Callable[[list[str]], DictConfig]
) -> None:
    """Refuse the folder of a sweep if it holds a run that is not of it.

    Args:
        folder: of the sweep.
        sweeper: Hydra's settings of it. Which runs another than Hydra's own makes shows only as they begin.
        overrides: of the settings, several values where they are swept.
        compose: makes the config of a run of its overrides, checked.
    """
    left = {path.parent.resolve() for path in folder.rglob(CONFIG) if path.parent.name != ".hydra"}
    if not left or not str(sweeper.get("_target_")).endswith(f".{BasicSweeper.__name__}"):
        return
    of_sweeper = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*of_sweeper, *overrides])
    for number, own in enumerate(BasicSweeper.split_arguments(parsed, None)[0]):
        config = compose(own)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
            place = folder / str(config.hydra.sweep.subdir)
            del config["hydra"]
        if place.resolve() in left:
            require_same(place, config)
            left.remove(place.resolve())
    if left:
        raise ConfigError(f"{EXPECTED}; {folder / min(left).name} holds a run that is not one of them")


def require_same(folder: Path, config: DictConfig) -> None:
    """Refuse a run of a sweep in a folder where one with other settings has begun."""
    now: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(config)))
    for key, was, value in _differences(settings_of(folder), now):
        raise ConfigError(f"{EXPECTED}; {folder} holds a run with {key}={was}, where this one has {value}")


def _differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Settings that a run was started with and that are others now; those that came later are none."""
    found: list[tuple[str, Any, Any]] = []
    for key, value in was.items():
        other = now.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            found += _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            found.append((f"{prefix}{key}", value, other))
    return found
