"""Settings of the two algorithms."""

from __future__ import annotations

from dataclasses import dataclass

from dcem.experiments.harness.settings import count, positive, setting


@dataclass
class PPO:
    """Settings of proximal policy optimisation.

    Attributes:
        num_steps: environment steps in all.
        num_envs: side by side; an iteration is one episode of each.
        num_epochs: over an iteration's steps.
        batch_size: of a minibatch for the policy; 0: all of an iteration's steps. Through a plan few of the steps have
            most of the gradient, and these are the first to be clipped: after one update little of it is left.
        lr: of what is learned in the policy.
        decay: whether that rate falls along a line to 0, which it would reach one iteration after the last.
        final_std: that of a controller's exploration in the last iteration, as a share of the task's, to which it falls
            along a line. A wide one shows the way; what is best with it is not what is best without.
        critic_lr: of the value network.
        critic_epochs: over an iteration's steps for the value network alone, before the policy's.
        critic_batch_size: of a minibatch in these.
        discount: per step.
        gae_lambda: of the advantages.
        clip: of the ratio.
        target_kl: an iteration's policy updates end beyond it.
        entropy: weight of the bonus.
        max_grad_norm: of the policy's gradient.
        eval_every: environment steps between evaluations; at least an iteration's.
    """

    num_steps: int = count(1)
    num_envs: int = count(8)
    num_epochs: int = count(1)
    batch_size: int = setting(0, at_least=0)
    lr: float = positive(0.1)
    decay: bool = False
    final_std: float = setting(1.0, above=0, at_most=1)
    critic_lr: float = positive(3e-3)
    critic_epochs: int = setting(30, at_least=0)
    critic_batch_size: int = count(100)
    discount: float = setting(0.97, above=0, at_most=1)
    gae_lambda: float = setting(0.9, at_least=0, at_most=1)
    clip: float = positive(0.3)
    target_kl: float = positive(0.5)
    entropy: float = setting(0.0, at_least=0)
    max_grad_norm: float = positive(1.0)
    eval_every: int = count(1)


@dataclass
class SAC:
    """Settings of soft actor-critic.

    Attributes:
        num_steps: environment steps in all.
        num_envs: side by side.
        warm_up: steps before learning begins, at least a slice's of each environment.
        critic_first: share of all steps, after these, in which the policy does not follow the values, which learn alone
            (a likelihood moves the model then, too). A controller is worth something from the start: what values that
            know nothing would make of it is worse.
        steps_per_update: environment steps for each update; below 1 there are several updates a step.
        batch_size: steps of an update, in slices.
        slice_length: how many steps that follow each other are replayed together.
        td_lambda: of the returns over a slice, the targets of the values; at 0, or in slices of one step, a target
            knows one reward.
        lr: of what is learned in the policy.
        decay: whether that rate falls along a line, from where the policy begins to learn to 0 at the last step.
        final_std: that of a controller's exploration at the last step, as a share of the task's, to which it falls
            along a line from where the policy begins to learn.
        critic_lr: of the value networks and the temperature.
        discount: per step.
        tau: by how much the target networks follow.
        eval_every: environment steps between evaluations.
    """

    num_steps: int = count(1)
    num_envs: int = setting(4, at_least=2)
    warm_up: int = setting(400, at_least=0)
    critic_first: float = setting(0.0, at_least=0, at_most=1)
    steps_per_update: float = positive(4.0)
    batch_size: int = count(64)
    slice_length: int = count(1)
    td_lambda: float = setting(0.9, at_least=0, at_most=1)
    lr: float = positive(0.02)
    decay: bool = False
    final_std: float = setting(1.0, above=0, at_most=1)
    critic_lr: float = positive(3e-3)
    discount: float = setting(0.97, above=0, at_most=1)
    tau: float = setting(0.01, above=0, at_most=1)
    eval_every: int = count(400)
