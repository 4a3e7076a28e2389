"""Settings of `dcem planet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcem.experiments.harness.reading import CHECKPOINT, saved
from dcem.experiments.harness.settings import Settings, count, positive, require, setting, some_of
from dcem.experiments.planet.suite import ACTION_REPEAT

GROUP_SIZE = 8  # of a latent model's softmax

CONTROLLER = "controller.pt"
"""What a run leaves, in its folder."""


@dataclass
class Planner:
    """The search of one decision."""

    horizon: int = count(3)
    num_samples: int = count(128)
    num_elites: int = setting(16, at_least=1, at_most="num_samples")
    num_iterations: int = count(4)
    num_proposals: int = count(16)
    """Of the latent model's policy, beside the samples."""
    init_std: float = positive(1.0)
    min_std: float = setting(0.05, above=0, at_most="max_std")
    max_std: float = positive(1.0)


@dataclass
class Embedding:
    """The search over a decoder's latent, and how the decoder is learned."""

    latent_size: int = count(6)
    num_samples: int = count(14)
    num_elites: float = setting(4.0, above=0, at_most="num_samples")
    """Candidates that the next search is fitted to, or a fraction."""
    num_iterations: int = count(4)
    temperature: float = positive(1.0)
    init_std: float = positive(1.0)
    batch_size: int = count(32)
    """Beliefs planned from in an update."""
    lr: float = positive(3e-4)


@dataclass
class Rates:
    """Of parts that are not tuned at `tuning.lr`."""

    reward: float = setting(0.0, at_least=0)
    """Learning rate of the reward; 0 for `tuning.lr`, here and below."""
    dynamics: float = setting(0.0, at_least=0)
    """Of the dynamics."""
    value: float = setting(0.0, at_least=0)
    """Of the model's values."""
    decoder: float = setting(0.0, at_least=0)
    """Of the decoder."""
    std: float = setting(0.0, at_least=0)
    """Of the std of the action, where it is learned."""


@dataclass
class Tuning:
    """Proximal policy optimisation through the controller."""

    parts: list[str] = some_of(["decoder"], ["reward", "dynamics", "value", "decoder"])
    """What is tuned, among `reward`, `dynamics`, `value` and `decoder`; the rest is frozen."""
    lr: float = positive(1e-4)
    rates: Rates = field(default_factory=Rates)
    likelihood: float = setting(0.0, at_least=0)
    """Weight of the model's own loss, on the episodes of a step, beside PPO's: the phases in one run. It moves what is
    tuned of the model.
    """
    std: float = positive(0.15)
    """Of the action around the plan."""
    learn_std: bool = False
    """Whether the std is tuned, too."""
    rounds_per_step: int = count(1)
    """Of episodes, for one PPO step."""
    passes: int = count(1)
    """Over the episodes of a step."""
    share: float = setting(1.0, above=0, at_most=1)
    """Of their states, which are planned from again with a gradient."""
    minibatch_size: int = count(1000)
    """States of an update."""
    last: int = count(2)
    """Iterations of the search that are differentiated."""
    clip: float = positive(0.2)
    """Of the ratio of probabilities."""
    max_divergence: float = positive(0.3)
    """KL from the policy that played, beyond which a pass ends."""
    grad_clip: float = positive(1.0)
    discount: float = setting(0.95, at_least=0, below=1)
    """Of the rewards that an action is credited with."""
    gae_lambda: float = setting(0.5, at_least=0, at_most=1)
    """Of the advantages: 0 for one reward and the value of the next state, 1 for all rewards to come."""
    critic_lambda: float = setting(0.9, at_least=0, at_most=1)
    """Of the returns that the value network learns."""
    critic_lr: float = positive(1e-3)
    """Learning rate of the value network."""
    critic_updates: int = count(200)
    """Of the value network, before each step, twice."""
    critic_batch_size: int = count(256)
    """States of an update of the value network."""
    eval_rounds: int = count(2)
    """Of episodes in an evaluation."""


