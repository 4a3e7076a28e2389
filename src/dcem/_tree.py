"""States as nested trees of tensors (dataclasses, tuples, lists, dicts): map over them, list them, compare them."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem._eager import in_forward_mode, is_transformed
from dcem._given import brief, kind


def map_tensors(fn: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `fn` to each tensor of `tree` and its counterparts in `others`; the rest is kept as it is.

    Containers are built anew, so that a tree that is mapped shares none with the one that it came of.
    """
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    if isinstance(tree, tuple):
        children = [map_tensors(fn, *leaves) for leaves in zip(tree, *others, strict=True)]
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    if isinstance(tree, list):
        return _like(tree, [map_tensors(fn, *leaves) for leaves in zip(tree, *others, strict=True)])
    if isinstance(tree, dict):
        mapped = {key: map_tensors(fn, leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
        return _like(tree, mapped)
    if _is_dataclass(tree):
        # Copied field by field: `__init__` need not take every field, and what it computes is there already.
        new = object.__new__(type(tree))
        if not torch.compiler.is_compiling():  # torch 2.9 does not trace it
            for name, value in getattr(tree, "__dict__", {}).items():
                if name != "_work":  # of a result, which is no data: it would keep the solve in memory
                    object.__setattr__(new, name, value)
        for field in dataclasses.fields(tree):
            leaf = map_tensors(fn, getattr(tree, field.name), *(getattr(other, field.name) for other in others))
            object.__setattr__(new, field.name, leaf)
        return new
    return tree


def _like(container: Any, mapped: Any) -> Any:
    """A list or a dict as one of the class of another. Where that shows its tensors elsewhere, too, they would stay the
    old ones: then it is a plain one, as it is inside `torch.compile`.
    """
    if (
        type(container) in (list, dict)
        or torch.compiler.is_compiling()
        or leaves(list(_attributes(container).values()))
    ):
        return mapped
    new = copy.copy(container)
    if isinstance(new, list):
        list.__setitem__(new, slice(None), mapped)
    else:
        for key, value in mapped.items():
            dict.__setitem__(new, key, value)
    return new


def _attributes(container: Any) -> dict[str, Any]:
    kept: dict[str, Any] = getattr(container, "__dict__", {})
    return kept


def is_leaf(tree: Any) -> bool:
    """Whether a tree has no parts."""
    return _children(tree) is None


def copied(tree: Any) -> Any:
    """The same tensors in containers of its own."""
    return map_tensors(_itself, tree)


def detach(tree: Any) -> Any:
    """Cut every tensor of a state from its graph; one that has none is kept, which costs an iteration a tenth less."""
    can_tell = not is_transformed() and not in_forward_mode()  # whether a tensor is differentiated
    return map_tensors(_cut if can_tell else Tensor.detach, tree)


def _cut(leaf: Tensor) -> Tensor:
    return leaf.detach() if leaf.requires_grad else leaf


def plain(tree: Any) -> Any:
    """A state as dicts, lists and tensors of its own, to be saved; `restored` makes it a state again."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    parts = _children(tree)
    if parts is None:
        return tree
    saved = {key: plain(part) for key, part in parts.items()}
    return list(saved.values()) if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields") else saved


def restored(like: Any, saved: Any, where: str) -> Any:
    """A state built like `like` with the numbers that `plain` saved, copied; ValueErrors begin with `where`.

    What is None in one of them may be a tensor in the other: it came later, or is no more.
    """
    mine, theirs = _children(like), _children(saved)
    if mine is None or theirs is None:
        if isinstance(like, Tensor) and isinstance(saved, Tensor) and like.shape != saved.shape:
            raise ValueError(f"{where}: expected shape {tuple(like.shape)}, got {tuple(saved.shape)}")
        optional = all(leaf is None or isinstance(leaf, Tensor) for leaf in (like, saved))
        if not optional and type(like) is not type(saved):
            raise ValueError(f"{where}: expected {_named(like)}, got {_named(saved)}")
        if not isinstance(saved, Tensor):
            return saved
        return saved.to(like, copy=True) if isinstance(like, Tensor) else saved.clone()
    if mine.keys() != theirs.keys():
        raise ValueError(
            f"{where}: expected {', '.join(map(str, mine))}, got {', '.join(map(str, theirs)) or 'nothing'}"
        )
    new = {key: restored(part, theirs[key], f"{where}.{key}") for key, part in mine.items()}
    if isinstance(like, dict):
        return new
    if isinstance(like, (tuple, list)):
        return type(like)(*new.values()) if hasattr(like, "_fields") else type(like)(new.values())
    state = object.__new__(type(like))
    for name, value in (getattr(like, "__dict__", {}) | new).items():
        object.__setattr__(state, name, value)
    return state


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a state, in the order in which `map_tensors` meets them."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        children: Any = tree
    elif isinstance(tree, dict):
        children = tree.values()
    elif _is_dataclass(tree):
        children = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    else:
        return []
    return [leaf for child in children for leaf in leaves(child)]


def named_leaves(tree: Any, where: str = "") -> list[tuple[str, Tensor]]:
    """The tensors of a state, in the same order, with the way to each as a name: `components_0_mean`."""
    if isinstance(tree, Tensor):
        return [(where, tree)]
    parts = _parts(tree) or {}
    names = ["_".join(filter(None, (where, key.strip(".[]'")))) for key in parts]
    return [found for name, part in zip(names, parts.values(), strict=True) for found in named_leaves(part, name)]


def difference(tree: Any, other: Any, where: str = "") -> str | None:
    """Where the state `other` is not built like `tree`: other containers, shapes, or a leaf that is no tensor and
    not the same. None where nothing is; otherwise how a sentence goes on after "expected a state of".
    """
    at = f" at {where}" if where else ""
    if isinstance(tree, Tensor):
        if not isinstance(other, Tensor):
            return f"shape {tuple(tree.shape)}{at}, got {kind(other)}"
        return None if tree.shape == other.shape else f"shape {tuple(tree.shape)}{at}, got {tuple(other.shape)}"
    parts = _parts(tree)
    if parts is None:
        if tree is other or _equal(tree, other):
            return None
        return (
            f"the structure of the state, {brief(tree)}{at}, got {brief(other)}: what is no tensor stays as it is; let "
            "what changes or differs between problems be a tensor with their batch axes"
        )
    others = _parts(other)
    if others is None or parts.keys() != others.keys() or not isinstance(other, _kind(tree)):
        came = f"a {type(other).__name__} of {', '.join(others) or 'nothing'}" if others is not None else brief(other)
        return f"the structure of the state, a {type(tree).__name__} of {', '.join(parts) or 'nothing'}{at}, got {came}"
    for key, part in parts.items():
        found = difference(part, others[key], where + key)
        if found is not None:
            return found
    return None


def has_structure(tree: Any, like: Any) -> bool:
    """Whether a tree has the containers of another; leaves count alike, whatever they are."""
    parts, others = _parts(tree), _parts(like)
    if parts is None or others is None:
        return parts is others
    return parts.keys() == others.keys() and all(has_structure(part, others[key]) for key, part in parts.items())


def precision_of(module: torch.nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point parameter, of where a layer in it starts to search, or of its first
    buffer; single precision where it has none. Settings of a layer are in double precision whatever it solves in.
    """
    parameters = (x.dtype for x in module.parameters() if x.is_floating_point())
    layers: Any = (layer for layer in module.modules() if hasattr(type(layer), "start_dtype"))
    starts = (layer.start_dtype for layer in layers)
    buffers = (x.dtype for x in module.buffers() if x.is_floating_point())
    found: torch.dtype = next(itertools.chain(parameters, starts, buffers), torch.float32)
    return found


def _is_dataclass(tree: Any) -> bool:
    """An instance, not the class; torch 2.9 does not trace `dataclasses.is_dataclass`."""
    return hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type)


def _itself(leaf: Tensor) -> Tensor:
    return leaf


def _children(tree: Any) -> dict[Any, Any] | None:
    """What a container holds, by field, key or position; None of a leaf."""
    if _is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if isinstance(tree, dict):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, (tuple, list)) else None


def _named(leaf: Any) -> str:
    return type(leaf).__name__ if isinstance(leaf, Tensor) or _children(leaf) is not None else repr(leaf)


def _parts(tree: Any) -> dict[str, Any] | None:
    """What a container holds, by the way to get there; None of a leaf."""
    if _is_dataclass(tree):
        return {f".{field.name}": getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, (tuple, list)):
        return {f"[{i}]": part for i, part in enumerate(tree)}
    if isinstance(tree, dict):
        return {f"[{key!r}]": part for key, part in tree.items()}
    return None


def _kind(tree: Any) -> type:
    """What a container has to be, to be read like `tree`: a dict for a dict, the very class of a dataclass."""
    return next((kind for kind in (dict, list) if isinstance(tree, kind)), type(tree))


def _equal(one: Any, other: Any) -> bool:
    """Whether two leaves that are no tensors are the same; arrays, which do not say it in one word, are not."""
    try:
        return type(one) is type(other) and bool(one == other)
    except (ValueError, TypeError, RuntimeError):
        return False
