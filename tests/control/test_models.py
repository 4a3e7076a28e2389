"""The contract of `dcem.control.Model`, for all that claim to be one."""

import sys
from pathlib import Path

import pytest
import torch

from dcem.control import Compiled, Model, systems

sys.path.insert(0, str(Path(__file__).parent))

from model_contract import ModelContract


class TestPendulum(ModelContract):
    make = staticmethod(systems.Pendulum)


class TestCartpole(ModelContract):
    make = staticmethod(systems.Cartpole)


class TestAcrobot(ModelContract):
    make = staticmethod(systems.Acrobot)


class TestQuadrotor(ModelContract):
    make = staticmethod(systems.Quadrotor)


class TestPointMass(ModelContract):
    make = staticmethod(systems.PointMass)


class TestCompiled(ModelContract):
    """What the compiler makes of the loop is another test's: here it runs as it stands."""

    @pytest.fixture(autouse=True)
    def _uncompiled(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda fn, **_: fn)

    def make(self):
        return Compiled(systems.Pendulum())

    def states(self, *batch):
        return TestPendulum().states(*batch)


class TestMujoco(ModelContract):
    def make(self):
        mujoco = pytest.importorskip("mujoco")
        from dcem.control import MujocoModel

        return MujocoModel(
            mujoco.MjModel.from_xml_string(
                """<mujoco><worldbody><body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>
                </worldbody><actuator><motor joint="x" ctrlrange="-2 2" ctrllimited="true"/></actuator></mujoco>"""
            )
        )

    def states(self, *batch):
        return torch.randn(*batch, *self.make().state_shape, generator=torch.Generator().manual_seed(0))


def test_a_function_is_a_dynamics_and_no_model():
    assert not isinstance(lambda state, action: state, Model)
    assert not isinstance(Compiled(lambda state, action: state), Model)
    with pytest.raises(AttributeError, match="horizon"):
        Compiled(systems.Pendulum()).horizon  # noqa: B018
