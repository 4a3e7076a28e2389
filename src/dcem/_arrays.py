"""Arrays from outside, of environments and simulators, as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_tensor(value: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """What `torch.as_tensor` makes; of arrays with any strides and byte order, which it refuses, and those that
    are read-only, of which it warns.
    """
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        import numpy as np

        array = np.asarray(value)
        backwards = any(stride < 0 for stride in array.strides)
        if backwards or not array.flags.writeable or array.dtype.byteorder not in "=|":
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        value = array
    return torch.as_tensor(value, dtype=dtype, device=device)
