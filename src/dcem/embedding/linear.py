"""Linear decoders: at random, and through the principal components of solutions that are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem._check import check_count
from dcem.bounds import BoundsLike
from dcem.embedding.decoder import Decoder


class LinearDecoder(Decoder):
    """An affine map from a latent to a vector, clipped to a box: `x = clip(mean + z W)`.

    What a learned decoder has to beat: `random` knows nothing of the problems, and
    `principal_components` knows solutions of some of them.

    Args:
        weight: `W`, `(latent, n)`.
        mean: `(n,)`, what `z = 0` stands for.
        bounds: the box of `x`, `(low, high)`: each None, a number, or a tensor that broadcasts to `(n,)`.

    Shapes: `z` `(..., latent)` -> `x` `(..., n)`.

    Raises:
        ValueError: `weight` is not a matrix, or `mean` or `bounds` do not fit it.

    Example:
        >>> import torch
        >>> from dcem.embedding import LinearDecoder
        >>> decoder = LinearDecoder(torch.ones(1, 3), torch.zeros(3), bounds=(-1.0, 0.5))
        >>> decoder(torch.tensor([0.25])), decoder(torch.tensor([2.0]))
        (tensor([0.2500, 0.2500, 0.2500]), tensor([0.5000, 0.5000, 0.5000]))
    """

    weight: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor, mean: Tensor, *, bounds: BoundsLike | None = None) -> None:
        if weight.dim() != 2 or tuple(mean.shape) != (weight.shape[1],):
            got = f"{tuple(weight.shape)} and {tuple(mean.shape)}"
            raise ValueError(f"weight: expected (latent, n) and a mean (n,), got {got}")
        super().__init__(weight.shape[0], weight.shape[1], bounds=bounds)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("mean", mean.detach().clone())
        self.to(weight.device)

    def decode(self, z: Tensor) -> Tensor:
        return self.clip(self.mean + z @ self.weight)

    @classmethod
    def random(
        cls,
        latent_size: int,
        mean: Tensor,
        std: float,
        *,
        bounds: BoundsLike | None = None,
        generator: torch.Generator | None = None,
    ) -> LinearDecoder:
        """Normal weights: where `z` is standard normal, each number of `x` has about the deviation `std`.

        Args:
            latent_size: numbers in the latent.
            mean: `(n,)`, what `z = 0` stands for.
            std: of each number of `x`, before it is clipped.
            bounds: of `x`.
            generator: draws the weights, on its own device.

        Source: Wang et al., "Bayesian optimization in high dimensions via random embeddings", IJCAI 2013.
        """
        latent_size = check_count("latent_size", latent_size)
        device = mean.device if generator is None else generator.device
        weight = torch.randn(latent_size, len(mean), generator=generator, device=device, dtype=mean.dtype)
        return cls(weight.to(mean.device) * (std / math.sqrt(latent_size)), mean, bounds=bounds)

    @classmethod
    def principal_components(
        cls, solutions: Tensor, latent_size: int, *, width: float = 2.0, bounds: BoundsLike | None = None
    ) -> LinearDecoder:
        """The map that fits known solutions best: along the directions in which they vary most.

        Args:
            solutions: `(m, n)`.
            latent_size: directions; those beyond the rank of the solutions are zero.
            width: standard deviations of the solutions in one unit of `z`.
            bounds: of `x`.

        Source: Jolliffe, "Principal component analysis", Springer 2002.
        """
        latent_size = check_count("latent_size", latent_size)
        mean = solutions.mean(0)
        _, scale, directions = torch.linalg.svd(solutions - mean, full_matrices=False)
        kept = min(latent_size, len(scale))
        weight = solutions.new_zeros(latent_size, solutions.shape[1])
        weight[:kept] = width * scale[:kept, None] / math.sqrt(len(solutions) - 1 or 1) * directions[:kept]
        return cls(weight, mean, bounds=bounds)