@dataclass
class Config(Settings):
    """Settings of `dcem planet`."""

    seed: int = setting(0, at_least=0, below=50)
    """Beyond it a round of training would start from the seeds of another phase, or of an evaluation."""
    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"scale": "cpu"}])
    task: str = setting("walker.walk", among=tuple(ACTION_REPEAT))
    """`walker.walk` or `cheetah.run`."""
    phase: str = setting("model", among=("model", "embed", "tune"))
    """`model` (full-space planning), `embed` (embedded DCEM; its decoder is learned while the model goes on), or `tune`
    (proximal policy optimisation through the controller).
    """
    model: str = setting("latent", among=("latent", "rssm"))
    """`latent` (`LatentModel`, with values and proposals), or `rssm` (the recurrent model of the paper, by likelihood
    alone).
    """
    start: str = ""
    """To embed: the folder of a run of the same task, whose model and replay go on, or a controller.pt, which goes on,
    its decoder too where it has one, from a replay of what it plays in `seed_rounds`. To tune: a controller.pt.
    """
    num_rounds: int = count(25)
    """Of one episode in each environment."""
    seed_rounds: int = count(1)
    """Before anything is learned: with random actions, or played by the controller.pt to start from; none where a
    folder is started from.
    """
    num_envs: int = count(4)
    """In lock-step, planned for in one batch."""
    episode_steps: int = 1000
    """Simulator steps of an episode, at most 1000, where the task ends it."""
    explore: float = setting(0.05, at_least=0)
    """The least std of the noise on actions while learning."""
    updates_per_decision: float = positive(0.5)
    """Of the model, for each decision in each environment."""
    batch_size: int = count(128)
    window: int = setting(3, at_least=2)
    """Steps of a replayed sequence."""
    lr: float = positive(1e-3)
    encoder_lr: float = positive(3e-4)
    grad_clip: float = positive(20.0)
    latent_size: int = count(128)
    hidden: int = count(256)
    discount: float = setting(0.99, at_least=0, below=1)
    planner: Planner = field(default_factory=Planner)
    embedding: Embedding = field(default_factory=Embedding)
    tuning: Tuning = field(default_factory=Tuning)
    eval_every: int = count(5)
    """Rounds between evaluations, an episode in each environment without exploration."""

    def check(self) -> None:
        super().check()
        whole = self.model != "latent" or self.latent_size % GROUP_SIZE == 0
        require(whole, "latent_size", f"a multiple of {GROUP_SIZE} for model=latent", self.latent_size)
        repeat = ACTION_REPEAT[self.task]
        whole = 2 * repeat <= self.episode_steps <= 1000 and self.episode_steps % repeat == 0
        require(whole, "episode_steps", f"a multiple of the action repeat {repeat}, at most 1000", self.episode_steps)
        if self.phase != "tune":
            most = self.episode_steps // repeat
            require(self.window <= most, "window", f"at most {most}, the decisions of an episode", self.window)
        started = self.phase == "model" or bool(self.start)
        require(started, "start", "a run or controller to embed, or a controller to tune", self.start)
        if self.phase == "tune" or Path(self.start).is_file():
            require_controller(Path(self.start), "start")
        elif self.start:
            is_run = (Path(self.start) / CHECKPOINT).is_file()
            one = f"the folder of a run of dcem planet, with its {CHECKPOINT}, or a {CONTROLLER}"
            require(is_run, "start", one, self.start)
            require_controller(Path(self.start) / CONTROLLER, "start")
        fits = self.phase == "tune" or self.seeding <= self.num_rounds
        among = f"at most the {self.num_rounds} of num_rounds, which they are among"
        require(fits, "seed_rounds", among, self.seed_rounds)

    @property
    def seeding(self) -> int:
        """Rounds in which nothing is learned: none where there is something to replay."""
        return 0 if self.start and not Path(self.start).is_file() else self.seed_rounds


def require_controller(path: Path, key: str) -> None:
    """Refuse what is no file of a controller before anything is built."""
    within = path / CONTROLLER
    require(not within.is_file(), key, f"a file, {within}", path)
    is_one = path.is_file() and saved(path).keys() >= {"config", "env_steps", "weights"}
    require(is_one, key, "a file that dcem planet has written", path)


GROUPS: dict[str, dict[str, Any]] = {
    "scale": {
        "cpu": {},
        "paper": {
            "model": "rssm", "num_envs": 1, "seed_rounds": 5, "explore": 0.3, "updates_per_decision": 0.2,
            "batch_size": 50, "window": 50, "grad_clip": 1000.0,
            "planner": {"horizon": 12, "num_samples": 1000, "num_elites": 100, "num_iterations": 10},
            "embedding": {"num_samples": 100, "num_elites": 10, "num_iterations": 10},
            "tuning": {
                "parts": ["reward", "dynamics", "decoder"], "std": 0.1, "rounds_per_step": 10, "minibatch_size": 100,
            },
        },
        "gpu": {"num_envs": 16, "updates_per_decision": 1.0, "batch_size": 256, "hidden": 512, "latent_size": 512},
    }
}  # fmt: skip
