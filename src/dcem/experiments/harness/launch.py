"""From a command line to a run: Hydra composes the config and chooses the folder, `Run` does the rest."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from dcem.experiments import EXPERIMENTS, ConfigError
from dcem.experiments.harness.explain import explain, known
from dcem.experiments.harness.folder import OF_A_SWEEP, BadCommand, taken
from dcem.experiments.harness.processes import joined, own_folder
from dcem.experiments.harness.reading import CONFIG, SUMMARY, experiment_of, summary_of, yaml_of
from dcem.experiments.harness.run import Interrupted, Run
from dcem.experiments.harness.settings import choose_device, require
from dcem.experiments.harness.sweep import KEY, require_its_own, require_same

FOLDER = re.compile(r"(resume|\+{0,2}hydra\.run\.dir)=(.*)", re.DOTALL)
KINDS = {"Integer": "a whole number (no point, no exponent)", "Float": "a number"}
SWEEPS = {"-m", "--multirun"}
SHOWS = {"--hydra-help", "--version", "-c", "--cfg", "-i", "--info"}
OPTIONS = {*SWEEPS, *SHOWS, "-h", "--help", "-p", "--package", "--resolve"}


def launch(name: str, arguments: Sequence[str]) -> int:
    """Run experiment `name` with Hydra's command line `arguments`, as one of the processes that there are."""
    if {"-h", "--help"} & set(arguments):
        module = importlib.import_module(EXPERIMENTS[name].module)
        print(explain(name, EXPERIMENTS[name].summary, module.Config, getattr(module, "GROUPS", {})))
        return 0
    with joined(name, is_sweep=bool(SWEEPS & set(arguments))) as rank:
        asked = [found for argument in arguments if (found := FOLDER.fullmatch(argument))]
        with own_folder(rank, asked[-1][2].strip("'\"") if asked else None) as folder:
            if rank > 0:
                others = [argument for argument in arguments if not FOLDER.fullmatch(argument)]
                key = asked[-1][1] if asked else "hydra.run.dir"
                arguments = [f"{key}={folder}", *others]
            return _launch(name, arguments)


def _launch(name: str, arguments: Sequence[str]) -> int:
    module = importlib.import_module(EXPERIMENTS[name].module)
    unknown = [argument for argument in arguments if argument.startswith("-") and argument not in OPTIONS]
    if unknown:
        raise BadCommand(f"no option {unknown[0]!r}; there are: {', '.join(sorted(OPTIONS))}; settings are key=value")
    _register(name, module)
    arguments, resumed = _resume(name, list(arguments))
    arguments = [_quoted(argument) for argument in arguments]
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if argument not in flags]
    sweeps, shows = bool(SWEEPS & set(flags)), bool(SHOWS & set(flags))
    if not shows:
        _refuse_ignored(overrides, sweeps)
    ours = [override for override in overrides if not override.lstrip("+").startswith("hydra")]
    where = [*_folders(name, ours), f"hydra.job.name={name}"]
    if sweeps:
        for each in _each(overrides):
            with initialize_config_module("dcem.experiments", version_base="1.3"):
                config = _composed(name, module, [*where, *each])
        folder = Path(str(config.hydra.sweep.dir))
        others = [argument for argument in arguments if argument.lstrip("+").partition("=")[0] != KEY]
        again = " ".join(["dcem", name, *map(_in_shell, [*others, f"{KEY}={_quote(str(folder))}"])])
    task = _task(name, module, overrides, resumed, again if sweeps else None)
    if shows:
        if not sweeps:  # what makes no sense is refused in one line here, too; `job` is of `--cfg job`
            settings = [override for override in overrides if "=" in override or override.startswith("~")]
            with initialize_config_module("dcem.experiments", version_base="1.3"):
                _composed(name, module, [*where, *settings])
        _by_hydra(task, name, [*where, *arguments])
    elif sweeps:
        with taken(folder, KEY, is_new=True, of_sweep=True):
            _require_its_own(name, module, folder, config, [*where, *(o for o in overrides if o not in ours)], ours)
            _by_hydra(task, name, [*where, *arguments])
    else:
        with initialize_config_module("dcem.experiments", version_base="1.3"):
            config = _composed(name, module, [*where, *overrides])
            folder = Path(str(config.hydra.run.dir))
            with taken(folder, "resume" if resumed else "hydra.run.dir", is_new=not resumed):
                context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
                result = run_job(task, config, "hydra.run.dir", None, context, configure_logging=False)
                _ = result.return_value  # raises what the run has raised
    return 0


