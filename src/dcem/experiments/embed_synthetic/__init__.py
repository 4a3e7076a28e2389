"""What a learned embedding saves: a family of objectives on `[0, 1]^N` whose solutions lie near a surface.

There are many minima along the surface and many across it, and gradient descent from a random start ends in one of
them. The place on the surface is hidden, only the objective is seen. Searches over all `N` numbers, over smooth or
random bases and over principal components of known solutions are compared with one over a decoder that was learned by
`dcem.embedding.decoder_step`; each has its settings chosen on other problems, and every evaluation is counted.
"""

from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.embed_synthetic.training import main

__all__ = ["Config", "main"]
