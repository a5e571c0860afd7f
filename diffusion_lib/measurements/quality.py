"""Quality for compute: our recipe and other libraries' under the same clock.

The clock is the number of pictures that each trains on in so many seconds. How their
speeds compare is measured first, on a machine that does nothing else; what else it does
while they train changes nothing then. Machines differ, so the pace of ours is set:
PACE. Interrupted, the measurement goes on where it was.
"""

import base64
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.io import decode_png, encode_png

from .. import metrics, networks
from ..baselines import gan_loss, vae_loss
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..ledger import result
from ..losses import denoising_loss
from ..process import check_data
from ..recipes import unlabelled_loss
from ..schedules import cosine_schedule, linear_schedule
from ..training import shuffled, train
from .runs import alone, each_run, made, run_folder, seed_by_seed, stored
from .shared import Report

if TYPE_CHECKING:
    from .peers import Contestant

BATCH, N, SEEDS, SHOWN = 128, 2000, 3, 16
PACE = 222  # pictures of ours a second, modest for 2 cores
PEERS = ("diffusers", "denoising-diffusion-pytorch", "smalldiffusion")
SAME_NET = (  # trained as fast as "ours", whose speed serves them all
    "ours, uniform times",
    "ours, eps on the linear schedule",
)
VARIED = ("float32", "width 48", "width 32")
ROWS = {  # name: (the contestant's name, seconds of training)
    "ours": ("ours", 480),
    "VAE": ("VAE", 480),
    "GAN": ("GAN", 480),
    **{name: (name, 480) for name in PEERS},
    **{f"{name}, our recipe": (f"{name}, our recipe", 480) for name in PEERS},
    "ours, a quarter of the steps": ("ours", 120),
    **{name: (name, 480) for name in SAME_NET},
    "ours, 25 minutes": ("ours", 1500),
    **{f"ours, {kind}": (f"ours, {kind}", 480) for kind in VARIED},
}


def contestants() -> dict[str, Callable[[], "Contestant"]]:
    """Return what builds each contestant. Raises ValueError without the peers."""
    try:
        from . import peers
    except ImportError as error:
        raise ValueError(
            f"other libraries are needed ({error}): pip install -e '.[bench]'"
        ) from None

    def ours(
        loss=unlabelled_loss,
        schedule=cosine_schedule,
        prediction="v",
        width=64,
        **settings,
    ):
        denoiser = Denoiser(networks.UNet(width=width), schedule(), prediction)
        settings = {"precision": "bf16", "ema": 0.995, "rate": 2e-3, **settings}
        return peers.Contestant(denoiser, loss, peers.twenty_calls, settings)

    def uniform(denoiser, batch):
        return denoising_loss(denoiser, batch[0])

    def baseline(module, loss, **settings):
        return peers.Contestant(
            module,
            loss,
            lambda module, n, seed: module.generate(
                n, torch.Generator().manual_seed(seed)
            ),
            {"precision": "bf16", **settings},
        )

    shaped = (
        peers.diffusers_shaped,
        peers.lucidrains_shaped,
        peers.smalldiffusion_shaped,
    )
    by_our_recipe = {
        f"{name}, our recipe": lambda build=build: peers.by_our_recipe(build())
        for name, build in zip(PEERS, shaped, strict=True)
    }
    as_they_come = peers.of_diffusers, peers.of_lucidrains, peers.of_smalldiffusion
    return {
        "ours": ours,
        **dict(zip(PEERS, as_they_come, strict=True)),
        **by_our_recipe,
        "ours, uniform times": lambda: ours(uniform),
        "ours, eps on the linear schedule": lambda: ours(
            uniform, linear_schedule, "eps"
        ),
        "ours, float32": lambda: ours(precision="no"),
        "ours, width 48": lambda: ours(width=48),
        "ours, width 32": lambda: ours(width=32),
        "VAE": lambda: baseline(networks.VAE(), vae_loss, ema=0.995, rate=2e-3),
        "GAN": lambda: baseline(
            networks.GAN(width=32), gan_loss, ema=0.99, betas=(0.5, 0.99), rate=1e-3
        ),
    }


