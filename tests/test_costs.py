"""The counter of network calls and FLOPs that the book's kernels carry."""

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"
CELL = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import torch
from costs import Costs
from diffusion_lib import UNet

costs, net = Costs(), UNet(width=8, multipliers=(1, 1, 1))
for side in (32, 28, 28, 32):
    try:
        net(torch.zeros(1, 1, side, side), torch.zeros(1))
    except ValueError:
        print("refused", end=" ")
    print(costs.calls, costs.flops, end=" ")
"""


def test_a_call_that_fails_is_not_counted_and_keeps_its_error():
    run = [sys.executable, "-c", CELL]  # its hooks on all modules end with it
    words = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    first, again, third, last = words.replace("refused ", "").split()[1::2]
    assert words.count("refused") == 2
    assert words.split()[0] == "1" and words.split()[-2] == "2"
    assert 0 < int(first) == int(again) == int(third) == int(last) / 2
