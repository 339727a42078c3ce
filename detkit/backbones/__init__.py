"""Backbones turn images into feature maps of known channels and strides, finest first.

``SmallBackbone``, the chains of TinySSD and SSD7, a residual net and the Darknets of YOLO are built here; VGG, ResNet,
MobileNet and the torchvision and timm adapters wrap a model that the user built, with or without pretrained weights. A
backbone and a neck make a trunk: ``nn.Sequential(backbone, neck)``.
"""

from detkit.backbones.base import Backbone
from detkit.backbones.darknet import (
    DarknetBlock,
    darknet19_backbone,
    darknet53_backbone,
    tiny_darknet_backbone,
    tiny_yolo_v1_backbone,
    yolo_v1_backbone,
)
from detkit.backbones.hgnet import HGNetBackbone, HGStage, hgnet_b0, hgnet_b2, hgnet_b4, hgnet_b5
from detkit.backbones.mobilenet import mobilenet_backbone
from detkit.backbones.pretrained import TimmBackbone, TorchvisionBackbone
from detkit.backbones.recomputation import recompute_backbone
from detkit.backbones.residual import modified_ssd_backbone, residual_backbone
from detkit.backbones.resnet import ResNetBackbone, resnet_d
from detkit.backbones.sequential import SequentialBackbone, ssd7_backbone, tiny_ssd_backbone
from detkit.backbones.small import SmallBackbone
from detkit.backbones.vgg import SSDVGGBackbone, ssd_trunk_from_torchvision, vgg_backbone, vgg_features

__all__ = [
    "Backbone",
    "DarknetBlock",
    "HGNetBackbone",
    "HGStage",
    "ResNetBackbone",
    "SSDVGGBackbone",
    "SequentialBackbone",
    "SmallBackbone",
    "TimmBackbone",
    "TorchvisionBackbone",
    "darknet19_backbone",
    "darknet53_backbone",
    "hgnet_b0",
    "hgnet_b2",
    "hgnet_b4",
    "hgnet_b5",
    "mobilenet_backbone",
    "modified_ssd_backbone",
    "recompute_backbone",
    "residual_backbone",
    "resnet_d",
    "ssd7_backbone",
    "ssd_trunk_from_torchvision",
    "tiny_darknet_backbone",
    "tiny_ssd_backbone",
    "tiny_yolo_v1_backbone",
    "vgg_backbone",
    "vgg_features",
    "yolo_v1_backbone",
]
