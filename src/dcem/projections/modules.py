"""The projections as modules: what a solver takes as its ``selection``."""

from __future__ import annotations

from torch import Tensor, nn

from .checks import check_number
from .functional import constrained_softmax, constrained_sparsemax, hard_topk, lml


class _Soft(nn.Module):
    """A soft projection with its temperature."""

    temperature: float | Tensor

    def __init__(self, temperature: float | Tensor = 1.0) -> None:
        super().__init__()
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            if not isinstance(temperature, Tensor):
                check_number(temperature)
            self.temperature = temperature

    def extra_repr(self) -> str:
        tau = self.temperature
        if not isinstance(tau, Tensor):
            return f"temperature={tau:g}"
        kind = "learned" if isinstance(tau, nn.Parameter) else "fixed"
        value = f"{tau.item():.4g}" if tau.numel() == 1 else f"tensor of shape {tuple(tau.shape)}"
        return f"temperature={value} ({kind})"


class LML(_Soft):
    """[`lml`][dcem.lml] as a module.

    Args:
        temperature: A positive number, or a tensor; an ``nn.Parameter`` is registered, and learned with the model.

    Example:
        >>> import torch
        >>> LML(temperature=0.5)
        LML(temperature=0.5)
        >>> LML(torch.nn.Parameter(torch.tensor(2.0)))
        LML(temperature=2 (learned))
        >>> LML()(torch.tensor([1.0, 1.0]), 1)
        tensor([0.5000, 0.5000])
    """

    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        """The weights of ``scores``; see [`lml`][dcem.lml]."""
        return lml(scores, k, temperature=self.temperature, dim=dim)


class ConstrainedSoftmax(_Soft):
    """[`constrained_softmax`][dcem.constrained_softmax] as a module.

    Args:
        temperature: A positive number, or a tensor; an ``nn.Parameter`` is registered, and learned with the model.

    Example:
        >>> import torch
        >>> ConstrainedSoftmax()(torch.tensor([2.0, 0.0, 0.0]), 2)
        tensor([1.0000, 0.5000, 0.5000])
    """

    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        """The weights of ``scores``; see [`constrained_softmax`][dcem.constrained_softmax]."""
        return constrained_softmax(scores, k, temperature=self.temperature, dim=dim)


class ConstrainedSparsemax(_Soft):
    """[`constrained_sparsemax`][dcem.constrained_sparsemax] as a module.

    Args:
        temperature: A positive number, or a tensor; an ``nn.Parameter`` is registered, and learned with the model.

    Example:
        >>> import torch
        >>> ConstrainedSparsemax()(torch.tensor([2.0, 0.5, 0.0, -2.0]), 2)
        tensor([1.0000, 0.7500, 0.2500, 0.0000])
    """

    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        """The weights of ``scores``; see [`constrained_sparsemax`][dcem.constrained_sparsemax]."""
        return constrained_sparsemax(scores, k, temperature=self.temperature, dim=dim)


class HardTopK(nn.Module):
    """[`hard_topk`][dcem.hard_topk] as a module.

    Example:
        >>> import torch
        >>> HardTopK()(torch.tensor([2.0, 0.5, 2.0]), 1)
        tensor([1., 0., 0.])
    """

    def forward(self, scores: Tensor, k: int, dim: int = -1) -> Tensor:
        """The indicator of the ``k`` largest ``scores``; see [`hard_topk`][dcem.hard_topk]."""
        return hard_topk(scores, k, dim=dim)
