"""Captions: true of their pictures, read as they are written, some held out."""

import random

import pytest
import torch
from torch.testing import assert_close

from diffusion_lib.captions import (
    BRIGHTNESS_BETWEEN,
    HELD_OUT_LOOKS,
    HELD_OUT_PAIRS,
    LOOKS,
    NOTHING,
    SHAPE_BETWEEN,
    appearance,
    asks_for_held_out,
    caption_pictures,
    held_out,
    measured,
    seen_on,
    true_of,
)
from diffusion_lib.data import CLASSES, fashion_mnist
from diffusion_lib.grammar import NOUNS, TEMPLATES, describe, meaning, with_article
from diffusion_lib.tokens import LENGTH, VOCABULARY, detokenise, tokenise


def seeded(n=0):
    return torch.Generator().manual_seed(n)


@pytest.fixture(scope="module")
def drawn():
    return caption_pictures("test", 400, seeded())


def scenes(n):
    """Random scenes, of all that there are."""
    rng = random.Random(0)
    for _ in range(n):
        halves = [tuple(rng.randrange(m) for m in (10, 3, 3)) for _ in range(2)]
        halves[rng.randrange(2)] = None if rng.random() < 0.5 else halves[0]
        if halves != [None, None]:
            yield tuple(halves)


def test_what_is_written_is_read_back_and_fits_its_scene():
    rng, forms = random.Random(1), set()
    for scene in scenes(3000):
        caption = describe(scene, rng)
        row = [[NOTHING, 1, 1] if g is None else list(g) for g in scene]
        assert bool(true_of([caption], torch.tensor([row]))), (caption, scene)
        forms.add(
            " ".join(w for w in caption.split() if w in "left right and two".split())
        )
        assert len(caption.split()) < LENGTH
    assert forms >= {"", "left", "right", "and", "two"}


BAG, BOOT = (8, 0, None), (9, 2, None)
BOTH_WAYS = [(BAG, BOOT), (BOOT, BAG)]


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a dark boot on the left", [((9, 0, None), None)]),
        ("A pale bag, right of a slim gown.", [((3, None, 0), (8, 2, None))]),
        ("two flat sneakers", [((7, None, 2), (7, None, 2))]),
        ("a dark bag and a light boot", BOTH_WAYS),
        ("a shirt", [((6, None, None), None), (None, (6, None, None))]),
        (
            "a t-shirt and a pair of pants",
            [((0, None, None), (1, None, None)), ((1, None, None), (0, None, None))],
        ),
    ],
)
def test_captions_mean_what_they_say(caption, expected):
    assert meaning(caption) == expected


def test_articles_are_those_of_english():
    said = {with_article(nouns[0][0]) for nouns in NOUNS}
    assert {"an ankle boot", "a bag", "a pair of trousers"} < said


def test_false_captions_are_found_out():
    boot_and_bag = torch.tensor([[[9, 0, 1], [8, 2, 1]]])
    said = {
        "a dark boot left of a light bag": True,
        "a bag and a boot": True,
        "a boot right of a bag": False,
        "a light boot left of a bag": False,
        "a boot": False,  # there are two garments
        "a tall boot and a bag": False,
        "two boots": False,
    }
    for caption, truth in said.items():
        assert bool(true_of([caption], boot_and_bag)) == truth, caption


def test_captions_are_true_of_the_pixels(drawn):
    """By another route than the library's: halves and means, looked at one by one."""
    dark, light = BRIGHTNESS_BETWEEN
    for x, caption in zip(drawn.pictures[:, 0], drawn.captions, strict=True):
        left, right = ((half + 1) / 2 for half in x.split(28, dim=1))
        words, alone = caption.split(), None
        if not left.any() or not right.any():
            alone = left if left.any() else right
            assert not {"two", "and", "beside", "of"} & set(words) - {"of"}
            assert ("left" in words) <= bool(left.any())
            assert ("right" in words) <= bool(right.any())
        else:
            assert {"two", "and", "beside", "left", "right"} & set(words)
        if alone is not None and {"dark", "dim"} & set(words):
            assert float(alone[alone > 0.1].mean()) < dark
        if alone is not None and {"light", "bright", "pale"} & set(words):
            assert float(alone[alone > 0.1].mean()) > light
    assert bool(true_of(drawn.captions, drawn.attributes).all())


def test_the_same_generator_gives_the_same_canvases(drawn):
    again, other = (caption_pictures("test", 400, seeded(k)) for k in (0, 1))
    assert torch.equal(again.pictures, drawn.pictures)
    assert again.captions == drawn.captions != other.captions
    assert drawn.pictures.shape == (400, 1, 28, 56)
    two = (drawn.attributes[..., 0] != NOTHING).all(1)
    assert 0.4 < float(two.double().mean()) < 0.6


