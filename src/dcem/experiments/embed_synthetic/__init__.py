"""What a learned embedding saves: a family of objectives on `[0, 1]^N` whose solutions lie near a surface.

Each problem is a wave to be found, `x*(c)` plus something of its own; the two numbers of `c` are hidden, only the
objective is seen. Full-space CEM and iCEM search all `N` numbers. The embeddings search `latent_size`: a random one,
the principal components of the true solutions, and a decoder learned with `dcem.embedding.decoder_step`.
"""

from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.embed_synthetic.training import main

__all__ = ["Config", "main"]
