"""Run a controller in closed loop, in Gymnasium environments or dm_control tasks, all planned for in one batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem._arrays import as_tensor
from dcem._check import check_count, check_flag, check_int
from dcem._given import brief, kind
from dcem._guard import beside
from dcem._tree import difference, leaves, map_tensors, precision_of
from dcem.control.mpc import MPC
from dcem.control.plan import Plan
from dcem.control.plants import Plant, PlantStep, plant_of
from dcem.control.rollout import any_beyond
from dcem.solution import Status


@dataclass(frozen=True, eq=False)
class Episodes:
    """What `run` saw. Episodes are listed by environment, each environment's in the order in which they ended.

    Attributes:
        returns: sum of the rewards of each episode, `(n,)`.
        lengths: decisions in each episode, `(n,)`.
        environments: which environment it was in, `(n,)`.
        finished: whether the environment ended it, `(n,)`; False where the run stopped first.
        solve_times: seconds of each call of the controller, for all environments together, `(T,)`.
        num_replaced: how many of the `T E` decisions failed: the action was not finite or came of a failed solve, and
            was replaced by the last good plan's.
        num_clipped: how many of them had an action outside the action space, which was clipped to it. A plan with such
            an action is not what happens: give an `MPC` the bounds of the environment, `bounds=env.action_space`.
        states: with `record=True` the states that were decided in, `(T, E, *s)` or a tree of these; else None.
        actions: with `record=True` the actions that were applied, `(T, E, *a)`; else None.
        rewards: with `record=True`, `(T, E)`; else None.
        mask: with `record=True`, `(T, E)`, boolean: which of these rows are a decision of an episode. The others
            are of environments whose episodes are over, or which started anew in this step; else None.
        final_states: with `record=True` the state that each episode ended in, or was left in, `(n, *s)` or a tree
            of these; else None.
        frames: with `video=True` pictures of the first environment, one before each of its decisions, `(n, height,
            width, 3)` in uint8, as [`dcem.plotting.save_gif`][] takes them; else None.
        dt: seconds from one of these pictures to the next, as far as the environment says.
        error: what an environment raised, which ended the run; else None.
    """

    returns: Tensor
    lengths: Tensor
    environments: Tensor
    finished: Tensor
    solve_times: Tensor
    num_replaced: int
    num_clipped: int
    states: Any
    actions: Tensor | None
    rewards: Tensor | None
    mask: Tensor | None
    final_states: Any
    frames: Tensor | None
    dt: float
    error: Exception | None

    def __repr__(self) -> str:
        """How many episodes and decisions, and what they returned."""
        num, seconds = len(self.returns), self.solve_times
        returned = f"mean return {self.returns.mean():.4g}, " if num else ""
        ended = "" if self.error is None else f", error={self.error!r}"
        return (
            f"Episodes({num} episodes, {returned}{int(self.lengths.sum())} steps, {int(self.finished.sum())} finished, "
            f"{self.num_replaced} decisions replaced, {self.num_clipped} clipped, median decision "
            f"{float(seconds.median() if len(seconds) else 0):.2g} s{ended})"
        )


def run(
    policy: MPC | Callable[[Any], Tensor],
    envs: Any,
    *,
    state_of: Callable[[Any, Any], Any] | None = None,
    num_steps: int | None = None,
    seed: int | None = None,
    delay: int = 0,
    record: bool = False,
    video: bool = False,
) -> Episodes:
    """Control environments in closed loop: one batched plan a step, warm-started, afresh where an episode begins.

    Args:
        policy: an `MPC`, or any callable from the states `(E, *s)` of all environments to actions
            `(E, *a)`. One with a method `reset(where)` is told where episodes begin, `(E,)` boolean, one with a method
            `applied(action)` what was applied, and one with a `status` `(E,)` is asked how its solve ended, and shown
            finite states only: such as `dcem.rl.policy`.
        envs: a Gymnasium environment or vector environment, a dm_control `Environment`, or a sequence of
            environments of one kind. Their action space must be a box; actions are brought to its dtype (whole numbers
            are rounded to) and clipped to it.
        state_of: `(observation, env) -> state`, the model's state of one environment; the observation flattened to
            a vector by default (of float32, or of the precision of a policy that is a module), and
            `lambda _, env: model.state_of(env)` for a `MujocoModel`. Of a vector environment `env` is the single
            environment where it can be reached, else the whole; with `AutoresetMode.SAME_STEP` it has started anew
            already when the state that an episode ended in is asked.
        num_steps: decisions in each environment, one episode after the other; None for one episode each, which an
            environment without a time limit (`gymnasium.wrappers.TimeLimit`) may never end.
        seed: of an `MPC` (another policy draws as it does) and, `seed + i`, of environment `i`.
        delay: how many steps after it was sent an action takes effect in these environments. An `MPC` then plans
            from the state that the actions on their way will lead to, by its model (its `sent`); before the first
            one of an episode zeros are taken to have been sent.
        record: keep states, actions and rewards, and the states that episodes ended in.
        video: keep pictures of the first environment, which must be able to render (Gymnasium's with
            `render_mode="rgb_array"`): `dcem.plotting.save_gif("film.gif", episodes.frames, 1 / episodes.dt)`.

    Returns:
        Returns, lengths and times. If an environment raises, or its reward is not finite, the run ends with a
        `RuntimeWarning`, what there is is returned with the `error`, and the environments are closed. Of the step
        in which that happened counts only what ended an episode. With `num_steps=None` an environment rests when its
        episode is over (one of a vector environment goes on, uncounted). If every decision failed, the numbers say
        nothing about the controller: that is a `RuntimeWarning`, too. Fewer are counted in `num_replaced`.

    Raises:
        TypeError: `envs` is not an environment, its actions are not a box, or they are of different kinds; a state has
            no tensor in it; `seed` is no int.
        ValueError: environments of different action shapes, states of different structure or shape, a policy with
            actions of the wrong shape, or a video of what cannot be rendered.

    An action that is not finite, or that of a solve with the status `NONFINITE`, is replaced by the next action of
    the last good plan of the episode (zero beyond its end), and counted. A policy that is no `MPC` shows no plan: only
    zero can take the place of its action. One with a `status` fails where a state is not finite, and sees zeros. What
    was applied, after this and after the clipping, is what the next plan starts from and what changes of the action are
    charged against; after actions of an `MPC` that were not finite the search starts afresh.

    Example:
        >>> import gymnasium, torch
        >>> env = gymnasium.make("Pendulum-v1")
        >>> episodes = run(lambda state: -state[:, 1:2] - 0.1 * state[:, 2:], env, seed=0)
        >>> episodes.lengths, bool(episodes.returns < 0)
        (tensor([200]), True)
    """
    if num_steps is not None:
        num_steps = check_count("num_steps", num_steps)
    seed = None if seed is None else check_int("seed", seed)
    once = num_steps is None
    plant = plant_of(envs, _flat_in(_precision(policy)) if state_of is None else state_of, once=once)
    if video and not plant.can_render():
        raise ValueError('video: expected an environment that renders, made with render_mode="rgb_array"')
    check_flag("video", video)
    controller = _Controller(policy, plant, seed, delay)
    log = _Log(plant.num_envs, once)
    seconds: list[float] = []
    rows: list[_Row] = []
    frames: list[Any] = []
    fresh = torch.ones(plant.num_envs, dtype=torch.bool, device="cpu")
    error = None
    states = plant.reset(seed)
    while error is None and not log.is_complete and (num_steps is None or len(seconds) < num_steps):
        if video and not (once and log.ended[0]):
            frames.append(plant.render())
        state = _stacked(states)
        started = time.perf_counter()
        action = controller(state, fresh)
        seconds.append(time.perf_counter() - started)
        step = plant.step(action.numpy(), log.active, keep_finals=record)
        error = step.error
        if record and (error is None or any(step.counts)):
            rewards, mask = torch.as_tensor(step.rewards, dtype=torch.float32), torch.as_tensor(step.counts)
            rows.append(_Row(state, action, rewards, mask & torch.tensor(log.active)))
        log.add(step)
        # A policy is asked about all: of an environment that is over, it sees the state that it knows.
        states = [new if active else old for new, old, active in zip(step.states, states, log.active, strict=True)]
        fresh = torch.as_tensor(step.fresh, device="cpu")
    if error is not None:
        warnings.warn(f"an environment raised {error!r}: the run ends early", RuntimeWarning, stacklevel=2)
        plant.close()
    if seconds and controller.num_replaced == (decisions := len(seconds) * plant.num_envs):
        warnings.warn(
            f"policy: expected decisions that succeed, got {decisions} of {decisions} decisions that failed (not "
            f"finite, or of a failed solve) and were replaced by zeros: {controller.where_it_failed()}",
            RuntimeWarning,
            stacklevel=2,
        )
    (returns, lengths, environments, finished), finals = log.episodes(states)
    recorded = _Row(*zip(*rows, strict=True)) if rows else None
    return Episodes(
        *(returns, lengths, environments, finished),
        solve_times=torch.tensor(seconds, dtype=torch.float64),
        num_replaced=controller.num_replaced,
        num_clipped=controller.num_clipped,
        states=_stacked(list(recorded.state)) if recorded else None,
        actions=torch.stack(recorded.action) if recorded else None,
        rewards=torch.stack(recorded.reward) if recorded else None,
        mask=torch.stack(recorded.mask) if recorded else None,
        final_states=_stacked(finals) if recorded and finals else None,
        frames=_film(frames) if video else None,
        dt=plant.dt,
        error=error,
    )


class _Row(NamedTuple):
    """What is recorded of a step."""

    state: Any
    action: Any
    reward: Any
    mask: Any


class _Controller:
    """The policy with its warm start, and with something to do where it fails."""

    def __init__(self, policy: MPC | Callable[[Any], Tensor], plant: Plant, seed: int | None, delay: int) -> None:
        if not callable(policy):
            raise TypeError(f"policy: expected an MPC or a callable state -> action, got {brief(policy)}")
        if hasattr(policy, "make_tensordict_primer"):
            raise TypeError(
                f"policy: expected an MPC or a callable state -> action, got {type(policy).__name__}, which decides "
                "for tensordicts: give dcem.rl.policy(mpc) or dcem.rl.policy(mpc, model)"
            )
        if check_int("delay", delay) < 0 or (delay > 0 and not isinstance(policy, MPC)):
            raise ValueError(f"delay: expected an int >= 0, and 0 for a policy that is no MPC, got {delay}")
        self.policy, self.seed, self.num_replaced = policy, seed, 0
        self.num_clipped = 0
        self.space = plant.space
        self.shape = (plant.num_envs, *plant.space.low.shape)
        self.generator: torch.Generator | None = None
        self.state: Any = None  # that was decided in
        self.plan: Plan | None = None
        self.applied: Tensor | None = None
        self.failed = torch.zeros(plant.num_envs, dtype=torch.bool, device="cpu")
        self.ahead: Tensor | None = None  # (E, H, *a): the last good plans from here on
        self.sent = torch.zeros(plant.num_envs, delay, *plant.space.low.shape, device="cpu")  # what is on its way

    @torch.no_grad()
    def __call__(self, state: Any, fresh: Tensor) -> Tensor:
        """Actions `(E, *a)` within the bounds; `fresh` says where an episode begins."""
        self.sent[fresh] = 0.0
        self.state = state
        actions, good = self._decide(state, fresh | self.failed)
        if actions.dim() != len(self.shape) + 1 or (actions.shape[0], *actions.shape[2:]) != self.shape:
            came = (actions.shape[0], *actions.shape[2:])
            raise ValueError(f"policy: expected actions (E, *a) = {self.shape}, got {came}")
        self.failed = ~actions.flatten(1).isfinite().all(1)
        good = good & ~self.failed
        self.num_replaced += int((~good).sum())
        left = torch.zeros_like(actions)
        if self.ahead is not None:
            left[:, :-1] = self.ahead[:, 1:]
            left[fresh] = 0.0
        self.ahead = torch.where(good.reshape(-1, *(1,) * len(self.shape)), actions, left)
        decided = self.ahead[:, 0].numpy()
        self.num_clipped += int(self.space.outside(decided).reshape(self.shape[0], -1).any(-1).sum())
        self.applied = torch.from_numpy(self.space.applied(decided)).to(actions.dtype)
        if not isinstance(self.policy, MPC) and callable(tell := getattr(self.policy, "applied", None)):
            tell(self.applied)
        if self.sent.shape[1]:
            self.sent = torch.cat([self.sent[:, 1:], self.applied.unsqueeze(1)], 1)
        return self.applied

    def where_it_failed(self) -> str:
        """What to look at, of a controller whose last decision failed."""
        if not isinstance(self.policy, MPC) or self.plan is None or self.plan.states is None:
            return "look at what the policy returns for one state"
        failed = int((self.plan.status.cpu() == Status.NONFINITE).int().argmax())
        if any(leaf[failed].isnan().any() for leaf in leaves(self.state)):
            return "the state that is planned from is NaN"
        time = int(self.policy.num_particles > 1)  # its axis, of one environment
        paths = [leaf.detach().select(time, failed).movedim(time, 0) for leaf in leaves(self.plan.states)]
        if any(path[0].isnan().any() for path in paths):
            return "the state that the actions on their way lead to, by the model, is NaN"
        if not self.plan.actions[failed].isfinite().all():
            return "the actions that are planned are not finite: look at what the decoder returns"
        known = [path.isfinite() | ~path[0].isfinite() for path in paths]  # a deadline may be infinite from the start
        lost = [step for path in known for step, fine in enumerate(path) if not fine.all()]
        if lost:
            return f"the model's state is not finite from step {min(lost)} of the plan on"
        if not self.plan.cost[failed].isfinite():
            return "the model's states are finite along the plan, what it costs is not"
        return (
            "the plan that is left is finite, but too few of the solver's candidates are: tighten bounds or init_std, "
            "and look where the model leads from large actions"
        )

    def _decide(self, state: Any, reset: Tensor) -> tuple[Tensor, Tensor]:
        """The actions from here on, `(E, H, *a)`, and whether the solve that they came of went well."""
        if not isinstance(self.policy, MPC):
            forget = getattr(self.policy, "reset", None)
            if forget is not None and reset.any():
                forget(reset)
            known = torch.ones(self.shape[0], dtype=torch.bool, device="cpu")
            if hasattr(self.policy, "status"):  # may refuse what is not finite, and the other environments with it
                known = ~torch.stack([any_beyond(~leaf.cpu().isfinite(), 1) for leaf in leaves(state)]).any(0)
                state = map_tensors(
                    lambda leaf: torch.where(beside(known.to(leaf.device), leaf), leaf, leaf.new_zeros(())), state
                )
            action: Any = self.policy(state)
            if not isinstance(action, Tensor):
                raise TypeError(f"policy: expected it to return a Tensor of actions, got {kind(action)}")
            status = getattr(self.policy, "status", None)
            good = torch.ones(self.shape[0], dtype=torch.bool, device="cpu")
            if isinstance(status, Tensor) and status.shape == good.shape:
                good &= status.cpu() != Status.NONFINITE
            action = _plain(action)
            if not known.all():
                action = torch.where(beside(known, action), action, torch.nan)
            return action.unsqueeze(1), good
        device = leaves(state)[0].device
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        warm: Any = self.plan
        if self.plan is not None and self.applied is not None:
            first = self.applied.to(self.plan.action)
            if not torch.equal(first, self.plan.action):
                actions = torch.cat([first.unsqueeze(1), self.plan.actions[:, 1:]], 1)
                warm = self.plan.warm_start._replace(actions=actions)
        where = None if warm is None else reset.to(device)
        late = {"sent": self.sent.to(device)} if self.sent.shape[1] else {}
        self.plan = self.policy(state, warm_start=warm, reset=where, generator=self.generator, **late)
        return _plain(self.plan.actions), self.plan.status.cpu() != Status.NONFINITE


class _Log:
    """Adds up episodes; with `once` the first of each environment."""

    def __init__(self, num_envs: int, once: bool) -> None:
        self.once, self.ended = once, [False] * num_envs
        self.under_way = [(0.0, 0)] * num_envs
        self.rows: list[tuple[int, float, int, bool, Any]] = []

    @property
    def active(self) -> list[bool]:
        """Which environments are in an episode that counts."""
        return [not (self.once and ended) for ended in self.ended]

    @property
    def is_complete(self) -> bool:
        return self.once and all(self.ended)

    def add(self, step: PlantStep) -> None:
        for i, active in enumerate(self.active):
            if not (active and step.counts[i]):
                continue
            total, length = self.under_way[i]
            self.under_way[i] = (total + float(step.rewards[i]), length + 1)
            if step.done[i]:
                self.rows.append((i, *self.under_way[i], True, map_tensors(Tensor.clone, step.finals[i])))
                self.under_way[i], self.ended[i] = (0.0, 0), True

    def episodes(self, states: list[Any]) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Any]]:
        """Returns, lengths, environments, whether they finished, and the states that they ended or were left in."""
        cut = [(i, *sums, False, states[i]) for i, sums in enumerate(self.under_way) if sums[1]]
        rows = sorted([*self.rows, *cut], key=lambda row: row[0])  # stable: in the order in which they ended
        environments, returns, lengths, finished, finals = zip(*rows, strict=True) if rows else ((),) * 5
        numbers = torch.tensor(returns), torch.tensor(lengths), torch.tensor(environments), torch.tensor(finished)
        return numbers, list(finals)


def _precision(policy: Any) -> torch.dtype:
    said = precision_of(policy) if isinstance(policy, nn.Module) else getattr(policy, "dtype", None)
    return said if isinstance(said, torch.dtype) else torch.float32


def _flat_in(dtype: torch.dtype) -> Callable[[Any, Any], Tensor]:
    """An observation as one vector, the parts of a dict in the order of its space, as Gymnasium flattens it."""
    return lambda observation, env: _in_order(observation, getattr(env, "observation_space", None), dtype)


def _in_order(observation: Any, space: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(observation, Mapping):
        of_space = getattr(space, "spaces", None)
        named = of_space if isinstance(of_space, Mapping) and of_space.keys() == observation.keys() else observation
        return torch.cat([_in_order(observation[name], named[name], dtype) for name in named])
    if isinstance(observation, tuple):
        spaces: Any = getattr(space, "spaces", observation)
        return torch.cat([_in_order(part, of, dtype) for part, of in zip(observation, spaces, strict=True)])
    return as_tensor(observation, dtype).reshape(-1).clone()


def _stacked(states: list[Any]) -> Any:
    if not leaves(states[0]):
        raise TypeError(f"state_of: expected a tensor or a tree of tensors, got {kind(states[0])}")
    for state in states[1:]:
        if (found := difference(states[0], state)) is not None:
            raise ValueError(f"state_of: expected states of {found}")
    return map_tensors(lambda *of_each: torch.stack(of_each), states[0], *states[1:])


def _plain(action: Tensor) -> Tensor:
    """A plain tensor of at least single precision, without losing any."""
    action = action.detach().cpu()
    return action if action.dtype in (torch.float32, torch.float64) else action.float()


def _film(frames: list[Any]) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.stack(frames))
