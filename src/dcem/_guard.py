"""The one guard against failure: what counts as failed, what it contributes, and what stands in for it.

Failed is a candidate for which a number is not finite that should be: its value, or its slope where a solver follows
slopes. It keeps that number, weighs nothing (`dcem.solvers.scores`), and has no gradient. A problem with too few
candidates left has failed: it keeps its distribution and says `NONFINITE` (`dcem.loop`); it has no gradient
either, and leaves that of the others alone.

Weight 0 is not enough for that. The backward pass multiplies the derivative of the objective at a failed candidate by
0, that derivative may be NaN, and `0 * NaN` is NaN, in everything that candidates and problems share. So it must
never be computed: what failed is evaluated a second time, with the same randomness, at what did not fail. For a failed
candidate that is another one of its problem; for a problem without any, one of another problem, with the data of that
problem, as far as the objective holds the data of its problems apart (`WithData`). A plain function does not:
if it is NaN for a problem whatever the candidate, and so is its derivative, the guard ends there. What lies before it,
such as a decoder, is still kept from that derivative (`cut`).
"""

from __future__ import annotations

import cmath
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from dcem._eager import in_forward_mode, is_eager, is_transformed, is_unchecked, may_have_gradient, may_look
from dcem._replay import randomness, replayed
from dcem._tree import leaves, map_tensors


class Cut:
    """What stands between the parts of an objective, `(*batch, N, ...)`: no gradient passes where a candidate failed.

    Attributes:
        failed: `(*batch, N)`; None where nothing has failed.
    """

    def __init__(self, failed: Tensor | None = None) -> None:
        self.failed = failed

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.failed is None else torch.where(beside(self.failed, x), x.detach(), x)


uncut = Cut()


@dataclass(frozen=True, eq=False)
class WithData:
    """An objective `function(samples, data, cut)` that holds the data of its problems apart.

    `data` is a tree of tensors `(*batch, ...)`, of which a problem sees its own part alone. Candidates that are
    brought into another form `(*batch, N, ...)` before they are judged go through `cut` in between.
    """

    function: Callable[[Tensor, Any, Cut], Tensor]
    data: Any = None

    def __call__(self, samples: Tensor) -> Tensor:
        """The values of candidates of its own problems."""
        return self.function(samples, self.data, uncut)

    @classmethod
    def of(cls, objective: Callable[[Tensor], Tensor]) -> WithData:
        """Any objective; one that is none of these keeps its data to itself."""
        return objective if isinstance(objective, WithData) else cls(lambda samples, data, cut: objective(samples))


def evaluated(objective: Callable[[Tensor], Tensor], samples: Tensor, batch_dims: int) -> Tensor:
    """The values `(*batch, N)` of candidates `(*batch, N, *event)`, without a gradient where they failed."""
    whole = WithData.of(objective)
    values: Tensor = guarded(whole.function, samples, whole.data, batch_dims)
    return values


def guarded(
    evaluate: Callable[[Tensor, Any, Cut], Any],
    samples: Tensor,
    data: Any,
    batch_dims: int,
    *,
    judge: Callable[[Any], Any] = lambda result: result,
    generator: torch.Generator | None = None,
) -> Any:
    """`evaluate(samples, data, cut)`, a tree of tensors `(*batch, N, ...)`, without a gradient where it failed.

    Args:
        evaluate: what is computed, of each candidate by itself; `cut` is as in `WithData`.
        samples: `(*batch, N, *event)`.
        data: of the problems, `(*batch, ...)`.
        batch_dims: number of axes of `batch`.
        judge: the part of the result that has to be finite.
        generator: to be replayed in the second evaluation, as torch's global one is.

    Eagerly the second evaluation is made where something failed. Inside `torch.compile` and `torch.func` transforms,
    and while a CUDA graph is recorded, nothing can be looked at: it is always made where there is a gradient, and the
    problems of a `torch.func.vmap` do not see each other.
    """
    if not may_have_gradient() or is_unchecked():
        return evaluate(samples, data, uncut)
    looks = is_eager() and (may_look(samples) or samples.is_meta)  # there nothing fails
    put_back = None
    if is_transformed():
        with torch.no_grad():
            first = evaluate(samples, data, uncut)
    else:
        put_back = randomness(samples.device, generator) if looks else None
        # The view gathers what the objective sends back before it is added to what comes from elsewhere, in the same
        # order of summation as below: the gradient of a problem does not depend on whether another one fails.
        first = evaluate(samples.view_as(samples), data, uncut)
        if not (in_forward_mode() or any(leaf.requires_grad for leaf in leaves(first))):
            return first
        if put_back is not None and _all_finite(judge(first)):
            return first
    failed = find_failed(judge(first), batch_dims)
    if looks and (failed.all() or not failed.any()):
        return map_tensors(_constant, first) if failed.any() else first

    with nullcontext() if put_back is None else replayed(put_back, samples.device, generator):
        again = evaluate(*stand_ins(samples, data, failed, batch_dims), Cut(failed))
    return map_tensors(lambda new, old: torch.where(beside(failed, new), old.detach(), new), again, first)