def _task(name: str, module: ModuleType, overrides: list[str], resumed: bool, sweep: str | None) -> Any:
    """What Hydra is to do with a config; `overrides` made it, or, of a run of a sweep, its own; `sweep` is the command
    that goes on with that.
    """

    def task(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        own = hydra_config.overrides.task if sweep else overrides
        command = " ".join(["dcem", name, *map(_in_shell, own)])
        try:
            with taken(folder, KEY, is_new=False) if sweep else nullcontext():
                begun = resumed or (sweep is not None and (folder / CONFIG).exists())
                if sweep and begun:
                    require_same(folder, config)
                    if (folder / SUMMARY).exists():
                        print(f"{folder}: finished before", flush=True)
                        return summary_of(folder)["metrics"]
                return _run(module, _continued(config, folder / CONFIG) if begun else config, command, begun)
        except (ConfigError, BadCommand) as error:  # a file that is not what its setting says; a folder in use
            raise SystemExit(f"{name}: {error}") from None
        except (Interrupted, KeyboardInterrupt) as stopped:  # the latter comes where no updates are made
            if not (folder / CONFIG).exists():
                raise
            print(f"continue with: {sweep or f'dcem {name} resume={_in_shell(str(folder))}'}", flush=True)
            raise stopped if isinstance(stopped, Interrupted) else Interrupted(128 + signal.SIGINT) from None

    task.__module__ = "__main__"
    return task


def _run(module: ModuleType, config: DictConfig, command: str, begun: bool) -> Any:
    """Run the experiment in the folder that Hydra has made, or go on with what was begun there."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    settings: Any = OmegaConf.to_object(config)
    settings.check()
    (folder / CONFIG).write_text(OmegaConf.to_yaml(config), "utf-8")
    plain: Any = OmegaConf.to_container(config)
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    with Run(folder, plain, seed=settings.seed, device=device, command=command, resume=begun) as run:
        return module.main(settings, run)


def _require_its_own(
    name: str, module: ModuleType, folder: Path, config: DictConfig, hydras: list[str], ours: list[str]
) -> None:
    """Refuse the folder of a sweep if it holds runs of another; `hydras` are the overrides of Hydra's own settings."""
    try:
        with initialize_config_module("dcem.experiments", version_base="1.3"):
            require_its_own(folder, config.hydra.sweeper, ours, lambda own: _composed(name, module, [*hydras, *own]))
    except ConfigError as error:
        raise BadCommand(str(error)) from None


def _by_hydra(task: Any, name: str, arguments: list[str]) -> None:
    """As if its command line were `arguments`."""
    before = sys.argv
    last = [argument for argument in arguments if argument in SWEEPS]  # argparse wants flags at one end
    sys.argv = ["dcem", *(argument for argument in arguments if argument not in last), *last]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=name)(task)()
    finally:
        sys.argv = before


def _folders(name: str, overrides: list[str]) -> list[str]:
    """Where Hydra puts a run and the runs of a sweep; named after the overrides, if those make a file name."""
    text = " ".join(overrides)
    suffix = "-${hydra.job.override_dirname}" if text and len(text) < 150 and "/" not in text else ""
    base = f"runs/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    run = f"hydra.run.dir={base}{suffix}"
    return [run, f"hydra.sweep.dir={base}-sweep", f"hydra.sweep.subdir=${{hydra.job.num}}{suffix}"]


