"""The contract, once for every soft projection."""

import pytest
import torch
from projection_contract import SoftProjectionContract

from dcem import projections as p
from dcem.projections.autograd import project


class TestLML(SoftProjectionContract):
    projection, module = staticmethod(p.lml), p.LML
    backend = "inductor"


class TestConstrainedSoftmax(SoftProjectionContract):
    projection, module = staticmethod(p.constrained_softmax), p.ConstrainedSoftmax


class TestConstrainedSparsemax(SoftProjectionContract):
    projection, module = staticmethod(p.constrained_sparsemax), p.ConstrainedSparsemax


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.05, 0.03, 0.02, 0.01, 1e-3])
def test_jacobians_of_a_tensor_k_keep_their_digits_where_weights_saturate(temperature, dtype) -> None:
    x = torch.tensor([1.0, 0.0, -0.01], dtype=dtype, requires_grad=True)
    k = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    rows = [torch.autograd.grad(w, (x, k), retain_graph=True) for w in p.lml(x, k, temperature=temperature)]
    eps = torch.finfo(dtype).eps
    assert abs(sum(by_k for _, by_k in rows) - 1) <= 4 * eps
    by_x = torch.stack([row for row, _ in rows])
    rounding = 4 * eps * (by_x.abs().max() + eps / temperature)
    assert by_x.sum(0).abs().max() <= rounding
    torch.testing.assert_close(by_x, by_x.T, rtol=0, atol=rounding.item())


def test_the_mapped_axis_may_be_any() -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    w = torch.func.vmap(lambda row: project(row, 1.0, 2, "sigmoid"), in_dims=1, out_dims=1)(x)
    assert torch.equal(w, p.lml(x.mT, 2).mT)
