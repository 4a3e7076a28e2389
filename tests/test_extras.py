"""What is imported when; and where an extra is not installed, the message says which one to install."""

import subprocess
import sys

import pytest

CODE = """
import torch, sys
before = set(sys.modules)
import dcem
print(*sorted(set(sys.modules) - before))
import dcem.world
print(*sys.modules)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for code in {codes!r}:
    try:
        exec(code)
    except ModuleNotFoundError as error:
        print(error)
"""
WANTED = {
    "import dcem.plotting": "dcem.plotting needs matplotlib: pip install 'dcem[experiments]'",
    "import dcem.rl": "dcem.rl needs tensordict: pip install 'dcem[rl]'",
    "import dcem.control; dcem.control.MujocoModel('x.xml')": "MujocoModel needs mujoco: pip install 'dcem[control]'",
    "dcem.diagnose(lambda x: x.square().sum(-1), torch.zeros(2)).figure()":
        "Diagnosis.figure needs matplotlib: pip install 'dcem[experiments]'",
}  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What a process says that has imported nothing else."""
    code = CODE.format(packages=("matplotlib", "mujoco", "tensordict", "torchrl"), codes=tuple(WANTED))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_importing_is_light(lines: list[str]) -> None:
    """What it loads beside `import torch`: the standard library, the core, and none of torch's heavy parts."""
    core, worlds, *_ = lines
    assert not {name.partition(".")[0] for name in worlds.split()} & {"torchrl", "tensordict"}
    loaded = core.split()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= {"dcem", "torch"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("dcem.")}
    assert not rooms & {"control", "distributed", "energy", "experiments", "plotting", "rl", "world"}
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed", "torch.testing", "torch.utils.tensorboard")
    assert not [name for name in loaded if name.startswith(heavy)]


def test_messages_name_the_extra(lines: list[str]) -> None:
    assert lines[2:] == list(WANTED.values())


def test_what_is_missing_of_ours_is_no_extra() -> None:
    from dcem._extras import needs

    with pytest.raises(ModuleNotFoundError, match="No module named"), needs("dcem.rl", "rl"):
        import dcem.nothing  # noqa: F401
