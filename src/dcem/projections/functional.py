"""The projections as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import project
from .checks import check_k, check_scores, check_temperature
from .links import CappedExponential, Clip, Link, Sigmoid

_SIGMOID, _CAPPED_EXPONENTIAL, _CLIP = Sigmoid(), CappedExponential(), Clip()


def lml(scores: Tensor, k: float, *, temperature: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    return _soft(_SIGMOID, scores, k, temperature, dim)


def constrained_softmax(scores: Tensor, k: float, *, temperature: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    return _soft(_CAPPED_EXPONENTIAL, scores, k, temperature, dim)


def constrained_sparsemax(scores: Tensor, k: float, *, temperature: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    return _soft(_CLIP, scores, k, temperature, dim)


def hard_topk(scores: Tensor, k: int, *, dim: int = -1) -> Tensor:
    axis = check_scores(scores, dim)
    check_k(k, scores.shape[axis], integer=True)
    x = scores.detach().movedim(axis, -1)
    top = x.topk(k, dim=-1).values
    largest, threshold = top[..., :1], top[..., -1:]
    above = x > threshold
    tied = x == threshold
    room = k - above.sum(-1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(-1) <= room))
    valid = largest.isfinite() & threshold.isfinite()
    return torch.where(valid, chosen.to(x.dtype), torch.nan).movedim(-1, axis)


def _soft(link: Link, scores: Tensor, k: float, temperature: float | Tensor, dim: int) -> Tensor:
    axis = check_scores(scores, dim)
    check_k(k, scores.shape[axis])
    x = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    tau = check_temperature(temperature, x, axis)
    x = x.movedim(axis, -1)
    if isinstance(tau, Tensor):
        tau = tau.movedim(axis, -1)
    w = _ones(x, tau) if k == x.shape[-1] else project(x, tau, k, link)
    return w.movedim(-1, axis).to(scores.dtype)


def _ones(x: Tensor, temperature: float | Tensor) -> Tensor:
    """The only point of the capped simplex when ``k = n``: weights of 1 and gradients of 0."""
    low, high = x.detach().amin(-1, keepdim=True), x.detach().amax(-1, keepdim=True)
    valid = low.isfinite() & high.isfinite()
    return 1 + 0 * (torch.where(valid, x, torch.nan) + temperature)
