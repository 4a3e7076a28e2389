"""Tensors that are lent to a user's function, which must leave them as they are."""

from __future__ import annotations

from typing import Any

from dcem._eager import is_eager
from dcem._tree import leaves


class Lent:
    """Remember what is handed to a function of the user, and raise where it comes back changed in place.

    A solve goes on with the tensors that it has handed out: changed ones would end it somewhere else without a word.
    What is written past torch's version counters, through ``x.numpy()``, cannot be seen. Nothing is looked at inside
    ``torch.compile`` and ``torch.func`` transforms, and in inference mode, whose tensors have no versions.

    >>> import torch
    >>> state = torch.zeros(2)
    >>> lent = Lent("dynamics", "the state", state)
    >>> _ = state.add_(1)
    >>> lent.check()
    Traceback (most recent call last):
    ValueError: dynamics: expected to leave the state as they are, got them changed in place
    """

    def __init__(self, name: str, what: str, tree: Any) -> None:
        self.name, self.what = name, what
        self.versions = (
            [(leaf, leaf._version) for leaf in leaves(tree) if not leaf.is_inference()] if is_eager() else []
        )

    def check(self) -> None:
        """Raise if a tensor has been changed since."""
        if any(leaf._version != version for leaf, version in self.versions):
            raise ValueError(f"{self.name}: expected to leave {self.what} as they are, got them changed in place")