def marked(status: Tensor, failed: Tensor, code: int) -> Tensor:
    """`status` with `code` where `failed`: eagerly the same tensor, so that later reports reach it."""
    return status.masked_fill_(failed, code) if is_eager() else torch.where(failed, code, status)


class Work(list[Callable[[], None]]):
    """What may have to be evaluated again in a backward pass."""


class Reports:
    """Which problems got a slope that is not finite from the objective in a backward pass.

    A finite value may have one, `torch.where` may hide it, and only the backward pass computes it: the gradient of
    what the problem shares with others is then NaN. Here the status of the problem becomes `failed`. Nothing is seen
    inside `torch.compile` and `torch.func` transforms.

    What has to be evaluated again for that is kept in `work`, by the result that has the status, and never by nodes of
    the graph: the objective may keep tensors of that graph, or be made of features that do, and as Python's garbage
    collector does not see the edges between nodes, nothing of it would ever be freed.
    """

    def __init__(self, failed: int, work: Work) -> None:
        self.failed, self._work = failed, weakref.ref(work)
        self.status: Tensor | None = None  # (*batch,), of the solution that is handed out
        self._given: Tensor | None = None  # problems for which the loss itself sent something not finite
        self.has_watched = False

    def of_loss(self, answer: Tensor, batch_dims: int) -> None:
        """Note what comes to the answer `(*batch, ...)` from outside: for that the objective cannot be blamed."""

        @unserializable_hook  # type: ignore[untyped-decorator]  # a solution may be saved, its graph is not
        def note(slope: Tensor | None) -> None:
            self._given = None if _seems_finite(slope) else ~_all_of(slope.isfinite(), batch_dims)  # type: ignore[union-attr]

        if is_eager() and not is_unchecked() and answer.requires_grad:
            answer.register_hook(note)  # type: ignore[no-untyped-call]

    def watch(self, tree: Any, batch_dims: int) -> None:
        """Look at the slopes that come back to tensors `(*batch, ...)`, and let them end here where not finite."""

        @unserializable_hook  # type: ignore[untyped-decorator]
        def look(slope: Tensor | None) -> Tensor | None:
            if slope is None or _seems_finite(slope):
                return None
            self._note(slope.isfinite(), batch_dims)
            return torch.where(slope.isfinite(), slope, 0.0)

        for leaf in leaves(tree) if is_eager() and not is_unchecked() else ():
            if leaf.requires_grad:
                leaf.register_hook(look)  # type: ignore[no-untyped-call]

    def watched(
        self,
        evaluate: Callable[[Tensor], Any],
        samples: Tensor,
        data: Any,
        batch_dims: int,
        cut: Cut,
        generator: torch.Generator | None = None,
    ) -> Any:
        """`evaluate(samples)`, a tree of tensors, with an eye on its own slopes, if it is the first that has any; or if
        it is a second evaluation, after which the first is gone.
        """
        if (self.has_watched and cut.failed is None) or not torch.is_grad_enabled() or not is_eager() or is_unchecked():
            return evaluate(samples)
        result = evaluate(samples)
        results = [leaf for leaf in leaves(result) if leaf.requires_grad]
        self.has_watched = bool(results)

        def find_out() -> None:
            """No slope comes back to candidates that depend on nothing, such as the first of a search."""
            put_back = randomness(samples.device, generator)
            try:
                with torch.enable_grad():
                    point = samples.detach().clone().requires_grad_()
                    again = [leaf.sum() for leaf in leaves(evaluate(point)) if leaf.requires_grad]
                    (slope,) = torch.autograd.grad(again, point, allow_unused=True)
            finally:
                put_back()
            if slope is not None:
                self._note(slope.isfinite(), batch_dims)

        work = self._work()
        if samples.requires_grad:
            self.watch(samples, batch_dims)
        elif results and work is not None:
            work.append(find_out)
            _before_leaves(results, data, find_out)
        return result

    def _note(self, finite: Tensor, batch_dims: int) -> None:
        wrong = ~_all_of(finite, batch_dims)
        wrong = wrong if self._given is None else wrong & ~self._given
        if self.status is not None:
            marked(self.status, wrong, self.failed)


