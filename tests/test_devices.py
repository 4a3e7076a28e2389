"""On a GPU the host need not wait: nothing looks at a value, and nothing is copied there while a solve or a plan runs.

Without a gradient that is so; with one the checks of `dcem.unchecked` have to be off.

Without a GPU the same runs on the meta device, where looking at a value fails; copies from the host are noticed.
"""

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dcem
from dcem.control import MPC
from dcem.projections.functional import constrained_softmax, constrained_sparsemax, hard_topk, lml

SOLVERS = {
    "cem": dcem.CEM(20, 5, dcem.LML(0.5)),
    "icem": dcem.CEM(20, 5, dcem.LML(0.05), keep_elites=0.2, smoothing=0.1),
    "softmax": dcem.CEM(20, 5, dcem.ConstrainedSoftmax(0.5), standardize=False),
    "sparsemax": dcem.CEM(20, 5, dcem.ConstrainedSparsemax(2.0)),
    "effective": dcem.CEM(20, 5, dcem.LML(effective=8)),
    "hard": dcem.CEM(20, 5, dcem.HardTopK()),
    "mppi": dcem.MPPI(20, 0.5),
    "descent": dcem.GradientDescent(0.2, momentum=0.3),
}
MODES = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(2), dcem.Prune(), dcem.Implicit(), dcem.Detach()]


class Copies(TorchFunctionMode):
    """What would be copied from the host, by the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if function in made and result.is_meta and not (args and getattr(args[0], "is_meta", False) and len(args) == 1):
            self.seen.append(function.__name__)
        return result


class CopiesInside(TorchDispatchMode):
    """Likewise, of the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.is_cpu]
        copies = str(function).startswith(("aten._to_copy", "aten.copy_")) or any(leaf.dim() for leaf in given)
        if given and copies and any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(result)):
            self.seen.append(str(function))
        return result


@contextlib.contextmanager
def without_waiting(device: str, checked: bool = False) -> Iterator[None]:
    """What is run inside neither looks at a value nor copies one."""
    with contextlib.nullcontext() if checked else dcem.unchecked():
        if device == "cuda":
            try:
                torch.cuda.set_sync_debug_mode("error")
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            with Copies() as copies, CopiesInside() as inside:
                yield
            assert copies.seen + inside.seen == []