def _refuse_ignored(overrides: Sequence[str], sweeps: bool) -> None:
    """Folders that Hydra would not heed, and the name by which a run is known."""
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key == "hydra.job.name":
            raise BadCommand(f"{key}: expected the experiment's, by which resume= knows a run; got another")
        if sweeps and key == "hydra.run.dir":
            raise BadCommand(f"{key}: expected for one run; a sweep's folder is hydra.sweep.dir; got it with -m")
        if not sweeps and key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
            raise BadCommand(f"{key}: expected for a sweep; one run's folder is hydra.run.dir; got it without -m")


def _register(name: str, module: ModuleType) -> None:
    store = ConfigStore.instance()
    store.repo = {key: value for key, value in store.repo.items() if key in ("hydra", "_dummy_empty_config_.yaml")}
    store.store(name=name, node=module.Config)
    for group, options in getattr(module, "GROUPS", {}).items():
        for option, node in options.items():
            package = "_global_" if isinstance(node, dict) else group
            store.store(group=group, name=option, node=node, package=package)


def _resume(name: str, arguments: list[str]) -> tuple[list[str], bool]:
    """Replace `resume=<folder>` by the command that started that run, in its own folder."""
    asked = [argument for argument in arguments if argument.startswith("resume=")]
    if not asked:
        return arguments, False
    others = [argument for argument in arguments if argument != asked[0]]
    if others:
        raise BadCommand(f"resume: expected alone, a run continues with its own settings; got also {' '.join(others)}")
    if asked[0] == "resume=":
        raise BadCommand("resume: expected the folder of a run, resume=<folder>; got nothing")
    folder = Path(asked[0].removeprefix("resume=")).resolve()
    recorded = folder / ".hydra" / "overrides.yaml"
    if (folder / OF_A_SWEEP).exists():
        raise BadCommand(f"resume: expected the folder of one run; a sweep goes on by its own command; got {folder}")
    if not recorded.exists() or not (folder / CONFIG).exists():
        raise BadCommand(f"resume: expected the folder of a run, with its {CONFIG}; got {folder}")
    try:
        experiment, overrides = experiment_of(folder), yaml_of(recorded, list, "the overrides of a run")
    except ConfigError as error:
        raise BadCommand(f"resume: {error}") from None
    if experiment not in (None, name):
        raise BadCommand(f"resume: expected a run of {name}, got one of {experiment} ({folder})")
    if folder.is_relative_to(Path.cwd()):  # the command is recorded: it shall mean something elsewhere too
        folder = folder.relative_to(Path.cwd())
    return [*map(str, overrides), f"hydra.run.dir={_quote(str(folder))}"], True


def _quoted(argument: str) -> str:
    """`key=path` as Hydra reads it where the path is there: those of runs have `=` and `,` in their names."""
    key, _, value = argument.partition("=")
    is_there = os.path.exists(value)  # of a list too long for a name `Path` would raise
    return f"{key}={_quote(value)}" if is_there else argument


def _quote(text: str) -> str:
    """A path as Hydra reads it."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):  # Hydra's grammar knows no other letters
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _in_shell(argument: str) -> str:
    """An argument as a shell reads it; lists stay as documentation has them, which shells leave alone, too."""
    return argument if re.fullmatch(r"[\w@%+=:,./\[\]-]+", argument, re.ASCII) else shlex.quote(argument)


def _continued(config: DictConfig, recorded: Path) -> DictConfig:
    """The settings that a run was started with, with today's defaults for settings that came later."""
    try:
        return OmegaConf.merge(config, OmegaConf.load(recorded))  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        where, first = getattr(error, "full_key", ""), str(error).splitlines()[0]
        raise SystemExit(f"{recorded}: expected the settings of this experiment; {where}: {first}") from None


