"""The hard selection, which is no projection with a gradient."""

import math

import pytest
import torch

from dcem.projections import HardTopK, hard_topk


def test_exactly_k_ones_without_gradient() -> None:
    x = torch.randn(4, 3, 10).round().requires_grad_()
    for k in (1, 4, 10):
        w = hard_topk(x, k)
        assert not w.requires_grad
        assert (w.sum(-1) == k).all()
        assert ((w == 0) | (w == 1)).all()
        assert torch.equal(hard_topk(x, k, dim=-1), HardTopK()(x.mT, k, dim=1).mT)


def test_the_first_of_equal_scores_wins() -> None:
    x = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert hard_topk(x, 2).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_rows_without_an_answer_are_nan_alone() -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([[1.0, -inf, 2.0], [1.0, -inf, -inf], [1.0, nan, 2.0], [inf, 0.0, 0.0]])
    w = hard_topk(x, 2)
    assert w[0].tolist() == [1, 0, 1]
    assert w[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    x = torch.arange(300).to(dtype)
    w = hard_topk(x, 299)
    assert w.dtype == dtype
    assert w.float().sum() == 299


def test_vmap_and_batch() -> None:
    x = torch.randn(5, 6)
    assert torch.equal(torch.func.vmap(lambda row: hard_topk(row, 2))(x), hard_topk(x, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it traces
def test_compile(backend: str) -> None:
    x = torch.randn(5, 6).round()
    compiled = torch.compile(lambda x: hard_topk(x, 2), fullgraph=True, backend=backend)
    assert torch.equal(compiled(x), hard_topk(x, 2))


@pytest.mark.cpu
def test_mistakes() -> None:
    x = torch.zeros(2, 5)
    for k, remedy in ((2.0, "; 2 would do"), (2.5, ""), (True, ""), ("2", "")):
        with pytest.raises(TypeError, match=rf"k: expected an int, got [^;]*{remedy}$"):
            hard_topk(x, k)  # type: ignore[arg-type]
    for k in (0, 6):
        with pytest.raises(ValueError, match="k: expected an int with 0 < k <= 5"):
            hard_topk(x, k)
    with pytest.raises(TypeError, match="scores: expected a floating-point"):
        hard_topk(x.long(), 2)
    assert repr(HardTopK()) == "HardTopK()"
