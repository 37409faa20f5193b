"""The bundled backbone: a small residual network for 32x32 RGB images, trained on CIFAR-10.

It needs no download, so it is what a first run, the examples and the tests use. Its weights lie in
``WEIGHTS_FILE`` as float16; ``tools/train_tiny.py`` is how they were made.
"""

import torch
from torch import Tensor, nn

from featx.backbones.spec import BUNDLED_WEIGHTS

MEAN = (0.4914, 0.4822, 0.4465)  # CIFAR-10 train images, RGB scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
IMAGE_SIZE = 32  # pixels, height and width
GFLOPS = 0.052  # 1e9 multiply-adds for one image of IMAGE_SIZE, counted as torchvision counts them
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
WEIGHTS_FILE = BUNDLED_WEIGHTS


class Tiny(nn.Module):
    """Residual network with 192 penultimate features and 0.69 million parameters.

    A 3x3 stem at full resolution, then three stages, each halving height and width with a strided
    3x3 convolution; the first two add one residual block of He et al. 2016
    (https://arxiv.org/abs/1512.03385). ``flatten`` returns the features, ``head`` classifies them.
    """

    def __init__(self, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(3, 32)
        self.stage1 = nn.Sequential(_conv_bn_relu(32, 64, stride=2), _Residual(64))
        self.stage2 = nn.Sequential(_conv_bn_relu(64, 128, stride=2), _Residual(128))
        self.stage3 = _conv_bn_relu(128, 192, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(192, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of normalised RGB images ``(N, 3, H, W)``."""
        maps = self.stem(images)  # (N, 32, H, W)
        maps = self.stage1(maps)  # (N, 64, H/2, W/2)
        maps = self.stage2(maps)  # (N, 128, H/4, W/4)
        maps = self.stage3(maps)  # (N, 192, H/8, W/8)
        features = self.flatten(self.pool(maps))  # (N, 192)
        logits: Tensor = self.head(features)
        return logits


class _Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to their input; size and channels stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(channels, channels)
        self.conv2 = nn.Sequential(*_conv_bn(channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape as ``maps``, ``(N, channels, H, W)``."""
        return torch.relu(maps + self.conv2(self.conv1(maps)))


def _conv_bn_relu(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(channels_in, channels_out, stride=stride), nn.ReLU())


def _conv_bn(
    channels_in: int, channels_out: int, *, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels_out)
