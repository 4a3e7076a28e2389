"""From a command line to a run: Hydra composes the config and chooses the folder, `Run` does the rest."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from dcem.experiments import EXPERIMENTS, ConfigError
from dcem.experiments.harness.run import CHECKPOINT, Interrupted, Run
from dcem.experiments.harness.training import choose_device

CONFIG = "config.yaml"


class BadCommand(Exception):
    """A command line that names something that is not there; the message is one line."""


def launch(name: str, arguments: Sequence[str]) -> int:
    """Run experiment `name` with Hydra's command line `arguments`."""
    module = importlib.import_module(EXPERIMENTS[name].module)
    _register(name, module)
    arguments, resumed = _resume(list(arguments))
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if argument not in flags]
    if not resumed:
        _refuse_a_used_folder(arguments)
    if not {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info"} & set(flags):
        _validate(
            name, module, [a for a in arguments if not a.startswith("-")], bool({"-m", "--multirun"} & set(flags))
        )
    command = " ".join(["dcem", name, *arguments])

    def task(config: DictConfig) -> Any:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if resumed:
            config = _continued(config, folder / CONFIG)
        (folder / CONFIG).write_text(OmegaConf.to_yaml(config), "utf-8")
        settings: Any = OmegaConf.to_object(config)
        plain: Any = OmegaConf.to_container(config)
        device = choose_device(settings.device)
        torch.set_num_threads(settings.threads)
        with Run(folder, plain, seed=settings.seed, device=device, command=command, resume=resumed) as run:
            try:
                return module.main(settings, run)
            except ConfigError as error:  # a file that is not what its setting says
                raise SystemExit(f"{name}: {error}") from None
            except Interrupted:
                run.say(f"continue with: dcem {name} resume={folder}")
                raise

    task.__module__ = "__main__"
    before = sys.argv
    sweep = [flag for flag in flags if flag in ("-m", "--multirun")]  # argparse wants flags at one end
    arguments = [argument for argument in arguments if argument not in sweep]
    ours = [override for override in overrides if not override.lstrip("+").startswith("hydra")]
    sys.argv = ["dcem", *_folders(name, ours), f"hydra.job.name={name}", *arguments, *sweep]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=name)(task)()
    finally:
        sys.argv = before
    return 0


def _folders(name: str, overrides: list[str]) -> list[str]:
    """Where Hydra puts a run and the runs of a sweep; named after the overrides, if those make a file name."""
    text = " ".join(overrides)
    suffix = "-${hydra.job.override_dirname}" if text and len(text) < 150 and "/" not in text else ""
    base = f"runs/{name}/${{now:%Y-%m-%d_%H-%M-%S}}"
    run = f"hydra.run.dir={base}{suffix}"
    return [run, f"hydra.sweep.dir={base}-sweep", f"hydra.sweep.subdir=${{hydra.job.num}}{suffix}"]


def _register(name: str, module: ModuleType) -> None:
    store = ConfigStore.instance()
    store.repo = {key: value for key, value in store.repo.items() if key in ("hydra", "_dummy_empty_config_.yaml")}
    store.store(name=name, node=module.Config)
    for group, options in module.GROUPS.items():
        for option, node in options.items():
            package = "_global_" if isinstance(node, dict) else group
            store.store(group=group, name=option, node=node, package=package)


def _resume(arguments: list[str]) -> tuple[list[str], bool]:
    """Replace `resume=<folder>` by the command that started that run, in its own folder."""
    asked = [argument for argument in arguments if argument.startswith("resume=")]
    if not asked:
        return arguments, False
    others = [argument for argument in arguments if argument != asked[0]]
    if others:
        raise BadCommand(f"resume: expected alone, a run continues with its own settings; got also {' '.join(others)}")
    folder = Path(asked[0].removeprefix("resume=")).resolve()
    recorded = folder / ".hydra" / "overrides.yaml"
    if not recorded.exists() or not (folder / CONFIG).exists():
        raise BadCommand(f"resume: expected the folder of a run, with its {CONFIG}; got {folder}")
    if folder.is_relative_to(Path.cwd()):  # the command is recorded: it shall mean something elsewhere too
        folder = folder.relative_to(Path.cwd())
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*map(str, OmegaConf.load(recorded)), f"hydra.run.dir='{quoted}'"], True


