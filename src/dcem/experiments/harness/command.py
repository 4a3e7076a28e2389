"""The `dcem` command: `dcem <experiment> [overrides]`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from dcem.experiments import EXPERIMENTS

USAGE = """usage: dcem <experiment> [key=value ...] [-m] [resume=<folder>]

{experiments}

dcem <experiment> --help   the experiment's settings
dcem <experiment> a=1,2 -m   one run for every value (Hydra's sweeps)
dcem <experiment> resume=<folder>   continue a run that was stopped
dcem --version
Runs are left under runs/<experiment>/; hydra.run.dir=<folder> says where else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for a failed run, 2 for a command that makes no sense,
    and 130 or 143 for a run that was stopped by SIGINT or SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, EXPERIMENTS))
        lines = (f"  {name:{width}}  {experiment.summary}" for name, experiment in EXPERIMENTS.items())
        print(USAGE.format(experiments="\n".join(lines)))
        return 0
    if arguments[0] in ("-V", "--version"):
        from dcem import __version__

        print(f"dcem {__version__}")
        return 0
    name, overrides = arguments[0], arguments[1:]
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return _refuse(f"no experiment {name!r}; {hint}there are: {', '.join(EXPERIMENTS)}")
    try:
        return _run(name, overrides)
    except KeyboardInterrupt:  # before the run has begun, or a second one while it was writing what it had
        print(f"dcem: {name}: interrupted; a run that had begun goes on with resume=<its folder>", file=sys.stderr)
        return 130


def _run(name: str, overrides: Sequence[str]) -> int:
    try:
        for needed in ("hydra", "matplotlib", "rich", "tensorboard"):
            importlib.import_module(needed)
    except ModuleNotFoundError as error:
        return _refuse(f"{name} needs {error.name}: pip install 'dcem[experiments]'")
    from dcem.experiments.harness.folder import BadCommand
    from dcem.experiments.harness.launch import launch

    try:
        return launch(name, overrides)
    except SystemExit as stopped:  # Hydra's way to fail, and an interrupted run's
        return stopped.code if isinstance(stopped.code, int) else _refuse(str(stopped.code or name))
    except BadCommand as error:
        return _refuse(f"{name}: {error}")


def _refuse(message: str) -> int:
    print(f"dcem: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
