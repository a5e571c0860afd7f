"""Which part of a caption fails, and the measurement that counts it."""

import pytest
import torch
from test_text_recipes import SMALL

from diffusion_lib import checkpoints, measurements, text_recipes
from diffusion_lib.captions import NOTHING, asks_for_held_out, caption_pictures, true_of
from diffusion_lib.ledger import result
from diffusion_lib.measurements import compositions
from diffusion_lib.measurements.compositions import (
    CHANGES,
    KINDS,
    PARTS,
    changed,
    failures,
    first_failure,
)
from diffusion_lib.text_recipes import JUDGE, RECIPES

EMPTY = [NOTHING, 1, 1]
BOOT, DARK_BOOT, BAG, LIGHT_BAG = [9, 2, 1], [9, 0, 1], [8, 1, 1], [8, 2, 1]


@pytest.mark.parametrize(
    "caption, seen, part",
    [
        ("a boot left of a bag", [BOOT, BAG], ""),
        ("a boot left of a bag", [BAG, BOOT], "position"),
        ("a boot and a bag", [BAG, BOOT], ""),
        ("a boot and a bag", [BOOT, BOOT], "noun"),
        ("a boot and a bag", [BOOT, EMPTY], "number"),
        ("a boot", [BOOT, BOOT], "number"),
        ("a boot", [EMPTY, BOOT], ""),
        ("a boot on the left", [EMPTY, BOOT], "position"),
        ("a bag on the left", [EMPTY, BOOT], "noun"),
        ("two bags", [BAG, EMPTY], "number"),
        ("two bags", [BAG, LIGHT_BAG], ""),
        ("two light bags", [BAG, LIGHT_BAG], "look"),
        ("a dark boot and a light bag", [LIGHT_BAG, DARK_BOOT], ""),
        ("a dark boot and a light bag", [LIGHT_BAG, BOOT], "look"),
        ("a dark boot on the right", [BOOT, EMPTY], "position"),
        ("a boot", [EMPTY, EMPTY], "number"),
    ],
)
def test_the_first_part_that_fails_is_named(caption, seen, part):
    assert first_failure(caption, seen) == part


def test_a_caption_is_true_or_fails_in_one_part():
    """Canvases as asked for, swapped, of other classes, of other looks, or halved."""
    drawn = caption_pictures("test", 100, torch.Generator().manual_seed(0))
    changed = drawn.attributes.clone()
    changed[20:40] = changed[20:40].flip(1)
    changed[40:60, :, 0] = changed[40:60, :, 0].clamp(max=4)
    changed[60:80, :, 1] = 2 - changed[60:80, :, 1]
    changed[80:, 1] = torch.tensor(EMPTY)
    found = failures(drawn.captions, changed)
    true = float(true_of(drawn.captions, changed).double().mean())
    assert sum(found.values()) == pytest.approx(1 - true)
    assert [part for part in PARTS if not found[part]] == [] and 0.2 < true < 0.8


def test_a_control_asks_for_as_much_as_its_caption_and_was_trained():
    """Most captions have one, of as many words, garments and adjectives."""
    for kind, change in CHANGES.items():
        generator = torch.Generator().manual_seed(0)
        asked = caption_pictures("test", 200, generator, kind).captions
        assert all(map(asks_for_held_out, asked))
        controls = changed(asked, change)
        assert 0.7 * 200 < len(controls) <= 200
        assert not any(map(asks_for_held_out, controls))
        lengths = [len(text.split()) for text in asked]
        assert {len(text.split()) for text in controls} <= set(lengths)
    dark = [
        "a dark boot left of a light coat",
        "two dim bags",
        "a dark boot and a gown",
    ]
    light = [
        "a light boot left of a dark coat",
        "two pale bags",
        "a light boot and a gown",
    ]
    assert changed(dark, CHANGES["looks"]) == [
        light[0],
        light[2],
    ]  # two bags are held out
    boots = "a boot left of a pair of pants"
    assert changed([boots], CHANGES["pairs"]) == [boots.replace("left", "right")]


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """An untrained net and judge in place of the shipped, in tmp_path."""
    torch.manual_seed(0)
    judge = RECIPES[JUDGE].spec
    facts = {"seconds": 5000}
    for name, spec in (("fashion-text", SMALL), (JUDGE, judge)):
        path = tmp_path / f"{name}.safetensors"
        checkpoints.save(path, spec.build(), spec, facts)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    small = {"N": 3, "SEEDS": 2, "CALLS": 1, "SCALES": (1.0, 3.0)}
    for name, value in small.items():
        monkeypatch.setattr(compositions, name, value)
    return tmp_path


def test_an_interrupted_measurement_goes_on(shipped, measured):
    class Enough(Exception):
        pass

    told = []

    def stop_after_three(line):
        told.append(line)
        if len(told) == 3:
            raise Enough

    with pytest.raises(Enough):
        measured("compositions", stop_after_three)
    before = result("compositions")["runs"]
    document = measured("compositions", told.append)
    runs = document["runs"]
    assert len(before) == 3 and runs[:3] == before
    assert len(runs) == 2 * len(KINDS) * 2 == len(told)
    assert {(run["kind"], run["scale"]) for run in runs} == {
        (kind, scale) for kind in KINDS for scale in (1, 3)
    }
    assert document["trained_nets"] == 1
    assert document["seconds_to_train_another"] == 5000
    for run in runs:
        assert run["true"] + sum(run[part] for part in PARTS) == pytest.approx(1)
        assert (
            run["real"] is None if "control" in run["kind"] else 0 <= run["real"] <= 1
        )
        assert run["n"] == 3 or "control" in run["kind"]
    assert told[0].startswith("seen, scale 1, seed 0: true 0.")


def test_a_canvas_is_judged_once_and_in_full_precision(shipped, monkeypatch):
    """What is true and what fails are counted on the same answers."""
    seen, names = [], text_recipes.names

    def noted(judge, halves):
        seen.append((len(halves), torch.is_autocast_enabled("cpu")))
        return names(judge, halves)

    monkeypatch.setattr(text_recipes, "names", noted)
    denoiser = checkpoints.load("fashion-text")
    compositions.one_run(denoiser, "seen", 1.0, 0)
    assert seen == [(6, False)] * 2  # three real canvases, and three painted


def test_without_its_nets_the_measurement_says_which(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no checkpoint 'fashion-text'"):
        measurements.measure("compositions")
