"""`dcem planet`: its three phases, small, and what is made of their checkpoints."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict

pytest.importorskip("dm_control")

from dcem.experiments import ConfigError
from dcem.experiments.harness.run import Run
from dcem.experiments.planet import Config, evaluation, main, study, training
from dcem.experiments.planet.controllers import Controller, last_beliefs, load, make_decoder, make_model
from dcem.experiments.planet.replay import Replay
from dcem.experiments.planet.settings import Embedding, Planner, Rates, Tuning
from dcem.experiments.planet.suite import Suite
from dcem.experiments.planet.training import Learner, play
from dcem.experiments.planet.tuning import Tuner

TINY = {
    "task": "cheetah.run", "num_envs": 2, "episode_steps": 24, "batch_size": 4, "updates_per_decision": 0.2, "hidden": 16,
    "latent_size": 16, "eval_every": 2, "planner": Planner(num_samples=8, num_elites=2, num_iterations=2, num_proposals=2),
    "embedding": Embedding(num_samples=4, num_elites=2, num_iterations=2, batch_size=2),
    "tuning": Tuning(parts=["reward", "dynamics", "value", "decoder"], critic_updates=2, minibatch_size=5, share=0.5,
                     eval_rounds=1, lr=1e-3),
}  # fmt: skip


def run(folder, resume=False, **settings):
    config = Config(**(TINY | settings))
    config.check()
    with Run(folder, {}, seed=config.seed, resume=resume, quiet=True, command="dcem planet") as started:
        return main(config, started)


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planet")
    run(folder / "model", num_rounds=2)
    run(folder / "embed", num_rounds=1, phase="embed", start=str(folder / "model"))
    run(folder / "tune", num_rounds=1, phase="tune", start=str(folder / "embed" / "controller.pt"))
    return folder


def weights(controller):
    state = {f"model.{key}": tensor for key, tensor in controller.model.state_dict().items()}
    return state | {f"decoder.{key}": tensor for key, tensor in controller.decoder.state_dict().items()}


def test_each_phase_goes_on_where_the_one_before_has_ended(phases):
    model, embedded, tuned = (load(phases / name / "controller.pt")[0] for name in ("model", "embed", "tune"))
    assert [c.env_steps for c in (model, embedded, tuned)] == [96, 144, 192]
    assert model.decoder is None
    assert len(torch.load(phases / "embed" / "checkpoint.pt")["tracked"]["replay"]["data"]["episode"]) == 36
    changed = {key for key, tensor in weights(tuned).items() if not torch.equal(tensor, weights(embedded)[key])}
    assert {key.split(".")[1] for key in changed} >= {"reward", "dynamics", "layers"}
    assert not any(key.startswith(("model.encoder", "model.policy", "model.target")) for key in changed)


@pytest.mark.parametrize("start", ["model", "embed"])
def test_a_decoder_is_learned_from_a_controller_without_its_replay(phases, tmp_path, start):
    """It fills one first, by what it plays, and learns nothing meanwhile; a decoder that is there goes on."""
    checkpoint = phases / start / "controller.pt"
    before, _ = load(checkpoint)
    run(tmp_path, num_rounds=1, phase="embed", start=str(checkpoint), eval_every=1)
    filled, _ = load(tmp_path / "controller.pt")
    kept = torch.load(tmp_path / "checkpoint.pt")["tracked"]["replay"]["data"]
    assert len(kept["episode"]) == 12
    assert filled.env_steps == before.env_steps + 48
    assert all(torch.equal(tensor, filled.model.state_dict()[key]) for key, tensor in before.model.state_dict().items())
    if before.decoder is not None:
        assert all(torch.equal(tensor, weights(filled)[key]) for key, tensor in weights(before).items())
    run(tmp_path / "more", num_rounds=2, phase="embed", start=str(checkpoint))
    learned, _ = load(tmp_path / "more" / "controller.pt")
    assert learned.env_steps == before.env_steps + 96
    changed = {key for key, tensor in weights(learned).items() if not torch.equal(tensor, weights(filled)[key])}
    assert {key.split(".")[0] for key in changed} == {"model", "decoder"}


def test_a_controller_fills_a_replay_by_its_own_plans(phases, tmp_path, monkeypatch):
    """The full-space one over actions, the embedded one over its latent; at random only from nothing."""
    played = []

    def watched(suite, seed, model, mpc, **others):
        played.append(None if model is None else "full" if mpc.decoder is None else "embedded")
        return play(suite, seed, model, mpc, **others)

    monkeypatch.setattr(training, "play", watched)
    for phase, start, expected in [
        ("model", "", [None, "full", "full"]),
        ("embed", "model/controller.pt", ["full", "embedded", "embedded"]),
        ("embed", "embed/controller.pt", ["embedded", "embedded", "embedded"]),
        ("model", "embed/controller.pt", ["full", "full", "full"]),
        ("embed", "model", ["embedded", "embedded", "embedded"]),
    ]:
        played.clear()
        run(
            tmp_path / f"{phase}-{start.replace('/', '-')}",
            num_rounds=2,
            phase=phase,
            start=start and str(phases / start),
        )
        assert played == expected  # two rounds, and the evaluation


RECURRENT = {"model": "rssm", "window": 5, "planner": replace(TINY["planner"], num_proposals=1),
             "tuning": replace(TINY["tuning"], parts=["reward", "dynamics", "decoder"])}  # fmt: skip


@pytest.fixture(scope="module")
def recurrent_phases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planet-rssm")
    run(folder / "model", num_rounds=2, **RECURRENT)
    run(folder / "embed", num_rounds=1, phase="embed", start=str(folder / "model"), **RECURRENT)
    run(folder / "tune", num_rounds=1, phase="tune", start=str(folder / "embed" / "controller.pt"), **RECURRENT)
    return folder


def test_the_recurrent_model_goes_through_all_phases(recurrent_phases):
    embedded, tuned = (load(recurrent_phases / name / "controller.pt")[0] for name in ("embed", "tune"))
    assert (embedded.env_steps, tuned.env_steps) == (144, 192)
    changed = {key for key, tensor in weights(tuned).items() if not torch.equal(tensor, weights(embedded)[key])}
    of = {".".join(key.split(".")[:2]) for key in changed}
    dynamics = {"model.embed", "model.cell", "model.prior_net"}
    assert of == dynamics | {"model.reward_net", "decoder.layers"}


def test_a_decoder_learns_from_what_the_model_remembers(recurrent_phases):
    """Of beliefs at the end of windows, each as if it were played through."""
    controller, _ = load(recurrent_phases / "embed" / "controller.pt")
    model = controller.model
    observation, action = torch.randn(3, 4, model.observation_size), torch.rand(3, 4, model.action_size)
    beliefs = last_beliefs(model, TensorDict(observation=observation, action=action, batch_size=(3, 4)))
    belief = model.initial((3,))
    for t in range(4):
        before = action[:, t - 1] if t > 0 else torch.zeros_like(action[:, 0])
        belief = model.observe(belief, before, observation[:, t])
    torch.testing.assert_close(beliefs, belief)
    assert not beliefs.deterministic.requires_grad


@pytest.mark.parametrize("space", ["embedded", "full space"])
@pytest.mark.parametrize("kind", ["latent", "rssm"])
def test_what_was_played_is_decided_again(kind, space, phases, recurrent_phases):
    """Before any update every stored action is as probable as when it was drawn, in any order of the steps."""
    folder = recurrent_phases if kind == "rssm" else phases
    controller, suite = load(folder / ("embed" if space == "embedded" else "model") / "controller.pt")
    tuning = Tuning(parts=["reward"], critic_updates=2)
    tuner = Tuner(Config(**(TINY | (RECURRENT if kind == "rssm" else {}) | {"tuning": tuning})), controller)
    data = tuner.collect(suite, 0)
    beliefs = data["belief", "0"]
    assert not beliefs[:, 0].any()
    assert beliefs[:, 1:].any(-1).all()
    assert not data["started"][:, 0].any()
    assert data["started"][:, 1:].all()
    torch.testing.assert_close(beliefs[:, 1:], data["next", "belief", "0"][:, :-1])
    assert ("plan" in data) == (space == "full space")
    flat = data.reshape(-1)[torch.randperm(data.numel())]
    ratio = tuner.actor.get_dist(flat).log_prob(flat["action"]) - flat["action_log_prob"]
    assert ratio.abs().max() < 1e-5
    assert data["action_log_prob"].unique().numel() > 1


def test_the_recurrent_model_remembers_while_it_plays(recurrent_phases):
    controller, suite = load(recurrent_phases / "model" / "controller.pt")
    assert controller.mpc.proposals is None
    assert controller.mpc.terminal_cost is None
    observed = []
    remember = controller.model.observe

    def observe(belief, action, observation):
        observed.append((belief, action, observation))
        return remember(belief, action, observation)

    controller.model.observe = observe
    episodes = play(suite, 0, controller.model, controller.mpc, explore=0.1)
    (start, first, _), (later, second, seen), *_ = observed
    assert not start.deterministic.any()
    assert not first.any()
    assert later.deterministic.any()
    torch.testing.assert_close(second, episodes.actions[:, 0])
    torch.testing.assert_close(seen, episodes.observations[:, 1])


def test_only_the_parts_that_are_named_are_tuned(phases, tmp_path):
    run(tmp_path, num_rounds=1, phase="tune", start=str(phases / "embed" / "controller.pt"),
        tuning=Tuning(critic_updates=2, minibatch_size=5, eval_rounds=1, lr=1e-3))  # fmt: skip
    before, after = (weights(load(f / "controller.pt")[0]) for f in (phases / "embed", tmp_path))
    changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)


def tuned(phases, **tuning):
    controller, suite = load(phases / "embed" / "controller.pt")
    common = {"critic_updates": 2, "minibatch_size": 1000, "eval_rounds": 1}
    tuner = Tuner(Config(**(TINY | {"tuning": Tuning(**common | tuning)})), controller)
    return controller, tuner, tuner.collect(suite, 0)


def test_each_part_has_its_rate(phases):
    """The first step of Adam moves a number by its rate, or not at all."""
    controller, tuner, data = tuned(
        phases, parts=["reward", "decoder"], lr=1e-3, rates=Rates(reward=1e-5, std=1e-2), learn_std=True
    )
    before = {key: tensor.clone() for key, tensor in weights(controller).items()}
    std = tuner.actor.std.detach().clone()
    assert tuner.step(data)["updates"] == 1
    moved = {"decoder": 0.0, "model.reward": 0.0}
    for key, tensor in weights(controller).items():
        for part in moved:
            if key.startswith(part):
                moved[part] = max(moved[part], (tensor - before[key]).abs().max().item())
    assert moved == {"decoder": pytest.approx(1e-3, rel=0.01), "model.reward": pytest.approx(1e-5, rel=0.01)}
    assert (tuner.actor.std - std).abs().item() == pytest.approx(1e-2, rel=0.01)


def test_the_model_goes_on_learning_beside_the_policy(phases, monkeypatch):
    """By its own loss of the episodes that were played, here without PPO's, with the rewards as they came."""
    _, tuner, data = tuned(phases, parts=["reward"], lr=1e-2, likelihood=1.0, passes=30)

    def nothing(batch):
        return {"kl_approx": 0.0, "loss_objective": sum(0 * parameter.sum() for parameter in tuner.tuned)}

    monkeypatch.setattr(tuner, "loss", nothing)
    rewards = 1 + data["action"][..., 0]
    data["next", "reward"] = rewards.unsqueeze(-1) * (1 - tuner.settings.discount)

    def error():
        with torch.no_grad():
            predicted = -tuner.model.cost(tuner.model.encode(data["observation"]), data["action"])
        return (predicted - rewards).square().mean().item()

    before = error()
    assert tuner.step(data)["updates"] == 30
    assert error() < 0.2 * before


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"rates": Rates(reward=1e-3)}, r"tuning.rates: expected rates of what is tuned, decoder; got \['reward'\]"),
        (
            {"likelihood": 1.0},
            r"tuning.parts: expected a part of the model, which tuning.likelihood moves; got \['decoder'\]",
        ),
    ],
)
def test_tuning_refuses_what_it_could_not_do(phases, tmp_path, tuning, message):
    with pytest.raises(ConfigError, match=message):
        run(
            tmp_path, num_rounds=1, phase="tune", start=str(phases / "embed" / "controller.pt"), tuning=Tuning(**tuning)
        )


