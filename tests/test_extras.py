"""Where an extra is not installed, the message says which one to install."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import torch, dcem
for code in {codes!r}:
    try:
        exec(code)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_messages_name_the_extra() -> None:
    wanted = {
        "import dcem.plotting": "dcem.plotting needs matplotlib: pip install 'dcem[experiments]'",
        "import dcem.rl": "dcem.rl needs tensordict: pip install 'dcem[rl]'",
        "import dcem.control; dcem.control.MujocoModel('x.xml')": "MujocoModel needs mujoco: pip install 'dcem[control]'",
        "dcem.diagnose(lambda x: x.square().sum(-1), torch.zeros(2)).figure()":
            "dcem.plotting needs matplotlib: pip install 'dcem[experiments]'",
    }  # fmt: skip
    code = WITHOUT.format(packages=("matplotlib", "mujoco", "tensordict", "torchrl"), codes=tuple(wanted))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(wanted.values())


def test_what_is_missing_of_ours_is_no_extra() -> None:
    from dcem._extras import needs

    with pytest.raises(ModuleNotFoundError, match="No module named"), needs("dcem.rl", "rl"):
        import dcem.nothing  # noqa: F401
