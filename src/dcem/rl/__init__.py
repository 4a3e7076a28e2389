"""Controllers as policies of reinforcement learning: what they are made of is trained by the return."""

from dcem.rl.actor import Actor
from dcem.rl.distribution import TruncatedNormal
from dcem.rl.plain import Policy, policy

__all__ = ["Actor", "Policy", "TruncatedNormal", "policy"]
