"""The projections on a GPU, in Triton: one program a row, which reads its scores and writes its weights once.

The search is that of the kernels for the CPU (`projection.h`), and so are its cases: scores of ordinary spread start
from their mean and a guess, any other from the order statistics at `k`. Nothing is sent to the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LINKS = {"sigmoid": 0, "capped_exponential": 1, "clip": 2}
LARGEST_BLOCK = 16384  # numbers that one program holds at a time; of longer rows it reads pieces again and again


@triton.jit
def _phi(z, LINK: tl.constexpr):
    if LINK == 0:
        e = tl.exp(-tl.abs(z))
        return tl.where(z >= 0, 1 / (1 + e), e / (1 + e))
    if LINK == 1:
        return tl.exp(tl.minimum(z, 0))
    return tl.minimum(tl.maximum(z, 0), 1)


@triton.jit
def _slope(z, LINK: tl.constexpr):
    if LINK == 0:
        e = tl.exp(-tl.abs(z))
        return e / ((1 + e) * (1 + e))
    if LINK == 1:
        return tl.where(z < 0, tl.exp(tl.minimum(z, 0)), 0)
    return tl.where((z > 0) & (z < 1), 1.0, 0.0).to(z.dtype)


@triton.jit
def _scaled(x, c, inverse):
    """`(x - c) / tau`, as far as it matters to a weight."""
    return tl.minimum(tl.maximum((x - c) * inverse, -1000.0), 1000.0)


@triton.jit
def _piece(start, held, x_ptr, n, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Numbers `start ...` of the row, -inf beyond its end."""
    if WHOLE:
        return held
    at = start + tl.arange(0, BLOCK)
    return tl.load(x_ptr + at, mask=at < n, other=float("-inf"))


