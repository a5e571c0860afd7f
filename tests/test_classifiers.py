"""The scorer and the classifier of noisy pictures: what they are trained on."""

import hashlib

import pytest
import torch

from diffusion_lib import checkpoints, data
from diffusion_lib.checkpoints import facts
from diffusion_lib.classifiers import (
    FAULTS,
    damaged,
    noisy_classifier_facts,
    noisy_classifier_loss,
    scorer_loss,
)
from diffusion_lib.recipes import RECIPES


def batch(fashion, n=40):
    return fashion[0][:n], fashion[1][:n]


def test_the_scorer_s_header_tells_the_data_and_its_skill():
    told, (x, _) = facts("fashion-classifier"), data.fashion_mnist("train")
    assert told["data"] == hashlib.sha256(x.numpy().tobytes()).hexdigest()
    assert told["test_accuracy"] > 0.88 and len(told["first_losses"]) == 20


def test_half_of_the_pictures_are_damaged_each_in_its_way(fashion):
    x, _ = batch(fashion, 100)
    kept = x.clone()
    y, kind = damaged(x)
    assert torch.equal(x, kept) and y.min() >= -1 and y.max() <= 1
    counts = torch.bincount(kind, minlength=len(FAULTS)).tolist()
    assert counts == [50, 10, 10, 10, 10, 10]
    changed = (y != x).flatten(1).any(1)
    assert torch.equal(changed, kind != 0)
    mirrored = kind == FAULTS.index("mirrored")
    assert torch.equal(y[mirrored], x[mirrored].flip(-1))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_small_batches_are_damaged_too(fashion, n):
    y, kind = damaged(fashion[0][:n])
    assert y.shape == (n, 1, 28, 28) and kind.tolist() == [0, 1, 2, 3, 4, 5, 0][:n]


def test_a_fresh_scorer_pays_the_logarithm_of_its_choices(fashion):
    """Zeroed heads guess evenly: ln 10 for the garment, 0.2 ln 6 for the damage."""
    net = checkpoints.Spec("Classifier", {"faults": 6}).build()
    for head in (net.head, net.fault_head):
        torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    loss = scorer_loss(net, batch(fashion))
    expected = torch.tensor([10.0, 6.0]).log() @ torch.tensor([1.0, 0.2])
    torch.testing.assert_close(loss, expected.expand(40))


def test_the_noisy_classifier_s_loss_is_cross_entropy_at_random_times(fashion):
    classifier = RECIPES["fashion-noisy-classifier"].spec.build()
    loss = noisy_classifier_loss(classifier, batch(fashion)).detach()
    assert loss.shape == (40,) and 1.5 < float(loss.mean()) < 3.5  # log 10 = 2.3
    told = noisy_classifier_facts(classifier, None)["accuracy_at"]
    assert list(told) == [str(t) for t in range(100, 1001, 100)]
    assert all(0 <= accuracy <= 0.4 for accuracy in told.values())
