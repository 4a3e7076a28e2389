"""`dcem gallery`: a film of each system, and what it refuses."""

import pytest

from dcem.experiments import ConfigError, gallery
from dcem.experiments.gallery.settings import SCENES
from dcem.experiments.harness.run import Run


def test_films_a_system_under_control(tmp_path, monkeypatch):
    scene = SCENES["pendulum"]._replace(num_steps=3)
    monkeypatch.setitem(SCENES, "pendulum", scene)
    config = gallery.Config(scenes=["pendulum"], num_samples=20, num_elites=4, num_iterations=1)
    config.check()
    with Run(tmp_path / "run", {}, seed=0, quiet=True) as run:
        metrics = gallery.main(config, run)
    assert (tmp_path / "run" / "pendulum.gif").read_bytes().startswith(b"GIF89a")
    assert metrics["pendulum_cost"] > 9  # it hangs: π² and a little
    assert metrics.keys() == {"pendulum_cost", "pendulum_last_cost"}


@pytest.mark.parametrize("settings", [{"scenes": ["car"]}, {"scenes": []}, {"num_elites": 400}, {"num_samples": 0}])
def test_refuses_what_it_cannot_run(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        gallery.Config(**settings).check()
