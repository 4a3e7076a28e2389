"""Running controllers in environments: returns, batches, episodes that end, and what goes wrong."""

import os

os.environ.setdefault("MUJOCO_GL", "disabled")

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.control import MPC
from dcem.control.mujoco_model import MujocoModel
from dcem.control.run import run

gymnasium = pytest.importorskip("gymnasium")
suite = pytest.importorskip("dm_control.suite")


class Slide(gymnasium.Env):
    """A point that moves by the action, and pays its distance; ends after `length` steps or beyond 10."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, length: int = 5, *, fails_at: int | None = None, high: float = 1.0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, high, (1,), np.float64)
        self.length, self.fails_at, self.closed = length, fails_at, False
        self.applied: list[float] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 1), 0
        return self.x, {}

    def step(self, action):
        assert action.shape == (1,)
        assert action.dtype == np.float64
        self.applied.append(float(action[0]))
        self.t += 1
        if self.t == self.fails_at:
            raise RuntimeError("the motor burnt out")
        self.x = self.x + action
        return self.x, -abs(float(self.x[0])), bool(abs(self.x[0]) > 10), self.t >= self.length, {}

    def render(self):
        return np.full((8, 12, 3), 20 * self.t, np.uint8)

    def close(self) -> None:
        self.closed = True


class Watched(MPC):
    """An MPC that notes how it is called, and fails on demand."""

    def __init__(self, fails=lambda call: None, horizon: int = 3) -> None:
        super().__init__(
            lambda x, u: x + u, lambda x, u: (x + u).square().sum(-1), horizon, 1, (-1.0, 1.0),
            dcem.CEM(30, 5, dcem.HardTopK()), num_iterations=2,
        )  # fmt: skip
        self.fails, self.calls = fails, []

    def forward(self, state, **kwargs):
        plan = super().forward(state, **kwargs)
        self.fails(SimpleNamespace(number=len(self.calls), plan=plan))
        self.calls.append(SimpleNamespace(state=state, plan=plan, **kwargs))
        return plan


def back(state: Tensor) -> Tensor:
    return -0.5 * state[:, :1]


def test_the_loop_is_what_one_would_write() -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=30)

    def policy(state: Tensor) -> Tensor:
        return -3 * state[:, 1:2] - state[:, 2:]

    total, (observation, _) = 0.0, env.reset(seed=4)
    for _ in range(30):
        action = policy(torch.from_numpy(observation).float().unsqueeze(0))
        observation, reward, *_ = env.step(action[0].clamp(-2, 2).numpy())
        total += reward
    episodes = run(policy, env, seed=4)
    assert episodes.returns.tolist() == pytest.approx([total], rel=1e-5)
    assert episodes.lengths.tolist() == [30]
    assert episodes.finished.tolist() == [True]
    assert episodes.solve_times.shape == (30,)
    assert (episodes.solve_times > 0).all()
    assert (episodes.num_replaced, episodes.error, episodes.states) == (0, None, None)


def test_several_environments_are_those_alone() -> None:
    lengths = (4, 7, 2)
    together = run(back, [Slide(n) for n in lengths], seed=10)
    alone = [run(back, Slide(n), seed=10 + i) for i, n in enumerate(lengths)]
    assert together.lengths.tolist() == list(lengths)
    assert together.environments.tolist() == [0, 1, 2]
    assert together.returns.tolist() == pytest.approx([float(a.returns) for a in alone])
    assert len(together.solve_times) == 7


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_vector_environments_start_anew_in_every_way(mode: str) -> None:
    modes = gymnasium.vector.AutoresetMode
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: Slide(3), lambda: Slide(4)], autoreset_mode=modes[mode], copy=True
    )  # fmt: skip
    singles = run(back, [Slide(3), Slide(4)], seed=0, num_steps=8)
    # With NEXT_STEP the steps in which an environment starts anew are not decisions, and not counted.
    episodes = run(back, vector, seed=0, num_steps=10 if mode == "NEXT_STEP" else 8)
    assert singles.environments.tolist() == [0, 0, 0, 1, 1]
    assert singles.lengths.tolist() == [3, 3, 2, 4, 4]
    assert singles.finished.tolist() == [True, True, False, True, True]
    assert episodes.lengths.tolist() == singles.lengths.tolist()
    torch.testing.assert_close(episodes.returns, singles.returns)
    once = run(back, vector, seed=0)
    assert once.lengths.tolist() == [3, 4]
    torch.testing.assert_close(once.returns, singles.returns[[0, 3]])


def test_a_controller_plans_for_all_at_once_and_warm_starts() -> None:
    mpc = Watched()
    run(mpc, [Slide(2), Slide(3)], seed=0, num_steps=5)
    assert len(mpc.calls) == 5
    assert all(call.state.shape == (2, 1) for call in mpc.calls)
    assert mpc.calls[0].warm_start is None
    for before, call in zip(mpc.calls, mpc.calls[1:], strict=False):
        assert call.warm_start is before.plan
    resets = [call.reset.tolist() for call in mpc.calls[1:]]
    assert resets == [[False, False], [True, False], [False, True], [True, False]]
    assert not mpc.calls[-1].plan.actions.requires_grad


def test_a_seed_replays_a_run() -> None:
    first, again, other = (run(Watched(), [Slide(), Slide()], seed=seed, record=True) for seed in (3, np.int64(3), 4))
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(first.returns, again.returns)
    assert not torch.equal(first.actions, other.actions)


def test_what_is_recorded() -> None:
    episodes = run(
        lambda state: -state["x"], [Slide(4), Slide(4)], seed=0, record=True,
        state_of=lambda observation, env: {"x": torch.tensor(observation), "t": torch.tensor([env.t])},
    )  # fmt: skip
    assert episodes.states["x"].shape == (4, 2, 1)
    assert episodes.states["t"].squeeze(-1).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert episodes.actions.shape == (4, 2, 1)
    torch.testing.assert_close(episodes.rewards.sum(0), episodes.returns)


def test_actions_are_clipped_to_the_box() -> None:
    env = Slide(2, high=0.25)
    run(lambda state: torch.tensor([[3.0]]), env)
    run(lambda state: torch.tensor([[-3.0]]), env)
    assert env.applied == [0.25, 0.25, -1.0, -1.0]


def test_a_failed_plan_is_replaced_by_the_one_before() -> None:
    def fails(call) -> None:
        if call.number in (1, 2):
            call.plan.actions[:] = torch.nan
        if call.number == 4:
            call.plan.status[:] = dcem.Status.NONFINITE

    mpc, env = Watched(fails), Slide(6)
    episodes = run(mpc, env, seed=0)
    assert episodes.num_replaced == 3
    assert episodes.lengths.tolist() == [6]
    good = mpc.calls[0].plan.actions[0, :, 0].tolist()
    assert env.applied[:3] == pytest.approx(good)
    assert mpc.calls[2].reset.item()  # nothing to warm-start from
    assert not mpc.calls[5].reset.item()
    assert env.applied[4] == pytest.approx(mpc.calls[3].plan.actions[0, 1].item())


def test_a_plan_that_fails_for_longer_than_it_reaches_gives_zero() -> None:
    def fails(call) -> None:
        if call.number > 0:
            call.plan.status[:] = dcem.Status.NONFINITE

    env = Slide(5)
    assert run(Watched(fails, horizon=2), env, seed=0).num_replaced == 4
    assert env.applied[2:] == [0.0] * 3


def test_a_plan_does_not_outlive_its_episode() -> None:
    def fails(call) -> None:
        if call.number == 2:
            call.plan.status[:] = dcem.Status.NONFINITE

    mpc, env = Watched(fails), Slide(2)
    run(mpc, env, seed=0, num_steps=3)
    assert mpc.calls[1].plan.actions[0, 1].abs() > 1e-3
    assert env.applied[2] == 0.0


def test_a_failing_policy_does_nothing_in_its_environment_alone() -> None:
    def policy(state: Tensor) -> Tensor:
        return torch.tensor([[torch.nan], [0.5]])

    envs = [Slide(3), Slide(3)]
    assert run(policy, envs).num_replaced == 3
    assert envs[0].applied == [0.0] * 3
    assert envs[1].applied == [0.5] * 3


def test_a_policy_with_a_status_may_have_numbers_without_axes_in_its_state() -> None:
    class Told:
        status = torch.tensor([dcem.Status.OK] * 2)

        def __call__(self, state: dict[str, Tensor]) -> Tensor:
            assert state["time"].shape == (2,)
            return 0.5 + 0 * state["all"][:, :1]

    envs = [Slide(3), Slide(3)]

    def state_of(seen: Any, env: Any) -> dict[str, Tensor]:
        seen = torch.as_tensor(seen, dtype=torch.float32)
        return {"all": seen, "time": seen.sum()}

    assert run(Told(), envs, state_of=state_of).num_replaced == 0
    assert envs[0].applied == envs[1].applied == [0.5] * 3


def test_the_parts_of_an_observation_are_in_the_order_of_its_space() -> None:
    """As Gymnasium flattens it, and in vector environments: whatever the order in which they come."""

    class Named(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict(
            {name: gymnasium.spaces.Box(-9, 9, (1,)) for name in ("velocity", "angle")}
            | {"more": gymnasium.spaces.Tuple([gymnasium.spaces.Dict({"b": gymnasium.spaces.Box(-9, 9, (1,)), "a": gymnasium.spaces.Box(-9, 9, (1,))})])}
        )  # fmt: skip
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def seen(self) -> dict[str, Any]:
            number = lambda x: np.array([x], np.float32)  # noqa: E731
            return {"velocity": number(5), "more": ({"b": number(7), "a": number(6)},), "angle": number(1)}

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.seen(), {}

        def step(self, action: Any) -> Any:
            return self.seen(), 0.0, False, True, {}

    expected = torch.as_tensor(gymnasium.spaces.flatten(Named.observation_space, Named().seen()))
    for envs in (Named(), [Named(), Named()], gymnasium.vector.SyncVectorEnv([Named, Named])):
        states: list[Tensor] = []

        def policy(state: Tensor) -> Tensor:
            states.append(state)  # noqa: B023
            return torch.zeros(len(state), 1)

        run(policy, envs, num_steps=2)
        assert all(torch.equal(row, expected) for state in states for row in state)


def test_a_run_in_which_every_decision_failed_says_so() -> None:
    class Asked:
        def __init__(self, *status: dcem.Status) -> None:
            self.status = torch.tensor(status)

        def __call__(self, state: Tensor) -> Tensor:
            return torch.ones(2, 1)

    def fails(call) -> None:
        call.plan.status[:] = dcem.Status.NONFINITE

    failing = (Watched(fails), lambda state: torch.full((2, 1), torch.nan), Asked(*[dcem.Status.NONFINITE] * 2))
    for policy in failing:
        envs = [Slide(3), Slide(3)]
        with pytest.warns(RuntimeWarning, match="policy: expected .* got 6 of 6 decisions that failed"):
            assert run(policy, envs, seed=0).num_replaced == 6
        assert [env.applied for env in envs] == [[0.0] * 3] * 2
    envs = [Slide(3), Slide(3)]
    assert run(Asked(dcem.Status.NONFINITE, dcem.Status.COLLAPSED), envs).num_replaced == 3
    assert [env.applied for env in envs] == [[0.0] * 3, [1.0] * 3]


def test_an_environment_that_raises_ends_the_run() -> None:
    envs = [Slide(5), Slide(5, fails_at=3)]
    with pytest.warns(RuntimeWarning, match=r"an environment raised RuntimeError\('the motor burnt out'\)"):
        episodes = run(back, envs, seed=0, record=True)
    assert isinstance(episodes.error, RuntimeError)
    assert episodes.lengths.tolist() == [2, 2]
    assert episodes.finished.tolist() == [False, False]
    assert episodes.actions.shape == (2, 2, 1)
    assert all(env.closed for env in envs)


class Breaks(Slide):
    """Fails to begin a second episode."""

    def reset(self, **options):
        if hasattr(self, "x"):
            raise RuntimeError("stuck")
        return super().reset(**options)


def test_an_error_after_an_episode_does_not_lose_it() -> None:
    with pytest.warns(RuntimeWarning, match="stuck"):
        episodes = run(back, Breaks(3), seed=0, record=True, num_steps=9)
    assert episodes.lengths.tolist() == [3]
    assert episodes.finished.tolist() == [True]
    assert episodes.rewards.shape == (3, 1)
    torch.testing.assert_close(episodes.returns, episodes.rewards.sum(0))
    once = run(back, Breaks(3), seed=0)  # does not begin one that nobody asked for
    assert (once.lengths.tolist(), once.finished.tolist(), once.error) == ([3], [True], None)


@pytest.mark.parametrize("first", [True, False])
def test_an_episode_that_ends_in_the_step_of_an_error_counts(first: bool) -> None:
    envs = [Slide(3), Slide(5, fails_at=3)]
    with pytest.warns(RuntimeWarning, match="burnt out"):
        episodes = run(back, envs if first else envs[::-1], seed=0, record=True)
    # What comes after the one that failed is not stepped any more.
    assert sorted(episodes.lengths.tolist()) == [2, 3] if first else [2, 2]
    assert sorted(episodes.finished.tolist()) == [False, first]
    assert episodes.mask.sum(0).tolist() == ([3, 2] if first else [2, 2])
    torch.testing.assert_close(episodes.returns, (episodes.rewards * episodes.mask).sum(0))


def test_an_environment_whose_episode_is_over_rests() -> None:
    env = Slide(2, fails_at=3)
    episodes = run(back, [env, Slide(5)], seed=0, record=True)
    assert len(env.applied) == 2
    assert episodes.error is None
    assert episodes.lengths.tolist() == [2, 5]
    assert episodes.mask.tolist() == [[True, True]] * 2 + [[False, True]] * 3


def positions(lengths, **options):
    """Every position, by a plain loop: starts, and where each action leads; an action is half the way back."""
    episodes = []
    for i, length in enumerate(lengths):
        env = Slide(length)
        x, _ = env.reset(seed=i)
        for _ in range(options.get("episodes", 1)):
            path = [float(x[0])]
            for _ in range(length):
                path.append(path[-1] - 0.5 * path[-1])
            episodes.append(path)
            x, _ = env.reset()
    return episodes


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED", None])
@pytest.mark.parametrize("num_steps", [None, 9])
def test_rows_and_final_states_of_every_way_to_start_anew(mode: str | None, num_steps: int | None) -> None:
    lengths = (2, 3)
    if mode is None:
        envs = [Slide(n) for n in lengths]
    else:
        autoreset = gymnasium.vector.AutoresetMode[mode]
        envs = gymnasium.vector.SyncVectorEnv([lambda n=n: Slide(n) for n in lengths], autoreset_mode=autoreset)
    episodes = run(back, envs, seed=0, num_steps=num_steps, record=True)
    expected = positions(lengths, episodes=1 if num_steps is None else 5)
    finished = [[p for p in expected if len(p) == n + 1] for n in lengths]
    seen = 0
    for i in range(2):
        rows = episodes.mask[:, i].nonzero().squeeze(-1)
        path = episodes.states[rows, i, 0]
        lengths_i = episodes.lengths[episodes.environments == i].tolist()
        assert sum(lengths_i) == len(rows)
        finals = episodes.final_states[episodes.environments == i]
        torch.testing.assert_close(episodes.rewards[rows, i].sum(), episodes.returns[episodes.environments == i].sum())
        for length, final, truth in zip(lengths_i, finals, finished[i], strict=False):
            torch.testing.assert_close(path[:length], torch.tensor(truth[:length]))
            torch.testing.assert_close(final.item(), truth[length], rtol=1e-5, atol=1e-6)
            path, seen = path[length:], seen + 1
    assert seen == len(episodes.lengths)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_clipped_in_the_dtype_of_the_space(dtype) -> None:
    env = Slide(2)
    env.action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), dtype)
    asserting = env.step

    def step(action):
        assert action.dtype == dtype
        assert env.action_space.contains(action)
        return asserting(action.astype(np.float64))

    env.step = step
    run(lambda state: torch.tensor([[0.1]]), env)
    run(lambda state: torch.tensor([[-7.0]], dtype=torch.float64), env)
    assert env.applied == [float(dtype(0.1))] * 2 + [-float(dtype(0.1))] * 2


def test_whole_numbers_are_rounded_to() -> None:
    class Clicks(Slide):
        def step(self, action):
            assert action.dtype == np.int64
            return super().step(action.astype(np.float64))

    env = Clicks(1)
    env.action_space = gymnasium.spaces.Box(-3, 3, (1,), np.int64)
    for value in (1.9, -1.6, 0.4, 7.0):
        run(lambda state, value=value: torch.tensor([[value]]), env)
    assert env.applied == [2, -2, 0, 3]


@pytest.mark.parametrize("beyond", [False, True])
def test_what_was_applied_is_what_the_next_plan_starts_from(beyond: bool) -> None:
    def fails(call) -> None:
        if call.number == 1 and not beyond:
            call.plan.status[:] = dcem.Status.NONFINITE

    mpc, env = Watched(fails), Slide(3, high=0.25 if beyond else 1.0)
    mpc.bounds = (-1.0, 1.0)
    if beyond:
        mpc.cost = lambda x, u: (x + u - 3.0).square().sum(-1)
    run(mpc, env, seed=0)
    for call, applied in zip(mpc.calls[1:], env.applied, strict=False):
        assert call.warm_start.actions[0, 0, 0].item() == pytest.approx(applied)
    assert env.applied[0] == 0.25 if beyond else env.applied[1] != pytest.approx(mpc.calls[1].plan.action.item())


def test_rewards_that_are_not_finite_end_the_run_and_are_named() -> None:
    class Unknown(Slide):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return (observation, np.nan if self.t == 2 else reward, *rest)

    for envs in (Unknown(), gymnasium.vector.SyncVectorEnv([Unknown])):
        with pytest.warns(RuntimeWarning, match="expected a finite reward of environment 0, got nan"):
            episodes = run(back, envs, seed=0)
        assert episodes.lengths.tolist() == [1]


def test_a_state_without_a_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="state_of: expected a tensor or a tree of tensors, got ndarray"):
        run(back, gymnasium.make("Pendulum-v1"), num_steps=1, state_of=lambda observation, env: observation)


def test_states_that_do_not_fit_together_are_named() -> None:
    def named(observation, env):
        return {"x": torch.tensor(observation), "length": env.length}

    with pytest.raises(
        ValueError, match=r"state_of: expected states of the structure of the state, 3 at \['length'\], got 4"
    ):
        run(lambda state: -state["x"], [Slide(3), Slide(4)], state_of=named)
    run(lambda state: -state["x"], [Slide(3), Slide(3)], state_of=named)


def test_environments_of_composer_are_seeded_and_followed() -> None:
    composer = pytest.importorskip("dm_control.composer")
    mjcf = pytest.importorskip("dm_control.mjcf")

    class Arm(composer.Entity):
        def _build(self) -> None:
            self._root = mjcf.RootElement(model="arm")
            self.body = self._root.worldbody.add("body", name="link")
            self.body.add("joint", name="hinge", type="hinge", axis=[0, 1, 0])
            self.link = self.body.add("geom", type="sphere", size=[0.1], pos=[0, 0, -0.5], mass=1.0)
            self._root.actuator.add("motor", name="motor", joint="hinge", ctrlrange=[-1, 1], ctrllimited=True)

        @property
        def mjcf_model(self):
            return self._root

    class Lift(composer.Task):
        def __init__(self) -> None:
            self.arm = Arm()
            self.set_timesteps(0.02, 0.01)

        @property
        def root_entity(self):
            return self.arm

        def initialize_episode_mjcf(self, random_state) -> None:
            self.arm.link.mass = random_state.uniform(0.5, 5.0)

        def get_reward(self, physics):
            return 1.0

    env = composer.Environment(Lift(), time_limit=0.1)
    model = MujocoModel(env, sensors=())
    seen = []

    def state_of(_, env):
        seen.append(model.state_of(env))
        return seen[-1]

    def push(state):
        predicted.append(model.rollout(state, torch.ones(1, 1, 1))[0, 1])
        masses.append(float(env.physics.model.body_mass.max()))
        return torch.ones(1, 1)

    predicted, masses = [], []
    for seed in (0, 1, 0):
        predicted.clear()
        seen.clear()
        episodes = run(push, env, state_of=state_of, seed=seed)
        assert episodes.lengths.item() > 4
        torch.testing.assert_close(torch.stack(predicted), torch.stack(seen[1:]), rtol=1e-5, atol=1e-6)
    third = len(masses) // 3
    assert masses[:third] == masses[-third:] != masses[third:-third]


def test_a_task_of_dm_control_with_its_own_physics_as_the_model() -> None:
    def load() -> object:
        return suite.load(
            "cartpole", "balance", task_kwargs={"random": 0, "time_limit": 0.5},
            environment_kwargs={"control_timestep": 0.05},
        )  # fmt: skip

    envs = [load(), load()]
    model = MujocoModel(envs[0])
    mpc = MPC(
        model,
        lambda state, action: -state[..., 1].cos() + 0.1 * state[..., 0].square() + 0.01 * action.square().sum(-1),
        *(10, 1, model.bounds),
        dcem.CEM(40, 8, dcem.HardTopK(), init_std=0.5),
        num_iterations=5,
        gradient=dcem.Detach(),
    )
    episodes = run(mpc, envs, state_of=lambda _, env: model.state_of(env), seed=0)
    assert episodes.lengths.tolist() == [10, 10]
    assert (episodes.returns > 0.97 * 10).all()
    assert episodes.returns[0] != episodes.returns[1]  # each environment has its own seed
    seen = run(lambda state: torch.zeros(1, 1), load(), seed=0, record=True).states[0, 0]
    env = load()
    env.task.random.seed(0)
    observation = env.reset().observation
    expected = np.concatenate([observation["position"], observation["velocity"]])
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float32))


def test_a_video_shows_the_first_environment(tmp_path) -> None:
    episodes = run(back, [Slide(4), Slide(6)], seed=0, video=True)
    assert episodes.frames.shape == (4, 8, 12, 3)  # until its own episode is over
    assert episodes.frames.dtype == torch.uint8
    assert episodes.frames[:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert episodes.dt == 1 / 20
    assert run(back, Slide(4), seed=0).frames is None
    image = pytest.importorskip("PIL.Image")
    plotting = pytest.importorskip("dcem.plotting")
    plotting.save_gif(tmp_path / "slide.gif", episodes.frames, 1 / episodes.dt)
    with image.open(tmp_path / "slide.gif") as gif:
        assert gif.n_frames == 4
        assert gif.size == (12, 8)
        assert gif.info["duration"] == 50
        gif.seek(3)
        assert abs(gif.convert("RGB").getpixel((0, 0))[0] - 60) <= 1


@pytest.mark.parametrize(("seed", "says"), [([0], r"\[0\]"), (1.5, "1.5"), ("3", "'3'"), (2.0, "2.0; 2 would do")])
@pytest.mark.parametrize("policy", [back, Watched()])
def test_a_seed_that_is_no_int_is_named(policy, seed, says: str) -> None:
    with pytest.raises(TypeError, match=f"^seed: expected an int, got {says}$"):
        run(policy, Slide(), seed=seed)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"envs: expected a Gymnasium environment.*got str"):
        run(back, "Pendulum-v1")
    with pytest.raises(ValueError, match=r"envs: expected at least one environment"):
        run(back, [])
    with pytest.raises(TypeError, match=r"policy: expected an MPC or a callable.*got 3"):
        run(3, Slide())
    with pytest.raises(ValueError, match=r"policy: expected actions \(E, \*a\) = \(1, 1\), got \(1, 2\)"):
        run(lambda state: torch.zeros(1, 2), Slide())
    with pytest.raises(
        TypeError, match=r"policy: expected it to return a Tensor of actions, got ndarray; make a Tensor of an arr"
    ):
        run(lambda state: np.zeros((1, 1)), Slide())
    says = (
        r"envs: expected a Box of continuous actions, got Discrete.*dcem.Categorical.*TransformAction\(env, np.argmax"
    )
    with pytest.raises(TypeError, match=says):
        run(back, gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"num_steps: expected at least 1, got 0"):
        run(back, Slide(), num_steps=0)
    silent = Slide()
    silent.render_mode = None
    with pytest.raises(ValueError, match=r"video: expected an environment that renders, made with render_mode"):
        run(back, silent, video=True)
    with pytest.raises(TypeError, match=r"video: expected True or False, got 'film.gif'"):
        run(back, Slide(), video="film.gif")
    with pytest.raises(TypeError, match=r"envs: expected environments of one kind, got DmControl, Gymnasium"):
        run(back, [Slide(), suite.load("cartpole", "swingup")])


def test_a_run_in_which_every_decision_failed_says_where_the_model_did() -> None:
    def explodes(x: Tensor, u: Tensor) -> Tensor:
        return x.square().sum(-1)

    solver = dcem.CEM(8, 2, dcem.HardTopK())

    def told(dynamics, cost, state_of=None, delay=0, **options) -> str:
        mpc = dcem.control.MPC(dynamics, cost, 4, 1, (-1.0, 1.0), solver, num_iterations=1, **options)
        with pytest.warns(RuntimeWarning, match="4 of 4 decisions that failed") as caught:
            run(mpc, [Slide(2), Slide(2)], seed=0, state_of=state_of, delay=delay)
        return str(caught[0].message).rpartition("replaced by zeros: ")[2]

    for options in ({}, {"num_particles": 2}):
        says = told(lambda x, u: x + u, explodes, state_of=lambda seen, env: torch.tensor([torch.nan]), **options)
        assert says == "the state that is planned from is NaN"
        deadline = lambda seen, env: torch.tensor([0.0, torch.inf])  # noqa: E731
        says = told(lambda x, u: x + u / (x - x).clamp(max=0), explodes, state_of=deadline, **options)
        assert says == "the model's state is not finite from step 1 of the plan on"
        says = told(lambda x, u: x + u, explodes, decoder=lambda z: z * torch.nan, latent_shape=(4, 1), **options)
        assert says == "the actions that are planned are not finite: look at what the decoder returns"
        says = told(lambda x, u: torch.full_like(x, torch.inf) * (x + 1), explodes, **options)
        assert says == "the model's state is not finite from step 1 of the plan on"
        says = told(lambda x, u: (x.abs() + 1) * 1e15, lambda x, u: x.sum(-1), **options)
        assert says == "the model's state is not finite from step 3 of the plan on"
        says = told(lambda x, u: x + u, lambda x, u: x.sum(-1) * torch.nan, **options)
        assert says == "the model's states are finite along the plan, what it costs is not"
        says = told(lambda x, u: x + u, lambda x, u: (1 / (u.abs() < 1e-9)).sum(-1), **options)
        assert says.startswith("the plan that is left is finite, but too few of the solver's candidates are")
    says = told(lambda x, u: x * torch.nan, explodes, delay=1)
    assert says == "the state that the actions on their way lead to, by the model, is NaN"


def test_actions_that_the_environment_does_not_allow_are_counted() -> None:
    assert run(lambda state: torch.tensor([[0.5], [3.0]]), [Slide(3), Slide(3)]).num_clipped == 3
    assert run(lambda state: torch.tensor([[1.0 + 1e-7], [-1.0]]), [Slide(3), Slide(3)]).num_clipped == 0


def test_settings_of_a_controller_do_not_say_its_precision():
    """Weights are kept in double precision whatever it plans in, and come first where its start was changed."""
    turn = torch.eye(3)
    mpc = MPC(
        lambda x, u: x @ turn + 0 * u, lambda x, u: x.square().sum(-1), 3, 1, (-2.0, 2.0), dcem.CEM(20, 5),
        init=dcem.Gaussian(torch.zeros(3, 1), torch.ones(3, 1), 2),
    )  # fmt: skip
    for _ in range(2):
        played = run(mpc, gymnasium.make("Pendulum-v1"), num_steps=2, seed=0, record=True)
        assert played.states.dtype == torch.float32
        mpc.init = None


def test_observations_that_are_read_only_are_taken():
    class Frozen(gymnasium.ObservationWrapper):
        def observation(self, observation):
            observation = observation.copy()
            observation.flags.writeable = False
            return observation

    env = Frozen(gymnasium.make("Pendulum-v1"))
    assert len(run(lambda state: torch.zeros(len(state), 1), env, num_steps=2, seed=0).lengths) == 1


def test_an_environment_that_is_given_twice_is_refused():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match="^envs: expected environments of their own, got one of them twice"):
        run(lambda state: torch.zeros(len(state), 1), [env, env], num_steps=2)
