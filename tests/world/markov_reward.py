"""A Markov reward process with a known value for each state, whose actions do nothing: to check learned values by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcem.world import WorldModel

ACTION, STATES = 1, 4
MOVE = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
REWARD = torch.tensor([1.0, 0.0, -1.0, 2.0])  # of leaving a state
OBSERVATIONS = 2 * torch.eye(STATES) - 0.5


def values(discount: float) -> Tensor:
    """`v = r + γ P v`, solved: `(4,)`."""
    return torch.linalg.solve(torch.eye(STATES) - discount * MOVE, REWARD)


def draw_sequences(batch: int, steps: int, generator: torch.Generator) -> Any:
    """Sequences `(batch, steps)` from any state on."""
    import tensordict

    states = [torch.randint(STATES, (batch,), generator=generator)]
    for _ in range(steps):
        states.append(torch.multinomial(MOVE[states[-1]], 1, generator=generator).squeeze(-1))
    path = torch.stack(states, 1)
    after = {
        "observation": OBSERVATIONS[path[:, 1:]],
        "reward": REWARD[path[:, :-1]].unsqueeze(-1),
        "terminated": torch.zeros(batch, steps, 1, dtype=torch.bool),
    }
    action = torch.rand(batch, steps, ACTION, generator=generator) * 2 - 1
    data = {"observation": OBSERVATIONS[path[:, :-1]], "action": action, "next": after}
    return tensordict.TensorDict(data, batch_size=(batch, steps))


def learned_values(model: WorldModel) -> Tensor:
    """Minus the terminal cost of the belief after a first observation of each state: `(4,)`."""
    with torch.no_grad():
        belief = model.observe(model.initial((STATES,)), torch.zeros(STATES, ACTION), OBSERVATIONS)
        return -model.terminal_cost(belief)
