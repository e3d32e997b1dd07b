"""Backbones: any CNN as a chain of named stages that attention can tap.

``compact``, ``whitened`` and the paper's networks are heedmap's own and need nothing but torch; every other name is
looked up in timm and torchvision (``wrapped``).
"""

from heedmap.backbones.base import Backbone, Trunk
from heedmap.backbones.compact import Compact
from heedmap.backbones.whitened import Whitened

__all__ = ["OWN_BACKBONES", "Backbone", "Compact", "Trunk", "Whitened"]

OWN_BACKBONES: dict[str, str] = {
    "compact": "small residual net for training from scratch, the default",
    "whitened": "plain net behind a whitened first layer, the default for many small images (CIFAR-10)",
    "paper-vgg": "the VGG of Learn to Pay Attention for 32 x 32 images (taps conv7, conv10, conv13)",
    "paper-resnet": "the pre-activation ResNet-164 of Learn to Pay Attention (taps stage2, stage3)",
}
