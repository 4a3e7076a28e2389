"""Fine-tune a controller that is wrong about its plant or its task by reinforcement learning through its plans.

A controller plans with a model whose mass, length and damping are off by 30 to 50 %, or with a hand-made cost that is
not the task's. PPO and SAC, TorchRL's, train the model or the cost through the plan, from the return alone. Beside it:
the controller as it was, the one with the true model and the task's cost, and TorchRL's PPO and SAC with a network from
scratch.
"""

from dcem.experiments.finetune.settings import Config
from dcem.experiments.finetune.training import main

__all__ = ["Config", "main"]
