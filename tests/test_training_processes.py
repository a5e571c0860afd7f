"""The loop across processes: killed in mid-run, and shared by two."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SCRIPT = """
import os, signal, sys
import torch
from diffusion_lib import MLP, Denoiser, FlowSchedule, denoising_loss, shuffled, train

folder, accumulate, die = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(3)
x = torch.randn(64, 2, dtype=torch.float64)
denoiser = Denoiser(MLP(2, width=16).double(), FlowSchedule())

def on_step(k, loss):
    if k == die:
        os.kill(os.getpid(), signal.SIGKILL)

def loss(denoiser, batch):
    return denoising_loss(denoiser, batch[0])

run = train(denoiser, loss, shuffled(x, size=16), 60, folder=folder, save_every=5,
            on_step=on_step, accumulate=accumulate, warmup=5)
weights = {k: v.contiguous() for k, v in run.model.net.state_dict().items()}
rank = os.environ.get("RANK", "0")
from safetensors.torch import save_file
save_file(weights, f"{folder}/rank{rank}.safetensors")
"""


@pytest.fixture
def started(tmp_path):
    """Run the script as its own process (or two) and return its exit status."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(folder, accumulate=1, die=0, launcher=()):
        command = [sys.executable, *launcher, script, tmp_path / folder]
        command += [str(accumulate), str(die)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stderr

    return start


def state(folder):
    return load_file(folder / "state.safetensors")


def test_a_killed_run_resumes_bit_for_bit(tmp_path, started):
    assert started("whole")[0] == 0
    assert started("part", die=23)[0] == -signal.SIGKILL
    assert len(state(tmp_path / "part")["losses"]) == 20
    assert started("part", die=41)[0] == -signal.SIGKILL  # killed again, further on
    assert started("part")[0] == 0
    whole, part = state(tmp_path / "whole"), state(tmp_path / "part")
    assert whole.keys() == part.keys() and len(whole["losses"]) == 60
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    logs = [(tmp_path / f / "losses.csv").read_bytes() for f in ("whole", "part")]
    assert logs[0] == logs[1]


def test_two_processes_are_one_with_two_accumulated_batches(tmp_path, started):
    """Gloo on the CPU: the same gradients, so the same weights; replicas agree."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"]  # torchrun
    launcher += [f"--master_port={port}"]
    status, errors = started("two", launcher=launcher)
    assert status == 0, errors
    assert started("one", accumulate=2)[0] == 0
    replicas = [load_file(tmp_path / f"two/rank{r}.safetensors") for r in (0, 1)]
    assert all(torch.equal(replicas[0][k], replicas[1][k]) for k in replicas[0])
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    for name in one:
        tight = name != "losses"  # reported in single precision
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-7 if tight else 1e-5, atol=1e-9
        )
