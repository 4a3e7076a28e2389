"""What may be decided in Python: only outside `torch.compile` and `torch.func` transforms."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def is_eager() -> bool:
    """Whether tensors hold numbers that Python may look at (no tracing, no `torch.func` transform)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


_depth = 0  # how many `unchecked` are open
_replays = 0  # how many `as_promised` are open
_promised, _floor = False, 0  # what the latest of them says, and how many `unchecked` were open before it
_unchecked = False  # what comes of that: `torch.compile` compiles anew for each value that is read


class unchecked(contextlib.ContextDecorator):  # as `torch.no_grad` is written
    """Leave out the checks for what is not finite: where nothing fails, a solve with a gradient is faster without.

    Solves with a gradient look whether values and slopes are finite, so that a candidate that fails has no gradient and
    a problem says `NONFINITE`; `Checkpoint` and `Prune` look whether an objective says the same again. On the CPU that
    is a twentieth of the time of a solve of one problem. On a GPU the host waits for each look, and while a CUDA graph
    is recorded, inside `torch.compile` and in [`dcem.capture`][] the objective is evaluated twice instead. Inside this
    block none of it is done: where a candidate fails nevertheless, it weighs nothing and a solve that fails says
    `NONFINITE`, as ever, but gradients may be NaN, for all problems that share a parameter with it. Errors in what you
    give to a solve are raised as ever.

    What is computed inside is differentiated without checks also outside. It holds for the whole process: solves that
    other threads make meanwhile have no checks either.

    Example:
        >>> import torch, dcem
        >>> target = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> with dcem.unchecked():
        ...     solution = dcem.minimize(lambda x: (x - target).square().sum(-1), torch.zeros(2))
        >>> gradient = torch.autograd.grad(solution.x.sum(), target)[0]

    Source: scikit-learn's `assume_finite` is the same promise.
    """

    def __enter__(self) -> None:
        _count(1)

    def __exit__(self, *error: object) -> None:
        _count(-1)


def _count(change: int) -> None:
    global _depth
    _depth += change
    _update()


def _update() -> None:
    global _unchecked
    _unchecked = _promised or _depth > _floor


def is_unchecked() -> bool:
    """Whether the user promised that nothing goes wrong."""
    return _unchecked


@contextlib.contextmanager
def as_promised(promised: bool) -> Iterator[None]:
    """In the backward pass: as it was in the forward pass."""
    global _replays, _promised, _floor
    before = _promised, _floor
    _promised, _floor = promised, _depth
    _replays += 1
    _update()
    try:
        yield
    finally:
        _replays -= 1
        _promised, _floor = before if _replays else (False, 0)
        _update()


def does_only_its_own(module: torch.nn.Module) -> bool:
    """Whether calling a module does what its class says: nobody hooked into it, and its forward is its class's."""
    own: Any = module
    return (
        "forward" not in vars(own)
        and not (own._forward_hooks or own._forward_pre_hooks)
        and not (own._backward_hooks or own._backward_pre_hooks)
        and not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def calls_only(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether calling a module is the `forward` of `kind` and nothing besides, so that its weights say what it does.

    Those of a subclass do not: an adapter is an `nn.Linear` that adds something to it.
    """
    own = type(module)
    step = getattr(own, "forward", None)  # a scripted module's class has none
    return step is kind.forward and own.__call__ is torch.nn.Module.__call__ and does_only_its_own(module)


def widest(device: torch.device) -> torch.dtype:
    """Double precision, which Apple's GPUs have not."""
    return torch.float32 if device.type == "mps" else torch.float64


def may_look(x: Tensor) -> bool:
    """Whether Python may ask for numbers of `x` now, if need be waiting for a GPU."""
    return is_eager() and not (x.is_meta or (x.is_cuda and torch.cuda.is_current_stream_capturing()))


def is_transformed() -> bool:
    """Whether a `torch.func` transform is active, inside which a tensor does not say whether it is differentiated."""
    return torch._C._are_functorch_transforms_active()


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents, which `torch.no_grad` does not stop."""
    return torch.autograd.forward_ad._current_level >= 0


def may_have_gradient() -> bool:
    """Whether anything that is computed now may be differentiated, in reverse or in forward mode."""
    return torch.is_grad_enabled() or in_forward_mode()


def has_tangent(x: Tensor) -> bool:
    """Whether `x` carries a tangent of the level that is open."""
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def is_under_autocast(device_type: str) -> bool:
    """Whether operations on tensors of a device are in lower precision now; the meta device knows no autocast."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Products of numbers such as `x` as precise as they are."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if is_under_autocast(device) else contextlib.nullcontext()


def all_true(mask: Tensor) -> bool:
    """Whether every element is true, where that can be known without waiting for a GPU; otherwise False."""
    return (
        is_eager() and type(mask) is Tensor and mask.is_cpu and bool(mask.all())
    )  # tracers' subclasses hold no numbers


def next_node() -> int:
    """Nodes of autograd's graph are numbered as they are made: the number of the next one; 0 in inference mode."""
    with torch.enable_grad():
        node: Any = torch.empty(0, requires_grad=True).view(0).grad_fn
    return 0 if node is None else int(node._sequence_nr())
