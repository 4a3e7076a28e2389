"""MuJoCo's threads: used from several threads, in forked processes, and with nothing to simulate."""

import os

os.environ.setdefault("MUJOCO_GL", "disabled")

import copy
import subprocess
import sys
import threading

import pytest
import torch

from dcem.control.mujoco_model import MujocoModel

mujoco = pytest.importorskip("mujoco")

SLIDE = """
<mujoco><option timestep="0.01"/>
  <worldbody><body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body></worldbody>
  <actuator><motor joint="x"/></actuator>
</mujoco>
"""


def slide(**options) -> MujocoModel:
    return MujocoModel(mujoco.MjModel.from_xml_string(SLIDE), **options)


def run_script(script: str) -> None:
    """A crash or a hang must not take the tests along."""
    code = f"import os, threading, torch, mujoco\nfrom dcem.control.mujoco_model import MujocoModel\nSLIDE = '''{SLIDE}'''\n"
    done = subprocess.run([sys.executable, "-c", code + script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"


def test_threads_take_turns_and_a_forked_process_has_its_own() -> None:
    run_script("""
import sys, warnings
model = MujocoModel(mujoco.MjModel.from_xml_string(SLIDE), num_threads=2)
states = torch.arange(40.0).reshape(20, 2)
actions = torch.arange(20 * 50.0).reshape(20, 50, 1)
expected = model.rollout(states, actions)
wrong = []
def work():
    for _ in range(10):
        if not torch.equal(model.rollout(states, actions), expected):
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
warnings.simplefilter("ignore")  # forking beside threads is what is tested
for leave in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        same = torch.equal(model.rollout(states, actions), expected)
        leave(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
assert torch.equal(model.rollout(states, actions), expected)
""")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as Linux does")
def test_threads_go_with_their_model_and_a_forked_process_may_drop_it() -> None:
    run_script("""
import gc, warnings
count = lambda: len(os.listdir("/proc/self/task"))
def play(model):
    model.rollout(torch.zeros(20, 2), torch.zeros(20, 50, 1))
    return count()
play(MujocoModel(mujoco.MjModel.from_xml_string(SLIDE), num_threads=1))  # what else starts threads has
before = count()
for _ in range(3):
    model = MujocoModel(mujoco.MjModel.from_xml_string(SLIDE), num_threads=3)
    assert play(model) > before
    del model
    gc.collect()
    assert count() == before
model = MujocoModel(mujoco.MjModel.from_xml_string(SLIDE), num_threads=3)
play(model)
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    del model
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
play(model)
""")


def test_the_process_warns_again_when_all_threads_are_done() -> None:
    before = mujoco.get_mju_user_warning()
    model = slide(num_threads=1)
    others = [copy.deepcopy(model) for _ in range(3)]
    states, actions = torch.zeros(10, 2), torch.ones(10, 100, 1)
    threads = [threading.Thread(target=lambda m=m: [m.rollout(states, actions) for _ in range(10)]) for m in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mujoco.get_mju_user_warning() is before


@pytest.mark.parametrize("batch", [(), (3,), (0,), (2, 0)])
@pytest.mark.parametrize("horizon", [0, 2])
def test_nothing_to_simulate(batch, horizon) -> None:
    states = slide().rollout(torch.ones(*batch, 2), torch.zeros(*batch, horizon, 1))
    assert states.shape == (*batch, horizon + 1, 2)
    assert (states[..., 0, :] == 1).all()


def test_without_mujoco_the_extra_is_named(monkeypatch) -> None:
    model = mujoco.MjModel.from_xml_string(SLIDE)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ModuleNotFoundError, match=r"MujocoModel needs mujoco: pip install 'dcem\[control\]'"):
        MujocoModel(model)
