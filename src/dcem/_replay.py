"""To compute something a second time, for its gradient, and to get the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dcem._best import finite_range
from dcem._eager import as_promised, in_forward_mode, is_eager, is_transformed, is_unchecked, may_look

_ALIKE = (
    "draw from torch's global generator, or from the one that the solve was given, keep no state between calls, and "
    "change no parameter before the last backward pass; or use another gradient mode"
)


def randomness(device: torch.device, generator: torch.Generator | None) -> Callable[[], None]:
    """Note where torch's random numbers stand, of `device` and of `generator`; the result puts them back there."""
    on_cpu = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    given = None if generator is None else generator.get_state()

    def put_back() -> None:
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        if generator is not None and given is not None:
            generator.set_state(given)

    return put_back


@contextlib.contextmanager
def replayed(put_back: Callable[[], None], device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """With the random numbers as they were when `put_back` was made; after it, as they are now. So what is drawn later
    does not depend on whether, or how, something was evaluated a second time.
    """
    put_here = randomness(device, generator)
    put_back()
    try:
        yield
    finally:
        put_here()


def forgotten(
    fn: Callable[..., Any], *inputs: Any, values_of: Callable[[Any], Tensor], generator: torch.Generator | None
) -> Any:
    """`fn(*inputs)`, of which only the inputs are kept: the backward pass calls it again.

    Torch's global randomness is replayed, and that of `generator`. Other randomness cannot be; then `values_of` the
    result, `(*batch, N)`, differ, which is an error: the gradient would be one of something else. Inside
    `torch.func` transforms and in forward mode, which checkpoints do not work in, everything is kept.
    """
    if is_transformed() or in_forward_mode():
        return fn(*inputs)
    if not is_eager():
        return checkpoint(fn, *inputs, use_reentrant=False)
    before, promised = None if generator is None else generator.get_state(), is_unchecked()
    first: list[Tensor] = []
    failed: list[BaseException] = []

    def again_alike(*inputs: Any) -> Any:
        if not first:
            try:
                result = fn(*inputs)
            # Raised here, torch before 2.13 would leave its hooks to all that comes while someone keeps the error.
            except BaseException as error:
                failed.append(error)
                return None
            first.append(values_of(result).detach().clone())
            return result
        now = None if generator is None else generator.get_state()
        if generator is not None and before is not None:
            generator.set_state(before)
        with as_promised(promised):  # or other tensors would be kept than in the forward pass
            try:
                result = fn(*inputs)
            finally:
                if generator is not None and now is not None:
                    generator.set_state(now)
            check_alike(first[0], values_of(result), "the backward pass")
        return result

    # It would stop before the values can be compared; as a setting of torch it would be one of all threads.
    result = checkpoint(again_alike, *inputs, use_reentrant=False, early_stop=False)
    if failed:
        raise failed.pop()
    return result


def check_alike(
    first: Tensor, again: Tensor, where: str, *, remedy: str = _ALIKE, spread_of: Tensor | None = None
) -> None:
    """Raise where values `(*batch, N)` differ by more than rounding can do: more than a hundredth of their spread."""
    if is_unchecked() or not may_look(first):
        return
    change = (again.detach() - first).abs().nan_to_num(0.0, 0.0, 0.0)
    if not change.any():
        return
    values = first if spread_of is None else spread_of
    low, high = finite_range(values)
    rounding = 32 * torch.finfo(values.dtype).eps * torch.maximum(high, -low)
    if ((change.mean(-1) > 0.01 * (high - low) + rounding) & (low <= high)).any():
        raise RuntimeError(
            f"objective: expected the values that it had before where {where} evaluates it a second time, got others: "
            f"{remedy}"
        )