def quality(report: Report) -> Iterator[dict[str, Any]]:
    """Train every contestant for the same seconds; score 2,000 pictures of 20 calls.

    Yields after every run. All sample in bf16, with their averaged weights; ours is
    also scored without the average. Raises ValueError where there is a GPU.
    """
    if torch.cuda.is_available():
        raise ValueError(
            "quality is measured on CPUs, and here is a GPU: hide it, "
            "CUDA_VISIBLE_DEVICES= python -m diffusion_lib measure quality"
        )
    known = contestants()
    found: dict[str, Any] = {"n": N, "calls": 20, "batch": BATCH, "seeds": SEEDS}
    found["versions"] = {p: version(p) for p in ("torch", *PEERS)}
    processor = torch.cpu.get_capabilities()
    found["processor"] = {key: processor.get(key) for key in ("cpu_name", "amx_bf16")}
    with alone("quality"):  # the clocks are measured once, whoever shares the runs
        before = stored("quality") or {"speeds": {}, "seconds": 0}
        pace: dict[str, float] = dict(before["speeds"])
        lacking = {k: v for k, v in known.items() if k not in {*SAME_NET, *pace}}
        if lacking:  # beside ours, as this machine may be another, or busier
            beside = speeds({"ours": known["ours"], **lacking}, report)
            ours = pace.get("ours", beside["ours"]) / beside["ours"]
            pace |= {name: ours * beside[name] for name in lacking}
        found |= {"pace": PACE, "speeds": pace}
        if lacking:
            yield {**found, "runs": made("quality"), "seconds": before["seconds"]}

    def one_run(row: str, seed: int) -> dict[str, Any]:
        return trained_and_scored(known[ROWS[row][0]], row, seed, steps_of(row, pace))

    runs = seed_by_seed(ROWS, SEEDS)
    yield from each_run("quality", found, runs, one_run, report)


def steps_of(row: str, pace: dict[str, float]) -> int:
    """Return how many steps the row's seconds are, with speeds of one machine."""
    name, seconds = ROWS[row]
    relative = pace["ours" if name in SAME_NET else name] / pace["ours"]
    return round(relative * PACE * seconds / BATCH)


def speeds(
    known: dict[str, Callable[[], "Contestant"]], report: Report, rounds: int = 3
) -> dict[str, float]:
    """Return the pictures a second that each trains on, the median of some rounds."""
    x, label = fashion_mnist("train")
    batches = shuffled(x, label, size=BATCH)
    values: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(rounds):
        for name, build in known.items():
            marks: list[float] = []
            one = build()

            def mark(step, loss, marks=marks):
                marks.append(time.perf_counter())

            train(one.module, one.loss, batches, 4, on_step=mark, **one.settings)
            values[name].append(3 * BATCH / (marks[-1] - marks[0]))
    for name, row in values.items():
        report(f"{name}: {', '.join(f'{v:.0f}' for v in row)} pictures/s")
    return {name: statistics.median(row) for name, row in values.items()}


def trained_and_scored(
    build: Callable[[], "Contestant"], row: str, seed: int, steps: int
) -> dict[str, Any]:
    """Train and score one contestant; an interrupted training goes on."""
    torch.manual_seed(seed)
    one, batches = build(), shuffled(*fashion_mnist("train"), size=BATCH, seed=seed)
    settings = {**one.settings, "seed": seed, "save_every": 100}
    found: dict[str, Any] = {"steps": steps}
    found["millions"] = sum(p.numel() for p in one.module.parameters()) / 1e6
    folder = run_folder("quality", row, seed)
    run = train(one.module, one.loss, batches, steps, folder=folder, **settings)
    pictures = sampled(one, run.ema, seed)
    found |= metrics.scores(pictures)
    if row == "ours":
        raw = metrics.scores(sampled(one, run.model, seed))
        found |= {f"{key}_without_average": value for key, value in raw.items()}
    if seed == 0:
        found["pictures"] = _encoded(pictures[:SHOWN])
    return found


def sampled(one: "Contestant", module: nn.Module, seed: int) -> torch.Tensor:
    """Return N pictures, clamped to [-1, 1]; ValueError for NaN or infinite values."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pictures = one.sample(module.eval(), N, seed).float()
    check_data(pictures)
    return pictures.clamp(-1, 1)


def first_pictures() -> dict[str, torch.Tensor]:
    """Return SHOWN pictures of every row's first seed, (SHOWN, 1, 28, 28)."""
    runs = result("quality")["runs"]
    return {run["row"]: _decoded(run["pictures"]) for run in runs if "pictures" in run}


def _encoded(pictures: torch.Tensor) -> str:
    """The pictures side by side as a PNG, in base64."""
    strip = torch.cat(list(pictures[:, 0].cpu()), dim=1)
    levels = ((strip + 1) * 127.5).round().byte()
    return base64.b64encode(encode_png(levels[None]).numpy().tobytes()).decode()


def _decoded(text: str) -> torch.Tensor:
    levels = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
    strips = decode_png(levels)[0].unflatten(1, (-1, 28))
    return strips.movedim(1, 0)[:, None] / 127.5 - 1
