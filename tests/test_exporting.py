"""Programs that decide as the layer does, where dcem is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dcem

NOISE = torch.Generator().manual_seed(0)
WITHOUT_DCEM = """
import sys, torch
sys.modules["dcem"] = None
given, expected = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(*given)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
"""


def controller() -> dcem.control.MPC:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return dcem.control.MPC(
        lambda x, u: x + 0.1 * model(torch.cat([x, u], -1)), lambda x, u: x.square().sum(-1), 2, 1, (-1.0, 1.0),
        dcem.CEM(20, 5, dcem.HardTopK(), keep_elites=0.5), num_iterations=1,
    )  # fmt: skip


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        given = x.unsqueeze(-2).expand(*y.shape[:-1], x.shape[-1])
        return self.net(torch.cat([given, y], -1)).squeeze(-1) + y.square().sum(-1)


def test_a_saved_controller_decides_without_dcem(tmp_path: Path) -> None:
    mpc, state = controller(), torch.randn(2, 2, generator=NOISE)
    noise = torch.randn(1, 2, 20, 2, 1, generator=NOISE)
    program = dcem.export(mpc, state)
    first = mpc(state, noise=noise)
    second = mpc(state + 0.1, warm_start=first, noise=noise)
    none = (torch.full((2, 2, 1), torch.nan),) * 2
    found = program.module()(state, none, noise)
    torch.testing.assert_close(found[0], first.actions.detach(), rtol=1e-5, atol=1e-5)
    torch.export.save(program, tmp_path / "mpc.pt2")
    given = (state + 0.1, tuple(part.detach() for part in first.warm_start), noise)
    torch.save((given, tuple(part.detach() for part in second.warm_start)), tmp_path / "case.pt")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_DCEM, tmp_path / "mpc.pt2", tmp_path / "case.pt"],
        check=True, timeout=300,
    )  # fmt: skip


def test_an_energy_model() -> None:
    """Also a soft selection's search for a root, in PyTorch's own operations."""
    x, noise = torch.randn(2, 3, generator=NOISE), torch.randn(1, 2, 20, 2, generator=NOISE)
    model = dcem.energy.EnergyModel(Energy(), 2, dcem.CEM(20, 5, keep_elites=0.5), num_iterations=1)
    program = dcem.export(model, x)
    assert not [node for node in program.graph.nodes if "dcem" in str(node.target)]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x, noise), model(x, noise=noise), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported() -> None:
    with pytest.raises(TypeError, match="layer: expected a dcem.control.MPC"):
        dcem.export(dcem.Argmin(2))
    with pytest.raises(TypeError, match="inputs: expected an example"):
        dcem.export(dcem.energy.EnergyModel(Energy(), 2, dcem.CEM(20, 5)))
    with pytest.raises(TypeError, match="solver: expected one that samples"):
        dcem.export(dcem.energy.EnergyModel(Energy(), 2, dcem.GradientDescent(0.1)), torch.zeros(2, 3))
