"""The processes that share a solve, and what travels between them, with its derivative.

A number that every process has is *shared*, and so is its gradient: each process holds the whole of it, as if it were
alone. What a process computes of its share of the work is *its own*, and the gradient of that counts `size` times: what
is shared has the mean of the gradients that come from the work of all. So a number that every process computes alike
within its own work (features that an objective keeps) has the right gradient wherever it is used, also elsewhere. The
functions here lead from one to the other; the backward pass of each is made of them.

A process may fail, catch its error, and go on to something else, while the others wait for it in an exchange. So each
exchange says in a tag which it is, and one that begins a solve is of another kind: nobody takes what was meant for
another exchange. Which solve it begins is said there, too.

It may fail anywhere: in a function of the user, in a check, by an interrupt. It does not know which exchange of the
solve the others come to next. So the first part of each has the same size, and there it says that it has failed; only
what is larger has a second part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_FAILED = -1  # the tag of a process that has nothing to send
_HEAD = 16  # bytes before what is sent, of which the size of every dtype is a divisor
_FIRST = 4096  # bytes after them in the first part of an exchange
_MANY = 2**20  # more exchanges than a solve has


class Ranks:
    """The processes of a group, seen from one of them.

    Args:
        group: a process group, a `torch.distributed.device_mesh.DeviceMesh` of one axis, or None for all
            processes.
        timeout: seconds that this process waits for the others in one exchange.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "shard: expected a process group: call torch.distributed.init_process_group() first, in processes that "
                "torchrun has started"
            )
        if hasattr(group, "get_group"):  # a DeviceMesh
            if group.ndim != 1:
                raise ValueError(f"shard: expected a mesh of one axis, such as mesh['samples'], got {group}")
            group = group.get_group()
        elif group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"shard: expected a DeviceMesh, a process group or None, got {group!r}")
        self.group, self.timeout = group, timeout
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("shard: expected a group that this process belongs to")
        backends = dist.get_backend_config(group).split(",")  # "cpu:gloo,cuda:nccl": also where none was named
        self.backends = dict(pair.split(":") for pair in backends)  # by the type of device whose tensors each sends
        self.first_tag = self.last_tag = 0  # of the exchanges of the solve that was begun last
        self.num_solves = 0  # for which this process has come here, whether or not they went well
        self._awaited = 0  # bytes that the others wait for, or will, in the next part of an exchange; 0: they do not

    def next_tag(self) -> int:
        """Of an exchange, or of one that is to come in the backward pass."""
        self.last_tag += 1
        return self.last_tag

    def begin(self, what: str, *facts: Any) -> None:
        """`agree` before a solve, from which on all processes number their exchanges alike."""
        sent = self._greeting(digest(*facts), self.last_tag)
        result = torch.empty_like(sent)
        # Not a gather: that would be taken for one that others may still be waiting for.
        self._exchange(dist.all_to_all_single, result, sent)
        digests, tags, solves = result.cpu().unbind(1)
        self.first_tag = self.last_tag = max(self.last_tag, int(tags.max()))
        if (solves != self.num_solves).any():
            self._awaited = 0
            raise RuntimeError(
                f"shard: expected all ranks to be in the same solve, got their solves {solves.tolist()} of this shard: "
                "some have gone on after an interrupt, or after waiting in vain. Start all of them again, from their "
                "last checkpoint, or give each, at the same place, a new shard of a torch.distributed.new_group()"
            )
        if (tags == _FAILED).any():
            self._refuse_answer(tags.tolist())
        self._same(what, digests)

    def abandon(self) -> None:
        """After a solve that came to nothing, in which each has been elsewhere: number what follows alike."""
        self.last_tag = self.first_tag + _MANY

    def fail_to_begin(self) -> None:
        """Instead of `begin`: tell the others, without waiting for them."""
        sent = self._greeting(0, _FAILED)
        self.first_tag, self._awaited = self.last_tag, 0  # what surrounds it, as a solve in a callback, has been told
        self.abandon()
        with suppress(RuntimeError):
            dist.all_to_all_single(torch.empty_like(sent), sent, group=self.group, async_op=True)

    def _greeting(self, about: int, tag: int) -> Tensor:
        return torch.tensor([[about, tag, self.num_solves]] * self.size, device=self._device)

    def gathered(self, x: Tensor, tag: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """What each process has, `(n, ...)`, one after the other, `(size * n, ...)`.

        All have to have the same `dtype`, which is what `x` had before it was brought to one that all know.
        """
        tag, kind = self.next_tag() if tag is None else tag, digest(x.dtype if dtype is None else dtype)
        sent = x.detach().to(self._device).contiguous().reshape(-1).view(torch.uint8)
        rest = max(len(sent) - _FIRST, 0)
        parts = [self._part(tag, kind, sent[:_FIRST], _FIRST, then=rest or _FIRST)[:, : len(sent)]]
        if rest:
            parts.append(self._part(tag, kind, sent[_FIRST:], rest, then=_FIRST))
        whole = torch.cat(parts, 1).reshape(-1).view(x.dtype).reshape(self.size * len(x), *x.shape[1:])
        return whole.to(x.device)

    def _part(self, tag: int, kind: int, sent: Tensor, num: int, then: int) -> Tensor:
        """The `num` bytes that each process sends, `(size, num)`; `then` are those of the next part."""
        message = self._message(tag, kind, sent, num)
        result = message.new_zeros(self.size * len(message))

        def heads_of() -> list[int]:
            # Flat first: of one process alone the rows are contiguous whatever their stride, which no view may have.
            heads: list[int] = result.reshape(self.size, -1)[:, :_HEAD].reshape(-1).view(torch.int64).tolist()
            return heads

        try:
            self._exchange(_all_gather(), result, message, then=then)
        except BaseException:
            if _FAILED in heads_of()[::2]:  # an interrupt of all: who failed waits for nobody
                self._awaited = 0
            raise
        heads, result = heads_of(), result.reshape(self.size, -1)
        self._check(tag, heads[::2])
        self._refuse("values of the same dtype", [rank for rank, of in enumerate(heads[1::2]) if of != heads[1]])
        return result[:, _HEAD:]

    def _message(self, tag: int, kind: int, sent: Tensor, num: int) -> Tensor:
        head = torch.tensor([tag, kind], device=sent.device).view(torch.uint8)
        return torch.cat([head, sent, sent.new_zeros(num - len(sent))])

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Where something is raised here, the others are told in the exchange that they come to next. There has to be
        one: the last of a solve comes after this. What an exchange has raised they know.
        """
        self._awaited = _FIRST
        try:
            yield
        except BaseException:  # an interrupt, too
            self._fail()
            raise

    def _fail(self) -> None:
        """Instead of the next part of an exchange: tell the others, without waiting for them."""
        if not self._awaited:
            return
        sent = self._message(_FAILED, 0, torch.empty(0, dtype=torch.uint8, device=self._device), self._awaited)
        self._awaited = 0
        self.next_tag()
        with suppress(RuntimeError):  # the others have ended: there is nobody to tell
            _all_gather()(sent.new_empty(self.size * len(sent)), sent, group=self.group, async_op=True)

    def mean(self, x: Tensor, tag: int) -> Tensor:
        """The mean of what the processes have; of sparse gradients a dense one."""
        x = x.to_dense() if x.is_sparse else x
        wide = x.to(torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype)
        wide = wide if x.device.type in self.backends else wide.to(self._device)
        tag %= 2**24 // self.size  # the sum of the tags is exact in single precision, too
        result = torch.cat([wide.flatten(), wide.new_full((1,), tag)])
        self._exchange(dist.all_reduce, result)
        if result[-1] != self.size * tag:
            self._check(tag, [])
        return result[:-1].div_(self.size).to(x).reshape(x.shape)

    def _check(self, tag: int, tags: list[int]) -> None:
        if tags != [tag] * self.size:
            self._refuse_answer(tags)

    def _refuse_answer(self, tags: list[int]) -> None:
        self._awaited = 0
        which = [rank for rank, of in enumerate(tags) if of == _FAILED]
        why = f"an error was raised on rank {which}" if which else "one of them is elsewhere, as after an error"
        raise RuntimeError(f"shard: rank {self.rank} of {self.size} got no answer from the others: {why}")

    def own(self, x: Tensor) -> Tensor:
        """The part of `x`, `(size * n, ...)`, that this process works on, `(n, ...)`."""
        n = len(x) // self.size
        return x[self.rank * n : (self.rank + 1) * n]

    def agree(self, what: str, *facts: Any, number: int = 0) -> int:
        """Raise in all processes where one of them has other facts (texts, numbers, tensors of bytes); otherwise the
        largest number that one of them has.
        """
        statement = torch.tensor([[digest(*facts), number]], device=self._device)
        digests, numbers = self.gathered(statement).unbind(1)
        self._same(what, digests)
        return int(numbers.max())

    def agree_up_to_rounding(self, what: str, numbers: list[Tensor]) -> None:
        """Raise in all processes where one of them has other numbers, of which each has as many."""

        def sums(x: Tensor) -> Tensor:
            x = x.detach().to(self._device, torch.float64).nan_to_num(0.0, 1e9, -1e9).flatten()
            return torch.stack([(x * torch.arange(len(x)).to(x).cos()).sum(), x.abs().sum()])

        all_of = self.gathered(torch.stack([sums(x) for x in numbers]).unsqueeze(0))  # (size, numbers, 2)
        differs = (all_of - all_of[0]).abs() > 1e-3 * all_of[..., 1:].amax(0)
        self._refuse(what, differs.flatten(1).any(-1).nonzero().flatten().tolist())

    def _same(self, what: str, digests: Tensor) -> None:
        self._refuse(what, (digests != digests[0]).nonzero().flatten().tolist())

    def _refuse(self, what: str, others: list[int]) -> None:
        self.refuse(f"{what} on every rank, got another than that of", others)

    def refuse(self, said: str, others: list[int]) -> None:
        """Raise if an exchange has shown that the ranks `others` differ from rank 0, which all of them see."""
        if others:
            self._awaited = 0
            raise ValueError(f"shard: expected {said} rank 0 on {others}")

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if "cpu" in self.backends else torch.device("cuda", torch.cuda.current_device())

    def _exchange(self, collective: Any, *tensors: Tensor, then: int = _FIRST) -> None:
        try:
            work = collective(*tensors, group=self.group, async_op=True)
            self._awaited = then  # from here on: an interrupt comes while this waits
            # NCCL does not make this process wait, and has the timeout of its group.
            if self.backends[tensors[0].device.type] == "nccl":
                work.wait()
            else:
                work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            self._awaited = 0
            raise RuntimeError(
                f"shard: rank {self.rank} of {self.size} got no answer from the others: one of them has ended, or did "
                f"not come within {self.timeout:g} s. Start all of them again, from their last checkpoint"
            ) from error


def digest(*facts: Any) -> int:
    found = hashlib.blake2b(digest_size=8)
    for fact in facts:
        found.update(_bytes(fact) if isinstance(fact, Tensor) else repr(fact).encode())
    return int.from_bytes(found.digest(), "little", signed=True)


def _all_gather() -> Any:
    return getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name to torch 2.12


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tied(first: Tensor, *others: Tensor) -> Tensor:
    """An empty tensor that depends on all of these, as do its derivatives of every order: that of `exp` is `exp`."""
    # Not cat, whose backward pass leaves out tensors of shape (0,).
    return torch.stack([x.real.unsqueeze(-1)[..., :0].reshape(0).to(first.real) for x in (first, *others)]).sum(0).exp()


class Gather(torch.autograd.Function):
    """Own parts `(n, ...)` to the shared whole `(size * n, ...)`.

    `attached` is an empty tensor of what the parts were computed from by way of `Scatter` and `Share` (`tied`): their
    backward passes exchange something, and have to run in every process, also in one whose part does not depend on
    them. So have those of what the backward pass here is made of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        part: Tensor,
        ranks: Ranks,
        tag: int | None = None,
        attached: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        ctx.ranks, ctx.num_own = ranks, 1  # the edge to the part, which `dcem._guard` does not follow
        if attached is not None:
            ctx.save_for_backward(attached)
        return ranks.gathered(part, tag, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        own = Scatter.apply(grad, ctx.ranks) * ctx.ranks.size  # type: ignore[no-untyped-call]
        attached = ctx.saved_tensors if torch.is_grad_enabled() else ()  # where it is to be differentiated again
        return own, None, None, tied(*attached, own) if attached else None, None


class Scatter(torch.autograd.Function):
    """The shared whole `(size * n, ...)` to the own part `(n, ...)`."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.tag = ranks, ranks.next_tag()
        return ranks.own(whole).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Gather.apply(grad, ctx.ranks, ctx.tag) / ctx.ranks.size, None  # type: ignore[no-untyped-call]


class Share(torch.autograd.Function):
    """What is shared, to be used in own work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, tag: int) -> Tensor:
        ctx.ranks, ctx.tag = ranks, tag
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Mean.apply(grad, ctx.ranks, ctx.tag), None, None  # type: ignore[no-untyped-call]


class Mean(torch.autograd.Function):
    """The shared mean of what the processes have of their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, tag: int) -> Tensor:
        ctx.ranks, ctx.tag = ranks, tag
        return ranks.mean(x, tag)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Share.apply(grad, ctx.ranks, ctx.tag), None, None  # type: ignore[no-untyped-call]
