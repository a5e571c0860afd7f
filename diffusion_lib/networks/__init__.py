"""The networks: U-Net, multilayer perceptron, classifier, and their blocks."""

from .blocks import Attention, ResBlock, TimeEmbedding
from .classifier import Classifier
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "Attention", "Classifier", "ResBlock", "TimeEmbedding", "UNet"]
