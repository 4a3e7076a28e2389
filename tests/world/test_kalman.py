"""An RSSM whose weights are a linear-Gaussian system, against dense Gaussian conditioning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kalman import DTYPE, LinearGaussian, as_rssm
from torch import Tensor

from dcem.world import RSSM, RSSMBelief

Q = np.array([0.5, 0.8])
MIXING = np.array([[0.9, 0.3], [-0.2, 0.7]])
STEPS = 5


def system(a: np.ndarray = MIXING, first: np.ndarray | None = None) -> LinearGaussian:
    b, c = np.array([[0.5], [1.0]]), np.diag([1.0, 1.5])
    return LinearGaussian(a, b, c, Q, np.diag(Q**2) if first is None else first)


def one_step_posterior(s: LinearGaussian) -> tuple[np.ndarray, np.ndarray]:
    """Gain and std of `p(x' | x, o')`; they are diagonal as `C` and the noises are."""
    precision = 1 / Q**2 + np.diag(s.c) ** 2
    return np.diag(np.diag(s.c) / precision), precision**-0.5


def data(s: LinearGaussian, num: int = 1, steps: int = STEPS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    actions = generator.standard_normal((num, steps, 1))
    return actions, s.simulate(actions, generator)


def tensor(x: np.ndarray) -> Tensor:
    return torch.tensor(x, dtype=DTYPE)


def filtered(model: RSSM, actions: Tensor, seen: Tensor) -> list[RSSMBelief]:
    belief, before = model.initial(seen.shape[:-2]), torch.zeros_like(actions[..., 0, :])
    beliefs = []
    for t in range(seen.shape[-2]):
        belief = model.observe(belief, before, seen[..., t, :])
        beliefs.append(belief)
        before = actions[..., min(t, actions.shape[-2] - 1), :]
    return beliefs


def test_beliefs_are_those_of_a_settled_kalman_filter() -> None:
    covariance, gain = system().settled()
    s = system(first=covariance)
    actions, seen = data(s, num=3, steps=12)
    model = as_rssm(s, gain, Q)
    means = torch.stack([belief.stochastic for belief in filtered(model, tensor(actions), tensor(seen))], 1)
    for i in range(3):
        torch.testing.assert_close(means[i].detach(), tensor(s.filtered(actions[i], seen[i])), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def particles() -> tuple[LinearGaussian, np.ndarray, np.ndarray, Tensor, Tensor]:
    """One sequence, states drawn from the posteriors along it, and the log of their importance weights."""
    s = system()
    actions, seen = (x[0] for x in data(s))
    model = as_rssm(s, *one_step_posterior(s), carry="sample")
    generator, num = torch.Generator().manual_seed(0), 20_000
    belief, before, log_weight = model.initial((num,)), torch.zeros(num, 1, dtype=DTYPE), torch.zeros(num, dtype=DTYPE)
    with torch.no_grad():
        for t, o in enumerate(tensor(seen)):
            belief = model.observe(belief, before, o.expand(num, -1), generator=generator)
            h, x = belief
            likelihood = torch.distributions.Normal(model.decode(belief), 1.0).log_prob(o).sum(-1)
            log_weight += likelihood + (
                model.prior(h).log_prob(x) - model.posterior(h, o.expand(num, -1)).log_prob(x)
            ).sum(-1)
            before = tensor(actions)[min(t, STEPS - 1)].expand(num, -1)
    return s, actions, seen, belief.stochastic, log_weight


def test_importance_weights_give_the_likelihood_and_the_filtered_mean(particles: tuple) -> None:
    s, actions, seen, x, log_weight = particles
    estimate = log_weight.logsumexp(0) - math.log(len(log_weight))
    assert abs(estimate.item() - s.log_likelihood(actions, seen)) < 0.03
    mean = (log_weight.softmax(0).unsqueeze(-1) * x).sum(0)
    torch.testing.assert_close(mean, tensor(s.filtered(actions, seen)[-1]), rtol=0, atol=0.03)


def evidence_bound(model: RSSM, actions: np.ndarray, seen: np.ndarray, copies: int) -> float:
    """What the loss says of one sequence, averaged over draws; in nats, the likelihood's constant put back."""
    tensordict = pytest.importorskip("tensordict")
    steps, size = len(seen), seen.shape[1]
    padded = np.concatenate([actions, np.zeros((steps - len(actions), 1))])
    nothing = torch.zeros(steps, 1, dtype=DTYPE)
    sequence = tensordict.TensorDict(
        {"observation": tensor(seen), "action": tensor(padded), "next": {"reward": nothing, "terminated": nothing}},
        batch_size=(steps,),
    )
    with torch.no_grad():
        losses = model.loss(sequence.expand(copies, steps), generator=torch.Generator().manual_seed(0))
    bound = -(losses["loss_observation"] + losses["loss_kl"]).item() * steps
    return bound - 0.5 * steps * size * math.log(2 * math.pi)


def test_the_loss_is_the_evidence_lower_bound(particles: tuple) -> None:
    s, actions, seen, _, log_weight = particles
    bound = evidence_bound(as_rssm(s, *one_step_posterior(s)), actions, seen, 20_000)
    assert abs(bound - log_weight.mean().item()) < 0.05
    assert bound < s.log_likelihood(actions, seen) - 0.1  # the posterior does not know what comes later


def test_the_bound_is_tight_where_the_posterior_is_exact() -> None:
    s = system(a=np.zeros((2, 2)))
    actions, seen = (x[0] for x in data(s))
    bound = evidence_bound(as_rssm(s, *one_step_posterior(s)), actions, seen, 20_000)
    assert abs(bound - s.log_likelihood(actions, seen)) < 0.03


def test_balance_changes_no_value_of_the_bound(particles: tuple) -> None:
    s, actions, seen, *_ = particles
    plain, balanced = (as_rssm(s, *one_step_posterior(s), kl_balance=alpha) for alpha in (None, 0.8))
    assert evidence_bound(plain, actions, seen, 4) == pytest.approx(evidence_bound(balanced, actions, seen, 4))


def test_the_error_ahead_grows_as_the_system_says() -> None:
    """Open loop: what is imagined from a filtered belief, against what then happens."""
    covariance, gain = system().settled()
    s, after, horizon = system(first=covariance), 4, 6
    actions, seen = data(s, num=4000, steps=after + horizon, seed=1)
    model = as_rssm(s, gain, Q)
    with torch.no_grad():
        belief = filtered(model, tensor(actions), tensor(seen)[:, : after + 1])[-1]
        uncertainty = covariance - gain @ s.c @ covariance
        errors, expected = [], []
        for t in range(after, after + horizon):
            belief = model.imagine(belief, tensor(actions)[:, t])
            uncertainty = s.a @ uncertainty @ s.a.T + np.diag(Q**2)
            errors.append((model.decode(belief) - tensor(seen)[:, t + 1]).square().mean(0))
            expected.append(tensor(np.diag(s.c @ uncertainty @ s.c.T) + 1))
    torch.testing.assert_close(torch.stack(errors), torch.stack(expected), rtol=0.1, atol=0)
    assert (errors[-1] > 1.2 * errors[0]).all()
