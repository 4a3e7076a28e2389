"""The optional compiled path on the CPU: one call for what takes many small operations in Python.

It is built with the package where there is a C compiler, and used without a word where it applies; everything works
without it. ``DCEM_NATIVE=0`` in the environment turns it off.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._eager import is_eager

_PARALLEL = 1 << 16  # numbers in a tensor from which on its rows are divided among threads


def applies(*tensors: Tensor) -> bool:
    """Whether the compiled path can take these tensors: plain, on the CPU, of one dtype, outside transforms."""
    return (
        is_eager()
        and library() is not None
        and torch.autograd.forward_ad._current_level < 0
        and tensors[0].dtype in (torch.float32, torch.float64)
        and all(
            t.device.type == "cpu"
            and t.dtype == tensors[0].dtype
            and type(t) in (Tensor, torch.nn.Parameter)
            and not torch._C._functorch.is_legacy_batchedtensor(t)  # of `is_grads_batched`
            for t in tensors
        )
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built."""
    if os.environ.get("DCEM_NATIVE") == "0":
        return None
    for path in Path(__file__).parent.glob("kernels*.so"):
        try:
            found = ctypes.CDLL(str(path))
            for suffix in ("f32", "f64"):
                _declare(found, suffix)
        except (OSError, AttributeError):  # built for another machine, or an older version
            continue
        return found
    return None


def _declare(found: ctypes.CDLL, suffix: str) -> None:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    real = ctypes.c_float if suffix == "f32" else ctypes.c_double
    kernels = {
        "lml_forward": [pointer, size, size, number, number] + [pointer] * 4,
        "lml_backward": [pointer, size, size, number] + [pointer] * 5,
        "refit_forward": [pointer, pointer, size, size, size, number, number, size, real, real] + [pointer] * 8,
        "refit_backward": [pointer, pointer, size, size, size, number, number, size, real, real] + [pointer] * 12,
    }
    for name, arguments in kernels.items():
        kernel = getattr(found, f"dcem_{name}_{suffix}")
        kernel.argtypes = arguments
        kernel.restype = size if name.endswith("forward") else None


def _kernel(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(), f"dcem_{name}_{'f32' if dtype == torch.float32 else 'f64'}")


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


