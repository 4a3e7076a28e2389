"""Controllers as policies of reinforcement learning: what they are made of is trained by the return."""

from dcem._extras import needs

with needs("dcem.rl", "rl"):
    from dcem.rl.actor import Actor
    from dcem.rl.distribution import TruncatedNormal
    from dcem.rl.environment import SystemEnv
    from dcem.rl.plain import Policy, policy
    from dcem.rl.training import parameter_groups, parts, total_loss

__all__ = ["Actor", "Policy", "SystemEnv", "TruncatedNormal", "parameter_groups", "parts", "policy", "total_loss"]
