"""Low-rank updates and new words: nothing at first, exact to merge and to remove."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from diffusion_lib import checkpoints
from diffusion_lib.checkpoints import Spec, fingerprint, save
from diffusion_lib.lora import (
    LowRank,
    adaptor,
    add_lora,
    add_word,
    dial,
    load_adaptor,
    merged,
    read_adaptor,
    removed,
    save_adaptor,
)
from diffusion_lib.networks import MLP
from diffusion_lib.text_recipes import text_loss
from diffusion_lib.tokens import VOCABULARY, tokenise
from diffusion_lib.training import train

WORDS = len(VOCABULARY)
OPTIONS = {"width": 8, "stem": 4, "dim": 8, "text": {"words": WORDS, "width": 8}}
SPEC = Spec("UNet", OPTIONS, "cosine_schedule")
NEW = ("turned",)


@pytest.fixture
def denoiser():
    """A small net that reads, as if trained: no zero layers, weights of a file."""
    found = SPEC.build().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_((0.2 * torch.randn(parameter.shape)).half())
    return found.requires_grad_(False)  # which chooses kernels, by a last bit


@pytest.fixture
def shipped(denoiser, tmp_path):
    """The path of the denoiser's checkpoint."""
    save(tmp_path / "base.safetensors", denoiser, SPEC)
    return str(tmp_path / "base.safetensors")


@torch.no_grad()
def answer(denoiser, caption="a boot and a bag", new=()):
    x = torch.randn(2, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    return denoiser(x, 300, {"text": tokenise([caption] * 2, new=new)})


@torch.no_grad()
def shaken(denoiser):
    """The denoiser with its adaptor as if trained."""
    for value in adaptor(denoiser).values():
        value.add_(0.3 * torch.randn(value.shape))
    return denoiser


def test_an_update_is_of_its_rank_and_nothing_at_first():
    weight = torch.randn(12, 4, 3, 3)  # as a matrix 12 x 36
    change = LowRank(weight, 3, scale=0.5)
    assert torch.equal(change(weight), weight)
    with torch.no_grad():
        change.B.normal_()
        update = (change(weight) - weight).flatten(1)
    assert int(torch.linalg.matrix_rank(update, rtol=1e-4)) == 3
    assert_close(update, 0.5 * change.B.detach() @ change.A.detach())
    assert sum(p.numel() for p in change.parameters()) == 3 * (12 + 36)
    for rank in (0, 13):
        with pytest.raises(ValueError, match="rank must be 1 to 12 for 12 x 36"):
            LowRank(weight, rank)


def test_only_the_layers_named_are_changed_and_only_they_learn(denoiser):
    names = add_lora(denoiser, 2)
    assert len(names) == 16 and all(".listen." in name for name in names)
    free = {n for n, p in denoiser.named_parameters() if p.requires_grad}
    assert free == {f"net.{n}" for n in adaptor(denoiser.net)} and len(free) == 32


def test_at_first_the_answer_is_the_base_s_to_the_last_bit(denoiser):
    before = answer(denoiser)
    add_lora(denoiser, 2, targets=("listen", "film", "conv1"))
    add_word(denoiser, "turned", like="dark")
    assert torch.equal(answer(denoiser), before)
    told = answer(denoiser, "a turned boot", NEW)
    assert torch.equal(told, answer(denoiser, "a dark boot"))


def test_merging_is_exact_and_removing_restores_every_bit(denoiser):
    before, kept = answer(denoiser), fingerprint(denoiser)
    weights = {n: p.clone() for n, p in denoiser.named_parameters()}
    add_lora(denoiser, 2, targets=("listen", "conv1"))
    add_word(denoiser, "turned", like="dark")
    shaken(denoiser)
    told = answer(denoiser, "a turned boot", NEW)
    plain = merged(denoiser)
    assert torch.equal(answer(plain, "a turned boot", NEW), told)
    assert not adaptor(plain) and plain.net.text.words == WORDS + 1
    bigger = Spec("UNet", {**OPTIONS, "text": {"words": WORDS + 1, "width": 8}})
    bigger.build().load_state_dict(plain.net.state_dict())
    assert torch.equal(answer(denoiser, "a turned boot", NEW), told)  # still apart
    assert not torch.allclose(told, before, atol=1e-3)
    other = copy.deepcopy(denoiser)
    removed(denoiser)
    assert torch.equal(answer(other, "a turned boot", NEW), told)  # a copy of its own
    assert torch.equal(answer(denoiser), before) and fingerprint(denoiser) == kept
    for name, value in denoiser.named_parameters():
        assert torch.equal(value, weights[name])
    with pytest.raises(ValueError, match="tokens must be"):
        answer(denoiser, "a turned boot", NEW)


def test_the_dial_goes_from_the_base_to_beyond(denoiser):
    before = answer(denoiser)
    names = add_lora(denoiser, 1, scale=0.5)
    shaken(denoiser)
    layer, update = denoiser.get_submodule(names[0]), []
    trained = layer.weight.clone()
    for share in (0.0, 1.0, 2.0):
        dial(denoiser, share)
        update.append(layer.weight - layer.parametrizations.weight.original)
    assert_close(update[2], 2 * update[1])
    dial(denoiser, 1.0)
    assert torch.equal(layer.weight, trained)
    dial(denoiser, 0.0)
    assert torch.equal(answer(denoiser), before)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_moves_the_adaptor_alone(denoiser, precision):
    """Also in the average, and in half precision."""
    weights = {n: p.clone() for n, p in denoiser.named_parameters()}
    add_lora(denoiser, 2)
    add_word(denoiser, "turned", like="dark")
    before = {n: v.clone() for n, v in adaptor(denoiser).items()}
    tokens = tokenise(["a turned boot"] * 4, new=NEW)
    x = torch.rand(4, 1, 8, 16)
    run = train(
        denoiser, text_loss, lambda k: (x, tokens), 5, warmup=1, precision=precision
    )
    for module in (run.model, run.ema):
        after = adaptor(module)
        assert all(not torch.equal(after[n], v) for n, v in before.items())
        plain = dict(removed(copy.deepcopy(module)).named_parameters())
        assert all(torch.equal(plain[n], w) for n, w in weights.items())


def test_textual_inversion_moves_one_vector(denoiser):
    add_word(denoiser, "turned", like="dark")
    ((name, row),) = adaptor(denoiser).items()
    assert row.shape == (1, 8) and name.endswith("rows")
    tokens, start = tokenise(["a turned boot"] * 4, new=NEW), row.clone()
    train(denoiser, text_loss, lambda k: (torch.rand(4, 1, 8, 16), tokens), 2, warmup=1)
    assert not torch.equal(adaptor(denoiser)[name], start)


def test_an_interrupted_training_goes_on(denoiser, tmp_path):
    add_lora(denoiser, 1)
    tokens, x = tokenise(["a boot"] * 4), torch.rand(4, 1, 8, 16)
    other, losses = copy.deepcopy(denoiser), []

    def stop(step, loss):
        if step == 2:
            raise KeyboardInterrupt

    def run(module, folder, on_step=None):
        batches = lambda k: (x, tokens)  # noqa: E731
        options = {"folder": folder, "save_every": 1, "on_step": on_step}
        return train(module, text_loss, batches, 4, **options).losses

    with pytest.raises(KeyboardInterrupt):
        run(denoiser, tmp_path / "a", stop)
    losses = run(denoiser, tmp_path / "a")
    assert losses == run(other, tmp_path / "b")


def test_a_small_file_gives_the_same_answers(denoiser, shipped, tmp_path):
    add_word(denoiser, "turned", like="dark")
    add_lora(denoiser, 2, scale=0.5)
    path = tmp_path / "turned.safetensors"
    dial(shaken(denoiser), 0.3)  # no part of what is kept
    save_adaptor(path, denoiser, shipped, {"steps": 3})
    dial(denoiser, 1.0)
    loaded = load_adaptor(path)
    wanted = answer(denoiser, "a turned boot", NEW)
    assert torch.equal(answer(loaded, "a turned boot", NEW), wanted)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in denoiser.named_parameters() if p.requires_grad
    }
    again = load_adaptor(path, base=checkpoints.load(shipped))
    assert torch.equal(answer(again, "a turned boot", NEW), wanted)


