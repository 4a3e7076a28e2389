"""The contract, once for every soft projection."""

from projection_contract import SoftProjectionContract

from dcem import projections as p


class TestLML(SoftProjectionContract):
    projection, module = staticmethod(p.lml), p.LML


class TestConstrainedSoftmax(SoftProjectionContract):
    projection, module = staticmethod(p.constrained_softmax), p.ConstrainedSoftmax


class TestConstrainedSparsemax(SoftProjectionContract):
    projection, module = staticmethod(p.constrained_sparsemax), p.ConstrainedSparsemax
