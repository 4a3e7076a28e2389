"""Each system of `dcem.control.systems` under model-predictive control, as a GIF: the pictures of the documentation."""

from dcem.experiments.gallery.filming import main
from dcem.experiments.gallery.settings import Config

__all__ = ["Config", "main"]
