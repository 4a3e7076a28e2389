"""Map a function over the tensors of nested states (dataclasses, tuples, lists, dicts) of one structure."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(fn: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply ``fn`` to each tensor of ``tree`` and its counterparts in ``others``; the rest is kept as it is."""
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [field.name for field in dataclasses.fields(tree)]
        return dataclasses.replace(
            tree,
            **{
                name: map_tensors(fn, getattr(tree, name), *(getattr(other, name) for other in others))
                for name in fields
            },
        )
    if isinstance(tree, tuple):
        children = [map_tensors(fn, *leaves) for leaves in zip(tree, *others, strict=True)]
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    if isinstance(tree, list):
        return [map_tensors(fn, *leaves) for leaves in zip(tree, *others, strict=True)]
    if isinstance(tree, dict):
        return {key: map_tensors(fn, leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
    return tree


def detach(tree: Any) -> Any:
    """Cut every tensor of a state from its graph."""
    return map_tensors(Tensor.detach, tree)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a state."""
    found: list[Tensor] = []

    def note(leaf: Tensor) -> Tensor:
        found.append(leaf)
        return leaf

    map_tensors(note, tree)
    return found
