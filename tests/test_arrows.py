"""Which room of the library imports which: in one direction, without a circle, inside functions too."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dcem

SOURCE = Path(dcem.__file__).parent
ORDER = [  # what stands later may import what stands earlier, never the other way round
    {"projections", "distributions"}, {"solvers"}, {"gradients"}, {"loop"}, {"layer"}, {"embedding", "energy", "control"},
    {"world"}, {"rl", "plotting"}, {"experiments"},
]  # fmt: skip


def imported(source: str) -> Iterator[str]:
    """The rooms (packages and modules right below `dcem`) that a file imports anywhere but for its annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dcem":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcem."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("dcem."))


@cache
def rooms() -> Mapping[str, frozenset[str]]:
    """Each room with those that it imports; `dcem` itself, which only lists names, and what it lists, left out."""
    graph: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        if room != "__init__":
            graph.setdefault(room, set()).update(imported(path.read_text(encoding="utf-8")))
    return {room: frozenset(others & graph.keys() - {room}) for room, others in graph.items()}


def circle(graph: Mapping[str, frozenset[str]]) -> list[str] | None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return None


def backwards(graph: Mapping[str, frozenset[str]]) -> list[tuple[str, str]]:
    """Imports against the order."""
    place = {room: number for number, of_place in enumerate(ORDER) for room in of_place}
    arrows = [(room, other) for room, others in graph.items() for other in others if room in place and other in place]
    return [(room, other) for room, other in arrows if place[other] >= place[room]]


def test_no_circle_and_nothing_backwards() -> None:
    graph = rooms()
    assert set.union(*ORDER) <= graph.keys()
    assert circle(graph) is None
    assert backwards(graph) == []


@pytest.mark.parametrize(
    "source",
    [
        "import dcem.plotting",
        "from dcem import plotting",
        "def save(path):\n    from dcem.plotting.animation import save_gif",
        "if path:\n    import dcem.plotting.figures as figures",
    ],
)
def test_an_arrow_back_is_found(source: str) -> None:
    graph = {**rooms(), "control": rooms()["control"] | set(imported(source))}
    assert set(circle(graph) or ()) == {"control", "plotting"}
    assert backwards(graph) == [("control", "plotting")]


def test_annotations_are_no_arrows() -> None:
    assert list(
        imported("if TYPE_CHECKING:\n    from dcem.plotting import frames\nfrom dcem.loop import minimize")
    ) == ["loop"]
