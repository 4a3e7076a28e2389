"""Settings of `dcem planet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dcem.experiments.harness.training import require
from dcem.experiments.planet.suite import ACTION_REPEAT


@dataclass
class Planner:
    """The search of one decision."""

    horizon: int = 3
    num_samples: int = 128
    num_elites: int = 16
    num_iterations: int = 4
    num_proposals: int = 16
    """Of the latent model's policy, beside the samples."""
    init_std: float = 1.0
    min_std: float = 0.05
    max_std: float = 1.0


@dataclass
class Embedding:
    """The search over a decoder's latent, and how the decoder is learned."""

    latent_size: int = 6
    num_samples: int = 14
    num_elites: float = 4
    num_iterations: int = 4
    temperature: float = 1.0
    init_std: float = 1.0
    batch_size: int = 32
    """Beliefs planned from in an update."""
    lr: float = 3e-4


@dataclass
class Tuning:
    """Proximal policy optimisation through the controller."""

    parts: list[str] = field(default_factory=lambda: ["reward", "dynamics", "value", "decoder"])
    """What is tuned, among `reward`, `dynamics`, `value` and `decoder`; the rest is frozen."""
    lr: float = 1e-5
    std: float = 0.1
    """Of the action around the plan."""
    learn_std: bool = False
    rounds_per_step: int = 2
    """Of episodes, for one PPO step."""
    passes: int = 1
    """Over the episodes of a step."""
    share: float = 0.25
    """Of their states, which are planned from again with a gradient."""
    minibatch_size: int = 125
    last: int = 2
    """Iterations of the search that are differentiated."""
    clip: float = 0.2
    max_divergence: float = 0.05
    """KL from the policy that played, beyond which a pass ends."""
    grad_clip: float = 1.0
    gae_lambda: float = 0.95
    critic_lr: float = 1e-3
    critic_updates: int = 200
    critic_batch_size: int = 256
    eval_rounds: int = 2


PARTS = ("reward", "dynamics", "value", "decoder")


@dataclass
class Config:
    """Settings of `dcem planet`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"scale": "cpu"}])
    task: str = "walker.walk"
    """`walker.walk` or `cheetah.run`."""
    phase: str = "model"
    """`model` (full-space planning), `embed` (embedded DCEM; its decoder is learned while the model goes on), or `tune`
    (proximal policy optimisation through the controller).
    """
    model: str = "latent"
    """`latent` (`LatentModel`, with values and proposals), or `rssm` (the recurrent model of the paper, by likelihood
    alone, for full-space planning).
    """
    start: str = ""
    """To embed: the folder of a run of the same task, whose model and replay go on. To tune: a controller.pt."""
    num_rounds: int = 25
    """Of one episode in each environment."""
    seed_rounds: int = 1
    """With random actions, before anything is learned."""
    num_envs: int = 4
    """In lock-step, planned for in one batch."""
    episode_steps: int = 1000
    """Simulator steps of an episode, at most 1000, where the task ends it."""
    explore: float = 0.05
    """The least std of the noise on actions while learning."""
    updates_per_decision: float = 0.5
    """Of the model, for each decision in each environment."""
    batch_size: int = 128
    window: int = 3
    """Steps of a replayed sequence."""
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    grad_clip: float = 20.0
    latent_size: int = 128
    hidden: int = 256
    discount: float = 0.99
    planner: Planner = field(default_factory=Planner)
    embedding: Embedding = field(default_factory=Embedding)
    tuning: Tuning = field(default_factory=Tuning)
    eval_every: int = 5
    """Rounds between evaluations, an episode in each environment without exploration."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


GROUPS: dict[str, dict[str, Any]] = {
    "scale": {
        "cpu": {},
        "paper": {
            "model": "rssm", "num_envs": 1, "seed_rounds": 5, "explore": 0.3, "updates_per_decision": 0.2,
            "batch_size": 50, "window": 50, "grad_clip": 1000.0,
            "planner": {"horizon": 12, "num_samples": 1000, "num_elites": 100, "num_iterations": 10},
        },
        "gpu": {"num_envs": 16, "updates_per_decision": 1.0, "batch_size": 256, "hidden": 512, "latent_size": 512},
    }
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(config.phase in ("model", "embed", "tune"), "phase", "model, embed or tune", config.phase)
    require(config.model in ("latent", "rssm"), "model", "latent or rssm", config.model)
    require(config.model == "latent" or config.phase == "model", "model", f"latent, to {config.phase}", config.model)
    require(config.task in ACTION_REPEAT, "task", f"one of {', '.join(ACTION_REPEAT)}", config.task)
    repeat = ACTION_REPEAT[config.task]
    whole = 2 * repeat <= config.episode_steps <= 1000 and config.episode_steps % repeat == 0
    require(whole, "episode_steps", f"a multiple of the action repeat {repeat}, at most 1000", config.episode_steps)
    for key in ("num_rounds", "seed_rounds", "num_envs", "batch_size", "eval_every", "latent_size", "hidden"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.window >= 2, "window", "at least 2 steps", config.window)
    for key in ("updates_per_decision", "lr", "encoder_lr", "grad_clip"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(0 <= config.discount < 1, "discount", "a number in [0, 1)", config.discount)
    require(config.explore >= 0, "explore", "at least 0", config.explore)
    require(
        config.phase == "model" or bool(config.start), "start", "a run to embed or a controller to tune", config.start
    )
    tuning = config.tuning
    named = bool(tuning.parts) and set(tuning.parts) <= set(PARTS)
    require(named, "tuning.parts", f"some of {', '.join(PARTS)}", tuning.parts)
    for key in (
        "rounds_per_step",
        "passes",
        "minibatch_size",
        "last",
        "critic_updates",
        "critic_batch_size",
        "eval_rounds",
    ):
        require(getattr(tuning, key) >= 1, f"tuning.{key}", "at least 1", getattr(tuning, key))
    for key in ("lr", "std", "clip", "max_divergence", "grad_clip", "critic_lr"):
        require(getattr(tuning, key) > 0, f"tuning.{key}", "a positive number", getattr(tuning, key))
    require(0 < tuning.share <= 1, "tuning.share", "a share above 0, at most 1", tuning.share)
    require(0 <= tuning.gae_lambda <= 1, "tuning.gae_lambda", "a number in [0, 1]", tuning.gae_lambda)
    planner, embedding = config.planner, config.embedding
    for key in ("latent_size", "num_samples", "num_iterations", "batch_size"):
        require(getattr(embedding, key) >= 1, f"embedding.{key}", "at least 1", getattr(embedding, key))
    for key in ("temperature", "init_std", "lr"):
        require(getattr(embedding, key) > 0, f"embedding.{key}", "a positive number", getattr(embedding, key))
    elites = embedding.num_elites
    require(0 < elites <= embedding.num_samples, "embedding.num_elites", "above 0, at most num_samples", elites)
    for key in ("horizon", "num_samples", "num_elites", "num_iterations", "num_proposals"):
        require(getattr(planner, key) >= 1, f"planner.{key}", "at least 1", getattr(planner, key))
    require(planner.num_elites <= planner.num_samples, "planner.num_elites", "at most num_samples", planner.num_elites)
    require(0 < planner.min_std <= planner.max_std, "planner.min_std", "0 < min_std <= max_std", planner.min_std)
