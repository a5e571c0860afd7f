"""The networks: U-Net, transformer, multilayer perceptron, ... and their blocks."""

from .autoencoder import Autoencoder
from .baselines import GAN, VAE
from .blocks import (
    Attention,
    ConvNeXtBlock,
    CrossAttention,
    LinearAttention,
    ResBlock,
    TimeEmbedding,
)
from .classifier import Classifier
from .control import Control, Controlled
from .foreign import FromDiffusers
from .mlp import MLP
from .noisy_classifier import NoisyClassifier
from .text import CLIP, TextEncoder
from .transformer import Transformer
from .unet import UNet
from .upsampler import Upsampler

__all__ = [
    "CLIP",
    "GAN",
    "MLP",
    "VAE",
    "Attention",
    "Autoencoder",
    "Classifier",
    "Control",
    "Controlled",
    "ConvNeXtBlock",
    "CrossAttention",
    "FromDiffusers",
    "LinearAttention",
    "NoisyClassifier",
    "ResBlock",
    "TextEncoder",
    "TimeEmbedding",
    "Transformer",
    "UNet",
    "Upsampler",
]
