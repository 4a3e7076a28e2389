"""One run of an experiment: its folder, metrics, checkpoints and progress; stopped, it resumes exactly."""

from __future__ import annotations

import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from dcem.experiments import ConfigError
from dcem.experiments.harness.plain import to_json
from dcem.experiments.harness.reading import CHECKPOINT, METRICS, SUMMARY, checkpoint_of, records_of, summary_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Interrupted(SystemExit):
    """SIGINT or SIGTERM came; the checkpoint of the last step is written. Exit status 130 or 143."""


class Run:
    """A folder in which a run leaves everything, and the loop that can be stopped and resumed anywhere.

    Args:
        folder: Created where it is missing.
        config: Settings for the summary, as plain data.
        seed: Seeds torch's and Python's global generators.
        device: Named in the summary.
        command: What started the run, for the summary.
        resume: Continue from the folder's checkpoint. Without it a folder with a checkpoint is refused.
        quiet: Print nothing.

    Use: `track` everything that has a state, loop over `steps`, `log` at evaluations, `finish` at the end:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Run(folder, {}, seed=0, quiet=True) as run:
    ...     model = torch.nn.Linear(1, 1)
    ...     run.track(model=model)
    ...     for step in run.steps(4, checkpoint_every=2):
    ...         run.log(step, loss=1.0 / step)
    ...     _ = run.finish(loss=0.25)
    ...     sorted(path.name for path in run.folder.iterdir())
    ['checkpoint.pt', 'metrics.jsonl', 'summary.json', 'tensorboard']
    """

    def __init__(
        self,
        folder: str | Path,
        config: dict[str, Any],
        *,
        seed: int,
        device: str | torch.device = "cpu",
        command: str | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        self.folder, self.config, self.seed, self.device = Path(folder), config, seed, torch.device(device)
        self.command = " ".join(["dcem", *sys.argv[1:]]) if command is None else command
        if (self.folder / CHECKPOINT).exists() and not resume:
            raise FileExistsError(
                f"{self.folder} holds a run: continue it with resume={self.folder}, or choose another"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / METRICS).touch()
        self.step, self.resume, self.quiet, self.verbose = 0, resume, quiet, not quiet
        self._elapsed, self._started = 0.0, time.perf_counter()
        self._tracked: dict[str, Any] = {}
        self._tensorboard: Any = None
        self._metrics: Any = None
        self._has_parts = False
        torch.manual_seed(seed)
        random.seed(seed)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in (self._metrics, self._tensorboard):
            if writer is not None:
                writer.close()
        self._metrics = self._tensorboard = None

    def track(self, **objects: Any) -> None:
        """Name what a checkpoint holds, things with `state_dict` and `torch.Generator`s; with `resume` restore it."""
        self._tracked.update(objects)
        path, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        if not path.exists():  # started, and stopped before the first checkpoint
            if self.finished:
                raise ConfigError(f"{path}: expected the checkpoint of a run, which has a {SUMMARY}; it is not there")
            os.truncate(metrics, 0)
            return
        state = checkpoint_of(self.folder, self.device)
        if state["tracked"].keys() != self._tracked.keys():
            raise ConfigError(f"{path}: expected the state of {sorted(self._tracked)}, got {sorted(state['tracked'])}")
        if metrics.stat().st_size < state["metrics_bytes"]:
            size = metrics.stat().st_size
            raise ConfigError(f"{metrics}: expected {state['metrics_bytes']} bytes, as {CHECKPOINT} says; got {size}")
        try:
            for name, thing in self._tracked.items():
                if isinstance(thing, torch.Generator):
                    thing.set_state(state["tracked"][name].cpu())
                else:
                    thing.load_state_dict(state["tracked"][name])
        except (KeyError, RuntimeError, ValueError) as error:  # of a model of other sizes
            raise ConfigError(f"{path}: expected the state of this run's {name}; {error}") from None
        torch.set_rng_state(state["torch"].cpu())
        if torch.cuda.is_available() and state["cuda"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        version, words, gauss = state["random"]
        random.setstate((version, tuple(torch.as_tensor(words).tolist()), gauss))
        self.step, self._elapsed = state["step"], state["elapsed"]
        os.truncate(metrics, state["metrics_bytes"])

    @property
    def finished(self) -> bool:
        """Whether a run that is resumed has come to its end before."""
        return self.resume and (self.folder / SUMMARY).exists()

    @property
    def metrics(self) -> dict[str, Any]:
        """What it has finished with."""
        metrics: dict[str, Any] = summary_of(self.folder)["metrics"]
        return metrics

    @contextmanager
    def part(self, name: str, seed: int | None = None) -> Iterator[Run]:
        """A run inside this one, in a folder of its own, which says little; what it has cost counts here, too."""
        if not self._has_parts and (self.folder / CHECKPOINT).exists():
            self.track()
        self._has_parts = True
        with Run(
            self.folder / name, self.config, seed=self.seed if seed is None else seed, device=self.device,
            command=self.command, resume=self.resume, quiet=self.quiet,
        ) as part:  # fmt: skip
            part.verbose = False
            try:
                yield part
            finally:
                self.checkpoint()

    def steps(self, total: int, checkpoint_every: int, description: str = "training") -> Iterator[int]:
        """Yield up to `total` from where the checkpoint stands, writing one now and then, at signals and at the end."""
        with _signals() as signals, self._progress(total, description) as advance:
            while self.step < total:
                yield self.step + 1
                self.step += 1
                advance(self.step)
                if signals:
                    self.checkpoint()
                    self.say(f"stopped after step {self.step} of {total}")
                    raise Interrupted(128 + signals[0])
                if self.step % checkpoint_every == 0 or self.step == total:
                    self.checkpoint()

    def log(self, step: int, **values: float) -> None:
        """Add a line to `metrics.jsonl` and the same numbers to TensorBoard."""
        if self._metrics is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._metrics = open(self.folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        self._metrics.write(to_json({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self.verbose:
            self.say(f"step {step}  " + "  ".join(f"{name} {value:.3g}" for name, value in values.items()))

    def checkpoint(self) -> None:
        """Write the state under a temporary name, then rename: a checkpoint is there whole or not at all."""
        tracked = {
            name: thing.get_state() if isinstance(thing, torch.Generator) else thing.state_dict()
            for name, thing in self._tracked.items()
        }
        version, words, gauss = random.getstate()
        state = {
            "tracked": tracked,
            "step": self.step,
            "elapsed": self.elapsed,
            "metrics_bytes": (self.folder / METRICS).stat().st_size,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "random": (version, torch.tensor(words), gauss),  # as 625 numbers they take most of the time
        }
        _replace(self.folder / CHECKPOINT, lambda path: torch.save(state, path))

    def figure(self, name: str, figure: Figure) -> Path:
        """Save a figure as `<name>.png`."""
        path = self.folder / f"{name}.png"
        figure.savefig(path)
        if self.verbose:
            self.say(f"figure {path}")
        return path

    def finish(self, **metrics: Any) -> dict[str, Any]:
        """Write `summary.json`: what ran, where, for how long, and what came out."""
        from dcem import __version__

        versions = {"python": platform.python_version(), "torch": torch.__version__, "dcem": __version__}
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        summary = {
            "command": self.command,
            "seed": self.seed,
            "device": f"{self.device} ({name}, {torch.get_num_threads()} threads)",
            "versions": versions,
            "wall_time_s": round(self.elapsed, 2),
            "steps": self.step,
            "metrics": metrics,
            "config": self.config,
        }
        text = to_json(summary, indent=2) + "\n"
        _replace(self.folder / SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))
        return summary

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` so far."""
        return records_of(self.folder)

    @property
    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self._elapsed + time.perf_counter() - self._started

    def say(self, line: str) -> None:
        """Print a line, past the progress bar where there is one."""
        if not self.quiet:
            print(line, flush=True)

    @contextmanager
    def _progress(self, total: int, description: str) -> Iterator[Any]:
        if self.quiet or not sys.stdout.isatty():
            quarter = max(1, total // 4)
            yield lambda step: None if step % quarter else self.say(f"{description} {step}/{total}")
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:  # takes over stdout, so that printed lines stay above the bar
            task = progress.add_task(description, total=total, completed=self.step)
            yield lambda step: progress.update(task, completed=step)


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals belong to the main thread
        before = {}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
