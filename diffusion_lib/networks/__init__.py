"""The networks: U-Net, transformer, multilayer perceptron, ... and their blocks."""

from .baselines import GAN, VAE
from .blocks import (
    Attention,
    ConvNeXtBlock,
    LinearAttention,
    ResBlock,
    TimeEmbedding,
)
from .classifier import Classifier
from .mlp import MLP
from .noisy_classifier import NoisyClassifier
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "GAN",
    "MLP",
    "VAE",
    "Attention",
    "Classifier",
    "ConvNeXtBlock",
    "LinearAttention",
    "NoisyClassifier",
    "ResBlock",
    "TimeEmbedding",
    "Transformer",
    "UNet",
]
