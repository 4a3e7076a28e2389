"""What is drawn in a decision that has to be made again: always the same, or it is no such decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem._eager import is_transformed, may_look
from dcem._replay import randomness
from dcem._tree import leaves, map_tensors
from dcem.control.initial import asked

_SEED = 0  # of what proposals draw; nothing that is learned, stored or loaded can change it


def asked_alike(proposals: Callable[..., Any], state: Any, batch_dims: int, horizon: int, num: int) -> Any:
    """What a function proposes, as a function of the state alone: with the same draws in every problem and every time.

    A draw for a whole batch is another one for each of its problems, and another one in another batch. So a function
    that has drawn is asked again, problem by problem (in one call, by `torch.vmap`, where that can map it); its own
    draws are from torch's global generators or from the one that it is given.
    """
    tensors = leaves(state)
    device, batch = tensors[0].device, tensors[0].shape[:batch_dims]
    put_back = randomness(device, None)
    own = torch.Generator(device)
    every = [own, *_global(device)]

    def seeded() -> list[Tensor]:
        return [generator.manual_seed(_SEED).get_state() for generator in every]

    def one(*of_problem: Tensor) -> Any:
        given = iter(of_problem)
        return asked(proposals, map_tensors(lambda _: next(given), state), horizon, num, own)

    try:
        before = seeded()
        actions = asked(proposals, state, horizon, num, own)
        if not (batch.numel() > 1 and _moved(every, before) and isinstance(actions, Tensor)):
            return actions
        problems = [leaf.flatten(0, batch_dims - 1) for leaf in tensors]
        seeded()
        try:
            actions = torch.vmap(one, randomness="same")(*problems)
        except RuntimeError:  # it cannot be mapped: draws around a batched mean, a branch, a write in place
            alone: list[Tensor] = []
            for of_problem in zip(*problems, strict=True):
                seeded()
                alone.append(one(*of_problem))
            actions = torch.stack(alone)
        return actions.unflatten(0, batch)
    finally:
        put_back()


def made_again(decide: Callable[[], Any], like: Tensor) -> Any:
    """`decide()`, a decision that has drawn nothing from torch's global generators, as far as this can be seen.

    Whoever draws decides something else when the stored inputs are read again: probabilities of old and new would be
    of two different distributions. Other threads may have drawn meanwhile, so a second decision is asked.
    """
    if is_transformed() or not may_look(like):
        return decide()
    every = _global(like.device)
    before = [generator.get_state() for generator in every]
    decision = decide()
    if not _moved(every, before):
        return decision
    with torch.no_grad():
        other = decide()
    pairs = ((decision.memory.plan.actions, other.memory.plan.actions), (decision.action, other.action))
    if any(bool((again - first).abs().max() > 1e-3 * first.abs().max()) for first, again in pairs):
        raise ValueError(
            "mpc: expected a decision that is the same whenever it is made of the same inputs, got another one the "
            "second time: its dynamics, cost, model or a network draw random numbers; let them draw once and keep "
            "what they drew, call eval() of what has a dropout, or act by dcem.rl.policy(mpc)"
        )
    return decision


def _global(device: torch.device) -> list[torch.Generator]:
    """Torch's own generators that a computation on `device`, of a tensor, draws from."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index]]


def _moved(generators: list[torch.Generator], before: list[Tensor]) -> bool:
    """Whether one of them has been drawn from."""
    return any(not torch.equal(now.get_state(), then) for now, then in zip(generators, before, strict=True))