@triton.jit
def _key(x, DOUBLE: tl.constexpr):
    """Whole numbers in the order of the numbers."""
    if DOUBLE:
        bits = x.to(tl.int64, bitcast=True)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _number(key, DOUBLE: tl.constexpr):
    if DOUBLE:
        return (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    small = key.to(tl.int32)
    return (small ^ ((small >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _project(
    x_ptr, x_stride, tau_ptr, tau_stride, k_ptr, w_ptr, nu_ptr, c_ptr, stride, n,
    LINK: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    w_ptr += row * n
    k = tl.load(k_ptr)
    tau = tl.load(tau_ptr + row * tau_stride)
    EPS: tl.constexpr = 2.220446049250313e-16 if DOUBLE else 1.1920928955078125e-07
    LARGEST: tl.constexpr = 1e300 if DOUBLE else 1e37
    at = tl.arange(0, BLOCK)
    held = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
    zero = k * 0
    infinity = zero + float("inf")

    wrong, m, total, low, high = 0, 0, zero, infinity, -infinity
    for start in range(0, n, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        finite = x > float("-inf")
        wrong += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
        m += tl.sum(finite.to(tl.int32), 0)
        total += tl.sum(tl.where(finite, x, 0), 0)
        low = tl.minimum(low, tl.min(tl.where(finite, x, float("inf")), 0))
        high = tl.maximum(high, tl.max(x, 0))
    count = m.to(k.dtype)
    is_valid = (wrong == 0) & (count >= k) & (tau > 0)
    inverse = tl.minimum(1 / tau, LARGEST)

    c, nu, left, right = low, zero + 64.0, zero + 64.0, zero + 64.0  # if all of them are taken
    if is_valid & (count > k):
        if (LINK != 2) & ((high - low) * inverse <= 30):  # ordinary: the mean, a guess by the variance
            p = k / count
            base = tl.log(p) - (tl.log(1 - p) if LINK == 0 else zero)
            c = tl.minimum(tl.maximum(total / count, low), high)
            squares = zero
            for start in range(0, n, BLOCK):
                x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
                s = tl.where(x > float("-inf"), (x - c) * inverse, 0)
                squares += tl.sum(s * s, 0)
            left, right = base - (high - c) * inverse, base - (low - c) * inverse
            nu = (
                base * tl.sqrt(1 + 0.39269908169872414 * squares / count) if LINK == 0 else base - 0.5 * squares / count
            )
            nu = tl.minimum(tl.maximum(nu, left), right)
        else:  # any other: the order statistics at k give the centre and a tight bracket
            j = tl.ceil(k).to(tl.int32)
            following = tl.floor(k) + 1
            first, last = _key(low, DOUBLE), _key(high, DOUBLE)
            while first < last:  # the j-th largest is the largest number that j are not below
                middle = (first | last) - ((first ^ last) >> 1)
                num = 0
                for start in range(0, n, BLOCK):
                    x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
                    num += tl.sum((_key(x, DOUBLE) >= middle).to(tl.int32), 0)
                first, last = tl.where(num >= j, middle, first), tl.where(num >= j, last, middle - 1)
            c = _number(first, DOUBLE)
            above, below = 0, -infinity
            for start in range(0, n, BLOCK):
                x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
                above += tl.sum((x >= c).to(tl.int32), 0)
                below = tl.maximum(below, tl.max(tl.where(x < c, x, float("-inf")), 0))
            gap = tl.where(above >= following, zero, -_scaled(below, c, inverse))
            p = (k - (j - 1)) / (count - (j - 1))
            q = k / following
            if LINK == 0:
                left, right = tl.log(p) - tl.log(1 - p), tl.log(k / (following - k)) + gap
            elif LINK == 1:
                left, right = tl.log(p), tl.minimum(tl.log(q) + gap, 0)
            else:
                left, right = p, tl.minimum(q + gap, 1)
            nu = 0.5 * (left + right)

        tolerance = 2 * EPS * tl.minimum(k, count - k)
        size, steps = infinity, 0
        while steps < 128:
            f, f1, f2 = -k, zero, zero
            for start in range(0, n, BLOCK):
                x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
                finite = x > float("-inf")
                z = _scaled(tl.where(finite, x, c), c, inverse) + nu
                w = tl.where(finite, _phi(z, LINK), 0)
                slope = tl.where(finite, _slope(z, LINK), 0)
                f += tl.sum(w, 0)
                f1 += tl.sum(slope, 0)
                f2 += tl.sum(slope * (1 - 2 * w), 0)
            if LINK == 0:
                trial = nu - 2 * f * f1 / (2 * f1 * f1 - f * f2)
            elif LINK == 1:
                trial = nu + tl.log(tl.maximum(1 - f / f1, 0))
            else:
                trial = nu - f / f1
            left = tl.where(f < 0, nu, left)
            right = tl.where(f < 0, right, nu)
            sound = (trial == trial) & (trial != nu) & (tl.abs(f) < 0.5 * size)
            trial = tl.minimum(tl.maximum(trial, left), right)
            sound = sound & (trial != nu)
            middle = 0.5 * (left + right)
            there = (tl.abs(f) <= tolerance) | ((sound == 0) & ((middle <= left) | (middle >= right)))
            size = tl.where(sound, tl.abs(f), infinity)  # after a bisection, a step is worth a try
            nu = tl.where(there, nu, tl.where(sound, trial, middle))
            steps = tl.where(there, 128, steps + 1)

    nan = zero + float("nan")
    c, nu = tl.where(is_valid, c, nan), tl.where(is_valid, nu, nan)
    for start in range(0, n, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        finite = x > float("-inf")
        w = tl.where(finite | (is_valid == 0), _phi(_scaled(tl.where(finite, x, c), c, inverse) + nu, LINK), 0)
        tl.store(w_ptr + start + at, tl.where(is_valid, w, nan), mask=start + at < n)
    tl.store(nu_ptr + row * stride, nu)
    tl.store(c_ptr + row * stride, c)


@triton.jit
def _pull_back(
    x_ptr, x_stride, tau_ptr, tau_stride, nu_ptr, c_ptr, stride, g_w_ptr, g_nu_ptr, g_nu_stride, g_x_ptr, g_tau_ptr, n,
    LINK: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    g_w_ptr += row * n
    g_x_ptr += row * n
    nu, c = tl.load(nu_ptr + row * stride), tl.load(c_ptr + row * stride)
    g_nu = tl.load(g_nu_ptr + row * g_nu_stride)
    tau = tl.load(tau_ptr + row * tau_stride)
    TINY: tl.constexpr = 4.930380657631324e-32 if DOUBLE else 1.4210854715202004e-14
    inverse = tl.minimum(1 / tau, 1e300 if DOUBLE else 1e37)
    at = tl.arange(0, BLOCK)
    held = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
    held_g = tl.load(g_w_ptr + at, mask=at < n, other=0)
    total, dot, pull = nu * 0, g_nu, nu * 0
    for start in range(0, n, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        g = held_g if WHOLE else tl.load(g_w_ptr + start + at, mask=start + at < n, other=0)
        finite = x > float("-inf")
        q = tl.where(finite, _slope(_scaled(tl.where(finite, x, c), c, inverse) + nu, LINK), 0)
        total += tl.sum(q, 0)
        dot += tl.sum(q * g, 0)
    mean = dot / tl.maximum(total, TINY)
    for start in range(0, n, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        g = held_g if WHOLE else tl.load(g_w_ptr + start + at, mask=start + at < n, other=0)
        finite = x > float("-inf")
        s = _scaled(tl.where(finite, x, c), c, inverse)
        g_x = tl.where(finite, _slope(s + nu, LINK) * (g - mean) * inverse, 0)
        g_x = tl.where(nu == nu, g_x, nu)
        pull += tl.sum(tl.where(start + at < n, g_x * s, 0), 0)
        tl.store(g_x_ptr + start + at, g_x, mask=start + at < n)
    tl.store(g_tau_ptr + row, -pull)


def options(n: int, dtype: torch.dtype) -> dict[str, object]:
    """How a program holds a row of `n` numbers."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dcem::project: expected float32 or float64, got {dtype}")
    block = min(triton.next_power_of_2(n), LARGEST_BLOCK)
    warps = 1 if block <= 256 else (4 if block <= 2048 else 8)
    return {"BLOCK": block, "WHOLE": block >= n, "DOUBLE": dtype == torch.float64, "num_warps": warps}


def _of_rows(x: Tensor, temperatures: Tensor | None, temperature: float) -> tuple[Tensor, int]:
    """The temperatures and how far those of two rows are apart; on the device, so that nothing waits."""
    return (x.new_full((1,), temperature), 0) if temperatures is None else (temperatures.contiguous(), 1)


def project(
    x: Tensor, temperatures: Tensor | None, temperature: float, k: float, link: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`dcem::project`."""
    x, n = x.contiguous(), x.shape[-1]
    tau, stride = _of_rows(x, temperatures, temperature)
    w, nu = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))
    center, k_on_device = torch.empty_like(nu), x.new_full((1,), k)
    if nu.numel():
        _project[(nu.numel(),)](
            x, n, tau, stride, k_on_device, w, nu, center, 1, n, LINK=LINKS[link], **options(n, x.dtype)
        )  # fmt: skip
    return w, nu, center


def project_backward(
    x: Tensor, temperatures: Tensor | None, temperature: float, nu: Tensor, center: Tensor, grad_weights: Tensor | None,
    grad_nu: Tensor | None, link: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`dcem::project_backward`."""
    x, nu, center, n = x.contiguous(), nu.contiguous(), center.contiguous(), x.shape[-1]
    tau, stride = _of_rows(x, temperatures, temperature)
    g_w = torch.zeros_like(x) if grad_weights is None else grad_weights.contiguous()
    g_nu = torch.zeros_like(nu) if grad_nu is None else grad_nu.contiguous()
    g_x, g_tau = torch.empty_like(x), torch.empty_like(nu)
    if nu.numel():
        _pull_back[(nu.numel(),)](
            x, n, tau, stride, nu, center, 1, g_w, g_nu, 1, g_x, g_tau, n, LINK=LINKS[link], **options(n, x.dtype)
        )  # fmt: skip
    return g_x, g_tau