@pytest.mark.parametrize("model", ["latent", "rssm"])
def test_what_playing_and_learning_make_is_where_the_models_are(model):
    """Whatever the default device is: here the meta device, whose tensors do not go with those that have values."""
    config = Config(**(TINY | {"model": model, "window": 5}))
    suite = Suite(config.task, config.num_envs, config.episode_steps)
    learned = make_model(config, suite)
    decoder = make_decoder(config, learned) if model == "latent" else None
    learner, mpc = Learner(config, learned, decoder), Controller(config, learned, decoder, 0).mpc
    replay = Replay(100, config.batch_size, config.window)
    with torch.device("meta"):
        random = play(suite, 0, None, None, explore=0.0)
        for episodes in (random, play(suite, 1, learned, mpc, explore=0.1)):
            replay.extend(episodes.observations, episodes.actions, episodes.rewards)
        losses = learner.update(replay.sample())
    assert all(loss.isfinite() for loss in losses.values())


def test_what_tuning_makes_is_where_the_models_are(phases):
    controller, suite = load(phases / "embed" / "controller.pt")
    tuner = Tuner(Config(**TINY), controller)
    with torch.device("meta"):
        assert math.isfinite(tuner.step(tuner.collect(suite, 0))["critic_error"])


@pytest.mark.parametrize(
    ("phase", "changes", "message"),
    [
        ("embed", {"task": "walker.walk"}, "task: expected cheetah.run, as .* was made with; got walker.walk"),
        ("embed", {"latent_size": 8}, "latent_size: expected 16, "),
        ("tune", {"hidden": 8}, "hidden: expected 16, "),
        ("tune", {"discount": 0.9}, "discount: expected 0.99, "),  # it would plan otherwise as soon as it is saved
        ("tune", {"planner": Planner(horizon=2)}, "planner.horizon: expected 3, "),
        ("tune", {"embedding": Embedding(latent_size=2)}, "embedding.latent_size: expected 6, "),
    ],
)
def test_a_phase_goes_on_with_the_model_as_it_was_made(phases, tmp_path, phase, changes, message):
    start = phases / "model" if phase == "embed" else phases / "embed" / "controller.pt"
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, num_rounds=1, phase=phase, start=str(start), **changes)


