"""Inner loops as registered operators, ``torch.ops.dcem``: fast on the CPU, and one node for whoever traces them.

Eager code, ``torch.func`` transforms, ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` all reach them
through PyTorch's dispatcher, which finds the derivative and the kernel that a tensor needs. The derivatives and the
reference in Python are registered by the rooms above; a kernel for another device is one more registration with
`operators.compile_for`. The kernels in C are built with the package where there is a compiler, and everything works
without them. ``DCEM_NATIVE=0`` in the environment turns them off.
"""

from . import cpu, operators
from .derivatives import differentiate

__all__ = ["cpu", "differentiate", "operators"]
