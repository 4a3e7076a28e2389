"""What a recurrent state-space model imagines on a GPU, in Triton: a kernel for the memory, one for the mean of the
prior, one for a network with two hidden layers, such as the reward's.

Between two layers a program writes its own rows to memory, and waits for all its threads before it reads them: they
come out of the cache. Products are in the precision of the states that come: TF32 for float32, else their own; sums
are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def _blocks(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> dict[str, int]:
    """Rows and columns of a program's block, how far it sums at a time, its warps, and the stages in flight."""
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages, **more}


# Among how many programs the columns of the memory are divided, and the blocks of the two kernels: the fastest that
# were tried on an H100. In float32 the others' blocks would need more registers or shared memory than there are.
FEW = 4, _blocks(32, 64, 32, 4, 4, BLOCK_E=256), _blocks(16, 256, 64, 4, 4)
FEW_SINGLE = 4, _blocks(32, 64, 32, 4, 4, BLOCK_E=256), _blocks(16, 256, 32, 4, 4)
MANY = 1, _blocks(128, 64, 32, 8, 4, BLOCK_E=128), _blocks(128, 128, 64, 4, 3)
MANY_SINGLE = 1, _blocks(64, 64, 32, 4, 3, BLOCK_E=64), _blocks(128, 128, 32, 4, 3)
LARGEST_FEW = 8448  # rows: beyond, the blocks of many fill it, too
PERCEPTRON, PERCEPTRON_SINGLE = _blocks(128, 256, 64, 8, 3), _blocks(128, 256, 32, 8, 3)
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _plus_driven(
    total, s_ptr, a_ptr, row, rows_ok, w_ptr, columns_ok, S: tl.constexpr, A: tl.constexpr, BLOCK_K: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """`total + [s, a] wᵀ`; the pointers are those of both, and of the weights of the columns."""
    for start in range(0, S + A, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        of_s, of_a = rows_ok[:, None] & (k < S)[None, :], rows_ok[:, None] & ((k >= S) & (k < S + A))[None, :]
        driven = tl.load(s_ptr + row[:, None] * S + k[None, :], mask=of_s, other=0)
        driven += tl.load(a_ptr + row[:, None] * A + (k - S)[None, :], mask=of_a, other=0)
        w = tl.load(w_ptr + k[:, None], mask=columns_ok[None, :] & (k < S + A)[:, None], other=0)
        total = tl.dot(driven.to(KIND), w.to(KIND), total, input_precision="tf32")
    return total


@triton.jit
def _plus_product(
    total, a_ptr, rows_ok, w_ptr, columns_ok, SIZE: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr
):
    """`total + a wᵀ`; the pointers are those of the rows of both."""
    for start in range(0, SIZE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + k[None, :], mask=rows_ok[:, None] & (k < SIZE)[None, :], other=0).to(KIND)
        w = tl.load(w_ptr + k[:, None], mask=columns_ok[None, :] & (k < SIZE)[:, None], other=0).to(KIND)
        total = tl.dot(a, w, total, input_precision="tf32")
    return total


@triton.jit
def _plus_products(
    r, z, n, a_ptr, rows_ok, w_ptr, w_next, columns_ok, SIZE: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr
):
    """The same for the three gates, whose weights stand `w_next` apart: `a` is read once."""
    for start in range(0, SIZE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + k[None, :], mask=rows_ok[:, None] & (k < SIZE)[None, :], other=0).to(KIND)
        w_ok = columns_ok[None, :] & (k < SIZE)[:, None]
        w_r = tl.load(w_ptr + k[:, None], mask=w_ok, other=0).to(KIND)
        w_z = tl.load(w_ptr + w_next + k[:, None], mask=w_ok, other=0).to(KIND)
        w_n = tl.load(w_ptr + 2 * w_next + k[:, None], mask=w_ok, other=0).to(KIND)
        r = tl.dot(a, w_r, r, input_precision="tf32")
        z = tl.dot(a, w_z, z, input_precision="tf32")
        n = tl.dot(a, w_n, n, input_precision="tf32")
    return r, z, n


@triton.jit
def _bias(b_ptr, columns, columns_ok, zeros):
    return zeros + tl.load(b_ptr + columns, mask=columns_ok, other=0).to(tl.float32)[None, :]


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # without it what is not a number is 0


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _wait():
    """Until the kernel before has ended; then the next may begin, so that no more than two are at work."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _embed(
    s_ptr, a_ptr, w_ptr, b_ptr, x_ptr, row, ok, S: tl.constexpr, A: tl.constexpr, EMBED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """`x = relu(W [s, a] + b)`."""
    for first in range(0, EMBED, BLOCK_E):
        n = first + tl.arange(0, BLOCK_E)
        n_ok = n < EMBED
        x = _bias(b_ptr, n, n_ok, tl.zeros((BLOCK_M, BLOCK_E), tl.float32))
        x = _plus_driven(x, s_ptr, a_ptr, row, ok, w_ptr + n[None, :] * (S + A), n_ok, S, A, BLOCK_K, KIND)
        tl.store(x_ptr + n[None, :], _relu(x), mask=ok[:, None] & n_ok[None, :])
    tl.debug_barrier()


@triton.jit
def _remember(
    h_ptr, s_ptr, a_ptr, embed_w_ptr, embed_b_ptr, input_w_ptr, input_b_ptr, hidden_w_ptr, hidden_b_ptr, between_ptr,
    next_h_ptr, rows,
    H: tl.constexpr, S: tl.constexpr, A: tl.constexpr, EMBED: tl.constexpr, PARTS: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """`h' = GRU(h, relu(W [s, a] + b))`; of several programs a block of rows, each writes a part of the columns."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    ok = row < rows
    h_row, x_row = row[:, None] * H, (row * PARTS + part)[:, None] * EMBED
    zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # The products with the memory need not wait for the mean, if there is one block of columns, so one wait.
    HIDDEN_FIRST: tl.constexpr = EARLY and H <= BLOCK_N * PARTS
    if EARLY and not HIDDEN_FIRST:
        _wait()
    if not HIDDEN_FIRST:
        _embed(
            s_ptr, a_ptr, embed_w_ptr, embed_b_ptr, between_ptr + x_row, row, ok, S, A, EMBED, BLOCK_M, BLOCK_K,
            BLOCK_E, KIND,
        )  # fmt: skip
    for step in range(tl.cdiv(H, BLOCK_N * PARTS)):  # reset, update and candidate
        n = (step * PARTS + part) * BLOCK_N + tl.arange(0, BLOCK_N)
        n_ok = n < H
        r = _bias(input_b_ptr, n, n_ok, _bias(hidden_b_ptr, n, n_ok, zeros))
        z = _bias(input_b_ptr + H, n, n_ok, _bias(hidden_b_ptr + H, n, n_ok, zeros))
        of_input = _bias(input_b_ptr + 2 * H, n, n_ok, zeros)
        of_hidden = _bias(hidden_b_ptr + 2 * H, n, n_ok, zeros)
        w_ptr = hidden_w_ptr + n[None, :] * H
        r, z, of_hidden = _plus_products(r, z, of_hidden, h_ptr + h_row, ok, w_ptr, H * H, n_ok, H, BLOCK_K, KIND)
        if HIDDEN_FIRST:
            _wait()
            _embed(
                s_ptr, a_ptr, embed_w_ptr, embed_b_ptr, between_ptr + x_row, row, ok, S, A, EMBED, BLOCK_M, BLOCK_K,
                BLOCK_E, KIND,
            )  # fmt: skip
        w_ptr = input_w_ptr + n[None, :] * EMBED
        r, z, of_input = _plus_products(
            r, z, of_input, between_ptr + x_row, ok, w_ptr, H * EMBED, n_ok, EMBED, BLOCK_K, KIND
        )
        candidate = 2 * _sigmoid(2 * (of_input + _sigmoid(r) * of_hidden)) - 1
        h_ok = ok[:, None] & n_ok[None, :]
        h = tl.load(h_ptr + h_row + n[None, :], mask=h_ok, other=0).to(tl.float32)
        tl.store(next_h_ptr + h_row + n[None, :], candidate + _sigmoid(z) * (h - candidate), mask=h_ok)


@triton.jit
def _expect(
    h_ptr, prior_w_ptr, prior_b_ptr, mean_w_ptr, mean_b_ptr, between_ptr, s_ptr, rows,
    H: tl.constexpr, S: tl.constexpr, PRIOR: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The mean of the prior: `s' = V relu(W h' + b) + c`."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = row < rows
    x_row = row[:, None] * PRIOR
    if EARLY:
        _wait()
    for first in range(0, PRIOR, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        n_ok = n < PRIOR
        x = _bias(prior_b_ptr, n, n_ok, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
        x = _plus_product(x, h_ptr + row[:, None] * H, ok, prior_w_ptr + n[None, :] * H, n_ok, H, BLOCK_K, KIND)
        tl.store(between_ptr + x_row + n[None, :], _relu(x), mask=ok[:, None] & n_ok[None, :])
    tl.debug_barrier()

    n = tl.arange(0, BLOCK_S)
    n_ok = n < S
    s = _bias(mean_b_ptr, n, n_ok, tl.zeros((BLOCK_M, BLOCK_S), tl.float32))
    s = _plus_product(s, between_ptr + x_row, ok, mean_w_ptr + n[None, :] * PRIOR, n_ok, PRIOR, BLOCK_K, KIND)
    tl.store(s_ptr + row[:, None] * S + n[None, :], s, mask=ok[:, None] & n_ok[None, :])


@triton.jit
def _perceptron(
    h_ptr, s_ptr, a_ptr, first_w_ptr, first_b_ptr, second_w_ptr, second_b_ptr, last_w_ptr, last_b_ptr, between_ptr,
    y_ptr, rows,
    H: tl.constexpr, S: tl.constexpr, A: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """`y = w · relu(V relu(W [h, s, a] + b) + c) + d`."""
    FEW_K: tl.constexpr = 32  # s and a are short
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = row < rows
    x_row = row[:, None] * FIRST
    for first in range(0, FIRST, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        n_ok = n < FIRST
        x = _bias(first_b_ptr, n, n_ok, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
        w_ptr = first_w_ptr + n[None, :] * (H + S + A)
        x = _plus_product(x, h_ptr + row[:, None] * H, ok, w_ptr, n_ok, H, BLOCK_K, KIND)
        x = _plus_driven(x, s_ptr, a_ptr, row, ok, w_ptr + H, n_ok, S, A, FEW_K, KIND)
        tl.store(between_ptr + x_row + n[None, :], _relu(x), mask=ok[:, None] & n_ok[None, :])
    tl.debug_barrier()

    y = tl.zeros((BLOCK_M,), tl.float32) + tl.load(last_b_ptr).to(tl.float32)
    for first in range(0, SECOND, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        n_ok = n < SECOND
        x = _bias(second_b_ptr, n, n_ok, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
        w_ptr = second_w_ptr + n[None, :] * FIRST
        x = _plus_product(x, between_ptr + x_row, ok, w_ptr, n_ok, FIRST, BLOCK_K, KIND)
        w = tl.load(last_w_ptr + n, mask=n_ok, other=0).to(tl.float32)
        y += tl.sum(_relu(x) * w[None, :], 1)
    tl.store(y_ptr + row, y, mask=ok)


def _can_launch_early(x: Tensor) -> bool:
    """Whether a kernel may begin before the one that it follows has ended (programmatic dependent launch)."""
    if not x.is_cuda or not hasattr(tl.extra.cuda, "gdc_wait"):  # Triton 3.3 has it
        return False
    return torch.cuda.get_device_capability(x.device) >= (9, 0)


def recurrent_rollout(h: Tensor, s: Tensor, actions: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """`dcem::recurrent_rollout`."""
    actions, weights = actions.contiguous(), [w.contiguous() for w in weights]
    steps, rows = len(actions), h[..., 0].numel()
    hs, ss = (x.new_empty(steps + 1, *x.shape) for x in (h, s))
    hs[0], ss[0] = h, s  # in this order: the first kernel may begin before the last copy has ended, and reads h
    embed, prior = weights[0].shape[0], weights[6].shape[0]
    few, single = rows <= LARGEST_FEW, h.dtype == torch.float32
    parts, remember, expect = (FEW_SINGLE if single else FEW) if few else (MANY_SINGLE if single else MANY)
    between = h.new_empty(rows, max(parts * embed, prior))
    sizes = {"H": h.shape[-1], "S": s.shape[-1], "KIND": KINDS[h.dtype], "EARLY": few and _can_launch_early(h)}
    if sizes["EARLY"]:
        sizes["launch_pdl"] = True
    for t in range(steps if rows else 0):
        _remember[(triton.cdiv(rows, remember["BLOCK_M"]), parts)](
            hs[t], ss[t], actions[t], *weights[:6], between, hs[t + 1], rows, **sizes, A=actions.shape[-1],
            EMBED=embed, PARTS=parts, **remember,
        )  # fmt: skip
        _expect[(triton.cdiv(rows, expect["BLOCK_M"]),)](
            hs[t + 1], *weights[6:], between, ss[t + 1], rows, **sizes, PRIOR=prior,
            BLOCK_S=max(16, triton.next_power_of_2(s.shape[-1])), **expect,
        )  # fmt: skip
    return hs, ss


def perceptron(h: Tensor, s: Tensor, a: Tensor, weights: list[Tensor]) -> Tensor:
    """`dcem::perceptron`."""
    h, s, a, weights = h.contiguous(), s.contiguous(), a.contiguous(), [w.contiguous() for w in weights]
    y, rows, first = h.new_empty(h.shape[:-1]), h[..., 0].numel(), weights[0].shape[0]
    blocks = PERCEPTRON_SINGLE if h.dtype == torch.float32 else PERCEPTRON
    if rows:
        _perceptron[(triton.cdiv(rows, blocks["BLOCK_M"]),)](
            h, s, a, *weights, h.new_empty(rows, first), y, rows, H=h.shape[-1], S=s.shape[-1], A=a.shape[-1],
            FIRST=first, SECOND=weights[2].shape[0], KIND=KINDS[h.dtype], **blocks,
        )  # fmt: skip
    return y
