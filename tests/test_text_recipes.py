"""Recipes with captions: batches, losses, and what the facts count."""

import pytest
import torch
from torch.testing import assert_close

from diffusion_lib import checkpoints, text_recipes
from diffusion_lib.__main__ import main
from diffusion_lib.captions import NOTHING
from diffusion_lib.checkpoints import Spec
from diffusion_lib.data import fashion_mnist
from diffusion_lib.networks import CLIP
from diffusion_lib.recipes import RECIPES, generate, run_recipe
from diffusion_lib.text_recipes import (
    attribute_loss,
    captioned,
    composed,
    contrastive_loss,
    names,
    retrieved,
    text_loss,
)
from diffusion_lib.tokens import VOCABULARY, detokenise, tokenise

WORDS = len(VOCABULARY)
SMALL = Spec(
    "UNet",
    {"width": 8, "stem": 4, "dim": 8, "text": {"words": WORDS, "width": 8}},
    "cosine_schedule",
)


@pytest.fixture
def on_test(monkeypatch):
    """Batches of the test split: the training set need not be read."""
    draw = text_recipes.caption_pictures
    monkeypatch.setattr(
        text_recipes, "caption_pictures", lambda split, *rest: draw("test", *rest)
    )


@pytest.fixture
def small():
    """A reading denoiser without zero layers, as if trained."""
    torch.manual_seed(0)
    denoiser = SMALL.build().eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return denoiser


def test_every_batch_is_new_and_the_same_again(on_test):
    batches = captioned(size=6, seed=3)
    (x, tokens), again, other = batches(4), captioned(6, 3)(4), batches(5)
    assert x.shape == (6, 1, 28, 56) and len(tokens) == 6
    assert torch.equal(x, again[0]) and torch.equal(tokens, again[1])
    assert not torch.equal(x, other[0])


def test_the_contrastive_loss_is_both_ways_cross_entropy():
    """Equal vectors: log B; perfect ones at the largest scale: almost nothing."""

    class Fixed(torch.nn.Module):
        def forward(self, x, tokens):
            return x

    guess = contrastive_loss(Fixed(), (torch.zeros(8, 8), None))
    assert_close(guess, torch.full((8,), 8.0).log())
    assert float(contrastive_loss(Fixed(), (100 * torch.eye(8), None)).max()) < 1e-6
    logits = torch.randn(3, 3)
    rows, columns = logits.log_softmax(1).diag(), logits.log_softmax(0).diag()
    found = contrastive_loss(Fixed(), (logits, None))
    assert_close(found, -(rows + columns) / 2)


def test_clip_learns_a_batch_by_heart(on_test):
    net = CLIP(WORDS, dim=16, width=8)
    batch = captioned(12)(0)
    optimizer, losses = torch.optim.Adam(net.parameters(), 3e-3), []
    for _ in range(25):
        loss = contrastive_loss(net, batch).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_text_reaches_the_net_or_is_dropped(small, on_test):
    batch, heard = captioned(8)(0), []
    forward = small.net.forward
    small.net.forward = lambda x, u, cond: heard.append(cond) or forward(x, u, cond)
    for drop in (0.0, 1.0):
        loss = text_loss(small, batch, drop)
        assert loss.shape == (8,) and bool(loss.isfinite().all())
    assert torch.equal(heard[0]["text"], batch[1])
    assert detokenise(heard[1]["text"]) == [""] * 8


def test_a_judge_learns_that_nothing_is_there(fashion):
    """Its loss sees one wiped picture in eleven, labelled NOTHING."""
    seen = []

    class Sure(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 11).index_fill(1, torch.tensor([NOTHING]), 9.0)

    loss = attribute_loss(Sure(), (fashion[0][:22], fashion[1][:22]))
    nothing = (loss < 0.01).nonzero().flatten().tolist()
    assert nothing == [0, 11] and bool((seen[0][0] < -0.4).all())


def test_retrieval_counts_rows_with_a_right_column():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    right = torch.eye(3, dtype=torch.bool)
    assert [retrieved(logits, right, k) for k in (1, 2, 3)] == pytest.approx(
        [2 / 3, 1, 1]
    )


def test_facts_of_fresh_nets_are_those_of_guessing(fashion, monkeypatch):
    few = tuple(part[:500] for part in fashion)
    monkeypatch.setattr(text_recipes, "fashion_mnist", lambda split: few)
    judge = RECIPES["fashion-attributes"].spec.build().eval()
    told = text_recipes.attribute_facts(judge, None)
    assert told["test_accuracy"] < 0.3 and told["canvas_accuracy"] < 0.2
    told = text_recipes.clip_facts(CLIP(WORDS, dim=8, width=8).eval(), None)
    assert set(told["retrieval"]) == {
        f"{name} at {k}" for name in ("caption", "picture") for k in (1, 5)
    }
    assert all(0 <= share < 0.2 for share in told["retrieval"].values())
    assert told["caption_true"] < 0.2 and told["zero_shot_accuracy"] < 0.4
    assert told["words"] == VOCABULARY