def _composed(name: str, module: ModuleType, overrides: list[str]) -> DictConfig:
    """The config that Hydra composes, checked; a command that makes no sense is refused in one line."""
    groups = getattr(module, "GROUPS", {})
    try:
        for override in OverridesParser.create().parse_overrides(overrides):
            group, chosen = override.key_or_group, override.value()
            require(bool(group), str(override.input_line), "a setting, key=value", "no key")
            if group in groups and not override.is_sweep_override():
                require(isinstance(chosen, str), group, f"one of {', '.join(groups[group])}", chosen)
            if group.startswith("hydra/") and not override.is_delete():
                require(not isinstance(chosen, (int, float, type(None))), group, "a name", chosen)
        config = compose(name, overrides, return_hydra_config=True)
        plain = copy.deepcopy(config)
        with open_dict(plain):
            del plain["hydra"]
        settings: Any = OmegaConf.to_object(plain)
        for key in _unknown(settings):
            raise BadCommand(_no_setting(key, module, overrides))
        settings.check()
        for key in ("run.dir", "sweep.dir"):
            require(bool(OmegaConf.select(config.hydra, key)), f"hydra.{key}", "a folder", "nothing")
        kept = config.hydra.output_subdir
        require(kept == ".hydra", "hydra.output_subdir", ".hydra, where resume finds a run's overrides", kept)
        return config
    except ConfigError as error:
        raise BadCommand(str(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        unknown_key = re.match(r"Could not (?:override|append to config\. An item is already at) '([^']+)'", str(error))
        value = re.match(r"Error merging override \+*([^=]+)=(.+)", str(error))
        kind = re.search(r"could not be converted to (\w+)", str(error.__cause__))
        said = _no_setting(unknown_key[1], module, overrides) if unknown_key else _one_line(error)
        if value and "is not a ListConfig" in str(error.__cause__):
            said = f"{value[1]}: expected a list, {value[1]}=[{value[2]}]; got {value[2]}"
        elif value and kind and kind[1] in KINDS:
            said = f"{value[1]}: expected {KINDS[kind[1]]}{' in each entry' * value[2].startswith('[')}; got {value[2]}"
        raise BadCommand(said) from None


def _unknown(settings: Any, prefix: str = "") -> Iterator[str]:
    """Keys that were added to settings, or to those in them, by `+key=value`."""
    for name, value in vars(settings).items():
        if name not in settings.__dataclass_fields__:
            yield f"{prefix}{name}"
        elif is_dataclass(value):
            yield from _unknown(value, f"{prefix}{name}.")


def _no_setting(key: str, module: ModuleType, overrides: Sequence[str]) -> str:
    keys = known(module.Config, getattr(module, "GROUPS", {}), overrides)
    within = key.rpartition(".")[0] + "."
    beside = [of for of in keys if of.startswith(within)]
    among = {of.removeprefix(within): of for of in beside or keys}  # what all share makes none alike
    close = difflib.get_close_matches(key.removeprefix(within) if beside else key, among, n=1)
    hint = f"did you mean {among[close[0]]!r}? " if close else ""
    return f"no setting {key!r}; {hint}there are: {', '.join(beside or dict.fromkeys(of.split('.')[0] for of in keys))}"


def _one_line(error: BaseException) -> str:
    """What Hydra says, and why, without advice and search paths."""
    lines = re.split(r"Config search path|full_key:|\n.*https:|\nSee ", str(error))[0].split("\n")
    cause = f": {_one_line(error.__cause__)}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return " ".join(line.strip() for line in lines if line.strip()) + cause


def _each(arguments: list[str]) -> Iterator[list[str]]:
    """The overrides of the runs of a sweep: every value once, the other keys at their first."""
    try:
        parsed = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        raise BadCommand(_one_line(error)) from None
    keys = [str(override.get_key_element()) for override in parsed]
    swept = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [] for o in parsed]
    values = [[f"{key}={value}" for value in several] for key, several in zip(keys, swept, strict=True)]
    firsts = [v[0] if v else argument for v, argument in zip(values, arguments, strict=True)]
    yield firsts
    for i, others in enumerate(values):
        for other in others[1:]:
            yield [*firsts[:i], other, *firsts[i + 1 :]]
