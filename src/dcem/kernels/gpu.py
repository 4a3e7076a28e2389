"""The projections on a GPU, in Triton: one program a row, which reads its scores and writes its weights once.

The search is that of the kernels for the CPU (`projection.h`), and so are its cases: scores of ordinary spread start
from their mean and a guess, any other from the order statistics at `k`. Nothing is sent to the host.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

LINKS = {"sigmoid": 0, "capped_exponential": 1, "clip": 2}
LARGEST_BLOCK = 16384  # numbers that one program holds at a time; of longer rows it reads pieces again and again


@triton.jit
def _weight(z, LINK: tl.constexpr):
    """`phi(z)` and its derivative; both 0 at -inf, which stands for a number that takes no part."""
    if LINK == 0:
        e = tl.exp(-tl.abs(z))
        r = 1 / (1 + e)
        w, slope = tl.where(z >= 0, r, e * r), e * r * r
    elif LINK == 1:
        w = tl.exp(tl.minimum(z, 0))
        slope = tl.where(z < 0, w, 0)
    else:
        w, slope = tl.minimum(tl.maximum(z, 0), 1), tl.where((z > 0) & (z < 1), 1.0, 0.0).to(z.dtype)
    return w, slope


@triton.jit
def _scaled(x, c, inverse):
    """`(x - c) / tau`, as far as it matters to a weight."""
    return tl.minimum(tl.maximum((x - c) * inverse, -1000.0), 1000.0)


@triton.jit
def _of_row(x, c, inverse):
    """The scaled scores, -inf for what takes no part."""
    finite = x > float("-inf")
    return tl.where(finite, _scaled(tl.where(finite, x, c), c, inverse), float("-inf"))


@triton.jit
def _piece(start, held, x_ptr, n, BLOCK: tl.constexpr, WHOLE: tl.constexpr, other: tl.constexpr = float("-inf")):
    """Numbers `start ...` of the row, `other` beyond its end."""
    at = start + tl.arange(0, BLOCK)
    return held if WHOLE else tl.load(x_ptr + at, mask=at < n, other=other)


@triton.jit
def _real(bits, DOUBLE: tl.constexpr):
    """The number whose bits as a float64 came as a whole number, see `bits_of`."""
    number = bits.to(tl.int64).to(tl.float64, bitcast=True)
    return number if DOUBLE else number.to(tl.float32)


@triton.jit
def _add2(a, b, x, y):
    return a + x, b + y


@triton.jit
def _add3(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def _survey(m, total, low, high, m_, total_, low_, high_):
    return m + m_, total + total_, tl.minimum(low, low_), tl.maximum(high, high_)


@triton.jit
def _key(x, DOUBLE: tl.constexpr):
    """Whole numbers in the order of the numbers."""
    if DOUBLE:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        small = x.to(tl.int32, bitcast=True)
        key = (small ^ ((small >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return key


@triton.jit
def _number(key, DOUBLE: tl.constexpr):
    if DOUBLE:
        x = (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    else:
        small = key.to(tl.int32)
        x = (small ^ ((small >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return x


@triton.jit(do_not_specialize=["k_bits", "base_bits", "tau_bits"])
def _project(
    x_ptr, x_stride, tau_ptr, tau_bits, k_bits, base_bits, w_ptr, nu_ptr, c_ptr, stride, n,
    LINK: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    w_ptr += row * n
    k = _real(k_bits, DOUBLE)
    tau = _real(tau_bits, DOUBLE) if tau_ptr is None else tl.load(tau_ptr + row)
    EPS: tl.constexpr = 2.220446049250313e-16 if DOUBLE else 1.1920928955078125e-07
    ROUNDED: tl.constexpr = 84
    LARGEST: tl.constexpr = 1e300 if DOUBLE else 1e37
    at = tl.arange(0, BLOCK)
    held = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
    end = BLOCK if WHOLE else n
    zero = k * 0
    infinity = zero + float("inf")

    m, total, low, high = 0, zero, infinity, -infinity  # low is -inf where a number is NaN or +inf
    for start in range(0, end, BLOCK):
        x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
        finite, absent = (x - x) == 0, x == float("-inf")
        least = tl.where(finite, x, tl.where(absent, float("inf"), float("-inf")))
        largest = tl.where(finite, x, float("-inf"))
        part = tl.reduce((finite.to(tl.int32), tl.where(finite, x, 0), least, largest), 0, _survey)
        m, total, low, high = _survey(m, total, low, high, part[0], part[1], part[2], part[3])
    count = m.to(k.dtype)
    is_valid = (low > float("-inf")) & (count >= k) & (tau > 0)
    inverse = tl.minimum(1 / tau, LARGEST)

    # If all of them are taken:
    c, nu, left, right = low, zero + 64.0, zero + 64.0, zero + 64.0
    w_held = tl.where(held > float("-inf"), zero + 1, zero)
    if is_valid & (count > k):
        if (LINK != 2) & ((high - low) * inverse <= 30):  # ordinary: the mean, a guess by the variance
            base = _real(base_bits, DOUBLE)
            if m < n:
                p = k / count
                base = tl.log(p) - (tl.log(1 - p) if LINK == 0 else zero)
            c = tl.minimum(tl.maximum(total / count, low), high)
            squares = zero
            for start in range(0, end, BLOCK):
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
                for start in range(0, end, BLOCK):
                    x = _piece(start, held, x_ptr, n, BLOCK, WHOLE)
                    num += tl.sum((_key(x, DOUBLE) >= middle).to(tl.int32), 0)
                first, last = tl.where(num >= j, middle, first), tl.where(num >= j, last, middle - 1)
            c = _number(first, DOUBLE)
            above, below = 0, -infinity
            for start in range(0, end, BLOCK):
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
        s_held = _of_row(held, c, inverse)
        while steps < 128:
            f, f1, f2 = -k, zero, zero
            for start in range(0, end, BLOCK):
                s = s_held if WHOLE else _of_row(_piece(start, held, x_ptr, n, BLOCK, WHOLE), c, inverse)
                w, slope = _weight(s + nu, LINK)
                if WHOLE:
                    w_held = w
                part = tl.reduce((w, slope, slope * (1 - 2 * w)), 0, _add3)
                f, f1, f2 = f + part[0], f1 + part[1], f2 + part[2]
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
            there = there | (steps == 127)  # the weights that are kept are those at `nu`
            nu = tl.where(there, nu, tl.where(sound, trial, middle))
            steps = tl.where(there, 128, steps + 1)

        if (LINK == 2) & (count * (1 + tl.abs(nu)) > ROUNDED * k):  # see `_moved` in projections/dual.py
            threshold = c - nu / inverse
            nu, c = nu - (c - threshold) * inverse, threshold
            s_held = _of_row(held, c, inverse)
            for step in range(4):
                f, f1 = -k, zero
                for start in range(0, end, BLOCK):
                    s = s_held if WHOLE else _of_row(_piece(start, held, x_ptr, n, BLOCK, WHOLE), c, inverse)
                    w, slope = _weight(s + nu, LINK)
                    if WHOLE:
                        w_held = w
                    f, f1 = f + tl.sum(w, 0), f1 + tl.sum(slope, 0)
                nu = tl.where((step < 3) & (f1 > 0), nu - f / tl.maximum(f1, 1), nu)

    nan = zero + float("nan")
    c, nu = tl.where(is_valid, c, nan), tl.where(is_valid, nu, nan)
    for start in range(0, end, BLOCK):
        if WHOLE:  # the last evaluation was at `nu`
            w = w_held
        else:
            w, _ = _weight(_of_row(_piece(start, held, x_ptr, n, BLOCK, WHOLE), c, inverse) + nu, LINK)
        tl.store(w_ptr + start + at, tl.where(is_valid, w, nan), mask=start + at < n)
    tl.store(nu_ptr + row * stride, nu)
    tl.store(c_ptr + row * stride, c)


@triton.jit(do_not_specialize=["tau_bits"])
def _pull_back(
    x_ptr, x_stride, tau_ptr, tau_bits, nu_ptr, c_ptr, stride, g_w_ptr, g_nu_ptr, g_x_ptr, g_tau_ptr, n,
    LINK: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    g_x_ptr += row * n
    nu, c = tl.load(nu_ptr + row * stride), tl.load(c_ptr + row * stride)
    zero = tl.zeros_like(nu)
    tau = _real(tau_bits, DOUBLE) if tau_ptr is None else tl.load(tau_ptr + row)
    TINY: tl.constexpr = 4.930380657631324e-32 if DOUBLE else 1.4210854715202004e-14
    inverse = tl.minimum(1 / tau, 1e300 if DOUBLE else 1e37)
    at = tl.arange(0, BLOCK)
    end = BLOCK if WHOLE else n
    held = tl.load(x_ptr + at, mask=at < n, other=float("-inf"))
    held_g = tl.zeros_like(held)
    if g_w_ptr is not None:
        held_g = tl.load(g_w_ptr + row * n + at, mask=at < n, other=0)
    total, dot, pull = zero, zero, zero
    for start in range(0, end, BLOCK):
        g = held_g
        if not WHOLE and g_w_ptr is not None:
            g = tl.load(g_w_ptr + row * n + start + at, mask=start + at < n, other=0)
        _, q = _weight(_of_row(_piece(start, held, x_ptr, n, BLOCK, WHOLE), c, inverse) + nu, LINK)
        part = tl.reduce((q, q * g), 0, _add2)
        total, dot = total + part[0], dot + part[1]
    if g_nu_ptr is not None:
        dot += tl.load(g_nu_ptr + row)
    mean = dot / tl.maximum(total, TINY)
    for start in range(0, end, BLOCK):
        g = held_g
        if not WHOLE and g_w_ptr is not None:
            g = tl.load(g_w_ptr + row * n + start + at, mask=start + at < n, other=0)
        s = _of_row(_piece(start, held, x_ptr, n, BLOCK, WHOLE), c, inverse)
        z = s + nu
        _, q = _weight(z, LINK)
        there = (s > float("-inf")) & (z == z)  # a row without an answer, of which nu is NaN, has no gradient
        g_x = tl.where(there, q * (g - mean) * inverse, 0)
        pull += tl.sum(tl.where(there, g_x * s, 0), 0)
        tl.store(g_x_ptr + start + at, g_x, mask=start + at < n)
    tl.store(g_tau_ptr + row, -pull)


def bits_of(number: float) -> int:
    """The bits of a float64 as a whole number: as a float Triton would take it in single precision."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def options(n: int, dtype: torch.dtype, *, backward: bool = False) -> dict[str, object]:
    """How a program holds a row of `n` numbers; the warps are the fastest that were measured on an H200."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dcem::project: expected float32 or float64, got {dtype}")
    block = min(triton.next_power_of_2(n), LARGEST_BLOCK)
    if block <= 512:
        warps = 1
    elif block <= 1024:
        warps = 4 if backward else 2
    elif block <= 4096:
        warps = 8 if backward else 4
    else:
        warps = 16
    return {"BLOCK": block, "WHOLE": block >= n, "DOUBLE": dtype == torch.float64, "num_warps": warps}


def guess_of(k: float, n: int, link: str) -> tuple[int, int]:
    """The bits of `k`, and of the `nu` of `n` equal scores."""
    p = k / n
    base = math.log(p) - (math.log1p(-p) if link == "sigmoid" else 0.0) if 0 < p < 1 else 0.0
    return bits_of(k), bits_of(base)


def project(
    x: Tensor, temperatures: Tensor | None, temperature: float, k: float, link: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`dcem::project`."""
    x, n = x.contiguous(), x.shape[-1]
    taus = None if temperatures is None else temperatures.contiguous()
    w, nu = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))
    center = torch.empty_like(nu)
    if nu.numel():
        _project[(nu.numel(),)](
            x, n, taus, bits_of(temperature), *guess_of(k, n, link), w, nu, center, 1, n, LINK=LINKS[link],
            **options(n, x.dtype),
        )  # fmt: skip
    return w, nu, center


def project_backward(
    x: Tensor, temperatures: Tensor | None, temperature: float, nu: Tensor, center: Tensor, grad_weights: Tensor | None,
    grad_nu: Tensor | None, link: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`dcem::project_backward`."""
    x, nu, center, n = x.contiguous(), nu.contiguous(), center.contiguous(), x.shape[-1]
    taus, g_w, g_nu = (None if t is None else t.contiguous() for t in (temperatures, grad_weights, grad_nu))
    g_x, g_tau = torch.empty_like(x), torch.empty_like(nu)
    if nu.numel():
        _pull_back[(nu.numel(),)](
            x, n, taus, bits_of(temperature), nu, center, 1, g_w, g_nu, g_x, g_tau, n, LINK=LINKS[link],
            **options(n, x.dtype, backward=True),
        )  # fmt: skip
    return g_x, g_tau
