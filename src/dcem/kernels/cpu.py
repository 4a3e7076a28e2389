"""The operators on the CPU, in C (`kernels.c`), where it was compiled when the package was built."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import operators
from .operators import compile_for, kept_size

_PARALLEL = 1 << 16  # numbers in a tensor from which on its rows are divided among threads
_LINKS = {"sigmoid": 0, "capped_exponential": 1, "clip": 2}
_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


def load(choice: str | None) -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built.

    Args:
        choice: what the environment says as `DCEM_NATIVE`: `"0"` for none, or the path of another build.
    """
    if choice == "0":
        return None
    for path in [Path(choice)] if choice else Path(__file__).parent.glob("compiled*.so"):
        try:
            found = ctypes.CDLL(str(path))
            for suffix in _SUFFIXES.values():
                _declare(found, suffix)
        except (OSError, AttributeError):  # built for another machine, or an older version
            continue
        return found
    return None


def _declare(found: ctypes.CDLL, suffix: str) -> None:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    real = ctypes.c_float if suffix == "f32" else ctypes.c_double
    kernels = {
        "project": [pointer, pointer, number, size, size, number, size, pointer, pointer, pointer, size],
        "project_backward": [pointer, pointer, number, size, size, size] + [pointer] * 6 + [size],
        "refit": [pointer, pointer, size, size, size, number, number, size, real, real] + [pointer] * 5 + [size],
        "refit_backward": [pointer, size, size, size, number, size, real, real] + [pointer] * 8 + [size],
    }
    for name, arguments in kernels.items():
        kernel = getattr(found, f"dcem_{name}_{suffix}")
        kernel.argtypes, kernel.restype = arguments, ctypes.c_int


@cache
def _kernel(name: str, dtype: torch.dtype) -> Any:
    if dtype not in _SUFFIXES:
        raise TypeError(f"dcem::{name}: expected float32 or float64, got {dtype}")
    return getattr(library, f"dcem_{name}_{_SUFFIXES[dtype]}")


def _run(name: str, dtype: torch.dtype, rows: int, size: int, *arguments: Any) -> None:
    threads = 1 if rows * size < _PARALLEL else min(torch.get_num_threads(), rows)
    if _kernel(name, dtype)(*arguments, threads):
        raise MemoryError(f"dcem::{name}: no memory for the numbers of a row")


def _at(tensor: Tensor | None, like: Tensor, size: int) -> int | None:
    """Where the numbers of a contiguous tensor are: `size` of them, of the dtype of `like`."""
    if tensor is None:
        return None
    if tensor.numel() != size or tensor.dtype != like.dtype:
        raise ValueError(f"expected {size} numbers of {like.dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    return tensor.data_ptr()


def _project(
    x: Tensor, temperatures: Tensor | None, temperature: float, k: float, link: str
) -> tuple[Tensor, Tensor, Tensor]:
    x, n = x.contiguous(), x.shape[-1]
    taus = None if temperatures is None else temperatures.contiguous()
    w, nu = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))
    center, rows = torch.empty_like(nu), nu.numel()
    _run(
        "project", x.dtype, rows, n, x.data_ptr(), _at(taus, x, rows), temperature, rows, n, k, _LINKS[link],
        w.data_ptr(), nu.data_ptr(), center.data_ptr(),
    )  # fmt: skip
    return w, nu, center


def _project_backward(
    x: Tensor, temperatures: Tensor | None, temperature: float, nu: Tensor, center: Tensor, grad_weights: Tensor | None,
    grad_nu: Tensor | None, link: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, nu, center, n = x.contiguous(), nu.contiguous(), center.contiguous(), x.shape[-1]
    taus, g_w, g_nu = (None if g is None else g.contiguous() for g in (temperatures, grad_weights, grad_nu))
    out, out_temperature = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))
    rows = out_temperature.numel()
    _run(
        "project_backward", x.dtype, rows, n, x.data_ptr(), _at(taus, x, rows), temperature, rows, n, _LINKS[link],
        _at(nu, x, rows), _at(center, x, rows), _at(g_w, x, rows * n), _at(g_nu, x, rows), out.data_ptr(),
        out_temperature.data_ptr(),
    )  # fmt: skip
    return out, out_temperature


def _refit(
    values: Tensor, samples: Tensor, k: float, temperature: float, standardize: bool, min_std: float, max_std: float
) -> tuple[Tensor, ...]:
    values, samples = values.contiguous(), samples.contiguous()
    batch, n, event = values.shape[:-1], values.shape[-1], samples.shape[values.dim() :]
    rows, d = batch.numel(), event.numel()
    weights, mean = torch.empty_like(values), values.new_empty((*batch, *event))
    std, valid = torch.empty_like(mean), values.new_empty(batch, dtype=torch.bool)
    kept = values.new_empty((*batch, kept_size(n, d)))
    _run(
        "refit", values.dtype, rows, n * d, values.data_ptr(), _at(samples, values, rows * n * d), rows, n, d, k,
        temperature, standardize, min_std, max_std, weights.data_ptr(), mean.data_ptr(), std.data_ptr(),
        valid.data_ptr(), kept.data_ptr(),
    )  # fmt: skip
    return weights, mean, std, valid, kept


def _refit_backward(
    values: Tensor, samples: Tensor, k: float, temperature: float, standardize: bool, min_std: float, max_std: float,
    weights: Tensor, std: Tensor, kept: Tensor, *grads: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    samples, weights, std, kept = (tensor.contiguous() for tensor in (samples, weights, std, kept))
    g_w, g_mean, g_std = (None if g is None else g.contiguous() for g in grads)
    n, rows, d = values.shape[-1], values.shape[:-1].numel(), samples.shape[values.dim() :].numel()
    grad_values, grad_samples = torch.empty_like(weights), torch.empty_like(samples)
    _run(
        "refit_backward", values.dtype, rows, n * d, _at(samples, values, rows * n * d), rows, n, d, temperature,
        standardize, min_std, max_std, _at(weights, values, rows * n), _at(std, values, rows * d),
        _at(kept, values, rows * kept_size(n, d)), _at(g_w, values, rows * n), _at(g_mean, values, rows * d),
        _at(g_std, values, rows * d), grad_values.data_ptr(), grad_samples.data_ptr(),
    )  # fmt: skip
    return grad_values, grad_samples


library = load(os.environ.get("DCEM_NATIVE"))
if library is not None:
    compile_for("cpu", operators.project, _project)
    compile_for("cpu", operators.project_backward, _project_backward)
    compile_for("cpu", operators.refit, _refit)
    compile_for("cpu", operators.refit_backward, _refit_backward)