if hasattr(os, "register_at_fork"):  # a forked child has no threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _over_rows(call: Any, num_rows: int, row_size: int) -> int:
    """``call(first, count)`` for all rows, divided among torch's threads where there is enough to do."""
    num_threads = min(torch.get_num_threads(), num_rows)
    if num_threads == 1 or num_rows * row_size < _PARALLEL:
        return call(0, num_rows) or 0
    edges = [num_rows * i // num_threads for i in range(num_threads + 1)]
    jobs = [_pool(num_threads).submit(call, a, b - a) for a, b in pairwise(edges)]
    return sum(job.result() or 0 for job in jobs)


def lml_forward(x: Tensor, k: float, temperature: float) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Weights, dual variable and centre (``(*batch, n)``, ``(*batch, 1)`` twice) for contiguous ``x``, ``0 < k < n``.

    The last result says whether all rows are done; one with a number that is not finite has ``nu = NaN``.
    """
    n = x.shape[-1]
    rows, size = x.numel() // n, x.element_size()
    w = torch.empty_like(x)
    nu, center = x.new_empty(*x.shape[:-1], 1), x.new_empty(*x.shape[:-1], 1)
    kernel, at = _kernel("lml_forward", x.dtype), (x.data_ptr(), w.data_ptr(), nu.data_ptr(), center.data_ptr())

    def call(first: int, count: int) -> int:
        scratch = x.new_empty(2 * n)
        skip, one = first * n * size, first * size
        left: int = kernel(
            at[0] + skip, count, n, k, temperature, at[1] + skip, at[2] + one, at[3] + one, scratch.data_ptr()
        )
        return left

    return w, nu, center, _over_rows(call, rows, n) == 0


def lml_backward(x: Tensor, temperature: float, nu: Tensor, center: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to ``x``; all contiguous."""
    n = x.shape[-1]
    rows, size = x.numel() // n, x.element_size()
    out = torch.empty_like(x)
    kernel = _kernel("lml_backward", x.dtype)
    at = (x.data_ptr(), nu.data_ptr(), center.data_ptr(), grad.data_ptr(), out.data_ptr())

    def call(first: int, count: int) -> None:
        scratch = x.new_empty(2 * n)
        skip, one = first * n * size, first * size
        kernel(
            at[0] + skip, count, n, temperature, at[1] + one, at[2] + one, at[3] + skip, at[4] + skip,
            scratch.data_ptr(),
        )  # fmt: skip

    _over_rows(call, rows, n)
    return out


class RefitOptions(NamedTuple):
    """What the refit of a diagonal Gaussian to LML-weighted samples depends on beside its tensors."""

    num_elites: float
    temperature: float
    standardize: bool
    min_std: float
    max_std: float


def refit_forward(
    values: Tensor, samples: Tensor, like_mean: Tensor, options: RefitOptions
) -> tuple[list[Tensor], Tensor | None]:
    """``[w, mean, std, ...]`` with what the backward pass needs, and ``valid`` (None where every problem is).

    All contiguous: ``values`` ``(*batch, n)``, ``samples`` ``(*batch, n, *event)``, ``like_mean`` ``(*batch, *event)``.
    """
    n = values.shape[-1]
    rows, d = values.numel() // n, samples.numel() // values.numel()
    w, mean, std = torch.empty_like(values), torch.empty_like(like_mean), torch.empty_like(like_mean)
    kept = values.new_empty(rows * (n + 3))  # scores, nu, unit, valid
    at = [t.data_ptr() for t in (values, samples, w, mean, std, kept)]
    size = values.element_size()
    row_at = [at[5] + rows * (n + i) * size for i in range(3)]
    kernel = _kernel("refit_forward", values.dtype)

    def call(first: int, count: int) -> int:
        scratch = values.new_empty(3 * n)
        skip, wide, event, one = first * n * size, first * n * d * size, first * d * size, first * size
        invalid: int = kernel(
            at[0] + skip, at[1] + wide, count, n, d, *options, at[2] + skip, at[3] + event, at[4] + event,
            at[5] + skip, *(row + one for row in row_at), scratch.data_ptr(),
        )  # fmt: skip
        return invalid

    invalid = _over_rows(call, rows, n * d)
    valid = kept[rows * (n + 2) :].reshape(values.shape[:-1]) > 0 if invalid else None
    return [w, mean, std, kept], valid


def refit_backward(
    values: Tensor, samples: Tensor, options: RefitOptions, saved: list[Tensor], grads: list[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to values and samples from those of weights, mean and std (each may be None)."""
    n = values.shape[-1]
    rows, d = values.numel() // n, samples.numel() // values.numel()
    g_values, g_samples = torch.empty_like(values), torch.empty_like(samples)
    at = [t.data_ptr() for t in (values, samples, *saved, g_values, g_samples)]
    size = values.element_size()
    row_at = [at[5] + rows * (n + i) * size for i in range(2)]
    given = [None if g is None else g.data_ptr() for g in grads]
    kernel = _kernel("refit_backward", values.dtype)

    def call(first: int, count: int) -> None:
        scratch = values.new_empty(2 * n + d)
        skip, wide, event, one = first * n * size, first * n * d * size, first * d * size, first * size
        shifted = [None if g is None else g + step for g, step in zip(given, (skip, event, event), strict=True)]
        kernel(
            at[0] + skip, at[1] + wide, count, n, d, *options, at[2] + skip, at[3] + event, at[4] + event,
            at[5] + skip, *(row + one for row in row_at), *shifted, at[6] + skip, at[7] + wide, scratch.data_ptr(),
        )  # fmt: skip

    _over_rows(call, rows, n * d)
    return g_values, g_samples
