"""What trains, at which rate, and by which sum of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcem._check import check_number, check_positive
from dcem.rl.actor import Actor


def parts(actor: Actor, critic: nn.Module | None = None) -> dict[str, list[nn.Parameter]]:
    """The parameters of a controller by what they do there, each in one place.

    Args:
        actor: the controller as a policy.
        critic: a value network beside it.

    Returns:
        From a name to parameters. Of a world model, also of one whose methods alone are given, the names are those
        of its `parts()`, such as `"reward"`, `"dynamics"`, `"encoder"`, `"value"`. What these leave out and trains is
        there by the name of its child; parameters of the model itself are `"dynamics"`. Of modules beside it, or
        without it, `"encoder"` is `state_of`, `"reward"` cost and constraint, `"value"` the terminal cost,
        `"continuation"` `continues`, `"policy"` the proposals. Then `"decoder"` (of the latent that is planned over),
        `"residual"`, `"search"` (tensors of the solver, initial mean and std), `"std"` and `"critic"`. Those without
        parameters are left out.

    Example:
        >>> import torch, dcem
        >>> from dcem.control.systems import Pendulum
        >>> model = Pendulum(mass=torch.nn.Parameter(torch.tensor(1.3)))
        >>> mpc = dcem.control.MPC(model, model.cost, 10, 1, model.bounds)
        >>> list(parts(Actor(mpc, std=torch.nn.Parameter(torch.tensor(0.2)))))
        ['dynamics', 'std']
    """
    controller, mpc = actor.controller, actor.controller.mpc
    roles: dict[str, Any] = {
        "model": controller.model,
        "encoder": controller.state_of,
        "decoder": mpc.decoder,
        "residual": controller.residual,
        "dynamics": mpc.dynamics,
        "reward": (mpc.cost, mpc.constraint),
        "value": mpc.terminal_cost,
        "continuation": mpc.continues,
        "policy": mpc.proposals,
    }
    named = [pair for role, of in roles.items() for owner in _owners(of) for pair in _by_name(role, owner)]
    named += [("search", _parameters(mpc)), ("std", _parameters(actor.std)), ("critic", _parameters(critic))]
    seen: set[int] = set()
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameters in named:
        fresh = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in fresh}
        if fresh:
            found.setdefault(name, []).extend(fresh)
    return found


def parameter_groups(actor: Actor, rates: Mapping[str, float], critic: nn.Module | None = None) -> list[dict[str, Any]]:
    """Say by name what trains, each part at its rate: the groups of an optimiser. What is not named stays as it is.

    Args:
        actor: the controller as a policy.
        rates: from the names of `parts` to learning rates, above 0.
        critic: a value network beside it.

    Raises:
        TypeError: `rates` is no mapping.
        ValueError: a name of which there is no such part, or a rate that is not above 0.

    Example:
        >>> import torch, dcem
        >>> from dcem.control.systems import Pendulum
        >>> model = Pendulum(mass=torch.nn.Parameter(torch.tensor(1.3)))
        >>> actor = Actor(dcem.control.MPC(model, model.cost, 10, 1, model.bounds))
        >>> optimizer = torch.optim.Adam(parameter_groups(actor, {"dynamics": 1e-2}))
    """
    found = parts(actor, critic)
    if not isinstance(rates, Mapping):
        example = ", ".join(f'"{name}": {rates!r}' for name in found)
        raise TypeError(f"rates: expected a mapping from names of parts to rates, such as {{{example}}}, got {rates!r}")
    unknown = [name for name in rates if name not in found]
    if unknown:
        remedy = "; give the critic as third argument" if unknown[0] == "critic" and critic is None else ""
        if not found:
            remedy = ": a function does not say which parameters it uses, give the controller modules"
        expected = f"names among {', '.join(found)}" if found else "an actor with parameters to train"
        raise ValueError(f"rates: expected {expected}, got {unknown[0]!r}{remedy}")
    for name, rate in rates.items():
        check_positive(f"rates[{name!r}]", rate)
    return [{"params": found[name], "lr": rate, "name": name} for name, rate in rates.items()]


def total_loss(weights: Mapping[str, float], losses: Mapping[str, Any]) -> Tensor:
    """One loss of several: `Σ_name weight · Σ loss_*`.

    Args:
        weights: from the names in `losses` to numbers; a weight of 0 leaves the loss out.
        losses: from the same names to what TorchRL's losses and [`dcem.world.WorldModel.loss`][] return, of which
            the entries that start with `loss_` are summed; or to a function that returns it, which is called only
            where its weight is not 0.

    Raises:
        ValueError: the names differ, or none has a weight other than 0.

    Example:
        >>> import torch
        >>> policy = {"loss_objective": torch.tensor(2.0), "loss_critic": torch.tensor(1.0), "ESS": torch.tensor(5.0)}
        >>> likelihood = {"loss_reward": torch.tensor(4.0)}
        >>> total_loss({"policy": 1.0, "likelihood": 0.5}, {"policy": policy, "likelihood": likelihood})
        tensor(5.)
    """
    if weights.keys() != losses.keys():
        raise ValueError(f"weights: expected one for each of {', '.join(losses)}, got {', '.join(weights)}")
    terms: list[Tensor] = []
    for name, weight in weights.items():
        check_number(f"weights[{name!r}]", weight)
        if weight != 0:
            of: Any = losses[name]
            values = of() if isinstance(of, Callable) else of  # type: ignore[arg-type]
            terms += [weight * value for key, value in values.items() if key.startswith("loss_")]
    if not terms:
        raise ValueError("weights: expected at least one that is not 0")
    return torch.stack([term.reshape(()) for term in terms]).sum()


def _owners(fn: Any) -> list[Any]:
    """The modules and parameters that a function works with: of a method its object, of a `partial` all it holds."""
    if isinstance(fn, tuple):
        return [owner for of in fn for owner in _owners(of)]
    if isinstance(fn, partial):
        return _owners((fn.func, *fn.args, *fn.keywords.values()))
    return [getattr(fn, "__self__", fn)]


def _by_name(role: str, owner: Any) -> list[tuple[str, list[nn.Parameter]]]:
    """The parameters of what has a role; those of a world model by the names of its parts."""
    if not (hasattr(owner, "observe") and hasattr(owner, "parts")):
        return [(role, _parameters(owner))]
    named = [(name, _parameters(of)) for name, of in owner.parts().items()]
    left_out = [*owner.named_children(), ("dynamics", list(owner.parameters(recurse=False)))]
    return named + [(name, [p for p in _parameters(of) if p.requires_grad]) for name, of in left_out]


def _parameters(thing: Any) -> list[nn.Parameter]:
    if isinstance(thing, nn.Parameter):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.parameters())
    if isinstance(thing, (list, tuple)):
        return [p for of in thing for p in _parameters(of)]
    return []
