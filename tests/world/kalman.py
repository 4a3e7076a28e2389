"""A linear-Gaussian system by dense Gaussian conditioning, and the RSSM whose weights are that system."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dcem.world import RSSM

EPSILON = 1e-4  # tanh(ε x) / ε is x up to ε² x³ / 3
DTYPE = torch.float64


@dataclass(frozen=True)
class LinearGaussian:
    """`x' = A x + B u + w`, `w ~ N(0, diag(q²))`, seen as `o = C x + v`, `v ~ N(0, I)`; `x_0 ~ N(0, first)`."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    q: np.ndarray
    first: np.ndarray

    def simulate(self, actions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Observations `(n, T + 1, o)` of actions `(n, T, u)`."""
        x = generator.multivariate_normal(np.zeros(len(self.a)), self.first, len(actions))
        seen = []
        for t in range(actions.shape[1] + 1):
            seen.append(x @ self.c.T + generator.standard_normal((len(x), len(self.c))))
            if t < actions.shape[1]:
                x = x @ self.a.T + actions[:, t] @ self.b.T + self.q * generator.standard_normal(x.shape)
        return np.stack(seen, 1)

    def joint(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means and covariance of all states `(T + 1, n)`, and the matrix that observes them all."""
        n, steps = len(self.a), len(actions) + 1
        mean, step = np.zeros((steps, n)), np.zeros((steps * n, steps * n))  # x = mean + step @ (x_0, w_1, w_2, ...)
        for t in range(steps):
            if t:
                mean[t] = self.a @ mean[t - 1] + self.b @ actions[t - 1]
            for s in range(t + 1):
                step[t * n : (t + 1) * n, s * n : (s + 1) * n] = np.linalg.matrix_power(self.a, t - s)
        noise = np.kron(np.eye(steps), np.diag(self.q**2))
        noise[:n, :n] = self.first
        return mean, step @ noise @ step.T, np.kron(np.eye(steps), self.c)

    def log_likelihood(self, actions: np.ndarray, seen: np.ndarray) -> float:
        mean, covariance, observe = self.joint(actions)
        error = seen.reshape(-1) - observe @ mean.reshape(-1)
        total = observe @ covariance @ observe.T + np.eye(len(error))
        return float(-0.5 * (error @ np.linalg.solve(total, error) + np.linalg.slogdet(2 * np.pi * total)[1]))

    def filtered(self, actions: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """`E[x_t | o_0 ... o_t]` for each `t`, by conditioning the joint distribution on what was seen so far."""
        n, o = len(self.a), len(self.c)
        means = []
        for t in range(len(seen)):
            mean, covariance, observe = self.joint(actions[:t])
            error = seen[: t + 1].reshape(-1) - observe @ mean.reshape(-1)
            gain = covariance @ observe.T @ np.linalg.inv(observe @ covariance @ observe.T + np.eye(o * (t + 1)))
            means.append((mean.reshape(-1) + gain @ error)[-n:])
        return np.stack(means)

    def settled(self) -> tuple[np.ndarray, np.ndarray]:
        """The covariance before an observation that the filter settles at, and its gain there."""
        covariance = self.first
        for _ in range(500):
            gain = covariance @ self.c.T @ np.linalg.inv(self.c @ covariance @ self.c.T + np.eye(len(self.c)))
            after = covariance - gain @ self.c @ covariance
            covariance = self.a @ after @ self.a.T + np.diag(self.q**2)
        return covariance, gain


def as_rssm(system: LinearGaussian, gain: np.ndarray, posterior_std: np.ndarray, **options: object) -> RSSM:
    """The RSSM that is this system: prior `N(A s + B u, q²)`, posterior mean `m + gain (o - C m)` for the prior's `m`.

    ReLU layers carry a number as its positive and its negative part; the GRU's gates are shut.
    """
    n, u, o = len(system.a), system.b.shape[1], len(system.c)
    a, b, c, k = (torch.tensor(x, dtype=DTYPE) for x in (system.a, system.b, system.c, gain))
    width = 2 * max(n, o)
    model = RSSM(
        o, u, deterministic_size=n, stochastic_size=n, hidden_sizes=(width, width), free_nats=0.0,
        **options,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _split_into(model.embed[0], torch.cat([a, b], 1))
        model.cell.weight_ih[2 * n :, : 2 * n] = EPSILON * _joined(n)
        model.cell.bias_ih[n : 2 * n] = -50.0  # keep nothing of the state before
        eye = torch.eye(n, dtype=DTYPE)
        _linear(model.prior_net, eye / EPSILON)
        _linear(model.posterior_net, torch.cat([(eye - k @ c) / EPSILON, k], 1))
        for net, std in {model.prior_net: system.q, model.posterior_net: posterior_std}.items():
            net[-1].bias[n:] = torch.tensor(np.log(np.expm1(std - model.min_std)), dtype=DTYPE)
        _linear(model.observation_net, torch.cat([torch.zeros(o, n, dtype=DTYPE), c], 1))
    return model


def _joined(n: int) -> Tensor:
    return torch.cat([torch.eye(n, dtype=DTYPE), -torch.eye(n, dtype=DTYPE)], 1)


def _split_into(layer: nn.Linear, matrix: Tensor) -> None:
    layer.weight[: 2 * len(matrix)] = torch.cat([matrix, -matrix])


def _linear(net: nn.Sequential, matrix: Tensor) -> None:
    """Make a ReLU network a matrix product."""
    n, layers = len(matrix), [layer for layer in net if isinstance(layer, nn.Linear)]
    _split_into(layers[0], matrix)
    for layer in layers[1:-1]:
        layer.weight.copy_(torch.eye(*layer.weight.shape, dtype=DTYPE))
    layers[-1].weight[:n, : 2 * n] = _joined(n)
