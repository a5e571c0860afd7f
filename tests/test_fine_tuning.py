"""The study of fine-tuning, on a small model: who learns what, and what is kept."""

import pytest
import torch

from diffusion_lib.captions import Captioned
from diffusion_lib.checkpoints import Spec
from diffusion_lib.measurements import fine_tuning as study
from diffusion_lib.tokens import VOCABULARY, tokenise

OPTIONS = {"width": 16, "stem": 4, "dim": 8, "blocks": 1}
TEXT = {"words": len(VOCABULARY), "width": 16, "depth": 1}
SPEC = Spec("UNet", {**OPTIONS, "text": TEXT}, "cosine_schedule")


@pytest.fixture
def found(measured, monkeypatch):
    """The study's document, with everything that takes long made small."""
    x = torch.rand(2, 1, 28, 56)
    few = Captioned(x, ["a turned boot"] * 2, torch.zeros(2, 2, 3))

    def load(name):
        torch.manual_seed(0)
        return SPEC.build().eval()

    changes = {
        "turned": lambda n, generator: few,
        "own_samples": lambda base, n: (x, tokenise(["a boot"] * 2)),
        "learnt": lambda denoiser, judge: {"asked": float(denoiser.net.text.words)},
        "STEPS": (1, 2),
        "SEEDS": 1,
        "BATCH": 2,
    }
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study.checkpoints, "load", load)
    return measured("fine-tuning")


def test_every_method_is_taught_and_scored_with_its_word(found):
    rows = [(row["method"], row["steps"]) for row in found["runs"]]
    assert rows == [(name, steps) for name in study.METHODS for steps in (1, 2)]
    scores = {row["asked"] for row in found["runs"]} | {found["base"]["asked"]}
    assert scores == {len(VOCABULARY) + 1}


def test_the_spectra_are_those_of_the_change_of_all_weights(found):
    [spectra] = [run["spectra"] for run in found["runs"] if "spectra" in run]
    assert "net.stem.weight" in spectra and len(spectra["net.stem.weight"]) == 4
    assert not any("bias" in name or "text.word" in name for name in spectra)
    moved = [values for values in spectra.values() if values[0] > 0]
    assert moved and all(v == sorted(v, reverse=True) for v in moved)
