"""Take a trained controller or energy model to where neither dcem nor Python has to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcem._given import brief
from dcem.kernels.operators import in_torch_operations
from dcem.layer import Argmin
from dcem.solvers import GradientDescent


def export(layer: Argmin, *inputs: Any) -> torch.export.ExportedProgram:
    """Make one decision of a controller, or one prediction of an energy model, a program of torch's own operations.

    The program takes the inputs and then the `noise` of the search, `(T, *batch, N, *event)` (`*latent` with a
    decoder), of the layer's precision, single at least: draw it anew for each decision, or always give the same. A
    controller made with `noise=` draws it from that source, as `mpc.noise((T, *batch, N, *event))`.
    `torch.export.save` writes the program to a file, which `torch.export.load` reads where dcem is not installed;
    `torch._inductor.aoti_compile_and_package` makes machine code of it. It holds the parameters as they are now, has
    the shapes of these inputs and no gradient.

    Args:
        layer: a [`dcem.control.MPC`][], [`dcem.energy.EnergyModel`][], or an [`dcem.Argmin`][] of your own
            with a method `decision(*inputs, noise)`. Its functions have to be traceable by `torch.export`.
        *inputs: an example of what it decides on, of which the shapes count. Of an energy model `x`. Of a controller
            `state`, or `state, before`: the program returns a pair `(actions, mean)`, and takes that of the step
            before, NaN for none, as its second input.

    Raises:
        TypeError: the layer has no method `decision`, or solves by gradient descent, or an example is missing.

    Example:
        >>> import torch, dcem
        >>> mpc = dcem.control.MPC(lambda x, u: x + 0.1 * u, lambda x, u: x.square().sum(-1), 5, 1, (-1.0, 1.0),
        ...                        dcem.CEM(20, 4, dcem.HardTopK()), num_iterations=1)
        >>> program = dcem.export(mpc, torch.ones(1)).module()
        >>> before, noise = (torch.full((5, 1), torch.nan),) * 2, torch.randn(1, 20, 5, 1)
        >>> actions, mean = program(torch.ones(1), before, noise)
        >>> torch.allclose(actions, mpc(torch.ones(1), noise=noise).actions, atol=1e-5)
        True

    Source: Ansel et al., "PyTorch 2", ASPLOS 2024, for `torch.export`'s graphs.
    """
    if not hasattr(layer, "decision"):
        raise TypeError(f"layer: expected a dcem.control.MPC or a dcem.energy.EnergyModel, got {brief(layer)}")
    if isinstance(layer.solver, GradientDescent):
        raise TypeError("solver: expected one that samples, as torch.export takes no slopes; got GradientDescent")
    if not inputs:
        raise TypeError("inputs: expected an example of what the layer takes, a state or an x, got none")
    with torch.no_grad():
        if hasattr(layer, "horizon") and len(inputs) == 1:
            mean = layer.initial(_batch_of(layer, *inputs))
            mean = mean if isinstance(mean, Tensor) else mean.mean
            actions = mean.new_zeros((*mean.shape[: mean.dim() - len(layer.latent_shape)], *layer.event_shape))
            inputs = (*inputs, (actions, torch.zeros_like(mean)))
        batch = _batch_of(layer, *inputs[:1])
        shape = (layer.num_iterations, *batch, layer.solver.num_samples, *layer.latent_shape)
        like = next((leaf for leaf in layer.parameters() if leaf.is_floating_point()), torch.empty(()))
        dtype = torch.promote_types(like.dtype, torch.float32)  # that of the search
        noise = torch.zeros(shape, dtype=dtype, device=like.device)
        return torch.export.export(_Decision(layer), (*inputs, noise))


def _batch_of(layer: Any, given: Any) -> tuple[int, ...]:
    if hasattr(layer, "horizon"):
        from dcem.control.rollout import batch_of

        return batch_of(given, layer.state_dims)
    shape: tuple[int, ...] = layer.batch_shape(given)
    return shape


class _Decision(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any) -> Any:
        *inputs, noise = given
        with _TorchOperations():
            return self.layer.decision(*inputs, noise=noise)


class _TorchOperations(TorchFunctionMode):
    """Calls of our operators become PyTorch's own operations, and gradients stay off.

    Wherever they were turned off and on, `torch.export` would split its graph and join it again: a quarter of its time.
    """

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if fn is torch._C._set_grad_enabled:
            return None
        own = in_torch_operations(fn)
        if own is None:
            return fn(*args, **(kwargs or {}))
        with self:  # what it is made of may be ours, too
            return own(*args, **(kwargs or {}))
