"""The paper's experiments and ours, behind the `dcem` command.

An experiment is a module with `Config`, a subclass of `dcem.experiments.harness.settings.Settings`, and
`main(config, run)`, which returns the final metrics; and with `GROUPS` where it has config groups for Hydra.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EXPERIMENTS", "ConfigError", "Experiment"]


class Experiment(NamedTuple):
    """An entry of the `dcem` command."""

    module: str
    summary: str
    is_divided: bool = False
    """Whether the processes that `torchrun` starts divide its solves among them."""


EXPERIMENTS = {
    "demo": Experiment(
        "dcem.experiments.regression.demo",
        "the paper's point in about a minute: short regressions by DCEM and by gradient descent",
        is_divided=True,
    ),
    "regression": Experiment(
        "dcem.experiments.regression",
        "learn y = x sin x as the minimiser of an energy (ICML 2020, section 5.1)",
        is_divided=True,
    ),
    "regression-study": Experiment(
        "dcem.experiments.regression.study", "finished regressions compared over seeds: errors, minima, figures"
    ),
    "digits": Experiment(
        "dcem.experiments.structured.digits",
        "complete handwritten digits by energies: feed-forward net, SPEN, ICNN compared",
        is_divided=True,
    ),
    "multilabel": Experiment(
        "dcem.experiments.structured.multilabel", "fifty correlated labels by energies, compared by F1", is_divided=True
    ),
    "set-valued": Experiment(
        "dcem.experiments.structured.set_valued",
        "maps with two answers: what a loss of the prediction loses, in likelihood",
        is_divided=True,
    ),
    "mpc": Experiment(
        "dcem.experiments.mpc",
        "closed-loop control with true models: returns and time a decision, beside TorchRL's and pytorch-mppi",
    ),
    "benchmark": Experiment(
        "dcem.experiments.benchmark",
        "any planner, yours included, on learned dynamics, imitation, energies, embedded search and control",
    ),
    "cartpole-embed": Experiment(
        "dcem.experiments.cartpole_embed",
        "an embedded control space for the cartpole (ICML 2020, section 5.2)",
        is_divided=True,
    ),
    "cartpole-embed-study": Experiment(
        "dcem.experiments.cartpole_embed.study", "finished cartpole embeddings compared with the full-space expert"
    ),
    "cartpole-embed-evaluate": Experiment(
        "dcem.experiments.cartpole_embed.evaluation",
        "cartpole decoders and tuned full-space searches on 1000 test states",
    ),
    "embed-synthetic": Experiment(
        "dcem.experiments.embed_synthetic",
        "what a learned embedding saves on objectives of many minima with solutions near a surface, beside its rivals",
    ),
    "imitation": Experiment(
        "dcem.experiments.imitation",
        "learn cost, dynamics or both through the controller from an expert, beside likelihood and cloning",
        is_divided=True,
    ),
    "finetune": Experiment(
        "dcem.experiments.finetune",
        "PPO and SAC through a controller that is wrong about its plant or its task, beside networks from scratch",
        is_divided=True,
    ),
    "gallery": Experiment(
        "dcem.experiments.gallery", "films of the systems of dcem.control under model-predictive control"
    ),
    "planet": Experiment(
        "dcem.experiments.planet",
        "plan through a learned latent model on cheetah.run and walker.walk (ICML 2020, 5.3)",
        is_divided=True,
    ),
    "planet-evaluate": Experiment(
        "dcem.experiments.planet.evaluation",
        "fresh episodes of a controller that dcem planet has written",
        is_divided=True,
    ),
    "planet-study": Experiment(
        "dcem.experiments.planet.study",
        "learning curves of dcem planet, and returns of fresh episodes beside each other",
    ),
    "mismatch": Experiment(
        "dcem.experiments.mismatch",
        "objective mismatch: dynamics fitted by likelihood against dynamics learned through the controller",
        is_divided=True,
    ),
    "mismatch-study": Experiment(
        "dcem.experiments.mismatch.study", "finished runs of mismatch compared over seeds: likelihood against control"
    ),
}


class ConfigError(ValueError):
    """A setting that an experiment cannot run with; says which, what is accepted, and what came."""
