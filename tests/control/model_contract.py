"""What every `dcem.control.Model` has to do. A test of a new one inherits this and makes it."""

from typing import Any

import torch
from torch import Tensor

from dcem.control import MPC, Model, rollout


class ModelContract:
    """A subclass defines `make`, and how far a rollout may be from single steps."""

    tolerance = 1e-5

    def make(self) -> Any:
        raise NotImplementedError

    def states(self, *batch: int) -> Tensor:
        """States to start from, `(*batch, *state_shape)`."""
        model = self.make()
        states = model.sample_states(max(1, torch.Size(batch).numel()), generator=torch.Generator().manual_seed(0))
        return states.reshape(*batch, *model.state_shape)

    def actions(self, *lead: int) -> Tensor:
        """Actions that reach beyond the bounds, where there are any."""
        return 2 * torch.randn(*lead, *self.make().action_shape, generator=torch.Generator().manual_seed(1))

    def test_it_says_what_it_takes(self) -> None:
        model = self.make()
        assert isinstance(model, Model)
        assert all(type(size) is int for size in (*model.state_shape, *model.action_shape))
        assert model.dt > 0
        low, high = (torch.as_tensor(side).expand(model.action_shape) for side in model.bounds)
        assert (low < high).all()

    def test_leading_axes_are_problems_of_their_own(self) -> None:
        model = self.make()
        states, actions = self.states(2, 3), self.actions(2, 3)
        given = states.clone(), actions.clone()
        after = model(states, actions)
        assert after.shape == states.shape
        assert torch.equal(states, given[0])
        assert torch.equal(actions, given[1])
        for i in range(2):
            alone = model(states[i, 1], actions[i, 1])
            torch.testing.assert_close(alone, after[i, 1], atol=self.tolerance, rtol=self.tolerance)

    def test_a_rollout_is_step_after_step(self) -> None:
        model, state, actions = self.make(), self.states(2), self.actions(2, 4)
        states = rollout(model, state, actions)
        assert states.shape == (2, 5, *model.state_shape)
        assert torch.equal(states[:, 0], state)
        for t in range(4):
            step = model(states[:, t], actions[:, t])
            torch.testing.assert_close(states[:, t + 1], step, atol=self.tolerance, rtol=self.tolerance)

    def test_a_controller_is_built_of_what_it_says(self) -> None:
        model = self.make()
        mpc = MPC(model, lambda x, u: x.square().sum(-1), 3, model.action_shape, model.bounds, num_iterations=1)
        with torch.no_grad():
            plan = mpc(self.states(2), generator=torch.Generator().manual_seed(0))
        assert plan.actions.shape == (2, 3, *model.action_shape)
        assert plan.states.shape == (2, 4, *model.state_shape)
        low, high = (torch.as_tensor(side) for side in model.bounds)
        assert ((plan.actions >= low) & (plan.actions <= high)).all()
