"""What an RSSM imagines by kernels, where there are some for its device and nobody can tell the difference."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcem._eager import does_only_its_own, is_transformed, is_under_autocast, may_have_gradient
from dcem.kernels import operators

if TYPE_CHECKING:
    from dcem.world.rssm import RSSM, RSSMBelief

HALF = (torch.bfloat16, torch.float16)
PERCEPTRON = (nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear)
STEP = (nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.GRUCell)
"""Before the GRU, of the prior, and the GRU."""
SHARED_MEMORY = 227 * 1024
"""What there is for one program of an H100, and of later GPUs for servers; the kernels need more than others have."""
WIDEST = 256
"""The largest stochastic state for which a step has room there."""


def fused_rollout(model: RSSM, belief: RSSMBelief, actions: Tensor) -> tuple[Tensor, Tensor] | None:
    """The means that `model.imagine` leads through, `(T + 1, *batch, n)`, by `dcem::recurrent_rollout`; None where that
    does not apply.

    It knows the layers that an `RSSM` is built of, no others; that methods are its own is for the model to say.
    """
    if not _may_ask("recurrent_rollout", belief.deterministic):
        return None
    if not _are_as_built((model.embed, model.prior_net), STEP, model.cell):
        return None
    layers: Any = (model.embed[0], model.cell, model.prior_net[0], model.prior_net[2])
    embed, cell, first, last = layers
    weights = [
        *_of(embed), cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh, *_of(first),
        last.weight[: model.stochastic_size], last.bias[: model.stochastic_size],
    ]  # fmt: skip
    states = (*belief, actions.to(belief.stochastic))
    (h, s, a), (width, prior) = (x.shape[-1] for x in states), (len(embed.weight), len(first.weight))
    shapes = [
        (width, s + a), (width,), (3 * h, width), (3 * h,), (3 * h, h), (3 * h,), (prior, h), (prior,), (s, prior),
        (s,),
    ]  # fmt: skip
    if s > WIDEST or not _fit((*belief, actions[0]), weights, shapes):
        return None
    if (given := _as_one_kind(states, weights)) is None:
        return None
    deterministic, stochastic = operators.recurrent_rollout(*given[:3], given[3:])
    return deterministic, stochastic


def fused_perceptron(net: nn.Module, h: Tensor, s: Tensor, a: Tensor) -> Tensor | None:
    """The number that a network with two hidden layers makes of `[h, s, a]`, `(*batch,)`, by `dcem::perceptron`; None
    where that does not apply.
    """
    if not _may_ask("perceptron", h) or not _are_as_built((net,), PERCEPTRON):
        return None
    of: Any = net
    layers = tuple(of)[::2]  # not its children, which are told once where an activation stands twice
    size, (first, second, _) = h.shape[-1] + s.shape[-1] + a.shape[-1], (len(layer.weight) for layer in layers)
    weights = [x for layer in layers for x in _of(layer)]
    shapes = [(first, size), (first,), (second, first), (second,), (1, second), (1,)]
    if not _fit((h, s, a), weights, shapes):
        return None
    given = _as_one_kind((h, s, a), weights)
    return None if given is None else operators.perceptron(*given[:3], given[3:])


def _may_ask(operator: str, x: Tensor) -> bool:
    """Whether there is a kernel, and nobody wants what it has not: a derivative, or PyTorch's own operations, of which
    an export is made.
    """
    return (
        operators.has_kernel(operator, x.device.type)
        and _has_room(x.device)
        and not (may_have_gradient() or is_transformed() or _is_exporting())
    )


def _as_one_kind(states: tuple[Tensor, ...], weights: list[Tensor]) -> list[Tensor] | None:
    """States and weights in the precision of the products; None where a kernel cannot read them.

    That is TF32 or half precision, so that the user has to have allowed it: by `torch.set_float32_matmul_precision`, by
    autocast, or by numbers that are of half precision already.
    """
    device, dtype = states[0].device, states[0].dtype
    dtypes: tuple[torch.dtype, ...] = (dtype,)
    if is_under_autocast(device.type):
        dtype, dtypes = torch.get_autocast_dtype(device.type), (torch.float32, *HALF)  # doubles are left as they are
    allowed = dtype in HALF or (dtype == torch.float32 and _allows_tf32())
    if not allowed or not all(_is_plain(x, device, dtypes) for x in (*states, *weights)):
        return None
    return [x.to(dtype) for x in (*states, *weights)]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # what is compiled is guarded by it
def _allows_tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"  # also where it was set by an older name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()  # in what it traces, torch 2.11 says so of all


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_room(device: torch.device) -> bool:
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= SHARED_MEMORY)


def _of(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


def _are_as_built(nets: tuple[nn.Module, ...], kinds: tuple[type, ...], *others: nn.Module) -> bool:
    """Whether layers are of these kinds, with their biases, and do nothing besides."""
    if any(type(net) is not nn.Sequential for net in nets):
        return False
    layers: list[Any] = [*itertools.chain.from_iterable(nets), *others]  # type: ignore[arg-type]
    return (
        tuple(map(type, layers)) == kinds
        and not any(layer.bias is None or layer.bias is False for layer in layers if type(layer) is not nn.ReLU)
        and all(map(does_only_its_own, (*nets, *layers)))
    )


def _is_plain(x: Tensor, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether there are numbers behind a tensor that the kernel can read; those of quantised weights are others."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided
    return plain and x.device == device and x.dtype in dtypes


def _fit(states: tuple[Tensor, ...], weights: list[Tensor], shapes: list[tuple[int, ...]]) -> bool:
    """Whether states share their batch and weights have these shapes: a kernel looks at no more than a few of them."""
    batches = [x.shape[:-1] for x in states]
    return batches == batches[:1] * len(states) and [tuple(w.shape) for w in weights] == shapes
