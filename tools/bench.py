"""Compare speed with diffusers, denoising-diffusion-pytorch and smalldiffusion.

    python tools/bench.py [--quick] [--json FILE]

Everything is timed in one run on the CPU, in turn and round after round, because a
machine's speed drifts: trust the ratios, taken within a round, before the absolute
numbers. Each entry is the median over the rounds and, in brackets, their range. The
pictures are noise, since speed does not depend on what they show.
"""

import argparse
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import torch
from bench_networks import PRECISIONS, Key, Size, Tasks, costs, network_tasks, networks
from bench_samplers import BATCHES, CALLS, sampler_tasks

PACKAGES = ("torch", "diffusers", "denoising-diffusion-pytorch", "smalldiffusion")
MULTISTEP = ("dpmpp_2m", "dpmpp_3m", "unipc", "deis", "plms")
TARGETS = {  # in fused updates, form "direct"
    "ours: ddim": 2.0,
    **{f"ours: {name}": 3.5 for name in MULTISTEP},
}
QUICK = Size(batch=32, steps=1, rounds=3, overhead_rounds=11)

Values = dict[Key, list[float]]  # one number a round


def measured(tasks: Tasks, rounds: int) -> Values:
    """Run every task once a round, there and back again, and return the numbers."""
    values: Values = {key: [] for key in tasks}
    for k in range(rounds):
        for key in list(tasks)[:: -1 if k % 2 else 1]:
            values[key].append(tasks[key]())
    return values


def spread(values: list[float]) -> str:
    """Return the median and the range, for a table."""
    low, middle, high = (
        f"{v:.0f}" if v >= 100 else f"{v:.3g}"
        for v in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def ratios(values: list[float], others: list[float]) -> list[float]:
    """Return the ratio within each round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cost_table(facts: dict[str, tuple[float, float]]) -> str:
    """Return what each network is: parameters and work."""
    rows = [[name, f"{m:.2f}", f"{gflop:.3f}"] for name, (m, gflop) in facts.items()]
    head = ["network", "parameters, millions", "GFLOP a picture, forward"]
    return "## The networks\n\n" + table(head, rows)


def network_table(kind: str, values: Values, facts: dict, passes: int) -> str:
    """Return pictures/s, share of the matrix-product limit, ours in units of this."""
    head, rows = [kind], []
    for precision in PRECISIONS:
        head += [f"{precision}: pictures/s", "share of limit", "ours / this"]
    for name in (owner for k, owner, p in values if k == kind and p == "f32"):
        row, (_, gflop) = [name], facts[name.split(",")[0]]
        for precision in PRECISIONS:
            speed = values[kind, name, precision]
            work = [passes * gflop * v for v in speed]
            share = ratios(work, values["limit", "", precision])
            ours = spread(ratios(values[kind, "ours", precision], speed))
            row += [spread(speed), f"{statistics.median(share):.0%}"]
            row.append("1" if name == "ours" else ours)
        rows.append(row)
    return f"## {kind.capitalize()}\n\n" + table(head, rows)


def overhead_table(values: Values) -> str:
    """Return each sampler's cost a network call, in fused updates."""
    forms = [f"{form}, {batch}" for batch in BATCHES for form in ("direct", "v")]
    rows = [
        [name, *(spread(values["overhead", name, form]) for form in forms)]
        + [verdict(values, name)]
        for name in dict.fromkeys(name for _, name, form in values if form[0] == "v")
    ]
    units = [
        f"{spread(values['overhead', 'fused update', f'direct, {batch}'])} "
        f"microseconds for {batch} pictures"
        for batch in BATCHES
    ]
    return (
        f"## Samplers: cost a network call besides the network, {CALLS} steps\n\n"
        "In units of one fused update, `torch.add(a * x, e, alpha=b)`: "
        f"{', '.join(units)}. Direct: the network says what the sampler takes most "
        "directly (x0; for smalldiffusion the noise); v: it says v.\n\n"
        + table(["sampler", *forms, "target for direct"], rows)
    )


def verdict(values: Values, name: str) -> str:
    """Return a target and whether the medians meet it."""
    if name not in TARGETS:
        return ""
    met = [
        statistics.median(values["overhead", name, f"direct, {batch}"]) <= TARGETS[name]
        for batch in BATCHES
    ]
    words = ", ".join("met" if one else "missed" for one in met)
    return f"at most {TARGETS[name]:g}: {words}"


def heading(size: Size) -> str:
    """Return the title, and what the numbers depend on."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    threads = torch.get_num_threads()
    return (
        f"# Speed\n\n{versions}; Python {platform.python_version()}; {threads} CPU "
        f"thread(s), {torch.backends.cpu.get_cpu_capability()}; load before the run "
        f"{os.getloadavg()[0]:.1f} of {os.cpu_count()}.\nBatches of {size.batch} "
        f"pictures of 28 x 28, {size.rounds} rounds of {size.steps} timed step(s); "
        f"samplers {size.overhead_rounds} rounds. Median (smallest to largest).\n"
    )


def report(size: Size) -> tuple[str, Values, dict]:
    """Measure everything; return the Markdown, the raw numbers, the networks' facts."""
    title = heading(size)
    overhead = measured(sampler_tasks(), size.overhead_rounds)
    contestants = networks()
    facts = {name: costs(one) for name, one in contestants.items()}
    values = measured(network_tasks(contestants, size), size.rounds)
    limits = (f"{p} {spread(values['limit', '', p])}" for p in PRECISIONS)
    parts = [
        title,
        f"Matrix product of 2048 x 2048, GFLOP/s: {', '.join(limits)}. A training step "
        'counts as three forward passes. "ours" trains through diffusion_lib.train '
        "(clipping, average and checks included), the others in the bare loop: loss, "
        "backward, AdamW.\n",
        cost_table(facts),
        network_table("training", values, facts, passes=3),
        network_table("inference", values, facts, passes=1),
        overhead_table(overhead),
    ]
    return "\n".join(parts), {**values, **overhead}, facts


def main() -> None:
    """Print the tables; with --json, also write every single number."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write raw numbers")
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.manual_seed(0)
    text, values, facts = report(QUICK if options.quick else Size())
    print(text)
    if options.json:
        raw = {" | ".join(filter(None, key)): row for key, row in values.items()}
        versions = {name: version(name) for name in PACKAGES}
        raw = {"versions": versions, "millions, GFLOP": facts, "values": raw}
        options.json.write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
