"""The step of an RSSM as one kernel, where there is one for its device and nobody can tell the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcem._eager import does_only_its_own, is_transformed, is_under_autocast, may_have_gradient
from dcem.kernels import operators

if TYPE_CHECKING:
    from dcem.world.rssm import RSSM, RSSMBelief

LAYERS = (nn.Linear, nn.ReLU, nn.GRUCell, nn.Linear, nn.ReLU, nn.Linear)


def fused_step(model: RSSM, belief: RSSMBelief, action: Tensor) -> tuple[Tensor, Tensor] | None:
    """`model.imagine` of means by `dcem::recurrent_step`; None where that does not apply.

    It has no derivative, and knows the layers that an `RSSM` is built of, no others. Its products are in TF32 or in
    half precision, so that the user has to have allowed that: by `torch.set_float32_matmul_precision`, by autocast, or
    by numbers that are of half precision already.
    """
    device = belief.deterministic.device.type
    if not operators.has_kernel("recurrent_step", device):
        return None
    dtype, own = belief.deterministic.dtype, next(model.parameters()).dtype
    if is_under_autocast(device):
        dtype = torch.get_autocast_dtype(device)
    elif dtype != own:
        return None
    allowed = dtype in (torch.bfloat16, torch.float16) or (dtype == torch.float32 and _allows_tf32())
    if not allowed or may_have_gradient() or is_transformed() or not _is_as_built(model):
        return None
    deterministic, stochastic = operators.recurrent_step(
        belief.deterministic.to(dtype), belief.stochastic.to(dtype), action.to(dtype), weights_of(model, dtype)
    )
    return deterministic, stochastic


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # what is compiled is guarded by it
def _allows_tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def weights_of(model: RSSM, dtype: torch.dtype) -> list[Tensor]:
    """What `dcem::recurrent_step` takes of a model; of the prior's last layer only the mean's half."""
    layers: Any = (model.embed[0], model.cell, model.prior_net[0], model.prior_net[2])
    embed, cell, first, last = layers
    weights = [
        embed.weight, embed.bias, cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh, first.weight, first.bias,
        last.weight[: model.stochastic_size], last.bias[: model.stochastic_size],
    ]  # fmt: skip
    return [weight.to(dtype) for weight in weights]


def _is_as_built(model: RSSM) -> bool:
    """Whether the layers of a step are those of the class, with their biases, and do nothing besides."""
    nets = (model.embed, model.prior_net)
    if any(type(net) is not nn.Sequential for net in nets):
        return False
    layers = (*model.embed, model.cell, *model.prior_net)
    return (
        tuple(map(type, layers)) == LAYERS
        and all(layer.bias is not None for layer in layers if type(layer) is nn.Linear)
        and all(map(does_only_its_own, (*nets, *layers)))
    )
