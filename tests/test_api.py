"""The reference is complete: every public argument and field is described, with what is raised and where it comes from."""

import ast
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

import dcem

ROOMS = [
    "dcem", "dcem.implicit", "dcem.embedding", "dcem.energy", "dcem.control", "dcem.control.systems", "dcem.distributed",
    "dcem.world", "dcem.rl", "dcem.plotting",
]  # fmt: skip
CITES_NOTHING = [
    "by_seconds", "closed_loop", "ConditionedEnergy", "ConvEnergy", "correlations", "Decoder", "DecoderStep",
    "densities", "Detach", "Distribution", "DynamicsNet", "Energy", "energy_surfaces", "Episodes",
    "error_by_iterations", "frames", "GradientMode", "hard_topk", "HardTopK", "image_rows", "Iteration",
    "LinearDecoder", "load_replay", "loss_curves", "Mean", "MLPEnergy", "Model", "Panel", "parameter_groups",
    "parts", "Plan", "PointMass", "Policy", "policy", "predictions_by_iterations", "Quadrotor", "RSSMBelief",
    "run", "Scalars", "SamplingSolver", "save_gif", "save_replay", "Sequences", "Solution", "Solver", "Stationarity",
    "stationarity", "Status", "Step", "Surface", "System", "SystemEnv", "total_loss", "trajectories",
    "Transitions", "transitions", "WarmStart", "WhiteNoise", "WorstCase",
]  # fmt: skip
"""Results, base classes, plumbing, and what is common knowledge."""


def public(room: str) -> Iterator[tuple[str, Any]]:
    """Its functions and classes."""
    module = importlib.import_module(room)
    for name in module.__all__:
        thing = getattr(module, name)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("dcem"):
            yield name, thing


def described(text: str, section: str) -> dict[str, str]:
    """The entries of a section of a docstring."""
    body = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)*)", text + "\n", re.MULTILINE)
    entries = re.split(r"^    (?=\*{0,2}\w[\w, *]*: )", body[1], flags=re.MULTILINE)[1:] if body else []
    found = {}
    for entry in entries:
        names, _, what = entry.partition(":")
        found |= {name.strip().lstrip("*"): " ".join(what.split()) for name in names.split(",")}
    return found


def fields_of(thing: type) -> list[str]:
    """What users read of a result."""
    if issubclass(thing, tuple):
        return list(thing._fields)
    if issubclass(thing, enum.Enum):
        return list(thing.__members__)
    return []


def parameters_of(thing: Any) -> list[str]:
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return []
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, parameter in signature.parameters.items() if parameter.kind not in kinds and name[0] != "_"]


def raises_itself(thing: Any) -> bool:
    """Whether a function or the making of an object has a `raise ValueError` or `TypeError` of its own."""
    source = textwrap.dedent(inspect.getsource(thing))
    (node,) = ast.parse(source).body
    made_in = ("__init__", "__post_init__", "__new__")
    bodies = [f for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and f.name in made_in]
    parts = [part for body in (bodies if isinstance(node, ast.ClassDef) else [node]) for part in ast.walk(body)]
    raised = [part.exc.func for part in parts if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call)]
    return any(ast.unparse(error) in ("ValueError", "TypeError") for error in raised)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_object_is_described_completely(room: str) -> None:
    if room == "dcem.rl":
        pytest.importorskip("torchrl")
    if room == "dcem.plotting":
        pytest.importorskip("matplotlib")
    missing = []
    for name, thing in public(room):
        text = inspect.getdoc(thing) or ""
        entries = described(text, "Args") | described(text, "Attributes")
        asked = (fields_of(thing) if inspect.isclass(thing) else []) or parameters_of(thing)
        if getattr(thing, "_is_protocol", False):
            asked = list(thing.__protocol_attrs__ if hasattr(thing, "__protocol_attrs__") else [])
            asked = [attribute for attribute in asked if attribute[0] != "_"]
        missing += [f"{name}: {argument}" for argument in asked if len(entries.get(argument, "")) < 3]
        if raises_itself(thing) and "Raises:" not in text:
            missing.append(f"{name}: Raises")
        if "Source" not in text and name not in CITES_NOTHING:
            missing.append(f"{name}: Source")
        methods = vars(thing).items() if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False) else []
        missing += [
            f"{name}.{method}"
            for method, function in methods
            if method[0] != "_" and isinstance(function, FunctionType | property | classmethod | staticmethod)
            and not inspect.getdoc(getattr(thing, method))
        ]  # fmt: skip
    assert not missing


def test_the_check_finds_what_is_missing() -> None:
    def function(x: int, y: int) -> int:
        """Add.

        Args:
            x: the first,
                at least 0.
        """
        raise ValueError("x: expected an int >= 0")

    assert described(inspect.getdoc(function), "Args") == {"x": "the first, at least 0."}
    assert parameters_of(function) == ["x", "y"]
    assert raises_itself(function)
    assert not raises_itself(described)
    assert fields_of(dcem.Step)[0] == "state"
    assert fields_of(dcem.Status)[0] == "OK"


def test_rooms_need_no_import_of_their_own() -> None:
    for room in ROOMS[1:]:
        assert getattr(dcem, room.split(".")[1]) is importlib.import_module(".".join(room.split(".")[:2]))
    vars(dcem).pop("rl", None)  # as where nothing has imported it yet
    assert dcem.rl is importlib.import_module("dcem.rl")
