"""What own work takes from outside: parameters and other tensors that a function closes over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from dcem._eager import next_node
from dcem.distributed.ranks import Ranks, Share


class Outside:
    """The differentiable tensors from outside that own work has met, each with its `Share`, made once.

    One for a solve: the gradients of all iterations come together in a process before they are exchanged.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._shares: dict[int, tuple[Tensor, Tensor]] = {}  # by id, of tensors that are thereby kept

    def of(self, x: Tensor) -> Tensor:
        """The share of `x`."""
        if id(x) not in self._shares:
            self._shares[id(x)] = (x, Share.apply(x, self.ranks))  # type: ignore[no-untyped-call]
        return self._shares[id(x)][1]

    def shares(self) -> list[Tensor]:
        """All of them."""
        return [share for _, share in self._shares.values()]


class OwnWork(TorchFunctionMode):
    """Where this is entered, torch's functions get the share of each tensor from outside that has a gradient.

    From outside is what was not made since: a function is looked at from call to call, as no other way leads to all
    that it closes over (parameters of modules, features that were computed before).
    """

    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self.outside = outside
        self._start = next_node()
        self._made: Any = WeakIdKeyDictionary()  # leaves that were made since, and the shares

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            args, kwargs = tree_map_only(Tensor, self._inside, (args, kwargs))
        result = fn(*args, **kwargs)

        def note(x: Tensor) -> Tensor:
            # A leaf may come back as it was given, as from `theta.to(x)` where no gradient is kept: it was not made.
            if x.grad_fn is None and not (x.requires_grad and any(x is of for of in _tensors(args, kwargs))):
                self._made[x] = True
            return x

        tree_map_only(Tensor, note, result)
        return result

    def made(self, x: Tensor) -> Tensor:
        """Count `x` among what was made since."""
        self._made[x] = True
        return x

    def _inside(self, x: Tensor) -> Tensor:
        if not x.requires_grad or x in self._made:
            return x
        if x.grad_fn is not None and x.grad_fn._sequence_nr() >= self._start:
            return x
        return self.made(self.outside.of(x))


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
