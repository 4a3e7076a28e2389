"""Solves that one process and several have to answer alike."""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dcem

SAMPLES: dict[str, Callable[[Any], list[Tensor]]] = {}
PROBLEMS: dict[str, Callable[[Any], list[Tensor]]] = {}
D, B, T = 3, 6, 2


def parameters() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(B, D, generator=generator, dtype=torch.float64).requires_grad_()
    return theta, torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64).requires_grad_()


def curved(theta: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Closes over leaves, one of them looked at without a gradient first, and over a tensor computed from one before."""
    factor = scale.exp()

    def objective(x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = 0.01 * scale.to(x)  # which is `scale` itself
        away = x - theta.to(x)[:, None] + scale - shift
        mixed = away @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]], dtype=x.dtype)
        return (factor * mixed.square()).sum(-1) + torch.sin(3 * x).sum(-1)

    return objective


def failing(objective: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Some candidates fail, with a derivative that is not finite; for one problem nearly all."""

    def partly(x: Tensor) -> Tensor:
        limit = torch.full((B, 1), 0.5, dtype=x.dtype)
        limit[2] = -0.9
        return objective(x) + 1e-3 * (limit - x[..., 0]).sqrt()

    return partly


def solved(
    shard: Any, solver: dcem.Solver, *, init: Any = None, wrap: Callable[..., Any] = lambda f: f, **options: Any
) -> list[Tensor]:
    theta, scale = parameters()
    mean = torch.zeros(B, D, dtype=torch.float64) if init is None else init
    options = {"generator": torch.Generator().manual_seed(2), "num_iterations": T} | options
    solution = dcem.minimize(wrap(curved(theta, scale)), mean, solver, shard=shard, **options)
    answers = [solution.x, solution.best_x, solution.best_value, solution.status, solution.distribution.std]
    wanted = [theta, scale]
    if isinstance(init, Tensor) and init.requires_grad:
        wanted.append(init)
    if solution.x.requires_grad:
        loss = (solution.x * torch.arange(1.0, D + 1, dtype=torch.float64)).sum() + solution.distribution.std.sum()
        answers += torch.autograd.grad(loss + theta.square().sum(), wanted, allow_unused=True, materialize_grads=True)
    return [answer.detach() for answer in answers]


def full(batch: int = B) -> dcem.FullGaussian:
    return dcem.FullGaussian(torch.zeros(batch, D, dtype=torch.float64), torch.eye(D, dtype=torch.float64))


def cem(selection: Any = None, **options: Any) -> dcem.CEM:
    return dcem.CEM(30, 6, dcem.LML(0.7) if selection is None else selection, **options)


for kind in (dcem.LML(0.7), dcem.ConstrainedSoftmax(0.7), dcem.ConstrainedSparsemax(0.7), dcem.HardTopK()):
    name, mode = type(kind).__name__, {"gradient": dcem.Detach()} if isinstance(kind, dcem.HardTopK) else {}
    SAMPLES[f"{name}, Gaussian"] = lambda shard, kind=kind, mode=mode: solved(shard, cem(kind), **mode)
    SAMPLES[f"{name}, FullGaussian"] = lambda shard, kind=kind, mode=mode: solved(shard, cem(kind), init=full(), **mode)
for mode in (dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(0.3), dcem.Prune(0.03), dcem.Implicit(10.0)):
    SAMPLES[str(mode)] = lambda shard, mode=mode: solved(shard, cem(), gradient=mode)
    SAMPLES[f"{mode}, failed samples, elites"] = lambda shard, mode=mode: solved(
        shard, cem(keep_elites=0.5), gradient=mode, wrap=failing
    )
SAMPLES["gradient of the start"] = lambda shard: solved(
    shard, cem(), init=torch.full((B, D), 0.1, dtype=torch.float64).requires_grad_()
)
SAMPLES["failed samples, elites, decay, smoothing, bounds"] = lambda shard: solved(
    shard, cem(keep_elites=0.5, population_decay=1.3, smoothing=0.2), wrap=failing, bounds=(-1.5, None)
)
SAMPLES["explicit noise, proposals"] = lambda shard: solved(
    shard,
    cem(),
    noise=torch.randn(T, B, 30, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    proposals=torch.full((B, 4, D), 0.3, dtype=torch.float64),
    generator=None,
)
SAMPLES["MPPI"] = lambda shard: solved(shard, dcem.MPPI(30, 0.5))


def energy_model(shard: Any) -> list[Tensor]:
    """Its input comes from an encoder, which is trained, too."""
    torch.manual_seed(0)
    encoder, energy = (
        nn.Linear(2, 4).double(),
        nn.Sequential(nn.Linear(4 + D, 8), nn.Softplus(), nn.Linear(8, 1)).double(),
    )

    def of(x: Tensor, y: Tensor) -> Tensor:
        given = x[:, None].expand(*y.shape[:-1], 4)
        return energy(torch.cat([given, y], -1)).squeeze(-1) + y.square().sum(-1)

    model = dcem.energy.EnergyModel(of, D, cem(), num_iterations=T, shard=shard)
    model.of = nn.ModuleList([encoder, energy])
    prediction = model(encoder(torch.linspace(-1, 1, 2 * B, dtype=torch.float64).reshape(B, 2)))
    prediction.square().sum().backward()
    return [prediction.detach(), *(of.grad for of in model.parameters())]


def controller(shard: Any) -> list[Tensor]:
    speed = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    state = torch.linspace(-1, 1, 2 * B, dtype=torch.float64).reshape(B, 2).requires_grad_()
    mpc = dcem.control.MPC(
        lambda x, u: x + speed * u, lambda x, u: x.square().sum(-1) + 0.1 * u.square().sum(-1), 5, 2, (-1.0, 1.0),
        cem(), num_iterations=T, shard=shard,
    )  # fmt: skip
    plan = mpc(state, generator=torch.Generator().manual_seed(4))
    again = mpc(state, warm_start=plan, reset=torch.arange(B) == 2, generator=torch.Generator().manual_seed(5))
    (plan.cost.sum() + again.actions.sum()).backward()
    return [plan.actions.detach(), again.actions.detach(), again.states.detach(), speed.grad, state.grad]


SAMPLES["EnergyModel"] = PROBLEMS["EnergyModel"] = energy_model
SAMPLES["MPC"] = PROBLEMS["MPC"] = controller


def own_part(
    shard: Any, mode: Any = None, start: Any = None, solver: Any = None, wrap: Callable[..., Any] = lambda f: f
) -> list[Tensor]:
    """An objective of one's own takes the part of what it closes over."""
    theta, scale = parameters()
    own = (lambda x: x) if shard is None else shard.own
    solution = dcem.minimize(
        lambda x: wrap(curved(own(theta), scale))(x), torch.zeros(B, D, dtype=torch.float64) if start is None else start,
        cem() if solver is None else solver, gradient=dcem.Unroll() if mode is None else mode, num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    answers = [solution.x, solution.best_x, solution.best_value, solution.status, solution.distribution.std]
    return [of.detach() for of in (*answers, *torch.autograd.grad(solution.x.square().sum(), [theta, scale]))]


for mode in (dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(0.3)):
    PROBLEMS[str(mode)] = lambda shard, mode=mode: own_part(shard, mode)
PROBLEMS["elites, FullGaussian"] = lambda shard: own_part(shard, start=full(), solver=cem(keep_elites=0.5))


def thrice(shard: Any, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Three derivatives, where all problems of the last processes have failed, and candidates of the others."""
    theta, scale = parameters()
    own = (lambda x: x) if shard is None or isinstance(shard, dcem.distributed.Samples) else shard.own
    limit = torch.tensor([1.0, 0.5, -9.0, -9.0, -9.0, -9.0]).unsqueeze(-1)
    x = dcem.minimize(
        lambda x: torch.where(x[..., 0] > own(limit), torch.nan, curved(own(theta), scale)(x)),
        torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    ).x  # fmt: skip
    found = [x]
    for _ in range(3):
        found += torch.autograd.grad(loss(found[-1]), [theta, scale], create_graph=True)
    return [of.detach() for of in found]


for name, loss in (("linear", lambda x: x.sum()), ("square", lambda x: x.square().sum())):
    SAMPLES[f"derivatives of a {name} loss, failed problems"] = PROBLEMS[
        f"derivatives of a {name} loss, failed problems"
    ] = lambda shard, loss=loss: thrice(shard, loss)


def steep(shard: Any) -> list[Tensor]:
    """A slope of one problem is not finite, which the backward pass writes into the status."""
    theta, scale = parameters()
    own = shard.own if isinstance(shard, dcem.distributed.Problems) else (lambda x: x)
    is_steep = torch.arange(B).eq(1).unsqueeze(-1)
    solution = dcem.minimize(
        lambda x: curved(own(theta), scale)(x) + torch.where(own(is_steep), (0 * x[..., 0]).abs().sqrt(), 0),
        torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    gradients = torch.autograd.grad(solution.x.square().sum(), [theta, scale])
    status = solution.status
    if isinstance(shard, dcem.distributed.Problems):  # of which each process is told of its own
        status = shard.ranks.gathered(shard.own(status))
    return [solution.x.detach(), status, *gradients]


def sparse(shard: Any) -> list[Tensor]:
    """A table whose gradient is sparse in one process."""
    table = nn.Embedding.from_pretrained(parameters()[0].detach(), freeze=False, sparse=True)
    own = shard.own if isinstance(shard, dcem.distributed.Problems) else (lambda x: x)
    x = dcem.minimize(
        lambda x: curved(table(own(torch.arange(B) % 4)), torch.zeros(D).double())(x),
        torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    ).x  # fmt: skip
    x.square().sum().backward()
    return [x.detach(), table.weight.grad.to_dense()]


def within(shard: Any) -> list[Tensor]:
    """A slope that is not finite ends at a leaf that the objective makes, in one of the processes."""
    theta, scale = parameters()
    of = curved(theta, scale)

    def objective(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        return of(x) + torch.where(y[..., 0] > 5, (y[..., 0] - 6).abs().sqrt(), 0 * y[..., 0])

    noise = torch.randn(1, B, 30, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise[:, :, 0, 0] = 6
    x = dcem.minimize(
        objective, torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=1, shard=shard, noise=noise
    ).x
    x.square().sum().backward()
    return [x.detach(), theta.grad, scale.grad]


SAMPLES["a slope that is not finite within"] = within
SAMPLES["a slope that is not finite"] = PROBLEMS["a slope that is not finite"] = steep
SAMPLES["sparse gradients"] = PROBLEMS["sparse gradients"] = sparse


class Scaled(torch.autograd.Function):
    """Takes its arguments past torch's functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).flatten(0, -2).sum(0)


def scaled(objective: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a function of one's own is given came out of one of torch's functions."""
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    return lambda x: objective(Scaled.apply(x, weight.view_as(weight)))  # type: ignore[no-untyped-call]


def compiled(shard: Any) -> list[Tensor]:
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    objective = torch.compile(lambda x: ((x * scale - 1).square() + x.abs()).sum(-1), backend="eager")
    with warnings.catch_warnings():  # of torch.compile, which looks at the `grad` of what it is given
        warnings.simplefilter("ignore")
        solution = dcem.minimize(
            objective, torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
            generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
    return [solution.x.detach(), *torch.autograd.grad(solution.x.sum(), scale)]


for mode in (dcem.Unroll(), dcem.Checkpoint()):
    SAMPLES[f"{mode}, a function of one's own"] = lambda shard, mode=mode: solved(
        shard, cem(), gradient=mode, wrap=scaled
    )


def with_a_root(objective: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """In which the theorem is an `autograd.Function` of ours."""
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def root_of(rate: Tensor) -> Tensor:
        return dcem.implicit.root(lambda x, rate: x * x - rate, rate.detach().sqrt(), rate)

    return lambda x: objective(x * root_of(rate))


def keeping(shard: Any, when: Callable[[Tensor], bool], again: bool) -> list[Tensor]:
    """An objective that keeps features, at the first call of those it keeps them in or again in each, for a loss, too."""
    theta, scale = parameters()
    kept: list[Tensor] = []

    def objective(x: Tensor) -> Tensor:
        fresh = scale.exp()
        if when(x) and (again or not kept):
            kept[:] = [fresh]
        factor = kept[0] if kept and not again else fresh
        return (factor * (x - theta[0] - torch.sin(x) * (kept[0] if kept else fresh)).square()).sum(-1)

    solution = dcem.minimize(
        objective, torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    loss = solution.x.square().sum() + (kept[0] * torch.arange(1.0, D + 1)).sum()
    return [solution.x.detach(), *torch.autograd.grad(loss, [theta, scale])]


for name, when in (("the first call", lambda x: True), ("the first iteration", lambda x: x.shape[-2] > 1)):
    for again in (False, True):
        SAMPLES[f"features kept from {name}{' on' if again else ''}"] = PROBLEMS[
            f"features kept from {name}, {again}"
        ] = lambda shard, when=when, again=again: keeping(shard, when, again)


def experts(shard: Any) -> list[Tensor]:
    """Each is asked about its own candidates, of which a process may have none, and nothing about the others."""
    of_low, of_high = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in ([1.0, 2.0], [3.0, 5.0]))

    def objective(x: Tensor) -> Tensor:
        values = x.squeeze(-1).square() + 0 * of_low.sum() + 0 * of_high.sum()
        for w, asked in ((of_low, x[..., 0] <= 0), (of_high, x[..., 0] > 0)):
            if asked.any():
                values = values.index_put((asked,), x[asked][:, 0].square() * w[0] + x[asked][:, 0] * w[1])
        return values

    half = torch.linspace(0.1, 2, 15, dtype=torch.float64)
    solution = dcem.minimize(
        objective, torch.zeros(1, dtype=torch.float64), cem(), num_iterations=1, shard=shard,
        noise=torch.cat([half, -half])[None, :, None],
    )  # fmt: skip
    return [solution.x.detach(), *torch.autograd.grad(solution.x.sum(), [of_low, of_high])]


def complex_parameter(shard: Any) -> list[Tensor]:
    centre = torch.tensor([1 + 2j, -1j, 0.5], dtype=torch.complex128, requires_grad=True)
    solution = dcem.minimize(
        lambda x: (x - centre).abs().square().sum(-1) + (x * centre).imag.sin().sum(-1),
        torch.zeros(D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    return [solution.x.detach(), *torch.autograd.grad(solution.x.square().sum(), centre)]


SAMPLES["experts"] = experts
SAMPLES["a complex parameter"] = complex_parameter


class Clipped(torch.autograd.Function):
    """Its slopes are clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-0.01, 0.01)


def clipped_by_hook(x: Tensor) -> Tensor:
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    return x


def clipped_by_module(x: Tensor) -> Tensor:
    module = nn.Identity()
    module.register_full_backward_hook(lambda module, grads, _: tuple(grad.clamp(-0.01, 0.01) for grad in grads))
    return module(x)


def clipped_before_module(x: Tensor) -> Tensor:
    module = nn.Identity()
    module.register_full_backward_pre_hook(lambda module, grads: tuple(grad.clamp(-0.01, 0.01) for grad in grads))
    return module(x)


def clipped_before_node(x: Tensor) -> Tensor:
    x = x.view_as(x)
    if x.requires_grad:
        x.grad_fn.register_prehook(lambda grads: tuple(grad.clamp(-0.01, 0.01) for grad in grads))
    return x


def clipped_after_node(x: Tensor) -> Tensor:
    x = 2 * x
    if x.requires_grad:
        x.grad_fn.register_hook(
            lambda grads, _: tuple(grad if grad is None else grad.clamp(-0.01, 0.01) for grad in grads)
        )
    return x


CLIPS = (Clipped.apply, clipped_by_hook, clipped_by_module)
CLIPS += (clipped_before_module, clipped_before_node, clipped_after_node)
for clip in CLIPS:
    name = f"slopes clipped by {getattr(clip, '__qualname__', clip)}"
    SAMPLES[name] = lambda shard, clip=clip: solved(shard, cem(), wrap=lambda of: lambda x: of(clip(x)))
    for solver in (cem(), dcem.GradientDescent(0.1)):
        PROBLEMS[f"{name}, {type(solver).__name__}"] = lambda shard, clip=clip, solver=solver: own_part(
            shard, wrap=lambda of: lambda x: of(clip(x)), solver=solver
        )
SAMPLES["an implicit root within"] = lambda shard: solved(shard, cem(), wrap=with_a_root)
SAMPLES["compiled objective"] = PROBLEMS["compiled objective"] = compiled


def transformed(shard: Any) -> list[Tensor]:
    """With `torch.func` transforms inside, which use what comes from outside."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def objective(x: Tensor) -> Tensor:
        of = scale.view_as(scale)
        slope = torch.func.grad(lambda y: (y - of).pow(4).sum())(x)
        return slope.square().sum(-1) + torch.func.vmap(lambda y, of: (y * of).square().sum(-1), (0, None))(x, of)

    solution = dcem.minimize(
        objective, torch.zeros(B, D, dtype=torch.float64), cem(), num_iterations=T, shard=shard,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    return [solution.x.detach(), *torch.autograd.grad(solution.x.sum(), scale)]


SAMPLES["transforms within"] = PROBLEMS["transforms within"] = transformed


def refusals(rank: int, size: int) -> dict[str, str]:
    """What is said where the processes do not do the same, and where one of them ends."""
    shard, said = dcem.distributed.Samples(timeout=20.0), {}
    quadratic = lambda x: x.square().sum(-1)  # noqa: E731

    def attempt(name: str, objective: Any = quadratic, num_samples: int = 12 * size, **options: Any) -> None:
        options = {"generator": torch.Generator().manual_seed(0), "shard": shard} | options
        options = {"init": torch.ones(2), "solver": dcem.CEM(num_samples, 4)} | options
        try:
            solution = dcem.minimize(objective, **options)
            if solution.x.requires_grad:
                solution.x.sum().backward()
            said[name] = "nothing"
        except (ValueError, TypeError, RuntimeError) as error:
            said[name] = f"{type(error).__name__}: {error}"

    last = rank == size - 1
    attempt("uneven", num_samples=12 * size + 1)
    attempt("seed", generator=torch.Generator().manual_seed(int(last)))
    attempt("noise", noise=torch.full((10, 12 * size, 2), float(last)))
    attempt("objective", lambda x: (1 + last) * quadratic(x))
    attempt("iterations", num_iterations=10 + last)
    attempt("batch", shard=dcem.distributed.Problems())
    attempt("precision", init=torch.ones(2, dtype=torch.float64 if last else torch.float32))
    attempt("start", init=dcem.Gaussian(torch.ones(2), 1.0 + last))
    attempt("bounds", bounds=(None, 2.0 + last))
    attempt("temperature", solver=dcem.CEM(12 * size, 4, dcem.LML(1.0 + last)))
    attempt("selection", solver=dcem.CEM(12 * size, 4, dcem.ConstrainedSoftmax() if last else dcem.LML()))
    attempt("captured", solver=dcem.capture(dcem.CEM(12 * size, 4), backend="eager"))
    unbiased = {"gradient": dcem.Prune(0.5, unbiased=True), "init": torch.ones(2 * size, 2)}
    attempt("unbiased", shard=dcem.distributed.Problems(timeout=20.0), **unbiased)
    weight = torch.ones(2, requires_grad=True)
    for name, of in (("unseen", shard), ("unseen by problems", dcem.distributed.Problems(timeout=20.0))):
        unseen = lambda x: quadratic(Scaled.apply(x, weight))  # type: ignore[no-untyped-call]  # noqa: E731
        attempt(name, unseen, init=torch.ones(2 * size, 2), shard=of)
        reentrant = lambda x: checkpoint(lambda x: quadratic(x - weight), x * weight, use_reentrant=True)  # noqa: E731
        attempt(name.replace("unseen", "reentrant"), reentrant, init=torch.ones(2 * size, 2), shard=of)
    attempt("transform", lambda x: torch.func.vmap(lambda y: quadratic(y * weight))(x), init=torch.ones(2 * size, 2))
    other = torch.tensor([1.0, 1.5], requires_grad=True)
    first, second = (other, weight) if last else (weight, other)
    attempt("another parameter", lambda x: quadratic(x) + 0 * first.sum())
    attempt("another order", lambda x: quadratic(x) + 0 * first.sum() + 0 * second.sum())
    attempt("no parameter", lambda x: quadratic(x) + (0 * weight.sum() if last else 0))
    attempt(
        "no parameter by problems", lambda x: quadratic(x) + (0 * weight.sum() if last else 0),
        init=torch.ones(2 * size, 2), shard=dcem.distributed.Problems(timeout=20.0),
    )  # fmt: skip
    problems, both = dcem.distributed.Problems(timeout=20.0), torch.arange(4.0 * size).reshape(-1, 2).requires_grad_()
    own = problems.own(both)
    attempt("own outside", lambda x: quadratic(x - own[:, None]), init=torch.ones(2 * size, 2), shard=problems)
    attempt("init", init=[1.0, 1.0])
    attempt("half", noise=torch.ones(10, 12 * size, 2).bfloat16())
    attempt("nothing wrong")
    for name, of in (("lost", shard), ("lost by problems", dcem.distributed.Problems(timeout=20.0))):
        attempt(name, lambda x: quadratic(x.detach() - weight), init=torch.ones(2 * size, 2), shard=of)
    calls = []

    def ends(x: Tensor) -> Tensor:
        calls.append(x)
        if last and len(calls) == 4:
            os._exit(0)
        return quadratic(x)

    attempt("end", ends)
    return said


def one_of(rank: int, size: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (size,), mesh_dim_names=("all",))
    samples, problems = dcem.distributed.Samples(mesh["all"]), dcem.distributed.Problems(torch.distributed.group.WORLD)
    every = 1 if size == 2 else 4  # of more processes, some of the cases
    found = {"samples": {name: SAMPLES[name](samples) for name in list(SAMPLES)[::every]}}
    found["problems"] = {name: PROBLEMS[name](problems) for name in list(PROBLEMS)[::every]}
    found["gathered"] = {
        f"{dtype} {num}": samples.ranks.gathered(torch.arange(num).add(rank).to(dtype).reshape(num, 1))
        for dtype in (
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.complex128,
            torch.int64,
            torch.bool,
        )
        for num in (1, 2, 3, 5000)  # the last in two parts
    }
    torch.save(found, folder / f"{rank}.pt")
    if size > 1:
        found["refusals"] = refusals(rank, size)
    torch.save(found, folder / f"{rank}.pt")


def several(size: int, folder: Path, work: Callable[[int, int, Path], None] = one_of) -> list[int | None]:
    """What `size` processes end with: forked, so that torch is imported once."""
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    return [process.exitcode for process in processes]
