"""The refit of a diagonal Gaussian on a GPU, in Triton: scores, their projection, the moments; and the way back.

The formulas, and what is kept for the backward pass, are those of the kernels for the CPU (`refit.h`): of each row
`n` scores, `d` distances from the first sample to the mean, then `nu`, `c` and the unit of the scores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gpu import LINKS, _piece, _project, _pull_back, _real, bits_of, guess_of, options
from .operators import kept_size

TILE = 4096  # numbers of samples that one program holds at a time
MOMENTS = 16  # columns of a program that sums over all samples: with more, few problems are too few programs


@triton.jit
def _range(m, low, high, m_, low_, high_):
    return m + m_, tl.minimum(low, low_), tl.maximum(high, high_)


@triton.jit(do_not_specialize=["k_bits"])
def _scores(
    v_ptr, k_bits, kept_ptr, kept_stride, unit_at, valid_ptr, n,
    STANDARDIZE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    v_ptr += row * n
    kept_ptr += row * kept_stride
    k = _real(k_bits, DOUBLE)
    zero = k * 0
    infinity = zero + float("inf")
    EPS: tl.constexpr = 2.220446049250313e-16 if DOUBLE else 1.1920928955078125e-07
    SMALLEST: tl.constexpr = 2.2250738585072014e-308 if DOUBLE else 1.1754943508222875e-38
    LARGEST: tl.constexpr = 1e300 if DOUBLE else 1e37
    at = tl.arange(0, BLOCK)
    end = BLOCK if WHOLE else n
    held = tl.load(v_ptr + at, mask=at < n, other=float("nan"))
    m, low, high = 0, infinity, -infinity
    for start in range(0, end, BLOCK):
        v = _piece(start, held, v_ptr, n, BLOCK, WHOLE, float("nan"))
        finite = (v - v) == 0
        least, largest = tl.where(finite, v, float("inf")), tl.where(finite, v, float("-inf"))
        part = tl.reduce((finite.to(tl.int32), least, largest), 0, _range)
        m, low, high = _range(m, low, high, part[0], part[1], part[2])
    count = m.to(k.dtype)
    half = 0.5 * high - 0.5 * low
    valid = (count >= k) & (half > tl.maximum(16 * EPS * tl.maximum(high, -low), SMALLEST))
    scale = tl.where(valid, 1 / half, zero)
    total, squares = zero, zero
    if STANDARDIZE:
        for start in range(0, end, BLOCK):
            v = _piece(start, held, v_ptr, n, BLOCK, WHOLE, float("nan"))
            total += tl.sum(tl.where((v - v) == 0, (0.5 * v - 0.5 * low) * scale, 0), 0)
        total = total / tl.maximum(count, 1)
        for start in range(0, end, BLOCK):
            v = _piece(start, held, v_ptr, n, BLOCK, WHOLE, float("nan"))
            u = tl.where((v - v) == 0, (0.5 * v - 0.5 * low) * scale - total, 0)
            squares += tl.sum(u * u, 0)
    factor = tl.where(squares > 0, 1 / tl.sqrt(squares / tl.maximum(count, 1)), zero)
    for start in range(0, end, BLOCK):
        v = _piece(start, held, v_ptr, n, BLOCK, WHOLE, float("nan"))
        finite = (v - v) == 0
        x = -factor * ((0.5 * v - 0.5 * low) * scale - total) if STANDARDIZE else -v
        x = tl.where(valid, tl.where(finite, x, -infinity), zero)
        tl.store(kept_ptr + start + at, x, mask=start + at < n)
    unit = tl.minimum(0.5 * factor * scale, zero + LARGEST) if STANDARDIZE else zero + 1
    tl.store(kept_ptr + unit_at, tl.where(valid, unit, zero))
    tl.store(valid_ptr + row, valid.to(tl.int8))


@triton.jit
def _sum(w_ptr, n, zero, BLOCK: tl.constexpr):
    total, at = zero, tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        total += tl.sum(tl.load(w_ptr + start + at, mask=start + at < n, other=0), 0)
    return total


@triton.jit(do_not_specialize=["low_bits", "high_bits"])
def _moments(
    w_ptr, x_ptr, mean_ptr, std_ptr, shift_ptr, kept_stride, low_bits, high_bits, n, d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Mean and std of some of the dimensions, about the first sample."""
    row = tl.program_id(0).to(tl.int64)
    w_ptr += row * n
    x_ptr += row * n * d
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = column < d
    first = tl.load(x_ptr + column, mask=in_row, other=0)
    low, high = _real(low_bits, DOUBLE), _real(high_bits, DOUBLE)
    share = 1 / _sum(w_ptr, n, low * 0, ROWS)
    shift, variance = first * 0, first * 0
    for start in range(0, n, ROWS):
        at = start + tl.arange(0, ROWS)
        w = tl.load(w_ptr + at, mask=at < n, other=0) * share
        there = (at < n)[:, None] & in_row[None, :]
        x = tl.load(x_ptr + at[:, None].to(tl.int64) * d + column[None, :], mask=there, other=0)
        shift += tl.sum(tl.where(there, w[:, None] * (x - first[None, :]), 0), 0)
    for start in range(0, n, ROWS):
        at = start + tl.arange(0, ROWS)
        w = tl.load(w_ptr + at, mask=at < n, other=0) * share
        there = (at < n)[:, None] & in_row[None, :]
        x = tl.load(x_ptr + at[:, None].to(tl.int64) * d + column[None, :], mask=there, other=0)
        r = (x - first[None, :]) - shift[None, :]
        variance += tl.sum(tl.where(there, w[:, None] * r * r, 0), 0)
    std = tl.minimum(tl.maximum(tl.sqrt(variance), low), high)
    tl.store(mean_ptr + row * d + column, first + shift, mask=in_row)
    tl.store(std_ptr + row * d + column, std, mask=in_row)
    tl.store(shift_ptr + row * kept_stride + column, shift, mask=in_row)


