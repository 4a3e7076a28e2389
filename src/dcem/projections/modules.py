"""The projections as modules: what a solver takes as its `selection`."""

from __future__ import annotations

from torch import Tensor, nn

from dcem._check import check_positive

from .checks import check_plain_temperature
from .functional import hard_topk, soft


class _Soft(nn.Module):
    """A soft projection with its temperature, or with what chooses it."""

    temperature: float | Tensor | None
    effective: float | Tensor | None
    _link: str

    def __init__(self, temperature: float | Tensor = 1.0, *, effective: float | Tensor | None = None) -> None:
        super().__init__()
        if effective is not None:
            if isinstance(temperature, Tensor) or temperature != 1.0:
                raise ValueError(f"effective: expected None where a temperature is given, got {effective}")
            if not isinstance(effective, Tensor):
                check_positive("effective", effective)
            self.temperature = None
        if isinstance(effective, Tensor) and not isinstance(effective, nn.Parameter):
            self.register_buffer("effective", effective)
        else:
            self.effective = effective
        if effective is not None:
            return
        if not isinstance(temperature, Tensor):
            self.temperature = check_plain_temperature(temperature)
            return
        check_positive("temperature", temperature)
        if isinstance(temperature, nn.Parameter):
            self.temperature = temperature
        else:
            self.register_buffer("temperature", temperature)

    def extra_repr(self) -> str:
        name = "temperature" if self.effective is None else "effective"
        given = getattr(self, name)
        if not isinstance(given, Tensor):
            return f"{name}={given:g}"
        kind = "learned" if isinstance(given, nn.Parameter) else "fixed"
        value = f"{given.item():.4g}" if given.numel() == 1 else f"tensor of shape {tuple(given.shape)}"
        return f"{name}={value} ({kind})"

    def forward(self, scores: Tensor, k: float | Tensor, dim: int = -1) -> Tensor:
        """The weights of `scores`; see the function of this name."""
        tau = 1.0 if self.temperature is None else self.temperature
        return soft(self._link, scores, k, tau, dim, self.effective)


class LML(_Soft):
    """[`lml`][dcem.lml] as a module.

    Args:
        temperature: A positive number, or a tensor of such; an `nn.Parameter` is registered, and learned.
        effective: Instead of a temperature: how many scores shall share the weight, `(sum w)^2 / sum w^2`, above
            `k` (which is a hard selection) and at most `n` (where all weigh the same). Every row gets the
            temperature that this takes, whatever the unit and the shape of its scores. A number or a tensor, as
            `temperature`, and differentiable; a row that cannot reach it, by ties or masks, comes as close as it can.

    Raises:
        TypeError: `temperature` or `effective` is neither a number nor a tensor.
        ValueError: one of them is not positive, or both are given.

    Example:
        >>> import torch
        >>> LML(temperature=0.5)
        LML(temperature=0.5)
        >>> LML(torch.nn.Parameter(torch.tensor(2.0)))
        LML(temperature=2 (learned))
        >>> LML()(torch.tensor([1.0, 1.0]), 1)
        tensor([0.5000, 0.5000])
        >>> w = LML(effective=4)(torch.arange(10.0), 2)
        >>> (w.sum().square() / w.square().sum()).round(decimals=3)
        tensor(4.)

    Source: "The Limited Multi-Label Projection Layer", Amos, Koltun & Kolter, 2019.
    """

    _link = "sigmoid"


class ConstrainedSoftmax(_Soft):
    """[`constrained_softmax`][dcem.constrained_softmax] as a module.

    Args:
        temperature: A positive number, or a tensor of such; an `nn.Parameter` is registered, and learned.
        effective: Instead of a temperature: how many scores shall share the weight, `(sum w)^2 / sum w^2`, above
            `k` (which is a hard selection) and at most `n` (where all weigh the same). Every row gets the
            temperature that this takes, whatever the unit and the shape of its scores. A number or a tensor, as
            `temperature`, and differentiable; a row that cannot reach it, by ties or masks, comes as close as it can.

    Raises:
        TypeError: `temperature` or `effective` is neither a number nor a tensor.
        ValueError: one of them is not positive, or both are given.

    Example:
        >>> import torch
        >>> ConstrainedSoftmax()(torch.tensor([2.0, 0.0, 0.0]), 2)
        tensor([1.0000, 0.5000, 0.5000])

    Source: as of [`constrained_softmax`][dcem.constrained_softmax].
    """

    _link = "capped_exponential"


class ConstrainedSparsemax(_Soft):
    """[`constrained_sparsemax`][dcem.constrained_sparsemax] as a module.

    Args:
        temperature: A positive number, or a tensor of such; an `nn.Parameter` is registered, and learned.
        effective: Instead of a temperature: how many scores shall share the weight, `(sum w)^2 / sum w^2`, above
            `k` (which is a hard selection) and at most `n` (where all weigh the same). Every row gets the
            temperature that this takes, whatever the unit and the shape of its scores. A number or a tensor, as
            `temperature`, and differentiable; a row that cannot reach it, by ties or masks, comes as close as it can.

    Raises:
        TypeError: `temperature` or `effective` is neither a number nor a tensor.
        ValueError: one of them is not positive, or both are given.

    Example:
        >>> import torch
        >>> ConstrainedSparsemax()(torch.tensor([2.0, 0.5, 0.0, -2.0]), 2)
        tensor([1.0000, 0.7500, 0.2500, 0.0000])

    Source: as of [`constrained_sparsemax`][dcem.constrained_sparsemax].
    """

    _link = "clip"


class HardTopK(nn.Module):
    """[`hard_topk`][dcem.hard_topk] as a module.

    Example:
        >>> import torch
        >>> HardTopK()(torch.tensor([2.0, 0.5, 2.0]), 1)
        tensor([1., 0., 0.])
    """

    def forward(self, scores: Tensor, k: int | Tensor, dim: int = -1) -> Tensor:
        """The indicator of the `k` largest `scores`; see [`hard_topk`][dcem.hard_topk]."""
        return hard_topk(scores, k, dim=dim)
