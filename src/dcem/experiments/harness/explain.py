"""`dcem <experiment> --help`: every setting with its default, what it may be, and what it means."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

Groups = Mapping[str, Mapping[str, Any]]
"""The options of each config group: settings that are made together."""

ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n      .+)*)", re.MULTILINE)

COMMON = {
    "batch_size": "Problems, or pairs, of an update.",
    "checkpoint_every": "Updates between checkpoints.",
    "closed_loop_steps": "Decisions of an episode that is judged.",
    "curves": "The set-valued maps to learn.",
    "decoder_updates": "Updates of the learned decoder, before it is compared.",
    "device": "Where tensors are: cpu, cuda, or auto for CUDA where there is one.",
    "discount": "What a reward counts one step later.",
    "distractor_width": "Of the models that see distractors.",
    "distractors": "Numbers in an observation that the task does not depend on.",
    "encoder_lr": "Learning rate of the encoder.",
    "episode_length": "Decisions of an episode.",
    "eval_every": "Updates between evaluations.",
    "feed_forward_epochs": "Passes over the training pairs of the feed-forward network.",
    "fit_batch_size": "Transitions of an update by likelihood.",
    "fit_lr": "Learning rate by likelihood.",
    "fit_updates": "Updates by likelihood.",
    "full_std": "Std that the searches over all numbers start with.",
    "grad_clip": "Largest norm of a gradient; a longer one is shortened to it.",
    "hidden": "Widths of the hidden layers.",
    "horizon": "Steps of a plan.",
    "init_std": "Std that a search starts with.",
    "latent": "Numbers of the decoder's latent.",
    "latent_size": "Numbers of the latent.",
    "lr": "Learning rate.",
    "max_std": "Largest std of a search.",
    "methods": "What is compared.",
    "min_std": "Least std of a search.",
    "network_updates": "Updates of the network that clones the expert.",
    "noise": "Std of the noise on the outputs.",
    "num_demonstrations": "Episodes of the expert to learn from; one run for each number.",
    "num_elites": "Candidates that the next search is fitted to.",
    "num_episodes": "Episodes played.",
    "num_epochs": "Passes over the training pairs.",
    "num_features": "Numbers of an input.",
    "num_iterations": "Iterations of a search.",
    "num_labels": "Labels of an input.",
    "num_negatives": "Candidates of the contrastive loss for each pair.",
    "num_points": "Points of the grid that is learned from.",
    "num_samples": "Candidates of an iteration of a search.",
    "num_seeds": "Runs with the seeds seed, seed + 1, ...",
    "num_test": "Problems, or pairs, that the result is measured on.",
    "num_train": "Problems, or pairs, to learn from.",
    "num_updates": "Updates in all.",
    "num_valid": "Problems, or pairs, that the best weights are chosen by.",
    "runs": "Folders of finished runs.",
    "scenes": "Films to make.",
    "seed": "Of all random numbers.",
    "solver": "What searches: one of the choices below.",
    "system": "The plant.",
    "tasks": "What is controlled.",
    "temperature": "Of the soft selection.",
    "test_iterations": "Iterations of the search that the result is measured after.",
    "threads": "Of the processor.",
    "timing_rounds": "Decisions that are timed.",
    "weight_decay": "Weight of the squared weights in the loss.",
    "widths": "Hidden units of the models that are compared; one run for each.",
}
"""What a setting of this name means, wherever it stands and nothing else is said."""


def meanings(kind: type) -> dict[str, str]:
    """What the source says of each field of a dataclass: below it, or among the attributes in its docstring."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        found |= {name: text.strip() for name, text in ATTRIBUTE.findall(inspect.getdoc(base) or "")}
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = following.value.value if _is_text(following) else ""  # type: ignore[attr-defined]
                if text:
                    found[line.target.id] = text
    return {name: text[:1].upper() + " ".join(text.split())[1:] for name, text in found.items()}


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def lines(settings: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Of each setting, also of those in settings: name, value, and what it means and may be.

    Of a dataclass the values are its defaults; an instance, such as a default among settings, has its own. The default
    of a setting that is chosen from a group is the name of the option.
    """
    chosen = defaults(settings)
    is_class = isinstance(settings, type)
    means = meanings(settings if is_class else type(settings))
    for of in fields(settings):
        if of.name == "defaults":
            continue
        value = _default(of) if is_class else getattr(settings, of.name)
        if is_dataclass(value):
            yield from lines(value, f"{prefix}{of.name}.")
            continue
        limits = str(of.metadata.get("limits", ""))
        said = [means.get(of.name) or COMMON.get(of.name, ""), f"({limits})" if limits else ""]
        yield f"{prefix}{of.name}", chosen.get(of.name) or _shown(value), " ".join(part for part in said if part)


def defaults(settings: Any) -> dict[str, str]:
    """The option of each group that is chosen if nothing is said."""
    of = {field.name: field for field in fields(settings)}.get("defaults")
    return {} if of is None else {k: v for entry in _default(of) if isinstance(entry, dict) for k, v in entry.items()}


def known(config: type, groups: Groups, overrides: Sequence[str] = ()) -> list[str]:
    """All keys of a command with such overrides: settings, also those in settings, and groups."""
    chosen = defaults(config) | {key: value for key, _, value in (o.partition("=") for o in overrides) if key in groups}
    keys = [key for key, _, _ in lines(config)]
    for group, options in groups.items():
        keys += [group] if group not in keys else []
        if is_dataclass(option := options.get(chosen[group])):
            keys += [f"{group}.{key}" for key, _, _ in lines(option)]
    return keys


def _default(of: Field[Any]) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default


def _shown(value: Any) -> str:
    text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
    return text if text else "''"


def _changes(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings that an option of a group makes: a mapping, or a dataclass."""
    if not isinstance(node, Mapping):
        yield from ((key, default) for key, default, _ in lines(node))
        return
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _changes(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _shown(value)


def explain(name: str, summary: str, config: type, groups: Groups) -> str:
    """What `--help` prints."""
    rows = list(lines(config))
    width = max(len(f"{key}={default}") for key, default, _ in rows if len(default) < 40)
    out = [f"dcem {name}: {summary}", "", "Settings, with their defaults:"]
    for key, default, said in rows:
        given = f"{key}={default}"
        wrapped = textwrap.wrap(said, max(40, 116 - width)) or [""]
        if len(given) > width:
            out.append(f"  {given}")
            given = ""
        out.append(f"  {given:{width}}  {wrapped[0]}".rstrip())
        out += [f"  {'':{width}}  {line}" for line in wrapped[1:]]
    for group, options in groups.items():
        out += ["", f"{group}=<one of {', '.join(options)}>, {defaults(config)[group]} if nothing is said:"]
        for option, node in options.items():
            out.append(f"  {option}: " + ", ".join(f"{key}={value}" for key, value in _changes(node)))
    out += [
        "", "More: resume=<folder> alone goes on with a run; a=1,2 -m makes a run for each value; --cfg job shows what",
        "would be run; hydra.run.dir=<folder> says where it is left. --hydra-help is Hydra's own.",
    ]  # fmt: skip
    return "\n".join(out)