def _continued(config: DictConfig, recorded: Path) -> DictConfig:
    """The settings that a run was started with, with today's defaults for settings that came later."""
    try:
        return OmegaConf.merge(config, OmegaConf.load(recorded))  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        where, first = getattr(error, "full_key", ""), str(error).splitlines()[0]
        raise SystemExit(f"{recorded}: expected the settings of this experiment; {where}: {first}") from None


def _refuse_a_used_folder(arguments: list[str]) -> None:
    """Before Hydra writes into it."""
    for argument in arguments:
        if argument.startswith("hydra.run.dir="):
            folder = Path(argument.partition("=")[2].strip("'\""))
            if (folder / CHECKPOINT).exists() or (folder / CONFIG).exists():
                raise BadCommand(f"hydra.run.dir: expected a new folder; {folder} holds a run (resume={folder})")


def _validate(name: str, module: ModuleType, arguments: list[str], sweep: bool) -> None:
    """Compose every config that the command asks for, and refuse the command in one line if one cannot be."""
    for overrides in _each(arguments, sweep):
        with initialize(version_base="1.3", config_path=None):
            try:
                config = _composed(name, overrides)
                unknown = [str(key) for key in config if str(key) not in module.Config.__dataclass_fields__]
                if unknown:
                    raise BadCommand(_no_setting(unknown[0], config))
                module.check(OmegaConf.to_object(config))
            except ConfigError as error:
                raise BadCommand(str(error)) from None
            except (HydraException, OmegaConfBaseException) as error:
                raise BadCommand(_one_line(error)) from None


def _composed(name: str, overrides: list[str]) -> DictConfig:
    """Compose all at once, a tenth of a second each; where that fails, one after the other, to explain the first."""
    try:
        return compose(name, overrides)
    except (HydraException, OmegaConfBaseException):
        default = compose(name, [])
        for i in range(len(overrides)):
            _compose(name, overrides[: i + 1], default)
        raise


def _compose(name: str, overrides: list[str], default: DictConfig) -> None:
    """Compose, and where the last override is at fault explain it by what is there."""
    key, _, value = overrides[-1].partition("=")
    if key.lstrip("+~").startswith("hydra"):
        return
    try:
        compose(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        try:
            known = compose(name, overrides[:-1])
        except (HydraException, OmegaConfBaseException):
            known = default
        text = _one_line(error)
        if "Could not override" in text or "Could not append" in text:
            raise BadCommand(_no_setting(key, known)) from None
        if "Available options" in text:
            options = text.split("Available options")[1].split("Config search path")[0].split(";")[1:-1]
            raise BadCommand(f"{key}: expected one of {', '.join(o.strip() for o in options)}; got {value}") from None
        cause = f": {_one_line(error.__cause__)}" if error.__cause__ else ""
        raise BadCommand(f"{overrides[-1]}: {text}{cause}") from None


def _no_setting(key: str, config: DictConfig) -> str:
    keys = [known for known in _keys(config) if known != key]
    close = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no setting {key!r}; {hint}there are: {', '.join(keys)}"


def _each(arguments: list[str], sweep: bool) -> Iterator[list[str]]:
    """The overrides of every run (with a sweep: every value once, the other keys at their first)."""
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        raise BadCommand(_one_line(error)) from None
    if not sweep:
        yield arguments
        return
    keys = [str(override.get_key_element()) for override in parsed]
    swept = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [] for o in parsed]
    values = [[f"{key}={value}" for value in several] for key, several in zip(keys, swept, strict=True)]
    firsts = [v[0] if v else argument for v, argument in zip(values, arguments, strict=True)]
    yield firsts
    for i, others in enumerate(values):
        for other in others[1:]:
            yield [*firsts[:i], other, *firsts[i + 1 :]]


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        value = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip() and "See https" not in line)
