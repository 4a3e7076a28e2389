"""What own work takes from outside: parameters and other tensors that a function closes over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from dcem._eager import is_transformed, next_node
from dcem.distributed.ranks import Ranks, Scatter, Share

_GRAD_FN: Any = Tensor.grad_fn.__get__  # type: ignore[union-attr]


class Outside:
    """The differentiable tensors from outside that own work has met, each with its `Share`, made once.

    One for a solve: the gradients of all iterations come together in a process before they are exchanged.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._shares: dict[int, tuple[Tensor, Tensor]] = {}  # by id, of tensors that are thereby kept
        self.attached: list[bool] = []  # of results of own work: whether they have a gradient

    def of(self, x: Tensor) -> Tensor:
        """The share of `x`."""
        if id(x) not in self._shares:
            tag = self.ranks.first_tag + len(self._shares)
            self._shares[id(x)] = (x, Share.apply(x, self.ranks, tag))  # type: ignore[no-untyped-call]
        return self._shares[id(x)][1]

    def shares(self) -> list[Tensor]:
        """All of them."""
        return [share for _, share in self._shares.values()]

    def agree(self, number: int = 0) -> int:
        """Raise in all processes where one has met other tensors: the backward pass exchanges their gradients in turn.

        They are told apart by their shapes and numbers. Returns the largest `number` that a process has.
        """
        what = (
            "an objective that uses the same parameters in the same order whatever the candidates are (add "
            "0 * parameter.sum() of each that it may leave out, and call shard.own within)"
        )
        met = [x.detach().reshape(-1)[:: x.numel() // 1000 + 1] for x, _ in self._shares.values()]
        shapes = [(x.shape, x.dtype) for x, _ in self._shares.values()]
        largest = self.ranks.agree(what, self.attached, shapes, number=number)
        if met:
            self.ranks.agree_up_to_rounding(what, [x.abs() if x.is_complex() else x for x in met])
        return largest


class OwnWork(TorchFunctionMode):
    """Where this is entered, torch's functions get the share of each tensor from outside that has a gradient.

    From outside is what was not made since: a function is looked at from call to call, as no other way leads to all
    that it closes over (parameters of modules, features that were computed before). A compiled function would call none
    of torch's functions here: it runs as it was written.

    Gradients within count as many times as there are processes (`dcem.distributed.ranks`). What a user wrote to act on
    them, which may clip them, sees them as they are in one process: hooks of tensors and of their `grad_fn`, and the
    backward pass of an `autograd.Function`.
    """

    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self.outside = outside
        self._start, self._is_going_on = next_node(), False
        self._made: Any = WeakIdKeyDictionary()  # leaves that were made since, and the shares
        self._asked: list[Any] = []  # nodes that were asked for, to which hooks may have been added
        self._as_written: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> OwnWork:
        if "torch._dynamo" in sys.modules:  # which takes a second to import: without it nothing is compiled
            self._as_written = torch.compiler.set_stance("force_eager")
        self._as_written.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        self._is_going_on = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._is_going_on = False
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._as_written.__exit__(*error)

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            args, kwargs = tree_map_only(Tensor, self._inside, (args, kwargs))
        if fn is Tensor.register_hook:
            return fn(args[0], self._uncounted(*args[1:], **kwargs))  # type: ignore[no-untyped-call]
        result = fn(*args, **kwargs)
        if fn == _GRAD_FN and result is not None and result not in self._asked:
            self._before_hooks(result)

        def note(x: Tensor) -> Tensor:
            # A leaf may come back as it was given, as from `theta.to(x)` where no gradient is kept: it was not made.
            if x.grad_fn is None and not (x.requires_grad and any(x is of for of in _tensors(args, kwargs))):
                self._made[x] = True
            return x

        tree_map_only(Tensor, note, result)
        return result

    def check(self, results: Any) -> None:
        """Raise where results have a gradient by a way that is not seen here: it would be that of this process alone.

        An `autograd.Function`, `torch.func` transforms and TorchScript take their arguments past torch's functions. A
        reentrant checkpoint meets them in the backward pass only.
        """
        waiting, seen = [x.grad_fn for x in _tensors(results) if x.grad_fn is not None], set()
        while waiting:
            node = waiting.pop()
            if node in seen or getattr(node, "_forward_cls", None) in (Share, Scatter):
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf not in self._made if leaf is not None else node._sequence_nr() < self._start:
                raise RuntimeError(
                    "shard: expected an objective that hands what it closes over to torch's functions, got a tensor "
                    "with a gradient that went into a torch.autograd.Function, a torch.func transform or TorchScript "
                    "as it was: give it x.view_as(x) there"
                )
            if hasattr(node, "run_function"):
                raise RuntimeError(
                    "shard: expected torch.utils.checkpoint with use_reentrant=False in an objective, got a reentrant "
                    "one, whose gradients would be those of this process alone"
                )
            if hasattr(node, "_forward_cls") and node not in self._asked:
                self._before_hooks(node)
            waiting += [edge for edge, _ in node.next_functions if edge is not None]
        for node in self._asked:  # after the hooks that were added to it
            node.register_hook(lambda grads, _: _times(grads, self._count))
        self._asked.clear()

    def made(self, x: Tensor) -> Tensor:
        """Count `x` among what was made since."""
        self._made[x] = True
        return x

    @property
    def _count(self) -> int:
        """How many times a gradient counts: slopes that a solver follows are as they are."""
        return 1 if self._is_going_on else self.outside.ranks.size

    def _uncounted(self, hook: Callable[[Any], Tensor | None]) -> Callable[[Any], Tensor | None]:
        return lambda grad: _times((hook(*_times((grad,), 1 / self._count)),), self._count)[0]  # None of no gradient

    def _before_hooks(self, node: Any) -> None:
        """Have the node, and hooks that are added to it from now on, see gradients as they are in one process."""
        node.register_prehook(lambda grads: _times(grads, 1 / self._count))
        self._asked.append(node)

    def _inside(self, x: Tensor) -> Tensor:
        if not x.requires_grad or x in self._made:
            return x
        if x.grad_fn is not None and x.grad_fn._sequence_nr() >= self._start:
            return x
        if is_transformed():
            if torch._C._functorch.is_functorch_wrapped_tensor(x):
                return x  # an argument of the transform: where that comes from outside, `check` sees it
            raise RuntimeError(
                "shard: expected an objective that takes x.view_as(x) of what it closes over before a torch.func "
                f"transform uses it, got a tensor with a gradient, of shape {tuple(x.shape)}, as it was"
            )
        return self.made(self.outside.of(x))


def is_within() -> bool:
    """Whether this is called by an objective that several processes share."""
    modes: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(isinstance(mode, OwnWork) for mode in modes)


def _times(grads: tuple[Tensor | None, ...], factor: float) -> tuple[Tensor | None, ...]:
    return tuple(None if grad is None else grad * factor for grad in grads)


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
