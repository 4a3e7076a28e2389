"""The step of an RSSM as one kernel, where there is one for its device and nobody can tell the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcem._eager import does_only_its_own, is_transformed, is_under_autocast, may_have_gradient
from dcem.kernels import operators

if TYPE_CHECKING:
    from dcem.world.rssm import RSSM, RSSMBelief

HALF = (torch.bfloat16, torch.float16)
LAYERS = (nn.Linear, nn.ReLU, nn.GRUCell, nn.Linear, nn.ReLU, nn.Linear)
SHARED_MEMORY = 227 * 1024
"""What there is for one program of an H100, and of later GPUs for servers; the kernel needs more than others have."""
WIDEST = 256
"""The largest stochastic state for which it has room there."""


def fused_step(model: RSSM, belief: RSSMBelief, action: Tensor) -> tuple[Tensor, Tensor] | None:
    """`model.imagine` of means by `dcem::recurrent_step`; None where that does not apply.

    It has no derivative, and knows the layers that an `RSSM` is built of, no others. Its products are in TF32 or in
    half precision, so that the user has to have allowed that: by `torch.set_float32_matmul_precision`, by autocast, or
    by numbers that are of half precision already. What is exported are PyTorch's own operations.
    """
    device, dtype = belief.deterministic.device, belief.deterministic.dtype
    if not operators.has_kernel("recurrent_step", device.type) or not _has_room(device):
        return None
    if may_have_gradient() or is_transformed() or _is_exporting() or not _is_as_built(model):
        return None
    states, weights = (*belief, action.to(belief.stochastic)), weights_of(model)
    dtypes: tuple[torch.dtype, ...] = (dtype,)
    if is_under_autocast(device.type):
        dtype, dtypes = torch.get_autocast_dtype(device.type), (torch.float32, *HALF)  # doubles are left as they are
    allowed = dtype in HALF or (dtype == torch.float32 and _allows_tf32())
    if not allowed or not _fit(states, weights) or not all(_is_plain(x, device, dtypes) for x in (*states, *weights)):
        return None
    of_states, of_weights = ([x.to(dtype) for x in of] for of in (states, weights))
    deterministic, stochastic = operators.recurrent_step(*of_states, of_weights)
    return deterministic, stochastic


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


def weights_of(model: RSSM) -> list[Tensor]:
    """What `dcem::recurrent_step` takes of a model; of the prior's last layer only the mean's half."""
    layers: Any = (model.embed[0], model.cell, model.prior_net[0], model.prior_net[2])
    embed, cell, first, last = layers
    return [
        embed.weight, embed.bias, cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh, first.weight, first.bias,
        last.weight[: model.stochastic_size], last.bias[: model.stochastic_size],
    ]  # fmt: skip


def _is_as_built(model: RSSM) -> bool:
    """Whether a step is that of the class: its layers, with their biases, that do nothing besides."""
    from dcem.world.rssm import RSSM

    own: Any = type(model)
    if own._remember is not RSSM._remember or own._carried is not RSSM._carried:
        return False
    nets = (model.embed, model.prior_net)
    if any(type(net) is not nn.Sequential for net in nets):
        return False
    layers = (*model.embed, model.cell, *model.prior_net)
    return (
        tuple(map(type, layers)) == LAYERS
        and all(layer.bias is not None for layer in layers if type(layer) is nn.Linear)
        and all(map(does_only_its_own, (*nets, *layers)))
    )


def _is_plain(x: Tensor, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether there are numbers behind a tensor that the kernel can read; those of quantised weights are others."""
    return type(x) in (Tensor, nn.Parameter) and x.device == device and x.dtype in dtypes


def _fit(states: tuple[Tensor, ...], weights: list[Tensor]) -> bool:
    """Whether the shapes are those of one step: the kernel looks at no more than a few of them."""
    (h, s, a), (embed, prior) = (x.shape[-1] for x in states), (weights[i].shape[0] for i in (0, 6))
    shapes = [
        (embed, s + a), (embed,), (3 * h, embed), (3 * h,), (3 * h, h), (3 * h,), (prior, h), (prior,), (s, prior),
        (s,),
    ]  # fmt: skip
    batches = [x.shape[:-1] for x in states]
    return s <= WIDEST and batches == batches[:1] * 3 and [tuple(w.shape) for w in weights] == shapes
