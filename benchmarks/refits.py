"""The tables of docs/decisions.md on bounds and on covariances: `python benchmarks/refits.py`."""

import torch

import dcem
from dcem.solvers import Step

SELECTIONS = [dcem.HardTopK(), dcem.LML(1.0)]


class Clipped(dcem.CEM):
    """Refits to the clipped candidates."""

    def step(self, objective, state, noise, clip):
        samples = clip(self.sample(state, noise))
        values = objective(samples)
        distribution, weights, valid = self.refit(state.distribution, samples, values)
        return Step(self.advance(state, distribution, samples, values), samples, values, weights, valid)


class Wide(dcem.Gaussian):
    """Starts with a std that exceeds the box."""

    def narrow(self, bounds):
        return self


class Capped(dcem.Gaussian):
    """Has no std that exceeds half the box after a refit, either."""

    def clip(self, bounds):
        return super().clip(bounds).narrow(bounds)


class AboutNewMean(dcem.FullGaussian):
    """Is not widened along the step."""

    def stretch(self, start, clip):
        return self


class Factors(dcem.FullGaussian):
    """Interpolates Cholesky factors."""

    interpolate = dcem.Distribution.interpolate


def bounds() -> None:
    minima = {
        "at a corner, by slope": (lambda x: x.sum(-1), -1.0),
        "exactly at a corner": (lambda x: (x - 1.0).square().sum(-1), 1.0),
        "inside, at 0.3": (lambda x: (x - 0.3).square().sum(-1), 0.3),
        "inside, at 0.95": (lambda x: (x - 0.95).square().sum(-1), 0.95),
    }
    for name, (objective, minimum) in minima.items():
        for selection in SELECTIONS:
            for std in (0.5, 3.0):
                errors = []
                for solver, family in (
                    (Clipped, Wide),
                    (dcem.CEM, Wide),
                    (dcem.CEM, Capped),
                    (dcem.CEM, dcem.Gaussian),
                ):
                    x = dcem.minimize(
                        objective, family(torch.zeros(64, 10), std), solver(100, 10, selection), bounds=(-1.0, 1.0),
                        generator=torch.Generator().manual_seed(0), gradient=dcem.Detach(),
                    ).x  # fmt: skip
                    errors.append(f"{(x - minimum).abs().mean():.2g}")
                print("|", " | ".join([name, repr(selection), f"{std:g}", *errors]), "|", flush=True)


def covariances() -> None:
    size = 10
    rotation = torch.linalg.qr(
        torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    scales = torch.logspace(0, 6, size, dtype=torch.float64)
    objectives = (lambda x: x.square().sum(-1), lambda x: ((x @ rotation).square() * scales).sum(-1))
    start, eye = torch.ones(16, size, dtype=torch.float64), torch.eye(size)
    for num_samples, smoothing in ((200, 0.5), (200, 0.3), (100, 0.5)):
        solver = dcem.CEM(num_samples, num_samples // 4, dcem.HardTopK(), smoothing=smoothing, min_std=1e-12)
        for init in (
            dcem.Gaussian(start, 1.0), AboutNewMean(start, eye), Factors(start, eye), dcem.FullGaussian(start, eye),
        ):  # fmt: skip
            cells = [solver.num_samples, smoothing, type(init).__name__]
            for objective in objectives:
                x = dcem.minimize(
                    objective, init, solver, num_iterations=100, generator=torch.Generator().manual_seed(0),
                    gradient=dcem.Detach(),
                ).x  # fmt: skip
                cells.append(f"{objective(x).max():.0e} (median {objective(x).median():.0e})")
            print("|", *cells, "|", sep=" | ", flush=True)


if __name__ == "__main__":
    bounds()
    covariances()
