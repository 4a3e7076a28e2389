"""Independent answers to compare with: bisection in many digits, sorting, and a convex solver."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest


def lml_exact(x: list[float], k: float, temperature: float) -> tuple[list[float], np.ndarray]:
    """LML weights and Jacobian with respect to ``x``, by bisection in 80 digits (scores may be -inf)."""
    with mp.workdps(80):
        scores = [(mp.mpf(v) - mp.mpf(max(x))) / mp.mpf(temperature) for v in x if v != -np.inf]

        def weights(nu: mp.mpf) -> list[mp.mpf]:
            return [1 / (1 + mp.exp(-(s + nu))) if s + nu > -100000 else mp.mpf(0) for s in scores]

        if k == len(scores):
            w, slopes = [mp.mpf(1)] * len(scores), [mp.mpf(0)] * len(scores)
        else:
            low = -max(scores) - mp.log(len(scores)) - 10
            high = -min(scores) + mp.log(len(scores) / (len(scores) - mp.mpf(k))) + 10
            while high - low > mp.mpf(10) ** -24:
                middle = (low + high) / 2
                low, high = (middle, high) if mp.fsum(weights(middle)) < k else (low, middle)
            w = weights(low)
            slopes = [v * (1 - v) / mp.mpf(temperature) for v in w]
        total = mp.fsum(slopes)
        finite = [i for i, v in enumerate(x) if v != -np.inf]
        full, jacobian = [0.0] * len(x), np.zeros((len(x), len(x)))
        for a, i in enumerate(finite):
            full[i] = float(w[a])
            for b, j in enumerate(finite):
                cross = slopes[a] * slopes[b] / total if total else mp.mpf(0)
                jacobian[i, j] = float((slopes[a] if a == b else 0) - cross)
    return full, jacobian


def softmax_by_sorting(x: np.ndarray, k: float) -> np.ndarray:
    """Constrained softmax of one row: cap the largest one after the other until no cap is exceeded."""
    order = np.argsort(-x)
    for capped in range(len(x)):
        e = np.exp(np.minimum(0, x[order] - x[order[capped]]))
        scale = (k - capped) / e[capped:].sum()
        if scale * e[capped] <= 1:
            w = np.where(np.arange(len(x)) < capped, 1.0, scale * e)
            break
    result = np.empty_like(x)
    result[order] = w
    return result


def sparsemax_by_sorting(x: np.ndarray, k: float) -> np.ndarray:
    """Constrained sparsemax of one row: the sum is linear in nu between neighbouring kinks."""
    kinks = np.sort(np.concatenate([-x, 1 - x]))
    sums = np.array([np.clip(x + nu, 0, 1).sum() for nu in kinks])
    return np.clip(x + np.interp(k, sums, kinks), 0, 1)


def by_cvxpy(name: str, x: np.ndarray, k: float, temperature: float) -> np.ndarray:
    """The optimisation problem itself, in the hands of a general solver."""
    cp = pytest.importorskip("cvxpy")  # with SciPy's statistics: where no test needs it, it takes a second

    y = cp.Variable(len(x))
    regulariser = {
        "lml": -cp.sum(cp.entr(y) + cp.entr(1 - y)),
        "constrained_softmax": -cp.sum(cp.entr(y)),
        "constrained_sparsemax": 0.5 * cp.sum_squares(y),
    }[name]
    problem = cp.Problem(cp.Minimize(-x @ y + temperature * regulariser), [cp.sum(y) == k, y >= 0, y <= 1])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return np.asarray(y.value)
