"""An embedded control space for the cartpole: a decoder from a few numbers to 20 forces (Amos & Yarats 2020, 5.2).

All swing-ups look alike. A decoder `u = dec_θ(z)` is learned so that searching over `z` with 100 samples finds
better forces than the cross-entropy method finds with 1000 samples in the space of all forces. No expert's solutions
are used: the gradient of the cost reached flows through the search, which is differentiable at a temperature above 0.
"""

from dcem.experiments.cartpole_embed.settings import Config
from dcem.experiments.cartpole_embed.training import main

__all__ = ["Config", "main"]
