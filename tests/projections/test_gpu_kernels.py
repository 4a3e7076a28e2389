"""The Triton kernels in Triton's interpreter, against the reference; and whether its compiler takes them."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels import batch

import dcem.kernels
from dcem.projections.autograd import _pull, _reference
from dcem.projections.links import LINKS

triton = pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def load(name: str) -> Any:
    path = Path(dcem.kernels.__file__).with_name("gpu.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The kernels as the interpreter runs them, on tensors of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield load("interpreted")


@pytest.mark.filterwarnings("ignore")  # NumPy's, of infinities that are not selected
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(("n", "k", "tau"), [(10, 3.0, 1.0), (37, 11.4, 0.1), (64, 63.0, 1e-3), (5, 0.5, 10.0)])
def test_weights_and_gradients(gpu: Any, link: str, dtype: torch.dtype, n: int, k: float, tau: float) -> None:
    """Ties, huge and tiny scores, masks, heavy tails; no power of two."""
    names, x = batch(n, k, dtype)
    taus = torch.full_like(x[:, :1], tau)
    w, nu, c = gpu.project(x, taus, 1.0, k, link)
    assert torch.equal(w, gpu.project(x, None, tau, k, link)[0])
    error = (w.double().sum(-1) - k).abs() / k
    assert (error <= TOLERANCE[dtype]).all(), dict(zip(names, error.tolist(), strict=True))
    expected = _reference(x, taus, 1.0, k, link)[0]
    torch.testing.assert_close(w, expected, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    g_w = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    g_nu = torch.randn(nu.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for given in ((g_w, None), (g_w, g_nu), (None, g_nu)):
        found = gpu.project_backward(x, taus, 1.0, nu, c, *given, link)
        for one, other in zip(found, _pull(x, taus, 1.0, nu, c, *given, link), strict=True):
            size = other.abs().amax(-1, keepdim=True).clamp(min=1e-30)
            torch.testing.assert_close(one / size, other / size, rtol=0, atol=2e3 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore")
def test_rows_longer_than_a_block_and_rows_without_an_answer(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LARGEST_BLOCK", 16)
    x = torch.randn(2, 45, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] *= 1e4
    w, nu, c = gpu.project(x, None, 0.5, 7, "sigmoid")
    torch.testing.assert_close(w, _reference(x, None, 0.5, 7, "sigmoid")[0])
    g = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        gpu.project_backward(x, None, 0.5, nu, c, g, None, "sigmoid")[0],
        _pull(x, None, 0.5, nu, c, g, None, "sigmoid")[0],
    )
    bad = torch.tensor([[1.0, math.nan, 2.0], [1.0, math.inf, 2.0], [1.0, -math.inf, -math.inf], [3.0, 1.0, -math.inf]])
    w = gpu.project(bad, None, 1.0, 2, "sigmoid")[0]
    assert w[:3].isnan().all()
    torch.testing.assert_close(w[3], torch.tensor([1.0, 1.0, 0.0]))


def test_the_compiler_takes_them() -> None:
    """To machine code of an H100, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    gpu = load("to_compile")
    for name, num_pointers in (("_project", 4), ("_pull_back", 7)):
        kernel = getattr(gpu, name)
        constants = {"LINK": 0, "BLOCK": 1024, "WHOLE": True, "DOUBLE": False}
        kinds = {arg: "*fp32" if arg.endswith("_ptr") else "i32" for arg in kernel.arg_names if arg not in constants}
        source = ASTSource(kernel, {**kinds, **dict.fromkeys(constants, "constexpr")}, constants)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32))
        assert ".target sm_90" in compiled.asm["ptx"]
        assert num_pointers <= len(kinds)
