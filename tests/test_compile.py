"""`torch.compile(fullgraph=True)` over whole solves."""

import pytest
import torch

import dcem

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*Leaf.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

SOLVERS = {  # and the iterations after which nothing new would be traced; `test_failure` has the other solvers
    "dcem": (dcem.CEM(40, 5, dcem.LML(0.5)), 1),
    "icem": (dcem.CEM(40, 5, dcem.ConstrainedSoftmax(0.5), keep_elites=0.4, smoothing=0.1), 2),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_whole_solve_compiles_to_one_graph(name, backend):
    solver, num_iterations = SOLVERS[name]
    theta = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    noise = torch.randn(num_iterations, 2, solver.num_samples, 2, generator=torch.Generator().manual_seed(0))

    def solve(theta, noise):
        solution = dcem.minimize(
            lambda x: (x - theta.unsqueeze(-2)).square().sum(-1), torch.zeros(2, 2), solver,
            num_iterations=num_iterations, noise=noise, bounds=(-2.0, 2.0),
        )  # fmt: skip
        return solution.x, solution.best_x, solution.status

    torch._dynamo.reset()
    compiled = torch.compile(solve, fullgraph=True, backend="inductor" if name == "dcem" else backend)
    eager, fast = solve(theta, noise), compiled(theta, noise)
    for ours, theirs in zip(eager, fast, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad(eager[0].sum(), theta)[0]
    torch.testing.assert_close(torch.autograd.grad(fast[0].sum(), theta)[0], gradient, atol=1e-4, rtol=1e-4)


def test_a_changing_k_is_compiled_once():
    """The projection is one node: neither its loop nor the k-th largest score is the compiler's."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, k: dcem.lml(x, k, temperature=0.5), fullgraph=True, backend=counter)
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen = []
    for k in (2, 3, 4, 5, 6):
        w = compiled(x, k)
        torch.testing.assert_close(w, dcem.lml(x, k, temperature=0.5))
        gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (w, dcem.lml(x, k, temperature=0.5))]
        torch.testing.assert_close(*gradients)
        seen.append(counter.frame_count)
    assert seen[2:] == [2, 2, 2]  # a number, then any number


@pytest.mark.parametrize("selection", [dcem.HardTopK(), lambda scores, k: dcem.hard_topk(scores, k)])
def test_a_compiled_hard_selection_refuses_a_gradient_when_it_is_asked_for(selection, backend):
    theta = torch.tensor([1.0, -2.0], requires_grad=True)
    noise = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(0))

    def solve(theta):
        return dcem.minimize(lambda x: (x - theta).square().sum(-1), torch.zeros(2), dcem.CEM(20, 5, selection),
                             num_iterations=1, noise=noise).x  # fmt: skip

    torch._dynamo.reset()
    backend = backend if isinstance(selection, dcem.HardTopK) else "eager"  # one of them with its backward pass traced
    x = torch.compile(solve, fullgraph=True, backend=backend)(theta)
    torch.testing.assert_close(x, solve(theta))
    with pytest.raises(RuntimeError, match="has no gradient, and the solution was asked for one"):
        x.sum().backward()
