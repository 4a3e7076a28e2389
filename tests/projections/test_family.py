"""The contract, once for every soft projection."""

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


def test_the_mapped_axis_may_be_any() -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    w = torch.func.vmap(lambda row: project(row, 1.0, 2, "sigmoid"), in_dims=1, out_dims=1)(x)
    assert torch.equal(w, p.lml(x.mT, 2).mT)