def _all_of(mask: Tensor, batch_dims: int) -> Tensor:
    return mask.flatten(batch_dims).all(-1) if mask.dim() > batch_dims else mask


def _before_leaves(results: list[Tensor], data: Any, call: Callable[[], None]) -> None:
    """Have `call` made where a slope that is not finite arrives at a leaf of the graph of `results`, or at `data`, of
    which the history may be long, as in each solve of a closed loop.

    What is not finite goes on to all that comes after it in the backward pass: it is enough to look at nodes that send
    something to a leaf, and after which no other node does. What one of several processes computes alone is passed by
    (`num_own` edges of a node): `call` is made in all of them or in none.

    Nodes do not keep `call`: where that is gone, its hooks go, too, since features may be used again and again.
    """
    handles: list[Any] = []
    kept = weakref.ref(call, lambda _: [handle.remove() for handle in handles])

    def hook(edges: list[int]) -> Callable[..., None]:
        def at_node(slopes: Any, _: Any) -> None:
            now = kept()
            if now is not None and not all(_seems_finite(slopes[edge]) for edge in edges):
                now()

        return at_node

    given = {leaf.grad_fn for leaf in leaves(data) if leaf.grad_fn is not None}

    def is_end(node: Any) -> bool:
        return node in given or hasattr(node, "variable")

    reaches: dict[Any, bool] = {}  # of a node: whether it or one after it sends something to a leaf
    waiting = [(leaf.grad_fn, False) for leaf in results]
    while waiting:
        node, all_after_it_seen = waiting.pop()
        if node is None or (node in reaches and not all_after_it_seen):
            continue
        first = getattr(node, "num_own", 0)
        after = [child for child, _ in node.next_functions[first:]]
        if not all_after_it_seen:
            reaches[node] = False
            waiting.append((node, True))
            waiting += [(child, False) for child in after if not is_end(child)]
            continue
        edges = [i for i, child in enumerate(after, first) if is_end(child)]
        reaches[node] = any(reaches.get(child, False) for child in after)
        if edges and not reaches[node]:
            handles.append(node.register_hook(hook(edges)))
        reaches[node] = reaches[node] or bool(edges)


def _all_finite(tree: Any) -> bool:
    """The cheap way to see that nothing failed; False also where a sum of finite numbers overflows."""
    return all(_seems_finite(leaf) for leaf in leaves(tree))


def _seems_finite(x: Tensor | None) -> bool:
    """Whether it is, or cannot be looked at; nor in the batched backward of `is_grads_batched`."""
    return (
        x is None
        or torch._C._functorch.is_legacy_batchedtensor(x)
        or not may_look(x)
        or cmath.isfinite(x.detach().sum())
    )


def find_failed(tree: Any, batch_dims: int) -> Tensor:
    """Of which candidates anything is not finite: `(*batch, N)`."""
    wrong = [~leaf.detach().isfinite() for leaf in leaves(tree)]
    each = [mask.flatten(batch_dims + 1).any(-1) if mask.dim() > batch_dims + 1 else mask for mask in wrong]
    return torch.stack(each).any(0) if len(each) > 1 else each[0]


def _constant(leaf: Tensor) -> Tensor:
    """A gradient of nothing, not an error where one is asked for."""
    return leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf


def beside(mask: Tensor, leaf: Tensor) -> Tensor:
    """A mask over the leading axes, to choose in `leaf` with."""
    return mask.reshape(mask.shape + (1,) * (leaf.dim() - mask.dim()))


def stand_ins(samples: Tensor, data: Any, failed: Tensor, batch_dims: int) -> tuple[Tensor, Any]:
    """Samples and data with others in place of those that failed, as constants."""
    good = ~failed
    alive = good.any(-1)  # (*batch,)
    one = alive.reshape(-1).to(torch.uint8).argmax().reshape(1)  # a problem that is

    def of_alive(leaf: Tensor) -> Tensor:
        rows = leaf.detach().reshape(alive.numel(), *leaf.shape[batch_dims:])
        return torch.where(beside(alive, leaf), leaf, rows.index_select(0, one)[0])

    first = good.to(torch.uint8).argmax(-1, keepdim=True)
    first = beside(first, samples)
    candidate = of_alive(torch.take_along_dim(samples.detach(), first, batch_dims))
    samples = torch.where(beside(good, samples), samples, candidate)
    if may_look(alive) and alive.all():
        return samples, data
    return samples, map_tensors(of_alive, data)