pytestmark = [
    pytest.mark.parametrize("place", ["meta"] + (["cuda"] if torch.cuda.is_available() else [])),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def distance(target: torch.Tensor):
    return lambda x: (x - target.unsqueeze(-2)).square().sum(-1)


CASES = [("cem", mode) for mode in MODES] + [
    (name, dcem.Detach() if name == "hard" else dcem.Unroll()) for name in SOLVERS if name != "cem"
]


@pytest.mark.parametrize(("name", "gradient"), CASES)
def test_solves(place, name, gradient):
    targets = torch.zeros(3, 2, device=place, requires_grad=True)
    start, low = torch.zeros(3, 2, device=place), torch.full((2,), -1.0, device=place)
    num_iterations = 2 if name in ("cem", "icem") else 1  # the others' iterations are all alike
    by_values = place == "cuda" and isinstance(
        gradient, dcem.Implicit
    )  # whether it is a minimum, and the linear system
    with dcem.unchecked() if by_values else without_waiting(place):
        solution = dcem.minimize(
            distance(targets), start, SOLVERS[name], num_iterations=num_iterations, gradient=gradient, bounds=(low, 1),
            record=True,
        )  # fmt: skip
    if not isinstance(gradient, dcem.Detach):
        with contextlib.nullcontext() if isinstance(gradient, dcem.Implicit) else without_waiting(place):
            assert torch.autograd.grad(solution.x.sum(), targets)[0].shape == (3, 2)
    assert solution.x.device.type == place
    assert solution.best_x.shape == (3, 2)
    assert ("status: not known" in repr(solution)) == (place == "meta")


def test_sides_of_a_box_come_to_the_device(place):
    high = torch.ones(2, device=place)
    for bounds in (([-1.0, -1.0], high), (torch.full((2,), -1.0, device="cpu"), high), (-1, [1.0, 1.0])):
        solution = dcem.minimize(lambda x: x.sum(-1), torch.zeros(3, 2, device=place), num_iterations=1, bounds=bounds)
        assert solution.x.device.type == place


@pytest.mark.parametrize("setting", ["number", "rows"])
def test_settings_come_to_the_device(place, setting):
    """Tensors that nobody has moved: temperatures, rates, widths, and numbers of elites."""
    tau, width = (torch.tensor(0.5 if setting == "number" else of, device="cpu") for of in ([0.5] * 3, [0.5] * 2))
    for solver in (
        dcem.CEM(20, 4, dcem.LML(tau), init_std=width), dcem.CEM(20, 4, dcem.ConstrainedSoftmax(tau)),
        dcem.MPPI(20, tau), dcem.GradientDescent(tau.expand(3)),
    ):  # fmt: skip
        solution = dcem.minimize(lambda x: x.square().sum(-1), torch.ones(3, 2, device=place), solver, num_iterations=3)
        assert solution.x.device.type == place
    k = torch.tensor(2 if setting == "number" else [1, 2, 3], device="cpu")
    for projection in (lml, constrained_softmax, constrained_sparsemax, hard_topk):
        assert projection(torch.ones(3, 5, device=place), k).device.type == place


@pytest.mark.parametrize("family", ["full", "mixture", "categorical", "product"])
def test_families(place, family):
    x = torch.zeros(3, 2, device=place)
    init = {
        "full": lambda: dcem.FullGaussian(x, torch.eye(2, device=place)),
        "mixture": lambda: dcem.Mixture(torch.zeros(3, 4, 2, device=place), torch.ones(3, 4, 2, device=place)),
        "categorical": lambda: dcem.Categorical(x),
        "product": lambda: dcem.Product([dcem.Gaussian(x, torch.ones_like(x)), dcem.Categorical(x)]),
    }[family]()
    with without_waiting(place):
        solution = dcem.minimize(lambda x: x.sum(-1), init, dcem.CEM(20, 5), num_iterations=2)
    assert solution.x.shape[0] == 3


def test_searches_and_layers(place):
    x = torch.zeros(3, 2, device=place)
    layer = dcem.Argmin(2, bounds=(-1, 1), init=(0.0, 1.0), num_iterations=2).to(place)
    model = dcem.energy.EnergyModel(dcem.energy.MLPEnergy(2, 2), 2, dcem.CEM(20, 5), num_iterations=2).to(place)
    with without_waiting(place):
        search = dcem.Search(x)
        search.tell(search.ask().sum(-1))
        assert search.solution.x.device.type == place
        assert layer(lambda x: x.square().sum(-1), (3,)).x.device.type == place
        model(x).sum().backward()


PLANS = {
    "plain": {},
    "best": {"answer": "best"},
    "last": {"answer": "last"},
    "chunks": {"chunk_size": 10},
    "discount": {"discount": 0.9},
    "termination": {"continues": lambda s: (s.abs().sum(-1) < 3).to(s.dtype)},
    "terminal": {"terminal_cost": lambda s: s.square().sum(-1)},
    "constraint": {"constraint": lambda s: s.abs() - 1},
    "rate": {"action_rate_cost": 0.1},
    "particles": {"num_particles": 2, "risk": dcem.control.CVaR(0.5)},
    "time": {"cost": lambda s, a, t: (s.sum(-1) - t.reshape(-1, *[1] * (s.dim() - 2))).square()},
    "proposals": {"proposals": lambda s, h, m: s.new_zeros(*s.shape[:-1], 1, h, 2), "num_proposals": 1},
    "mppi": {"solver": dcem.MPPI(20, 0.5)},
    "colored": {"noise": dcem.ColoredNoise(1.0, dim=-2)},
    "spline": {"decoder": dcem.embedding.SplineDecoder(2, (3, 2))},
}


@pytest.mark.parametrize("name", PLANS)
def test_plans(place, name):
    soft = name in ("plain", "best", "chunks")
    given = {
        "cost": lambda s, a: s.square().sum(-1) + a.square().sum(-1),
        "solver": dcem.CEM(20, 5, dcem.LML() if soft else dcem.HardTopK()),
        **PLANS[name],
    }
    cost = given.pop("cost")
    num_iterations = 1 + (name == "plain")  # what the settings change is in each of them
    mpc = MPC(lambda s, a: s + a, cost, 3, 2, (-1, 1), num_iterations=num_iterations, **given)
    mpc = copy.deepcopy(mpc).to(place)
    state, reset = torch.zeros(3, 2, device=place), torch.zeros(3, dtype=torch.bool, device=place)
    with without_waiting(place, checked=True), torch.no_grad():
        plan = mpc(state)
        alone = mpc(state, warm_start=plan, reset=reset, evaluate=False)
    assert plan.actions.shape == alone.actions.shape == (3, 3, 2)
    if soft:
        state.requires_grad_()
        with without_waiting(place):
            mpc(state).cost.sum().backward()


@pytest.mark.parametrize("name", ["RSSM", "LatentModel"])
def test_plans_through_latent_models(place, name):
    model = getattr(dcem.world, name)(4, 2).to(place)
    mpc = MPC(model.imagine, model.cost, 3, 2, (-1, 1), dcem.CEM(20, 5), num_iterations=2).to(place)
    action, seen = torch.zeros(3, 2, device=place), torch.zeros(3, 4, device=place)
    with without_waiting(place, checked=True), torch.no_grad():
        belief = model.observe(model.initial((3,)), action, seen)
        assert mpc(belief).actions.shape == (3, 3, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("checked", [True, False])
def test_a_cuda_graph_of_a_solve_and_its_gradient(place, checked):
    """Recorded once and replayed with other numbers, it is the eager solve of these."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), contextlib.nullcontext() if checked else dcem.unchecked():
        target = torch.zeros(3, 2, device="cuda", requires_grad=True)
        noise = torch.zeros(4, 3, 50, 2, device="cuda")

        def solve() -> tuple[torch.Tensor, torch.Tensor]:
            solution = dcem.minimize(
                lambda x: (x - target.unsqueeze(-2)).square().sum(-1), torch.zeros(3, 2, device="cuda"),
                dcem.CEM(50, 5, dcem.LML(0.5)), num_iterations=4, noise=noise,
            )  # fmt: skip
            return solution.x, torch.autograd.grad(solution.x.square().sum(), target)[0]

        solve()
        with torch.cuda.graph(graph, stream=stream):
            recorded = solve()
        with torch.no_grad():
            target.normal_()
            noise.normal_()
        graph.replay()
        for one, other in zip(recorded, solve(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
