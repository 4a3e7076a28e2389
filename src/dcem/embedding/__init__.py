"""Optimise over a small latent variable, decode it, and learn the decoder through the solve."""

from dcem.embedding.decoder import Decoder
from dcem.embedding.linear import LinearDecoder
from dcem.embedding.mlp import MLPDecoder
from dcem.embedding.objective import embed
from dcem.embedding.recurrent import RecurrentDecoder
from dcem.embedding.spline import SplineDecoder
from dcem.embedding.training import DecoderStep, decoder_step

__all__ = [
    "Decoder",
    "DecoderStep",
    "LinearDecoder",
    "MLPDecoder",
    "RecurrentDecoder",
    "SplineDecoder",
    "decoder_step",
    "embed",
]