def test_a_decoder_that_is_not_there_is_not_tuned(phases, tmp_path):
    with pytest.raises(
        ConfigError, match=r"tuning.parts: expected some of encoder, .*policy, which .* has; got \['deco"
    ):
        run(tmp_path, num_rounds=1, phase="tune", start=str(phases / "model" / "controller.pt"), tuning=Tuning())
    with pytest.raises(ConfigError, match=r"start: expected a controller of phase=embed: .*; got .*controller.pt"):
        run(
            tmp_path, num_rounds=1, phase="tune", start=str(phases / "model" / "controller.pt"),
            tuning=Tuning(parts=["reward"]),
        )  # fmt: skip


def test_a_controller_is_evaluated_from_its_file(phases, tmp_path):
    config = evaluation.Config(checkpoint=str(phases / "embed" / "controller.pt"), num_episodes=4, num_envs=2)
    config.check()
    with Run(tmp_path, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started:
        metrics = evaluation.main(config, started)
    assert metrics["trajectories"] == 8
    assert len(metrics["returns"]) == 4
    assert metrics["quartiles"][0] <= metrics["median"] <= metrics["quartiles"][1]
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["env_steps"] == 144


@pytest.mark.parametrize(("phase", "trajectories"), [("model", 24), ("embed", 20)])
def test_a_controller_is_evaluated_with_other_numbers_of_candidates(phases, tmp_path, phase, trajectories):
    checkpoint = str(phases / phase / "controller.pt")
    config = evaluation.Config(checkpoint=checkpoint, num_episodes=1, num_samples=10)
    with Run(tmp_path, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started:
        assert evaluation.main(config, started)["trajectories"] == trajectories
    few = evaluation.Config(checkpoint=checkpoint, num_samples=1)
    with (
        Run(tmp_path / "few", {}, seed=0, quiet=True, command="dcem planet-evaluate") as started,
        pytest.raises(ConfigError, match="num_samples: expected 0, or at least [23], the elites of the search; got 1"),
    ):
        evaluation.main(few, started)


def test_an_embedded_controller_is_searched_with_another_temperature_and_number_of_iterations(phases, tmp_path):
    checkpoint, returns = str(phases / "embed" / "controller.pt"), {}
    for name, changes in {"as-it-is": {}, "other": {"temperature": 0.1, "num_iterations": 3}}.items():
        config = evaluation.Config(checkpoint=checkpoint, num_episodes=1, **changes)
        config.check()
        with Run(tmp_path / name, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started:
            metrics = evaluation.main(config, started)
        returns[name] = metrics["returns"]
        assert metrics["trajectories"] == 4 * (3 if changes else 2)
    assert returns["other"] != returns["as-it-is"]


def test_a_full_space_controller_has_no_temperature_to_change(phases, tmp_path):
    config = evaluation.Config(checkpoint=str(phases / "model" / "controller.pt"), num_episodes=1, temperature=0.1)
    with (
        Run(tmp_path, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started,
        pytest.raises(ConfigError, match="temperature: expected 0 for a controller that plans by its planner; got 0.1"),
    ):
        evaluation.main(config, started)


@pytest.mark.parametrize("num", [1, 3])
def test_fewer_episodes_than_environments_are_played(phases, tmp_path, num):
    """Side by side: one round, in as many environments as there are episodes."""
    config = evaluation.Config(checkpoint=str(phases / "model" / "controller.pt"), num_episodes=num)
    config.check()
    with Run(tmp_path, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started:
        assert len(evaluation.main(config, started)["returns"]) == num
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ConfigError, match="num_episodes: expected a multiple of num_envs=10, or fewer; got 15"):
        evaluation.Config(checkpoint=str(phases / "model" / "controller.pt"), num_episodes=15).check()


def test_an_evaluation_shows_an_episode(phases, tmp_path, monkeypatch):
    shades = iter(range(100))
    monkeypatch.setattr(  # a renderer is not there everywhere
        evaluation.Suite, "picture", lambda suite: np.full((24, 32, 3), 30 * next(shades), dtype=np.uint8), raising=True
    )
    controller, _ = evaluation.load(phases / "model" / "controller.pt")
    evaluation.animate(tmp_path / "episode.gif", controller, 6)
    with Image.open(tmp_path / "episode.gif") as film:
        assert film.n_frames == 4  # at the start, and after 2, 4 and 6 decisions
    assert next(shades) == 7


def test_the_study_draws_what_runs_and_evaluations_have_left(phases, tmp_path):
    for name in ("model", "embed", "tune"):
        (phases / name / "config.yaml").write_text(f"task: cheetah.run\nphase: {name}\n")
    for name in ("embed", "tune"):
        config = evaluation.Config(checkpoint=str(phases / name / "controller.pt"), num_episodes=4, num_envs=2)
        with Run(tmp_path / name, {}, seed=0, quiet=True, command="dcem planet-evaluate") as started:
            evaluation.main(config, started)
    runs, evaluations = ([str(f / name) for name in ("embed", "tune")] for f in (phases, tmp_path))
    settings = study.Config(runs=[str(phases / "model"), *runs], evaluations=evaluations)
    settings.check()
    with Run(tmp_path / "study", {}, seed=0, quiet=True, command="dcem planet-study") as started:
        study.main(settings, started)
    assert {path.name for path in (tmp_path / "study").glob("*.png")} == {
        "learning-cheetah.run.png",
        "returns-cheetah.run.png",
    }
    played = [
        json.loads((tmp_path / name / "summary.json").read_text())["metrics"]["returns"] for name in ("embed", "tune")
    ]
    gain = sum(after - before for before, after in zip(*played, strict=True)) / 4
    assert f" gained {gain:.1f} ±" in (tmp_path / "study" / "table.md").read_text()


def test_each_tuned_controller_is_compared_with_the_one_it_started_from():
    """Of several seeds; the study took the last embedded one for all of them."""

    def of(phase: str, steps: int, level: float) -> study.Evaluation:
        spread = [0.0, 1.0, 3.0] if phase == "embed" else [0.5, 0.5, 3.0]
        return study.Evaluation(phase, "walker.walk", phase, steps, 27, [level + each for each in spread])

    lines = study.table([of("embed", 10, 0.0), of("tune", 20, 5.0), of("embed", 11, 100.0), of("tune", 21, 102.0)])
    assert "from 10 to 20 steps gained 5.0 ±" in lines
    assert "from 11 to 21 steps gained 2.0 ±" in lines


def test_an_episode_is_a_function_of_its_seed_and_actions():
    one, other = Suite("walker.walk", 2, 20), Suite("walker.walk", 2, 20)
    other.reset(7)
    other.step(torch.ones(2, 6))
    for suite in (one, other):
        first = suite.reset(3)
        assert not torch.equal(first[0], first[1])
    actions = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    a, b = one.step(actions), other.step(actions)
    assert torch.equal(a.observation, b.observation)
    assert torch.equal(a.reward, b.reward)
    assert [one.step(actions).done for _ in range(9)] == [False] * 8 + [True]


def test_a_replay_is_loaded_in_the_place_of_what_there_is():
    """A phase begins with that of the one before, and resumes with its own."""
    buffer = Replay(20, 2, 2)
    buffer.extend(torch.zeros(2, 4, 3), torch.zeros(2, 3, 1), torch.arange(6.0).reshape(2, 3))
    state = buffer.state_dict()
    buffer.load_state_dict(state)
    again = buffer.state_dict()
    assert again["num_episodes"] == 2
    assert torch.equal(again["data"]["next.reward"], state["data"]["next.reward"])
    assert buffer.sample().shape == (2, 2)


def test_replayed_windows_are_steps_of_one_episode_in_order():
    replay = Replay(100, 64, 3)
    times = torch.arange(11.0).expand(2, 11) + torch.tensor([[0.0], [100.0]])
    replay.extend(times.unsqueeze(-1), times[:, :-1].unsqueeze(-1), times[:, :-1])
    batch = replay.sample()
    seen = batch["observation"].squeeze(-1)
    assert torch.equal(seen, seen[:, :1] + torch.arange(3.0))
    assert torch.equal(batch["next", "observation"].squeeze(-1), seen + 1)
    assert torch.equal(batch["next", "reward"].squeeze(-1), seen)
    assert ((seen[:, -1] <= 9) | (seen[:, 0] >= 100)).all()
    assert seen.unique().numel() == 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task": "cheetah.walk"}, "task: expected one of"),
        ({"phase": "all"}, "phase: expected one of model, embed, tune"),
        ({"phase": "embed"}, "start: expected"),
        ({"seed_rounds": 3, "num_rounds": 2}, "seed_rounds: expected at most the 2 of num_rounds"),
        ({"episode_steps": 1001}, "episode_steps: expected a multiple"),
        ({"tuning": Tuning(parts=["encoder"])}, "tuning.parts: expected some of"),
        ({"planner": Planner(num_elites=1000)}, "planner.num_elites: expected 1 to num_samples"),
        ({"window": 1}, "window: expected at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Config(**(TINY | settings)).check()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    for name, content in {"other.pt": {"a": 1}, "checkpoint.pt": None}.items():
        path = tmp_path / name
        torch.save(content, path) if content else path.write_bytes(b"cut off")
        with pytest.raises(ConfigError, match=f"checkpoint: expected a file that dcem planet has written; .*{name}"):
            load(path)
    with pytest.raises(ConfigError, match="is not there"):
        load(tmp_path / "missing.pt")
