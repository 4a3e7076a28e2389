"""What may be passed to a projection: checked once, at the public boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem._check import as_int, check_int, check_number, check_positive
from dcem._eager import is_eager
from dcem._given import brief, kind


def check_scores(scores: Tensor, dim: int) -> int:
    """The axis that is selected from, counted from the front."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores: expected a Tensor, got {kind(scores)}")
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point Tensor, got dtype {scores.dtype}")
    if scores.ndim == 0:
        raise ValueError("scores: expected at least one axis to select from, got a 0-dimensional Tensor")
    dim = dim if type(dim) is int else check_int("dim", dim)
    if not -scores.ndim <= dim < scores.ndim:
        raise ValueError(
            f"dim: expected an axis of scores of shape {tuple(scores.shape)}, that is "
            f"{-scores.ndim} <= dim < {scores.ndim}, got {dim}"
        )
    return dim % scores.ndim


def check_k(k: float | Tensor, scores: Tensor, dim: int, *, integer: bool = False) -> float | Tensor:
    """`0 < k <= n`: a number, or a Tensor of the dtype of `scores` and their shape but for a 1 at `dim`.

    Numbers in a tensor that cannot be looked at are NaN where they are out of range.
    """
    n, kind = scores.shape[dim], "an int" if integer else "an int or a float"
    if isinstance(k, Tensor):
        if k.dtype in (torch.bool, torch.complex64, torch.complex128) or (integer and k.is_floating_point()):
            raise TypeError(f"k: expected {kind}, or a Tensor of such, got dtype {k.dtype}")
        rows = of_rows("k", k, scores, dim)
        fits = (rows > 0) & (rows <= n)
        if is_eager() and fits.device.type == "cpu" and not fits.all():
            raise ValueError(
                f"k: expected numbers with 0 < k <= {n}, the number of scores, got {rows.detach()[~fits][0].item():g}"
            )
        return torch.where(fits, rows, math.nan)
    number = check_number("k", k, kind)
    if integer and not isinstance(number, int):
        raise TypeError(f"k: expected {kind}, got {brief(k)}{as_int(k)}")
    if not 0 < number <= n:
        raise ValueError(f"k: expected {kind} with 0 < k <= {n}, the number of scores, got {k}")
    return number


def check_plain_temperature(temperature: object) -> float:
    """A positive finite number."""
    number = check_number("temperature", temperature, "a positive number or a Tensor")
    if not 0 < number < math.inf:
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")
    return number


def check_effective(effective: float | Tensor, k: float | Tensor, scores: Tensor, dim: int) -> float | Tensor:
    """`k < effective <= n`: a number, or one a row."""
    if isinstance(effective, Tensor):
        rows = of_rows("effective", effective, scores, dim)
        return torch.where(rows > 0, rows.clamp(max=scores.shape[dim]), math.nan)
    number = check_number("effective", effective, "a number or a Tensor")
    n = scores.shape[dim]
    if not (0 if isinstance(k, Tensor) else k) < number <= n:
        raise ValueError(f"effective: expected a number with k < effective <= {n}, for k = {brief(k)}, got {effective}")
    return number


def check_temperature(temperature: float | Tensor, scores: Tensor, dim: int) -> float | Tensor:
    """A number, or a Tensor of the dtype of `scores` and its shape but for a 1 at `dim`."""
    if isinstance(temperature, Tensor):
        return _row_temperature(temperature, scores, dim)
    temperature = check_plain_temperature(temperature)
    # a temperature that would underflow, or whose multiples would overflow, in the precision of the scores
    info = torch.finfo(scores.dtype)
    return float(min(max(temperature, info.tiny), info.max * 1e-6))


def _row_temperature(temperature: Tensor, scores: Tensor, dim: int) -> Tensor:
    if not temperature.is_floating_point():
        raise TypeError(f"temperature: expected a floating-point Tensor, got dtype {temperature.dtype}")
    if temperature.ndim == 0:  # of all rows: there are no others to go on with
        check_positive("temperature", temperature)
    temperature = of_rows("temperature", temperature, scores, dim)
    return torch.where(temperature > 0, temperature, math.nan)


def of_rows(name: str, given: Tensor, scores: Tensor, dim: int) -> Tensor:
    """A number a row of `scores`: in their dtype, on their device, in their shape but for a 1 at `dim`."""
    rows = list(scores.shape)
    rows[dim] = 1
    value = given
    if given.ndim < scores.ndim:
        missing = scores.ndim - 1 - given.ndim
        value = given.reshape((1,) * missing + tuple(given.shape)).unsqueeze(dim)
    fits = value.ndim == scores.ndim and all(t == r or t == 1 for t, r in zip(value.shape, rows, strict=True))
    if not fits:
        batch = tuple(rows[:dim] + rows[dim + 1 :])
        raise ValueError(
            f"{name}: expected a number, or a Tensor that broadcasts to the batch shape {batch} of the scores "
            f"(or to {tuple(rows)}, with the axis kept), got shape {tuple(given.shape)}"
        )
    return value.to(scores.device, scores.dtype).expand(rows)
