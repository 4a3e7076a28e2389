"""Follow a sequence of actions through a model: states are tensors or trees of tensors, any leading axes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcem._check import check_dims, check_tensor
from dcem._eager import does_only_its_own, may_look
from dcem._given import brief, from_numpy
from dcem._guard import beside
from dcem._tree import copied, difference, has_structure, is_leaf, leaves, map_tensors
from dcem._unchanged import Versions

Dynamics = Callable[..., Any]
AT_ONCE: dict[Any, Callable[[Any, Any, Tensor], Any]] = {}
"""By the function behind a method that takes a step, what takes all of them: `(object, state, actions)`.

A dict of the very functions, and no attribute of them, which `functools.wraps` would hand on.
"""


def rollout(dynamics: Dynamics, state: Any, actions: Tensor, *, state_dims: Any = 1, action_dims: int = 1) -> Any:
    """The states that a sequence of actions leads through: `x_{t+1} = f(x_t, u_t)`.

    Args:
        dynamics: `f(state, action) -> next_state`; a callable or module. One with a method
            `rollout(state, actions) -> states` is asked for the whole sequence at once (as a simulator likes it), if
            that is its step's: a module with hooks, or with a `forward` newer than its `rollout` (of a subclass, or set
            on the object), is called at each step. One with a keyword `t` is told the number of the step, from 0.
        state: `x_0`, a tensor `(*batch, *s)` or a tree (dicts, tuples, dataclasses) of such tensors. What is no
            tensor in it stays as it is.
        actions: `(*batch, H, *a)`, the batch of the states.
        state_dims: how many trailing axes of `state` are one state: an int, or a tree like `state` of ints.
        action_dims: how many trailing axes of `actions` are one action.

    Returns:
        `x_0 ... x_H`: `(*batch, H + 1, *s)`, or a tree of these.

    Raises:
        ValueError: the batches of state and actions differ; the dynamics return a state of another structure or shape,
            with another value of what is no tensor, or change a state or an action in place; a model's own `rollout`
            returns something else than `H + 1` states, `x_0` first.

    Example:
        >>> import torch
        >>> rollout(lambda x, u: x + u, torch.zeros(1), torch.ones(3, 1)).squeeze(-1)
        tensor([0., 1., 2., 3.])

    Source: Amos & Yarats, ICML 2020, section 4.3: the constraint `x_{t+1} = f_θ(x_t, u_t)`.
    """
    if not (callable(dynamics) or rolls_out(dynamics)):
        raise TypeError(f"dynamics: expected a callable, got {brief(dynamics)}")
    check_tensor("actions", actions, "(*batch, H, *a)")
    batch = batch_of(state, state_dims)
    time_dim = actions.dim() - check_dims("action_dims", action_dims) - 1
    if time_dim < 0 or tuple(actions.shape[:time_dim]) != batch:
        raise ValueError(
            f"actions: expected (*batch, H, *a) with the state's batch {batch} and {action_dims} action axes, "
            f"got {tuple(actions.shape)}"
        )
    path = follow(dynamics, state, actions.movedim(time_dim, 0), len(batch))
    return path.states(0, None, len(batch))


@dataclass(frozen=True, eq=False)
class Path:
    """The states `x_0 ... x_H` that actions led through.

    Followed one by one they stay apart, so that a state that nothing depends on takes no part in the backward pass; of
    a model that rolls out by itself they come stacked, with time as the first axis, and some may be lost, `(*batch,)`.
    """

    steps: list[Any] | None = None
    stacked: Any = None
    lost: Tensor | None = None

    def states(self, start: int, stop: int | None, dim: int = 0) -> Any:
        """These of them, with time as the axis `dim`."""
        if self.steps is None:

            def at(leaf: Tensor) -> Tensor:  # in memory as states that were followed one by one, and stacked
                return leaf[start:stop].movedim(0, dim).contiguous() if dim else leaf[start:stop]

            return map_tensors(at, self.stacked)
        return map_tensors(lambda *leaf: _stack(leaf, dim), *self.steps[start:stop])

    def last(self) -> Any:
        """The last of them."""
        return map_tensors(lambda leaf: leaf[-1], self.stacked) if self.steps is None else copied(self.steps[-1])

    def until(self, ended: Tensor, other: Path) -> Path:
        """The states of `other` until the end, and from there on these, as constants."""
        return Path(stacked=_unless(ended, other.states(0, None), self.states(0, None)))


def follow(
    dynamics: Dynamics,
    state: Any,
    actions: Tensor,
    batch_dims: int,
    generator: torch.Generator | None = None,
    first: int = 0,
) -> Path:
    """Follow actions with time as the first axis, `(H, *batch, *a)`, from the step `first` of the plan.

    Dynamics with a keyword `generator` are given the one that there is.
    """
    noted = Versions(state, actions)
    if len(actions) and rolls_out(dynamics) and not (first and knows_time(dynamics)):  # it is told no time
        whole: Callable[..., Any] = dynamics.rollout  # type: ignore[attr-defined]
        path = _asked(whole, state, actions, batch_dims, **drawn_by(whole, generator))
    elif (stacked := _at_once(dynamics, state, actions)) is not None:
        path = Path(stacked=stacked)
    else:
        timed, drawn = knows_time(dynamics), drawn_by(dynamics, generator)
        shape = state.shape if isinstance(state, Tensor) else None  # the common case, which costs nothing
        states = [copied(state)]
        for t, action in enumerate(actions.unbind(0), first):
            given = copied(states[-1]) if shape is None else states[-1]  # a dict may be filled in and given back
            after = dynamics(given, action, t=t, **drawn) if timed else dynamics(given, action, **drawn)
            if shape is None or not isinstance(after, Tensor) or after.shape != shape:
                if (found := difference(states[-1], after)) is not None:
                    raise ValueError(f"dynamics: expected a next state of {found}{_of_numpy(after)}")
                after = copied(after)
            states.append(after)
            noted.note(after)
        path = Path(states)
    if noted.changed():
        raise ValueError(
            "dynamics: expected a new tensor for each state, and states and actions left as they are; got one of them "
            "changed in place, or its memory filled again: return a copy"
        )
    return path


def follow_until(
    dynamics: Dynamics, state: Any, actions: Tensor, ended: Tensor, path: Path, generator: torch.Generator | None
) -> tuple[Path, Tensor]:
    """Follow actions, which led through `path`, to the end of each episode, `ended` `(H + 1, *batch)`: states and
    actions from there on are those of the last step before, as constants. Nothing is computed, and no slope, from what
    comes after the end.

    A model that rolls out by itself has followed all actions; it has to keep its own slopes finite.
    """
    horizon, batch_dims = len(actions), ended.dim() - 1
    timed, drawn = knows_time(dynamics), drawn_by(dynamics, generator)
    one = (~ended[1]).reshape(-1).to(torch.uint8).argmax().reshape(1)  # an episode that the first step does not end

    def of_one(leaf: Tensor) -> Tensor:
        return leaf.flatten(0, batch_dims - 1).index_select(0, one)[0]

    kept = map_tensors(of_one, (state, actions[0]))
    over = ended.flatten(1).all(1).tolist() if may_look(ended) else [False] * (horizon + 1)  # nothing left to follow

    def step(state: Any, action: Tensor, t: int) -> Any:
        nonlocal kept  # the last step that ended nothing: one into the end counts no more, and may be NaN itself
        if over[t + 1]:
            return state
        kept = _unless(ended[t + 1], (state, action), kept)
        return dynamics(*kept, t=t, **drawn) if timed else dynamics(*kept, **drawn)

    if path.steps is not None:
        path = follow(step, state, actions, batch_dims)
    # A simulator is not asked again: it may draw random numbers of its own, or lose another sequence.
    steps = path.steps or [map_tensors(lambda leaf, t=t: leaf[t], path.stacked) for t in range(horizon + 1)]
    until = [(steps[0], actions[0])]
    for t in range(1, horizon + 1):
        until.append(_unless(ended[t], (steps[t], actions[min(t, horizon - 1)]), until[-1]))
    states, used = zip(*until, strict=True)
    return Path(list(states)), torch.stack(used[:horizon])


def _unless(ended: Tensor, tree: Any, instead: Any) -> Any:
    """A tree where it has not ended, and constants instead of it where it has."""

    def choose(leaf: Tensor, instead: Tensor) -> Tensor:
        return torch.where(beside(ended, leaf), instead.detach().to(leaf.dtype), leaf)

    return map_tensors(choose, tree, instead)


def _of_numpy(state: Any) -> str:
    """Where a simulator that knows no tensors belongs."""
    if not from_numpy(state):
        return ""
    return (
        "; a simulator in NumPy is a model by dcem.distributed.PoolRollout(function, num_workers), and one of MuJoCo "
        "by dcem.control.MujocoModel"
    )


def rolls_out(dynamics: Dynamics) -> bool:
    """Whether dynamics have a method `rollout` that follows their step as it is now.

    Who adds something to a step (hooks; a `forward`, or `__call__`, of a subclass) means all of them, of which a
    `rollout` that was written before knows nothing. Nor does that of what is wrapped, which a wrapper hands on.
    """
    if getattr(dynamics, "rollout", None) is None:
        return False
    step, own = "__call__", {*getattr(dynamics, "__dict__", ())}
    if isinstance(dynamics, nn.Module):
        step, own = "forward", own | {name for name, _ in dynamics.named_children()}
        has_step = getattr(type(dynamics), step, None) is not nn.Module.forward
        if has_step and not does_only_its_own(dynamics):
            return False
    if "rollout" in own:
        return True
    for kind in type(dynamics).__mro__:
        if "rollout" in vars(kind):
            return True
        if step in vars(kind):
            return False
    return False


def _at_once(dynamics: Dynamics, state: Any, actions: Tensor) -> Any:
    """`x_0 ... x_H`, time first, of a method that has a kernel for all steps; None where that does not apply.

    The method itself, not what is around it or in its place, which may do more.
    """
    if type(dynamics) is not types.MethodType or type(dynamics.__func__) is not types.FunctionType or not len(actions):
        return None
    follow_all = AT_ONCE.get(dynamics.__func__)
    return None if follow_all is None else follow_all(dynamics.__self__, state, actions)


def _asked(whole: Callable[..., Any], state: Any, actions: Tensor, batch_dims: int, **drawn: Any) -> Path:
    """The path of a model that rolls out by itself.

    A simulator that has lost a sequence says so by an `x_0` that is not finite: what comes after it may be an end.
    """
    states = whole(copied(state), actions.movedim(0, batch_dims), **drawn)

    def repeated(leaf: Tensor) -> Tensor:
        shape = (*leaf.shape[:batch_dims], len(actions) + 1, *leaf.shape[batch_dims:])
        return leaf.unsqueeze(batch_dims).expand(shape)

    found = difference(map_tensors(repeated, state), states)
    if found is not None:
        raise ValueError(f"dynamics: expected its rollout to return x_0 ... x_H, states of {found}")
    stacked = map_tensors(lambda leaf: leaf.movedim(batch_dims, 0), states)
    starts = zip(leaves(stacked), leaves(state), strict=True)
    wrong = [any_beyond(~leaf[0].isfinite() & start.isfinite(), batch_dims) for leaf, start in starts]
    lost = functools.reduce(torch.logical_or, wrong)
    if not may_look(lost):
        return Path(stacked=stacked, lost=lost)
    if not lost.any():
        return Path(stacked=stacked)
    return Path(stacked=map_tensors(lambda leaf, start: torch.cat([start[None], leaf[1:]]), stacked, state), lost=lost)


def any_beyond(mask: Tensor, dims: int) -> Tensor:
    """Whether any is true, over the axes after the first `dims`."""
    return mask.flatten(dims).any(-1) if mask.dim() > dims else mask


def knows_time(fn: Callable[..., Any]) -> bool:
    """Whether a model's function takes, beside state and action, a keyword `t`, the step of the plan."""
    return takes(fn, "t", 2)


