"""Our parts and those of diffusers, mixed: the same picture both ways, to rounding."""

from importlib.util import find_spec

import pytest
import torch
from parity import in_double, peer, their_run
from torch.testing import assert_close

from diffusion_lib.checkpoints import load
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import classifier_free, given
from diffusion_lib.networks import FromDiffusers
from diffusion_lib.samplers import ddim_step, dpmpp_2m_step, sample
from diffusion_lib.schedules import cosine_schedule, quadratic_schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("diffusers") is None, reason="diffusers comes with the extra 'bench'"
    ),
]
STEPS, f64 = 10, torch.float64
SMALL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DDIM = {"clip_sample": False, "timestep_spacing": "trailing"}


def unet(**options):
    """A random UNet2DModel of theirs, in double precision."""
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **SMALL,
        **options,
    ).double()


def both(net, chain, prediction, x, answer, cond=None):
    """The picture of our loop, and of theirs with `answer` as its network."""
    denoise = given(Denoiser(net, chain, prediction), cond)
    ours = sample(denoise, chain, x, chain.times(STEPS), ddim_step)
    names = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
    with in_double("DDIMScheduler"), torch.no_grad():
        scheduler = peer(
            "DDIMScheduler", chain, STEPS, prediction_type=names[prediction], **DDIM
        )
        theirs = their_run(scheduler, answer, x)
    return ours, theirs


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_their_net_by_our_sampler(prediction):
    net, chain = unet(), quadratic_schedule(1000, 8.5e-4, 0.012)
    x = torch.randn(2, 1, 8, 8, dtype=f64)
    pair = both(FromDiffusers(net), chain, prediction, x, lambda z, t: net(z, t).sample)
    assert_close(*pair, rtol=1e-9, atol=1e-9)
    assert float(pair[0].std()) > 0.1


def test_their_net_hears_the_label_and_the_right_row():
    net, chain = unet(num_class_embeds=4), cosine_schedule()
    x, label = torch.randn(2, 1, 8, 8, dtype=f64), torch.tensor([1, 3])
    cond, told = {"label": label}, FromDiffusers(net)
    pair = both(told, chain, "v", x, lambda z, t: net(z, t, label).sample, cond)
    assert_close(*pair, rtol=1e-9, atol=1e-9)
    late = both(told, chain, "v", x, lambda z, t: net(z, t + 1, label).sample, cond)
    assert float((late[0] - late[1]).abs().max()) > 1e-6  # one row off would be seen


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_our_checkpoint_by_their_scheduler(kind):
    """The shipped U-Net in double precision: two whole pictures."""
    denoiser = load("fashion-unet").double()
    chain, label = denoiser.schedule, torch.tensor([7, 9])
    x = chain.noise((2, 1, 28, 28), dtype=f64)

    def answer(z, clock):
        return denoiser.output(z, clock.double() + 1, {"label": label})

    options = {**DDIM, "prediction_type": "v_prediction"}
    step = ddim_step
    if kind != "DDIMScheduler":
        del options["clip_sample"]
        options |= {"lower_order_final": True, "final_sigmas_type": "zero"}
        step = dpmpp_2m_step
    with in_double(kind), torch.no_grad():
        scheduler = peer(kind, chain, 5, **options)  # of 200 rows: none is rounded
        theirs = their_run(scheduler, answer, x)
    denoise = given(denoiser, {"label": label})
    times = torch.cat([scheduler.timesteps.double() + 1, torch.zeros(1)])
    ours = sample(denoise, chain, x, times, step)
    assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert float(ours.std()) > 0.3


class Decoder(torch.nn.Module):
    """Their AutoencoderKL as a decoder of ours."""

    factor = 4

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def decode(self, z):
        """Divide by their scaling factor, then decode."""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample


def test_the_parts_of_stable_diffusion_map_to_ours():
    """Their loop with guidance, as StableDiffusionPipeline writes it, and ours.

    Tiny random parts of the same kinds: cross-attention U-Net, KL autoencoder, the
    scaled-linear chain, guidance of scale 7.5; random vectors stand for the words.
    """
    import diffusers

    net = diffusers.UNet2DConditionModel(
        sample_size=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **SMALL,
    ).double()
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **SMALL,
    ).double()
    text, empty = torch.randn(1, 5, 12, dtype=f64), torch.randn(1, 5, 12, dtype=f64)
    z = torch.randn(1, 4, 4, 4, dtype=f64)

    def answer(z, t):
        words = torch.cat([empty, text])
        without, told = net(torch.cat([z, z]), t, words).sample.chunk(2)
        return without + 7.5 * (told - without)

    chain = quadratic_schedule(1000, 8.5e-4, 0.012)
    with in_double("DDIMScheduler"), torch.no_grad():
        scheduler = peer("DDIMScheduler", chain, STEPS, **DDIM)
        theirs = their_run(scheduler, answer, z * scheduler.init_noise_sigma)
        theirs = vae.decode(theirs / vae.config.scaling_factor).sample

    wrapped = FromDiffusers(net, nulls={"text": empty})
    denoiser = Denoiser(wrapped, chain, "eps", decoder=Decoder(vae))
    denoise = classifier_free(denoiser, {"text": text}, 7.5)
    with torch.no_grad():
        latents = sample(denoise, chain, z, chain.times(STEPS), ddim_step)
        ours = denoiser.decoder.decode(latents)
    assert ours.shape == (1, 3, 8, 8) and float(ours.std()) > 0.01
    assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_conditions_that_a_net_does_not_know_are_refused():
    wrapped, x = FromDiffusers(unet()), torch.zeros(1, 1, 8, 8, dtype=f64)
    with pytest.raises(ValueError, match=r"unknown conditions \['low_res'\]"):
        wrapped(x, torch.ones(1), {"low_res": x})
    with pytest.raises(ValueError, match="no nulls"):
        wrapped.null({"label": torch.zeros(1)})