def test_every_update_keeps_its_own_scale(denoiser, shipped, tmp_path):
    """In a folder that is made for it, too."""
    add_lora(denoiser, 2, targets=("listen",), scale=0.5)
    add_lora(denoiser, 1, targets=("conv1",), scale=3.0)
    path, wanted = tmp_path / "new" / "two.safetensors", answer(shaken(denoiser))
    save_adaptor(path, denoiser, shipped)
    assert torch.equal(answer(load_adaptor(path)), wanted)


def test_an_older_file_with_one_scale_for_all_is_read(denoiser, shipped, tmp_path):
    add_lora(denoiser, 2, scale=0.5)
    path, wanted = tmp_path / "turned.safetensors", answer(shaken(denoiser))
    save_adaptor(path, denoiser, shipped)
    header, tensors = read_adaptor(path)
    assert set(header.pop("scales").values()) == {0.5}
    save_file(tensors, path, {"adaptor": json.dumps({**header, "scale": 0.5})})
    assert torch.equal(answer(load_adaptor(path)), wanted)


def test_a_file_and_its_base_belong_together(denoiser, shipped, tmp_path):
    add_lora(denoiser, 2)
    path, other = tmp_path / "turned.safetensors", SPEC.build()
    save_adaptor(path, denoiser, shipped)
    with pytest.raises(ValueError, match="trained on .* weights were others"):
        load_adaptor(path, other)
    add_lora(other, 2)
    with pytest.raises(ValueError, match="not made from .* weights were others"):
        save_adaptor(path, other, shipped)
    with pytest.raises(ValueError, match="something be added"):
        save_adaptor(path, removed(other), shipped)
    with pytest.raises(ValueError, match="holds no adaptor"):
        load_adaptor(shipped)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged or missing"):
        load_adaptor(path)


def test_what_cannot_be_changed_is_said(denoiser):
    with pytest.raises(ValueError, match="no layer is called nowhere"):
        add_lora(denoiser, 1, targets=("nowhere",))
    add_lora(denoiser, 1)
    with pytest.raises(ValueError, match="changed before"):
        add_lora(denoiser, 1)
    add_word(denoiser, "turned", like="dark")
    for word in ("turned", "dark"):
        with pytest.raises(ValueError, match="is known, or there is a new word"):
            add_word(denoiser, word, like="light")
    with pytest.raises(ValueError, match="reads no text"):
        add_word(MLP(2), "turned", like="dark")
    with pytest.raises(ValueError, match="unknown word 'turned'"):
        tokenise("a turned boot")
    assert int(tokenise("turned", new=NEW)[0, 1]) == WORDS
