"""Whether functions of the user's leave what they are given, and what they have returned, as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dcem._eager import is_eager
from dcem._tree import leaves


class Versions:
    """The tensors of states as they are now, to see later whether they have been written to.

    Torch counts the writes to a tensor. Memory that NumPy writes to is not counted: there, a tensor that comes back at
    an address where another one lies already tells that it was filled again.
    """

    def __init__(self, *trees: Any) -> None:
        self._noted: list[tuple[Tensor, int | Tensor]] = []
        self._eager = is_eager()
        for tree in trees:
            self.note(tree)

    def note(self, tree: Any) -> None:
        """Keep an eye on the tensors of one more state. Called at every step of a rollout: it has to be cheap."""
        if not self._eager:  # nothing has an address, or a past
            return
        for leaf in (tree,) if isinstance(tree, Tensor) else leaves(tree):
            self._noted.append((leaf, version_of(leaf)))

    def changed(self) -> bool:
        """Whether any of them has been written to since it was noted."""
        if any(is_changed(leaf, version) for leaf, version in self._noted):
            return True
        if len(self._noted) < 2:
            return False
        at: dict[int, Tensor] = {}
        for leaf, _ in self._noted:
            address = leaf.data_ptr() if leaf.is_cpu else 0
            if address and at.setdefault(address, leaf) is not leaf and _storage(leaf) != _storage(at[address]):
                return True
        return False


def version_of(x: Tensor) -> int | Tensor:
    """How often `x` has been written to. Tensors of inference mode do not count it: of these, where that costs no wait,
    the sum of their numbers, which a write would change.
    """
    if not x.is_inference():
        return x._version
    return x.sum() if x.is_cpu else -1


def is_changed(x: Tensor, version: int | Tensor) -> bool:
    """Whether `x` has been written to since it was of that version."""
    if isinstance(version, Tensor):
        now = x.sum()
        return bool((now != version) & ~(now.isnan() & version.isnan()))
    return version >= 0 and x._version != version


def _storage(leaf: Tensor) -> int:
    return leaf.untyped_storage()._cdata
