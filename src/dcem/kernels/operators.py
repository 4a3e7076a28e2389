"""Which operators there are: their schemas, and the shapes of what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("dcem", "DEF")  # type: ignore[no-untyped-call]
_compiled: dict[Any, dict[Any, Callable[..., Any]]] = {}
_devices: dict[str, list[str]] = {}
_references: dict[Any, Callable[..., Any] | None] = {}
_composites: dict[Any, Callable[..., Any]] = {}


def define(schema: str, fake: Callable[..., Any]) -> Any:
    """A new operator `dcem::name` and what it returns on tensors without data: shapes, dtypes and devices."""
    name = library.define(schema, tags=(torch.Tag.pt2_compliant_tag,)).split("::")[-1]  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dcem::{name}", fake, lib=library)
    return getattr(torch.ops.dcem, name).default


def implement(operator: Any, key: str, kernel: Callable[..., Any], *, with_keyset: bool = False) -> None:
    """Register a kernel under one of the dispatcher's keys."""
    library.impl(operator._schema.name, kernel, key, with_keyset=with_keyset)  # type: ignore[no-untyped-call]


def compile_for(device_type: str, operator: Any, kernel: Callable[..., Any]) -> None:
    """Register a compiled kernel for the tensors of a device (`"cpu"`, `"cuda"`)."""
    implement(operator, device_type.upper(), kernel)
    key = getattr(torch._C.DispatchKey, device_type.upper())
    compiled_kernels(operator).update({device_type: kernel, key: kernel})
    _devices.setdefault(operator._schema.name, []).append(device_type)


def compiled_kernels(operator: Any) -> dict[Any, Callable[..., Any]]:
    """The compiled kernels that there are, by the device's name and by its dispatch key."""
    return _compiled.setdefault(operator, {})


def has_kernel(name: str, device_type: str) -> bool:
    """Whether an operator has a compiled kernel for a device; `torch.compile` understands the question."""
    return device_type in _devices.get(f"dcem::{name}", ())


def refer(operator: Any, reference: Callable[..., Any], *, opaque: bool = False) -> None:
    """Register the reference in Python, for every device that has no compiled kernel.

    On the CPU it may look at values, and stays one node where it is traced. On other devices it may not, and is called
    in the place of the operator, so that a compiler sees its single operations; an `opaque` one stays a node.
    """
    implement(operator, "CompositeExplicitAutograd", reference)
    _references[operator] = None if opaque else reference


def in_place_of(operator: Any, x: Tensor) -> Callable[..., Any] | None:
    """What to call for `x` instead of the operator where that has no compiled kernel, and no node of its own."""
    return None if x.device.type == "cpu" or x.device.type in _compiled[operator] else _references.get(operator)


def compose(operator: Any, composite: Callable[..., Any]) -> None:
    """Note what an operator is in differentiable operations of PyTorch."""
    _composites[operator] = composite


def in_torch_operations(operator: Any) -> Callable[..., Any] | None:
    """An operator of ours as PyTorch's own operations; None of any other function."""
    return _references.get(operator) or _composites.get(operator)


def is_implemented(operator: Any, x: Tensor | None) -> bool:
    """Whether there is a reference, or a compiled kernel for this tensor; if not, the operator is its composite."""
    return operator in _references or (x is not None and x.device.type in _compiled[operator])


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _column(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], 1))


project = define(
    "project(Tensor x, Tensor? temperatures, float temperature, Scalar k, str link)"
    " -> (Tensor weights, Tensor nu, Tensor center)",
    lambda x, temperatures, temperature, k, link: (_like(x), _column(x), _column(x)),
)
"""Weights `phi(s + nu)` that sum to `k`, with `s = (x - center) / temperature`, of scores `(*batch, n)`.

`temperatures` is `(*batch, 1)`, or None for the one temperature. `nu` and `center` are `(*batch, 1)`.
"""

project_backward = define(
    "project_backward(Tensor x, Tensor? temperatures, float temperature, Tensor nu, Tensor center,"
    " Tensor? grad_weights, Tensor? grad_nu, str link) -> (Tensor grad_x, Tensor grad_temperature)",
    lambda x, *_: (_like(x), _column(x)),
)
"""Gradients of the scores, `(*batch, n)`, and of each row's temperature, `(*batch, 1)`."""


def kept_size(n: int, d: int) -> int:
    """How many numbers a row of `n` samples of `d` numbers keeps for the backward pass: KEPT of refit.h."""
    return n + d + 3


def _refit(values: Tensor, samples: Tensor, *_: Any) -> tuple[Tensor, ...]:
    batch, event = values.shape[:-1], samples.shape[values.dim() :]
    mean, kept = samples.new_empty((*batch, *event)), kept_size(values.shape[-1], event.numel())
    valid = values.new_empty(batch, dtype=torch.bool)
    return _like(values), mean, torch.empty_like(mean), valid, values.new_empty((*batch, kept))


refit = define(
    "refit(Tensor values, Tensor samples, Scalar k, float temperature, bool standardize, float min_std, float max_std)"
    " -> (Tensor weights, Tensor mean, Tensor std, Tensor valid, Tensor kept)",
    _refit,
)
"""A diagonal Gaussian of `samples` `(*batch, n, *event)` weighted by the LML projection of minus their values.

Mean and std `(*batch, *event)`, weights `(*batch, n)`, and which rows have values to select by, `(*batch,)`.
`kept` is for the backward pass.
"""

refit_backward = define(
    "refit_backward(Tensor values, Tensor samples, Scalar k, float temperature, bool standardize, float min_std,"
    " float max_std, Tensor weights, Tensor std, Tensor kept, Tensor? grad_weights, Tensor? grad_mean,"
    " Tensor? grad_std) -> (Tensor grad_values, Tensor grad_samples)",
    lambda values, samples, *_: (_like(values), _like(samples)),
)
"""Gradients of values and samples."""

recurrent_rollout = define(
    "recurrent_rollout(Tensor deterministic, Tensor stochastic, Tensor actions, Tensor[] weights) -> (Tensor, Tensor)",
    lambda deterministic, stochastic, actions, _: (
        deterministic.new_empty((actions.shape[0] + 1, *deterministic.shape)),
        stochastic.new_empty((actions.shape[0] + 1, *stochastic.shape)),
    ),
)
"""The deterministic and mean stochastic states of an RSSM that `actions` `(T, *batch, n)` lead through, the first
included: each `(T + 1, *batch, n)`.

`weights` are weight and bias of the layer before the GRU, of the GRU's products with its input and with its state, and
of the two layers of the prior, of whose last only the mean's half. There are kernels for GPUs alone, without
derivatives, as for `perceptron`: `dcem.world.RSSM` asks for them where it may.
"""

perceptron = define(
    "perceptron(Tensor deterministic, Tensor stochastic, Tensor action, Tensor[] weights) -> Tensor",
    lambda deterministic, *_: deterministic.new_empty(deterministic.shape[:-1]),
)
"""The one number that a network with two hidden layers, ReLU behind each, makes of the three: `(*batch,)`.

`weights` are weight and bias of the three layers.
"""