@triton.jit(do_not_specialize=["low_bits", "high_bits"])
def _moments_back(
    w_ptr, x_ptr, std_ptr, shift_ptr, kept_stride, low_bits, high_bits, g_w_ptr, g_mean_ptr, g_std_ptr, g_ptr, g_x_ptr,
    n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """What comes to some of the samples and to their weights."""
    row = tl.program_id(0).to(tl.int64)
    w_ptr += row * n
    x_ptr += row * n * d
    g_x_ptr += row * n * d
    at = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    low, high = _real(low_bits, DOUBLE), _real(high_bits, DOUBLE)
    share = 1 / _sum(w_ptr, n, low * 0, ROWS)
    w = tl.load(w_ptr + at, mask=at < n, other=0) * share
    total = w * 0
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        in_row = column < d
        first = tl.load(x_ptr + column, mask=in_row, other=0)
        shift = tl.load(shift_ptr + row * kept_stride + column, mask=in_row, other=0)
        std = tl.load(std_ptr + row * d + column, mask=in_row, other=1)
        g_mean, g_variance = tl.zeros_like(std), tl.zeros_like(std)
        if g_mean_ptr is not None:
            g_mean = tl.load(g_mean_ptr + row * d + column, mask=in_row, other=0)
        if g_std_ptr is not None:
            g_std = tl.load(g_std_ptr + row * d + column, mask=in_row, other=0)
            g_variance = tl.where((std > low) & (std < high), g_std / (2 * std), 0)
        there = (at < n)[:, None] & in_row[None, :]
        place = at[:, None].to(tl.int64) * d + column[None, :]
        r = (tl.load(x_ptr + place, mask=there, other=0) - first[None, :]) - shift[None, :]
        total += tl.sum(tl.where(there, g_mean[None, :] * r + g_variance[None, :] * r * r, 0), 1)
        tl.store(g_x_ptr + place, w[:, None] * (g_mean[None, :] + 2 * g_variance[None, :] * r), mask=there)
    total = total * share
    if g_w_ptr is not None:
        total += tl.load(g_w_ptr + row * n + at, mask=at < n, other=0)
    tl.store(g_ptr + row * n + at, total, mask=at < n)


@triton.jit
def _add4(a, b, c, d, x, y, z, w):
    return a + x, b + y, c + z, d + w


@triton.jit
def _scores_back(
    g_ptr, x_ptr, kept_stride, unit_at, g_v_ptr, n, STANDARDIZE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Scores are `-u`, and `d u = (d v - <d v> - u <u d v>) unit`."""
    row = tl.program_id(0).to(tl.int64)
    g_ptr += row * n
    x_ptr += row * kept_stride
    g_v_ptr += row * n
    unit = tl.load(x_ptr + unit_at)
    at = tl.arange(0, BLOCK)
    end = BLOCK if WHOLE else n
    held = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
    held_g = tl.load(g_ptr + at, mask=at < n, other=0)
    count, total, dot, squares = unit * 0, unit * 0, unit * 0, unit * 0
    if STANDARDIZE:
        for start in range(0, end, BLOCK):
            x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
            g = _piece(start, held_g, g_ptr, n, BLOCK, WHOLE, 0)
            finite = x > float("-inf")
            x, g = tl.where(finite, x, 0), tl.where(finite, g, 0)
            part = tl.reduce((finite.to(unit.dtype), g, g * x, x * x), 0, _add4)
            count, total, dot, squares = count + part[0], total + part[1], dot + part[2], squares + part[3]
        total = total / tl.maximum(count, 1)
        dot = tl.where(squares > 0, dot / squares, unit * 0)
    for start in range(0, end, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        g = _piece(start, held_g, g_ptr, n, BLOCK, WHOLE, 0)
        finite = x > float("-inf")
        change = g - total - tl.where(finite, x, 0) * dot
        tl.store(g_v_ptr + start + at, tl.where(finite, -change * unit, 0), mask=start + at < n)


def _tile(n: int, d: int, dtype: torch.dtype, columns: int) -> dict[str, Any]:
    columns = min(triton.next_power_of_2(d), columns)
    rows = min(triton.next_power_of_2(n), TILE // columns)
    return {"ROWS": rows, "COLUMNS": columns, "DOUBLE": dtype == torch.float64}


def refit(
    values: Tensor, samples: Tensor, k: float, temperature: float, standardize: bool, min_std: float, max_std: float
) -> tuple[Tensor, ...]:
    """`dcem::refit`."""
    values, samples = values.contiguous(), samples.contiguous()
    batch, n, event = values.shape[:-1], values.shape[-1], samples.shape[values.dim() :]
    rows, d, size = batch.numel(), event.numel(), kept_size(n, event.numel())
    weights, mean = torch.empty_like(values), values.new_empty((*batch, *event))
    std, valid = torch.empty_like(mean), values.new_empty(batch, dtype=torch.bool)
    kept = values.new_empty((*batch, size))
    if not rows:
        return weights, mean, std, valid, kept
    flat, how, limits = kept.view(-1), options(n, values.dtype), (bits_of(min_std), bits_of(max_std))
    shift, nu, center = flat[n:], flat[n + d :], flat[n + d + 1 :]
    _scores[(rows,)](
        values, bits_of(k), flat, size, size - 1, valid.view(torch.int8), n, STANDARDIZE=standardize, **how
    )  # fmt: skip
    _project[(rows,)](
        flat, size, None, bits_of(temperature), *guess_of(k, n, "sigmoid"), weights, nu, center, size, n,
        LINK=LINKS["sigmoid"], **how,
    )  # fmt: skip
    tile = _tile(n, d, values.dtype, MOMENTS)
    grid = (rows, triton.cdiv(d, tile["COLUMNS"]))
    _moments[grid](weights, samples, mean, std, shift, size, *limits, n, d, **tile)
    return weights, mean, std, valid, kept


def refit_backward(
    values: Tensor, samples: Tensor, k: float, temperature: float, standardize: bool, min_std: float, max_std: float,
    weights: Tensor, std: Tensor, kept: Tensor, *grads: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`dcem::refit_backward`."""
    samples, weights, std, kept = (tensor.contiguous() for tensor in (samples, weights, std, kept))
    given = [None if g is None else g.contiguous() for g in grads]
    n, d, size = values.shape[-1], samples.shape[values.dim() :].numel(), kept.shape[-1]
    rows = values.shape[:-1].numel()
    grad_values, grad_samples = torch.empty_like(weights), torch.empty_like(samples)
    if not rows:
        return grad_values, grad_samples
    flat, how, tile = kept.view(-1), options(n, values.dtype, backward=True), _tile(n, d, values.dtype, 64)
    of_weights, of_scores, ignored = torch.empty_like(weights), torch.empty_like(weights), std.new_empty(rows)
    _moments_back[(rows, triton.cdiv(n, tile["ROWS"]))](
        weights, samples, std, flat[n:], size, bits_of(min_std), bits_of(max_std), *given, of_weights, grad_samples,
        n, d, **tile,
    )  # fmt: skip
    _pull_back[(rows,)](
        flat, size, None, bits_of(temperature), flat[n + d :], flat[n + d + 1 :], size, of_weights, None, of_scores,
        ignored, n, LINK=LINKS["sigmoid"], **how,
    )  # fmt: skip
    _scores_back[(rows,)](of_scores, flat, size, size - 1, grad_values, n, STANDARDIZE=standardize, **how)
    return grad_values, grad_samples