def test_thresholds_are_quantiles_of_the_training_set():
    x, label = fashion_mnist("train")
    brightness, shape = appearance(x)
    share = torch.tensor([0.3, 0.7])
    expected = torch.tensor(BRIGHTNESS_BETWEEN)
    assert_close(torch.quantile(brightness, share), expected, rtol=0, atol=1e-4)
    for c, between in enumerate(SHAPE_BETWEEN):
        found = torch.quantile(shape[label == c], share)
        assert_close(found, torch.tensor(between), rtol=0, atol=1e-4)


def test_held_out_compositions_are_never_in_training():
    train = caption_pictures("train", 4000, seeded())
    looks, pairs = held_out(train.attributes)
    assert not looks.any() and not pairs.any()
    assert not any(map(asks_for_held_out, train.captions))
    for name, look in HELD_OUT_LOOKS:  # not by chance: their parts are all there
        halves = train.attributes.flatten(0, 1)
        assert int((halves[:, 0] == CLASSES.index(name)).sum()) > 100
        assert int((halves[:, 1] == LOOKS.index(look)).sum()) > 100
    labels = train.attributes[..., 0].tolist()
    for left, right in HELD_OUT_PAIRS:
        pair = [CLASSES.index(left), CLASSES.index(right)]
        assert pair not in labels
        assert left == right or pair[::-1] in labels


@pytest.mark.parametrize("kind", ["looks", "pairs"])
def test_unseen_canvases_and_captions_are_all_held_out(kind):
    drawn = caption_pictures("test", 60, seeded(), kind)
    looks, pairs = held_out(drawn.attributes)
    assert bool((looks if kind == "looks" else pairs).all())
    assert all(map(asks_for_held_out, drawn.captions))
    assert bool(true_of(drawn.captions, drawn.attributes).all())


@pytest.mark.parametrize(
    "caption, asks",
    [
        ("a dark boot", True),
        ("a boot", False),
        ("two bags", True),
        ("a boot left of a pair of trousers", True),
        ("a boot and a pair of trousers", False),  # the other way round is known
        ("a pair of trousers left of a boot", False),
    ],
)
def test_what_asks_for_held_out(caption, asks):
    assert asks_for_held_out(caption) == asks


def test_a_canvas_is_seen_by_its_halves(drawn):
    """With the true labels as the judge, what is seen is what was composed."""
    labels = drawn.attributes[..., 0].flatten()
    assert torch.equal(seen_on(drawn.pictures, lambda halves: labels), drawn.attributes)


def test_an_empty_half_is_nothing_in_particular():
    empty = measured(torch.full((2, 1, 28, 28), -1.0), torch.tensor([NOTHING, 3]))
    assert empty.tolist() == [[NOTHING, 1, 1], [3, 0, 0]]


def test_tokens_are_read_back_and_nothing_is_lost(drawn):
    tokens = tokenise(drawn.captions)
    assert tokens.shape == (400, LENGTH) and tokens.dtype == torch.int64
    assert detokenise(tokens) == drawn.captions
    assert bool((tokens[:, 0] == 1).all()) and int(tokens.max()) < len(VOCABULARY)
    assert tokenise("").tolist() == [[1] + [0] * (LENGTH - 1)]
    assert torch.equal(tokenise(["A Dark, boot."], 5), tokenise("a dark boot", 5))


def test_words_learnt_later_are_read_back_too():
    tokens = tokenise("a turned boot", new=("turned",))
    assert detokenise(tokens, new=("turned",)) == ["a turned boot"]


def test_the_vocabulary_is_the_grammar_s_and_keeps_its_order():
    """Trained nets count on it."""
    words = VOCABULARY[2:]
    assert words == sorted(set(words)) and len(VOCABULARY) == 63
    said = " ".join([*TEMPLATES, *(n for noun in NOUNS for pair in noun for n in pair)])
    assert set(said.replace("{a}", "").replace("{b}", "").split()) <= set(words)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tokenise("a dark bot"), "unknown word 'bot': the nearest .*'boot'"),
        (lambda: tokenise("a zzzz"), "unknown word 'zzzz': the known are"),
        (lambda: tokenise("a bag", 2), "more than 1 words"),
        (lambda: meaning("a boot under a bag"), "cannot read .*the forms are"),
        (lambda: meaning("a narrow boot"), "cannot read"),
        (lambda: meaning("dark"), "cannot read"),
        (lambda: meaning("a dark light bag"), "dark and light of one garment"),
        (lambda: meaning("a coat beside a slim wide gown"), "slim and wide of one"),
        (lambda: meaning("two dim dark boots"), "dim and dark of one garment"),
        (
            lambda: detokenise(torch.tensor([[1, 63]])),
            r"tokens \[63\] are .* as new",
        ),
        (lambda: detokenise(torch.tensor([[1, -1]])), r"tokens \[-1\] are none"),
        (lambda: describe((None, None), random), "nothing to describe"),
        (lambda: caption_pictures("all", 3), "'train' or 'test'"),
        (lambda: caption_pictures("test", 3, None, "words"), "unseen is None"),
        (lambda: caption_pictures("train", 3, None, "looks"), "test split only"),
        (lambda: seen_on(torch.zeros(2, 1, 28, 28), len), "a canvas is"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
