"""What the tests share: the schedules, an oracle, the pictures, one seed a test."""

import os

import pytest
import torch

from diffusion_lib import data, ledger, measurements, schedules
from diffusion_lib.analytic import GaussianMixture

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

SCHEDULES = {
    "linear": schedules.linear_schedule(),
    "quadratic": schedules.quadratic_schedule(),
    "sigmoid": schedules.sigmoid_schedule(),
    "cosine": schedules.cosine_schedule(),
    "constant": schedules.constant_schedule(50, 0.1),
    "vp": schedules.VPSchedule(),
    "flow": schedules.FlowSchedule(),
    "edm": schedules.EDMSchedule(),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    """Every kind of schedule, one after the other."""
    return SCHEDULES[request.param]


def planar():
    """Three Gaussians in the plane, float64, of unequal weight."""
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.0, 1.2]], dtype=torch.float64)
    return GaussianMixture(means, 0.35, weights=torch.tensor([1.0, 2.0, 3.0]))


@pytest.fixture
def mixture():
    return planar()


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A function that measures in a folder of its own and returns the document."""
    for module in (ledger, measurements, measurements.runs):
        monkeypatch.setattr(module, "results_folder", lambda: tmp_path / "results")

    def measured(name, report=lambda line: None, anew=False):
        measurements.measure(name, report, anew)
        return ledger.result(name)

    return measured


@pytest.fixture(scope="session")
def fashion():
    """The 10,000 test pictures and labels; tests that need data fail without them."""
    return data.fashion_mnist("test")