def drawn_by(fn: Callable[..., Any], generator: torch.Generator | None, after: int = 2) -> dict[str, Any]:
    """The keyword `generator` for a function that takes one beside its first `after`: where there is none to give, its
    own default if it has one, and None.
    """
    if not takes(fn, "generator", after):
        return {}
    if generator is None:
        said = inspect.signature(_function(fn)).parameters.get("generator")
        if said is None or said.default is not inspect.Parameter.empty:
            return {}
    return {"generator": generator}


def takes(fn: Callable[..., Any], name: str, after: int) -> bool:
    """Whether `fn` has a parameter `name`, which is none of its first `after`."""
    fn = _function(fn)
    if isinstance(fn, functools.partial) and name in fn.keywords:  # it has been given one
        return False
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    if code is not None and not hasattr(fn, "__wrapped__"):  # a plain function says it at once
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return name in names[after + hasattr(fn, "__func__") :]
    try:
        return name in list(inspect.signature(fn).parameters)[after:]
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def _function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What says which parameters a callable has: the `forward` of a module, also of one that `torch.compile` wraps, and
    what a wrapper of ours names as what it `_follows`.
    """
    while isinstance(fn, nn.Module) and (inner := getattr(fn, "_orig_mod", getattr(fn, "_follows", None))) is not None:
        fn = inner
    return fn.forward if isinstance(fn, nn.Module) else fn


def _stack(parts: tuple[Tensor, ...], dim: int) -> Tensor:
    if parts[-1].dim() > dim and not parts[-1].is_contiguous() and parts[-1].movedim(-1, 0).is_contiguous():
        # Where each column of the states is contiguous, that of the whole is too: half the time in large batches.
        return torch.stack([part.movedim(-1, 0) for part in parts], dim + 1).movedim(0, -1)
    return torch.stack(parts, dim)


def batch_of(state: Any, state_dims: Any) -> tuple[int, ...]:
    """The batch that all tensors of a state share."""
    shapes: list[tuple[tuple[int, ...], Tensor]] = []

    def note(leaf: Tensor, dims: Any) -> Tensor:
        dims = check_dims("state_dims", dims)
        if leaf.dim() < dims:
            raise ValueError(f"state: expected at least {dims} axes (*batch, *s), got shape {tuple(leaf.shape)}")
        shapes.append((tuple(leaf.shape[: leaf.dim() - dims]), leaf))
        return leaf

    if is_leaf(state_dims):
        map_tensors(lambda leaf: note(leaf, state_dims), state)
    elif not has_structure(state_dims, state):
        raise ValueError(f"state_dims: expected an int, or ints in the structure of the state, got {state_dims}")
    else:
        map_tensors(note, state, state_dims)
    if not shapes:
        raise TypeError(f"state: expected a tensor or a tree of tensors, got {brief(state)}{from_numpy(state)}")
    batches = {batch for batch, _ in shapes}
    for batch in batches:
        if 0 in batch:
            raise ValueError(f"state: expected at least one problem, got a batch of shape {batch}")
    if len(batches) > 1:
        listed = ", ".join(str(tuple(leaf.shape)) for _, leaf in shapes)
        raise ValueError(
            f"state: expected tensors that share their batch axes, got shapes {listed} with state_dims={state_dims}"
        )
    return shapes[0][0]
