"""Learned models to plan through: what they have to offer, dynamics nets, a recurrent state-space model, replay."""

from dcem.world.base import Belief, WorldModel
from dcem.world.buffers import load_replay, replay, save_replay
from dcem.world.dynamics import DynamicsNet, Transitions, transitions
from dcem.world.latent_model import LatentModel
from dcem.world.rssm import RSSM, RSSMBelief
from dcem.world.sequences import Sequences

__all__ = [
    "RSSM",
    "Belief",
    "DynamicsNet",
    "LatentModel",
    "RSSMBelief",
    "Sequences",
    "Transitions",
    "WorldModel",
    "load_replay",
    "replay",
    "save_replay",
    "transitions",
]
