"""Quality for compute: the clocks, and what is refused before any training."""

import pytest
import torch

from diffusion_lib.measurements import quality as study

NAMES = {name for name, _ in study.ROWS.values()} - set(study.SAME_NET)


def test_a_study_of_cpus_refuses_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="measured on CPUs, .* CUDA_VISIBLE_DEVICES="):
        next(study.quality(print))


def test_seconds_become_steps_by_the_pace_and_the_clocks():
    clocks = {"ours": 100.0, "VAE": 200.0, "GAN": 50.0}
    ours = study.PACE * 480 / study.BATCH
    assert study.steps_of("ours", clocks) == study.steps_of(study.SAME_NET[0], clocks)
    assert study.steps_of("ours", clocks) == pytest.approx(ours, abs=0.5)
    assert study.steps_of("VAE", clocks) == pytest.approx(2 * ours, abs=0.5)
    assert study.steps_of("GAN", clocks) == pytest.approx(ours / 2, abs=0.5)
    longer = study.steps_of("ours, 25 minutes", clocks)
    assert longer == pytest.approx(ours * 1500 / 480, abs=0.5)


def test_clocks_are_measured_once_and_new_ones_beside_ours(measured, monkeypatch):
    """A machine of half the speed: what it adds is told in the first one's seconds."""
    machine, asked = {"speed": 1.0}, []

    def speeds(known, report):
        asked.append(set(known))
        return {name: 100.0 * machine["speed"] for name in known}

    def trained(build, row, seed, steps):
        return {"steps": steps, "frechet": 1.0}

    known = dict.fromkeys(NAMES | set(study.SAME_NET))
    del known["GAN"]
    rows = {row: what for row, what in study.ROWS.items() if row != "GAN"}
    monkeypatch.setattr(study, "contestants", lambda: known)
    monkeypatch.setattr(study, "speeds", speeds)
    monkeypatch.setattr(study, "trained_and_scored", trained)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as fewer:
        fewer.setattr(study, "ROWS", rows)
        measured("quality")
    known["GAN"], machine["speed"] = None, 0.5
    document = measured("quality")
    assert asked == [NAMES - {"GAN"}, {"ours", "GAN"}]
    assert set(document["speeds"].values()) == {100.0}
    by_row = {run["row"]: run["steps"] for run in document["runs"]}
    assert by_row["GAN"] == by_row["ours"] == by_row["diffusers"]
    assert len(document["runs"]) == len(study.ROWS) * study.SEEDS
