"""Row-wise work in blocks that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1 << 17  # elements: several temporaries of this size fit in the cache of one core


def by_blocks(function: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> tuple[Tensor, ...]:
    """`function(*inputs)`, where tensors are `(*batch, anything)` and rows do not influence each other.

    Large inputs on a CPU are passed in blocks of rows: the elementwise operations of a projection are bound by
    memory, and the first pass over the scores would be out of the cache when the next one begins.
    """
    x: Tensor = inputs[0]
    rows = max(1, _BLOCK // x.shape[-1])
    if x.device.type != "cpu" or x.numel() <= rows * x.shape[-1]:
        return function(*inputs)
    batch = x.shape[:-1]
    count = -(-batch.numel() // rows)
    parts = [
        torch.split(value.reshape(-1, value.shape[-1]), rows) if isinstance(value, Tensor) else [value] * count
        for value in inputs
    ]
    outputs = zip(*(function(*part) for part in zip(*parts, strict=True)), strict=True)
    return tuple(torch.cat(output).reshape(*batch, -1) for output in outputs)
