"""Replay of sequences: what is drawn, and what outlives a run that is killed."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from world_contract import total

from dcem.world import RSSM, load_replay, replay, save_replay

tensordict = pytest.importorskip("tensordict")
pytest.importorskip("torchrl")
LENGTH = 5


def episode(number: int, steps: int, num_envs: int | None = None) -> Any:
    """Steps that say where they come from: `observation` is (episode, step, environment)."""
    lead = (steps,) if num_envs is None else (num_envs, steps)
    place = torch.zeros(*lead, 3)
    place[..., 0], place[..., 1] = number, torch.arange(steps)
    if num_envs is not None:
        place[..., 2] = torch.arange(num_envs).unsqueeze(-1)
    nothing = torch.zeros(*lead, 1)
    data = {"observation": place, "action": nothing, "episode": torch.full(lead, number)}
    return tensordict.TensorDict({**data, "next": {"reward": nothing, "terminated": nothing.bool()}}, lead)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_of_one_episode(sample: Any) -> bool:
    number, step, env = sample["observation"].unbind(-1)
    same = (number == number[:, :1]).all() and (env == env[:, :1]).all()
    return bool(same and (step[:, 1:] - step[:, :-1] == 1).all())


def kept(buffer: Any) -> torch.Tensor:
    return buffer[:]["observation"].reshape(-1, 3)


# what is drawn


@pytest.mark.cpu
def test_sequences_stay_in_their_episode_and_all_of_them_are_drawn() -> None:
    buffer = replay(1000, 64, LENGTH, generator=seeded())
    for number, steps in enumerate([9, 3, 9, 5, 4, 9]):
        buffer.extend(episode(number, steps))
    counts: dict[tuple[int, int], int] = {}
    for _ in range(150):
        sample = buffer.sample()
        assert sample.batch_size == (64, LENGTH)
        assert is_of_one_episode(sample)
        for number, start in sample["observation"][:, 0, :2].int().tolist():
            counts[number, start] = counts.get((number, start), 0) + 1
    assert set(counts) == {(n, t) for n in (0, 2, 5) for t in range(5)} | {(3, 0)}
    expected = 64 * 150 / 4  # an episode; 3 and 4 are not long enough
    for (number, _), count in counts.items():
        assert abs(count / expected * (1 if number == 3 else 5) - 1) < 0.2


@pytest.mark.cpu
@pytest.mark.parametrize("num_envs", [None, 3])
def test_nothing_is_drawn_across_the_place_of_the_last_write(num_envs: int | None, tmp_path: Path) -> None:
    capacity = 40 * (num_envs or 1)
    buffer = replay(capacity, 32, LENGTH, batched=num_envs is not None, generator=seeded())
    for number in range(9):
        steps = episode(number, 11, num_envs)
        for part in steps.split(4, -1):
            buffer.extend(part)
            if number or part.batch_size[-1] == LENGTH:
                assert is_of_one_episode(buffer.sample())
    assert len(buffer) == capacity
    save_replay(buffer, tmp_path)
    again = replay(capacity, 32, LENGTH, batched=num_envs is not None, generator=seeded(5))
    load_replay(again, tmp_path)
    for _ in range(20):
        assert is_of_one_episode(again.sample())
    for number in range(9, 12):  # goes on where it was
        for target in (buffer, again):
            target.extend(episode(number, 7, num_envs))
            assert is_of_one_episode(target.sample())
        assert torch.equal(kept(buffer), kept(again))


@pytest.mark.cpu
def test_an_episode_that_is_longer_than_the_buffer() -> None:
    buffer = replay(20, 64, LENGTH, generator=seeded())
    for part in episode(0, 77).split(6):
        buffer.extend(part)
        if len(buffer) >= LENGTH:
            assert is_of_one_episode(buffer.sample())


@pytest.mark.cpu
def test_a_generator_replays_what_is_drawn() -> None:
    def draw(seed: int) -> torch.Tensor:
        buffer = replay(100, 8, LENGTH, generator=seeded(seed))
        buffer.extend(episode(0, 50))
        return buffer.sample()["observation"]

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_a_model_learns_from_it() -> None:
    buffer = replay(100, 8, LENGTH)
    buffer.extend(episode(0, 50))
    model = RSSM(3, 1, deterministic_size=8, stochastic_size=2, hidden_sizes=(8,))
    assert total(model.loss(buffer.sample())).isfinite()


# what outlives the run


def collect_for_ever(folder: Path, ready: Any) -> None:
    buffer = replay(50, 8, LENGTH, generator=seeded())
    for number in range(7):
        buffer.extend(episode(number, 9))
        buffer.sample()
        if number in (2, 4):
            save_replay(buffer, folder)
    ready.send(True)
    while True:
        buffer.extend(episode(7, 9))


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="needs processes that are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of forking beside threads
def test_a_run_that_is_killed_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    run = context.Process(target=collect_for_ever, args=(tmp_path, theirs), daemon=True)
    run.start()
    theirs.close()
    assert ours.recv()
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    expected = replay(50, 8, LENGTH, generator=seeded())
    for number in range(5):
        expected.extend(episode(number, 9))
        expected.sample()
    resumed = replay(50, 8, LENGTH, generator=seeded(99))
    load_replay(resumed, tmp_path)
    assert torch.equal(kept(resumed), kept(expected))
    for number in range(5, 9):
        for buffer in (resumed, expected):
            buffer.extend(episode(number, 9))
        assert torch.equal(resumed.sample()["observation"], expected.sample()["observation"])


@pytest.mark.cpu
@pytest.mark.parametrize(("num_envs", "capacity"), [(None, 20), (2, 40), (8, 155)])  # 155 steps of 8 are kept as 160
@pytest.mark.parametrize("steps", [15, 20, 30], ids=["not yet full", "just full", "overwritten"])
def test_one_episode_as_long_as_the_buffer_is_drawn_as_if_it_had_not_been_saved(
    num_envs: int | None, capacity: int, steps: int, tmp_path: Path
) -> None:
    def make(seed: int) -> Any:
        return replay(capacity, 64, LENGTH, batched=num_envs is not None, generator=seeded(seed))

    buffer, fresh, used = make(0), make(1), make(2)
    for part in episode(0, steps, num_envs).split(5, -1):
        buffer.extend(part)
    buffer.sample()
    used.extend(episode(1, 2 * LENGTH, num_envs))
    used.sample()
    save_replay(buffer, tmp_path / "first")
    for loaded in (fresh, used):
        load_replay(loaded, tmp_path / "first")
    save_replay(fresh, tmp_path / "second")  # without a step in between
    load_replay(again := make(3), tmp_path / "second")
    for now in range(steps, steps + 21, 7):
        expected = buffer.sample()
        assert is_of_one_episode(expected)
        for loaded in (fresh, used, again):
            assert torch.equal(loaded.sample()["observation"], expected["observation"])
        for target in (buffer, fresh, used, again):
            target.extend(episode(0, now + 7, num_envs)[..., now:])


def test_episodes_that_were_there_before_are_forgotten(tmp_path: Path) -> None:
    """As many steps, of one episode instead of two."""
    buffer, used = replay(2 * LENGTH, 64, LENGTH), replay(2 * LENGTH, 64, LENGTH)
    buffer.extend(torch.cat([episode(0, LENGTH), episode(1, LENGTH)]))
    used.extend(episode(2, 2 * LENGTH))
    used.sample()
    save_replay(buffer, tmp_path)
    load_replay(used, tmp_path)
    assert is_of_one_episode(used.sample())


def test_a_save_that_is_cut_short_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = replay(50, 8, LENGTH)
    buffer.extend(episode(0, 9))
    save_replay(buffer, tmp_path)
    before = kept(buffer).clone()
    buffer.extend(episode(1, 9))

    def cut(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("a")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(buffer, "dumps", cut)
        with pytest.raises(KeyboardInterrupt):
            save_replay(buffer, tmp_path)
    resumed = replay(50, 8, LENGTH)
    load_replay(resumed, tmp_path)
    assert torch.equal(kept(resumed), before)
    save_replay(buffer, tmp_path)
    resumed = replay(50, 8, LENGTH)
    load_replay(resumed, tmp_path)
    assert torch.equal(kept(resumed), kept(buffer))
    assert len(list(tmp_path.iterdir())) == 2  # the note and one buffer: what was cut short is gone


# bad input


def test_a_buffer_without_a_sequence_says_so(tmp_path: Path) -> None:
    buffer = replay(50, 8, LENGTH)
    with pytest.raises(ValueError, match="an episode of at least 5 steps to draw sequences from, got an empty buffer"):
        buffer.sample()
    with pytest.raises(ValueError, match="buffer: expected at least one step to save"):
        save_replay(buffer, tmp_path)
    for number in range(4):
        buffer.extend(episode(number, LENGTH - 1))
        with pytest.raises(
            ValueError, match=rf"at least 5 steps to draw sequences from, got {4 * (number + 1)} steps, none"
        ):
            buffer.sample()
    buffer.extend(episode(9, LENGTH))
    assert (buffer.sample()["episode"] == 9).all()
    sample, _ = buffer.sample(return_info=True)
    assert sample.batch_size == (8, LENGTH)


def test_steps_without_the_number_of_their_episode_are_refused() -> None:
    """TorchRL would look for their ends in another entry, and fail when the first sample is drawn."""
    with pytest.raises(ValueError, match=r"replay: expected steps with the entry 'episode', .* got .*'action'"):
        replay(50, 8, LENGTH).extend(episode(0, LENGTH).exclude("episode"))
    unnumbered = list(episode(0, LENGTH).exclude("episode"))
    for name, steps in (("add", unnumbered[0]), ("extend", unnumbered)):
        with pytest.raises(ValueError, match=r"replay: expected steps with the entry 'episode', .* got .*'action'"):
            getattr(replay(50, 8, LENGTH), name)(steps)
    steps = episode(3, LENGTH)
    steps["collector", "traj_ids"] = steps.pop("episode")
    buffer = replay(50, 8, LENGTH, episode_key=("collector", "traj_ids"))
    buffer.extend(steps)
    assert (buffer.sample()["collector", "traj_ids"] == 3).all()


@pytest.mark.parametrize("num_envs", [None, 2])
def test_steps_of_another_shape_are_refused_where_they_come(num_envs: int | None) -> None:
    """TorchRL fails when the first sample is drawn."""
    whole = episode(0, LENGTH, num_envs)
    wide, single = whole.clone(), whole[..., 0].clone()
    for steps in (wide, single):  # as TorchRL writes a number
        steps["episode"] = steps["episode"].unsqueeze(-1)
    other = episode(0, LENGTH, 2 if num_envs is None else None)
    remedy = r"; make it one of steps\['episode'\].squeeze\(-1\)"
    for name, steps, end in (
        ("extend", wide, remedy),
        ("extend", [single], remedy),
        ("add", single, remedy),
        ("extend", other, ""),
        ("add", whole, ""),
    ):
        buffer = replay(50, 8, LENGTH, batched=num_envs is not None)
        with pytest.raises(ValueError, match=rf"replay: expected a batch of \d axes .* got a batch .*\){end}$"):
            getattr(buffer, name)(steps)
        assert len(buffer) == 0
    with pytest.raises(TypeError, match="replay: expected steps as a TensorDict, got dict"):
        replay(50, 8, LENGTH).extend(whole.to_dict())


@pytest.mark.filterwarnings("ignore:Using `add\\(\\)` with a TensorDict:UserWarning")  # of several environments
@pytest.mark.parametrize("num_envs", [None, 2])
def test_single_steps_are_drawn_as_sequences(num_envs: int | None) -> None:
    added, listed = (replay(50, 8, LENGTH, batched=num_envs is not None) for _ in range(2))
    steps = [step.clone() for step in episode(0, 2 * LENGTH, num_envs).unbind(-1)]
    for step in steps:
        added.add(step)
    assert is_of_one_episode(added.sample())
    if num_envs is None:
        listed.extend(steps)
        assert torch.equal(kept(added), kept(listed))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity: expected at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an int, got 2.0"),
        ({"length": 1}, ValueError, "length: expected 2 to capacity=50 steps, got 1"),
        ({"length": 51}, ValueError, "length: expected 2 to capacity=50 steps, got 51"),
        ({"generator": 0}, TypeError, "generator: expected a torch.Generator or None, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replay(**{"capacity": 50, "batch_size": 8, "length": LENGTH, **options})


def test_what_was_not_saved_or_is_damaged_is_not_loaded(tmp_path: Path) -> None:
    buffer = replay(50, 8, LENGTH)
    with pytest.raises(FileNotFoundError, match="folder: expected a replay that save_replay wrote"):
        load_replay(buffer, tmp_path)
    buffer.extend(episode(0, 9))
    save_replay(buffer, tmp_path)
    with pytest.raises(
        ValueError, match="expected a replay of {'capacity': 60, 'axes': 1}, got one of {'capacity': 50"
    ):
        load_replay(replay(60, 8, LENGTH), tmp_path)
    saved = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert not (saved / "prefetch.pkl").exists()  # nothing but plain data
    file = saved / "storage" / "observation.memmap"
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[:1]), file.unlink, lambda: (saved / "prefetch.pkl").write_bytes(b"")):
        damage()
        with pytest.raises(ValueError, match="expected a whole replay, got a damaged one"):
            load_replay(replay(50, 8, LENGTH), tmp_path)
        file.write_bytes(whole)
    (saved / "prefetch.pkl").unlink()
    load_replay(replay(50, 8, LENGTH), tmp_path)
    for note in ["", "[]", json.dumps({"capacity": 50})]:
        (tmp_path / "replay.json").write_text(note)
        with pytest.raises(ValueError, match="got a damaged"):
            load_replay(buffer, tmp_path)


# without TorchRL


def test_without_torchrl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dcem.world._torchrl", raising=False)
    monkeypatch.setitem(sys.modules, "torchrl.data", None)
    with pytest.raises(ImportError, match=r'pip install "dcem\[rl\]"'):
        replay(50, 8, LENGTH)
