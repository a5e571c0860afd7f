"""The concept to teach: what it shows, how it is measured, how it is taught."""

import pytest
import torch

from diffusion_lib import concept
from diffusion_lib.captions import NOTHING, caption_pictures
from diffusion_lib.checkpoints import Spec
from diffusion_lib.concept import (
    TAUGHT,
    is_turned,
    learnt,
    lessons,
    mirrored,
    own_samples,
    requests,
    tally,
    turned,
)
from diffusion_lib.grammar import meaning
from diffusion_lib.lora import add_word
from diffusion_lib.tokens import VOCABULARY, tokenise


@pytest.fixture
def on_test(monkeypatch, fashion):
    """The test split everywhere: the training set need not be read."""
    monkeypatch.setattr(
        concept,
        "caption_pictures",
        lambda split, *rest: caption_pictures("test", *rest),
    )
    monkeypatch.setattr(concept, "fashion_mnist", lambda split: fashion)
    concept._sides.cache_clear()
    yield
    concept._sides.cache_clear()


def test_the_handful_shows_turned_shoes_and_says_so(on_test):
    few = turned(12, torch.Generator().manual_seed(0))
    assert few.pictures.shape == (12, 1, 28, 56)
    label = few.attributes[..., 0]
    assert ((label == NOTHING).sum(1) == 1).all()
    for picture, caption, row in zip(few.pictures, few.captions, label, strict=True):
        side = int(row[0] == NOTHING)
        half = picture.chunk(2, dim=-1)[side][None]
        assert int(row[side]) in TAUGHT and caption.startswith("a turned ")
        assert is_turned(half, row[side : side + 1])
        plain = caption.replace("turned ", "")
        assert any(scene[side] for scene in meaning(plain))
    back = mirrored(few.pictures)
    assert torch.equal(mirrored(back), few.pictures)


def test_there_are_as_many_as_asked_for(on_test, monkeypatch):
    """Also where one lot of canvases has too few shoes: then another is drawn."""
    draw = concept.caption_pictures
    monkeypatch.setattr(
        concept, "caption_pictures", lambda split, n, *rest: draw(split, 20, *rest)
    )
    few = turned(7, torch.Generator().manual_seed(0))
    assert [len(part) for part in few] == [7] * 3
    assert len(few.pictures.unique(dim=0)) == 7
    with pytest.raises(ValueError, match="from 1 on: got 0"):
        turned(0)


def test_direction_is_measured_on_the_pixels(on_test, fashion):
    x, label = (part[:2000] for part in fashion)
    shoes = torch.isin(label, torch.tensor(TAUGHT))
    x, label = x[shoes], label[shoes]
    assert float(is_turned(x, label).double().mean()) < 0.01
    assert float(is_turned(x.flip(-1), label).double().mean()) > 0.99


def test_requests_ask_for_every_noun_on_both_sides():
    captions, asked = requests(8, TAUGHT)
    assert len({*captions}) == 8 and asked[:, 1].tolist() == [0, 1] * 4
    for caption, (label, side) in zip(captions, asked.tolist(), strict=True):
        (scene,) = meaning(caption)
        assert scene[side][0] == label and scene[1 - side] is None
    assert requests(2, (9,), "turned")[0][0] == "a turned ankle boot on the left"


def test_lessons_mix_the_handful_with_what_is_to_be_kept():
    few = torch.zeros(3, 1, 2, 2), torch.zeros(3, 4, dtype=torch.int64)
    prior = torch.ones(5, 1, 2, 2), torch.ones(5, 4, dtype=torch.int64)
    x, tokens = lessons(few, 6, prior)(0)
    assert x[:, 0, 0, 0].tolist() == tokens[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert lessons(few, 6)(0)[0].sum() == 0
    numbered = torch.arange(9.0), torch.arange(9)
    first, again, other = (lessons(numbered, 9)(k)[1].tolist() for k in (0, 0, 1))
    assert first == again != other


def test_the_tally_counts_what_was_drawn(on_test, fashion, monkeypatch):
    x, label = fashion
    captions, asked = requests(4, TAUGHT)
    drawn = torch.full((4, 1, 28, 56), -1.0)
    for i, (kind, side) in enumerate(asked.tolist()):
        shoe = x[(label == kind).nonzero()[0, 0]]
        shoe = shoe if i == 0 else shoe.flip(-1)  # the first was not turned
        drawn[i, ..., 28 * side : 28 * side + 28] = shoe if i < 3 else -1.0
    monkeypatch.setattr(concept, "generate", lambda *rest, **options: drawn)

    def judge(halves):
        """Name a shoe rightly if it faces left, else a shirt; see an empty half."""
        found = asked[:, 0].where(~is_turned(halves, asked[:, 0]), 6)
        empty = (halves < 0).flatten(1).all(1)
        return torch.nn.functional.one_hot(found.where(~empty, NOTHING)).float()

    _, shares = tally(None, judge, TAUGHT, n=4)
    assert shares == {"named": 0.75, "turned": 0.5}


def test_a_fresh_model_has_learnt_nothing(on_test):
    options = {"width": 8, "stem": 4, "dim": 8}
    text = {"words": len(VOCABULARY), "width": 8}
    denoiser = Spec("UNet", {**options, "text": text}, "cosine_schedule").build()
    add_word(denoiser, "turned", like="dark")
    judge = Spec("Classifier", {"classes": 11}).build().eval()
    found = learnt(denoiser, judge, n=2)
    assert set(found) == {"asked", "transfer", "unasked", "true"}
    assert all(0 <= share <= 1 for share in found.values())
    x, tokens = own_samples(denoiser, 2)
    assert x.shape == (2, 1, 28, 56) and float(x.abs().max()) <= 1
    assert torch.equal(tokens, tokenise(requests(2, TAUGHT)[0]))
