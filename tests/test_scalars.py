"""Diagnostics of solves as scalars."""

import math

import pytest
import torch

import dcem


class Log(dict):
    def __call__(self, name, value, step):
        assert type(value) is float
        self.setdefault(name, {})[step] = value


def test_scalars_are_those_of_the_history(generator):
    log, theta = Log(), torch.tensor([[1.0, -2.0], [0.5, 0.0]], requires_grad=True)
    scalars = dcem.Scalars(log, "s")
    for solve in range(2):
        scalars.begin()
        solution = dcem.minimize(
            lambda x: (x - theta.unsqueeze(-2)).square().sum(-1), torch.zeros(2, 2), dcem.CEM(40, 5, dcem.LML(0.5)),
            num_iterations=3, generator=generator, callback=scalars, record=True,
        )  # fmt: skip
        solution.x.square().sum().backward()
        best = math.inf
        for t, iteration in enumerate(solution.history):
            step = 3 * solve + t
            for name in ("std", "effective_elites", "drift"):
                assert log[f"s/{name}"][step] == pytest.approx(getattr(iteration, name).mean().item())
            lowest = iteration.values.detach().amin(-1)
            best = lowest if t == 0 else torch.minimum(best, lowest)
            assert log["s/best"][step] == pytest.approx(best.mean().item())
            assert log["s/failed"][step] == 0
        assert len(log.get("s/gradient_norm", {})) == 3 * solve  # of the solves before
        scalars.flush()
        norms = [iteration.gradient_norm.mean().item() for iteration in solution.history]
        assert [log["s/gradient_norm"][3 * solve + t] for t in range(3)] == pytest.approx(norms)
    assert sorted(log["s/std"]) == list(range(6))


def test_failed_samples_are_counted_and_what_is_not_known_is_not_written(generator):
    log = Log()
    scalars = dcem.Scalars(log)
    dcem.minimize(
        lambda x: torch.where(x[..., 0] > 0, torch.nan, x[..., 0].square()), torch.zeros(1), dcem.CEM(100, 10),
        num_iterations=1, generator=generator, callback=scalars,
    )  # fmt: skip
    assert 0.3 < log["solve/failed"][0] < 0.7
    dcem.minimize(lambda x: x.sum(-1) * torch.nan, torch.zeros(1), num_iterations=1, callback=dcem.Scalars(log))
    scalars.flush()
    assert "solve/gradient_norm" not in log
    assert log["solve/failed"][0] == 1


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="add_scalar: expected a callable"):
        dcem.Scalars(3)
    with pytest.raises(TypeError, match="prefix: expected a string"):
        dcem.Scalars(print, 3)


def test_tensorboards_writer_takes_them(tmp_path, generator):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        dcem.minimize(
            lambda x: x.square().sum(-1), torch.zeros(2), num_iterations=2, generator=generator,
            callback=dcem.Scalars(writer.add_scalar),
        )  # fmt: skip
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("solve/best")] == [0, 1]
