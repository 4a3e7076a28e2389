"""The hosted workflow and the hooks, which run elsewhere: they name what is there, and the matrix is what is promised."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MATRIX = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
STEPS = [(name, step) for name, job in WORKFLOW["jobs"].items() for step in job["steps"]]


def test_the_matrix_is_what_the_metadata_promise() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert MATRIX["python"] == promised
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"
    (torch,) = (each for each in PROJECT["project"]["dependencies"] if each.startswith("torch"))
    assert MATRIX["torch"] == [torch.replace(">=", "==") + ".*", "torch"]
    developed = re.search(r"^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert {each["torch"] for each in MATRIX["include"]} == {f"torch=={developed[1]}.*"}  # type: ignore[index]
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for each in MATRIX["include"]:  # each kind of run is one that a developer can make, too
        assert f"{each['environment']} make test" in contributing


@pytest.mark.parametrize(("job", "step"), STEPS, ids=[f"{job}-{i}" for i, (job, _) in enumerate(STEPS)])
def test_a_step_names_what_is_there(job: str, step: dict) -> None:
    assert ("run" in step) != ("uses" in step)
    keys = set(WORKFLOW["jobs"][job].get("strategy", {}).get("matrix", {}))
    assert set(re.findall(r"matrix\.(\w+)", str(step))) <= keys
    if "uses" in step:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        return
    words = shlex.split(step["run"])
    if words[0] == "make":
        assert_made(words[1])
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists()
        if word.startswith(".["):
            assert set(word[2:-1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    if "--group" in words:
        assert words[words.index("--group") + 1] in PROJECT["dependency-groups"]


def test_hooks_are_the_linters_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --fix", "") for hook in hooks]
    assert entries == [".venv/bin/ruff check", ".venv/bin/ruff format", ".venv/bin/mypy"]
    assert all(hook["language"] == "system" for hook in hooks)
    for entry in entries:
        assert entry.split("/")[-1].split()[0] in PROJECT["dependency-groups"]["dev"]


def test_the_demo_installs_what_the_command_asks_for() -> None:
    (installed,) = re.findall(r"^\t\$\(PIP\) (hydra-core .*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    command = (ROOT / "src/dcem/experiments/harness/command.py").read_text("utf-8")
    (asked,) = re.findall(r"for needed in \((.*)\):", command)
    assert installed.split() == re.findall(r'"([\w-]+)"', asked.replace('"hydra"', '"hydra-core"'))
    extra = "\n".join(PROJECT["project"]["optional-dependencies"]["experiments"])
    assert all(f"\n{name}>=" in f"\n{extra}" for name in installed.split())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_targets_that_pages_name_are_there(page: str) -> None:
    found = re.findall(r"^(?:\w+=\S+ )*make (\w+)", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert found
    for target in found:
        assert_made(target)


def assert_made(target: str) -> None:
    """Whether `make` knows it, and what it is made of; nothing is made."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    subprocess.run(["make", "-n", target], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def test_without_a_gpu_its_benchmarks_and_tests_say_so_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    without = outer | {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    benchmark = [sys.executable, str(ROOT / "benchmarks/gpu.py")]
    done = subprocess.run(benchmark, cwd=ROOT, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu: expected a CUDA device, ")
    assert done.stderr.count("\n") == 1
    if shutil.which("make") is None:
        return
    command = ["make", "-f", str(ROOT / "Makefile"), "gpu", "PYTHON=false"]
    made = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True, check=False)
    assert made.stderr.splitlines()[0] == "gpu: expected a CUDA device; got none"
    assert not (tmp_path / ".venv").exists()
