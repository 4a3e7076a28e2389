"""The Triton kernels: in Triton's interpreter, and through its compiler. Neither needs a GPU."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcem

pytest.importorskip("triton")

NAMED = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.cpu
def test_in_the_interpreter() -> None:
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [Path(dcem.__file__).parents[1], *sys.path])),
    }
    cases = Path(__file__).with_name("gpu_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark", str(cases)],
        env=environment, capture_output=True, text=True, timeout=600, cwd=cases.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.13, about what triton's compiler does
def test_the_compiler_takes_them() -> None:
    """To machine code of an H100, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from dcem.kernels import gpu, gpu_recurrent, gpu_refit
    from dcem.world import fused

    for double, whole in itertools.product((False, True), (True, False)):
        row = {"BLOCK": 1024, "WHOLE": whole, "DOUBLE": double}
        tile = {"ROWS": 64, "COLUMNS": 32, "DOUBLE": double}
        for kernel, constants in (
            *((gpu._project, row | {"LINK": link, "tau_ptr": None}) for link in range(3)),
            (gpu._pull_back, row | {"LINK": 0, "g_nu_ptr": None}), (gpu_refit._scores, row | {"STANDARDIZE": True}),
            (gpu_refit._moments, tile), (gpu_refit._moments_back, tile),
            (gpu_refit._scores_back, row | {"STANDARDIZE": True}),
        ):  # fmt: skip
            kinds = dict.fromkeys([arg for arg in kernel.arg_names if arg not in constants], "i32")
            kinds |= {arg: "*fp64" if double else "*fp32" for arg in kinds if arg.endswith("_ptr")}
            kinds |= {arg: "i64" for arg in kinds if arg.endswith("_bits")}
            if "valid_ptr" in kinds:
                kinds["valid_ptr"] = "*i8"
            source = ASTSource(kernel, {**kinds, **dict.fromkeys(constants, "constexpr")}, constants)
            compiled = compile(source, target=GPUTarget("cuda", 90, 32))
            assert ".target sm_90" in compiled.asm["ptx"]
    sizes = {"H": 20, "A": 3, "EMBED": 24, "PRIOR": 24, "BLOCK_S": fused.WIDEST, "S": fused.WIDEST}
    sizes |= {"FIRST": 24, "SECOND": 24}
    remember, expect, perceptron = gpu_recurrent._remember, gpu_recurrent._expect, gpu_recurrent._perceptron
    cases = [
        (perceptron, 1, False, gpu_recurrent.PERCEPTRON_SINGLE, "fp32"),
        (perceptron, 1, False, gpu_recurrent.PERCEPTRON, "bf16"),
    ]
    for (parts, *blocks), early, dtype in (
        (gpu_recurrent.FEW_SINGLE, True, "fp32"), (gpu_recurrent.FEW, True, "bf16"),
        (gpu_recurrent.FEW, False, "bf16"), (gpu_recurrent.MANY, False, "bf16"),
        (gpu_recurrent.MANY_SINGLE, False, "fp32"),
    ):  # fmt: skip
        cases += [
            (kernel, parts, early, block, dtype) for kernel, block in zip((remember, expect), blocks, strict=True)
        ]
    for kernel, parts, early, block, dtype in cases:
        constants = sizes | {"PARTS": parts, "EARLY": early, "KIND": gpu_recurrent.KINDS[NAMED[dtype]]} | block
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")} | {"launch_pdl": early}
        constants = {arg: constants[arg] for arg in kernel.arg_names if arg in constants}
        kinds = {
            arg: f"*{dtype}" if arg.endswith("_ptr") else "i32" for arg in kernel.arg_names if arg not in constants
        }
        # Of memory that is aligned, as a tensor's is, more is fetched ahead, and more shared memory needed.
        aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
        source = ASTSource(kernel, {**kinds, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.metadata.shared <= fused.SHARED_MEMORY, block
        assert "max.NaN.f32" in compiled.asm["ptx"]  # an activation keeps NaN, as it does in the interpreter anyway
        assert "max.f32" not in compiled.asm["ptx"]
        assert ("griddepcontrol.wait" in compiled.asm["ptx"]) == early
