"""Imitate a model-predictive expert by learning the cost, the dynamics or both through the controller.

The expert plans with the true plant and the true cost. A learner of the same model class starts from wrong parameters
and sees demonstrations. It learns through the controller (its plans shall be the expert's), by the likelihood of the
observed transitions, or, without a model, as a network from states to actions. The plant may have a damping and a
constant force that the learner's model class lacks. All runs of a method, over seeds and numbers of demonstrations, are
one batch.
"""

from dcem.experiments.imitation.settings import Config
from dcem.experiments.imitation.training import main

__all__ = ["Config", "main"]
