"""The networks: U-Net, transformer, multilayer perceptron, ... and their blocks."""

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
    "Classifier",
    "Control",
    "Controlled",
    "ConvNeXtBlock",
    "CrossAttention",
    "LinearAttention",
    "NoisyClassifier",
    "ResBlock",
    "TextEncoder",
    "TimeEmbedding",
    "Transformer",
    "UNet",
    "Upsampler",
]