def test_pictures_follow_their_captions_and_are_judged(small, fashion):
    captions = ["a dark boot", "two light bags", "a shirt left of a coat"]
    judge = RECIPES["fashion-attributes"].spec.build().eval()
    pictures, right = composed(small, judge, captions, calls=2)
    assert pictures.shape == (3, 1, 28, 56) and right.dtype == torch.bool
    other, _ = composed(small, judge, captions[::-1], calls=2)
    assert float((other[0] - pictures[0]).abs().max()) > 1e-4
    assert_close(other[1], pictures[1], rtol=0, atol=2e-5)
    assert names(judge, fashion[0][:7]).shape == (7,)


def test_the_judge_reads_in_full_precision():
    judge = RECIPES[text_recipes.JUDGE].spec.build().eval()
    seen = []
    judge.register_forward_hook(lambda module, x, logits: seen.append(logits.dtype))
    halves = torch.rand(3, 1, 28, 28, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = names(judge, halves)
    assert torch.equal(inside, names(judge, halves.float()))
    assert seen == [torch.float32] * 2


def test_every_kind_of_caption_is_counted_beside_real_canvases(monkeypatch):
    """A judge that always says what is there, and pictures that are never right."""
    told = []

    def never(denoiser, judge, captions):
        told.append(captions)
        return None, torch.zeros(len(captions), dtype=torch.bool)

    monkeypatch.setattr(text_recipes, "composed", never)
    monkeypatch.setattr(text_recipes.checkpoints, "load", lambda name: name)
    monkeypatch.setattr(text_recipes, "names", by_their_pixels())
    facts = text_recipes.text_facts(None, None)
    assert facts["captions_true"] == {
        kind: {"generated": 0.0, "real": 1.0} for kind in ("seen", "looks", "pairs")
    }
    assert [len(captions) for captions in told] == [100] * 3
    assert facts["size"] == [28, 56] and facts["words"] == VOCABULARY


def by_their_pixels():
    """A judge that looks every half up in the test set."""
    x, label = fashion_mnist("test")
    known = {row.numpy().tobytes(): int(n) for row, n in zip(x, label, strict=True)}
    return lambda judge, halves: torch.tensor(
        [known.get(half.numpy().tobytes(), NOTHING) for half in halves.contiguous()]
    )


def test_a_missing_judge_is_noticed_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no checkpoint 'fashion-attributes'"):
        RECIPES["fashion-text"].batches(size=4, seed=0)
    judge = RECIPES["fashion-attributes"].spec
    checkpoints.save(tmp_path / "fashion-attributes.safetensors", judge.build(), judge)
    assert callable(RECIPES["fashion-text"].batches(size=4, seed=0))


def test_no_caption_is_the_empty_one(small):
    empty = {"text": tokenise(["", ""])}
    free = generate(small, 2, 2, size=(8, 16))
    assert_close(generate(small, 2, 2, size=(8, 16), cond=empty), free)


@pytest.mark.parametrize("name", ["fashion-attributes", "fashion-clip", "fashion-text"])
def test_recipes_build_what_their_data_fits(name):
    recipe = RECIPES[name]
    options = recipe.spec.net_options
    assert recipe.batch * recipe.steps > 1e5 and recipe.facts is not None
    assert (
        options.get("words", WORDS)
        == WORDS
        == options.get("text", options).get("words", WORDS)
    )


def test_shipped_nets_know_the_vocabulary_in_its_order():
    told = {name: checkpoints.facts(name) for name in checkpoints.available()}
    reading = {name: facts["words"] for name, facts in told.items() if "words" in facts}
    assert [name for name in reading if reading[name] != VOCABULARY] == []


@pytest.mark.slow
def test_a_recipe_with_captions_runs_and_leaves_a_checkpoint(tmp_path, on_test):
    path = run_recipe("fashion-clip", tmp_path, steps=2, precision="no")
    told = checkpoints.facts(path)
    assert told["words"] == VOCABULARY and len(told["first_losses"]) == 2
    x, tokens = captioned(3)(0)
    assert checkpoints.load(path)(x, tokens).shape == (3, 3)


def test_prompts_on_the_command_line(small, tmp_path, capsys):
    path, out = tmp_path / "small.safetensors", tmp_path / "grid.png"
    checkpoints.save(path, small, SMALL, {"size": [8, 16]})
    ask = ["sample", str(path), "--n", "2", "--calls", "2", "--out", str(out)]
    assert main([*ask, "--prompt", "a dark ankle boot", "--scale", "2"]) == 0
    assert out.is_file()
    capsys.readouterr()
    for command, text in (
        ([*ask, "--prompt", "a dark ankel boot"], "unknown word 'ankel'"),
        ([*ask, "--label", "bag"], "only 'text'"),
        (["sample", "fashion-unet", "--prompt", "a bag"], "reads no text"),
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and text in message
