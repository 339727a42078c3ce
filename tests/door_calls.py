"""A good call of every public function on tensors: parts to call methods of, and arguments made from annotations."""

import inspect
import tempfile
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18

from detkit import (
    anchors,
    backbones,
    boxes,
    detectors,
    heads,
    layers,
    losses,
    metrics,
    multitask,
    necks,
    proposals,
    retrieval,
    tricks,
)
from detkit._door import alternatives, is_tensor
from detkit._ranges import rule_of
from detkit.structures import Anchors, Images

SIDES = {"D": 8, "C": 2, "classes": 3, "V": 12, "L": 5, "H": 8, "W": 8, "_": 8, "S": 4, "heads": 2, "bins": 3}
"""Lengths of the letters in annotations; all others are 2."""
CODER = boxes.DeltaCoder()


def head() -> nn.Module:
    return heads.MultiBoxHead([8], [1], outputs=2)


def layer(kind: type) -> nn.Module:
    return kind(8, 2, hidden=8)


def filled(index: retrieval.Index) -> retrieval.Index:
    index.add(torch.eye(4, 8), range(10, 14))
    return index


PARTS: dict[str, Callable[[], Any]] = {
    "ATSSMatcher": anchors.ATSSMatcher,
    "BalancedSampler": anchors.BalancedSampler,
    "GrayMatcher": lambda: anchors.GrayMatcher(anchors.ThresholdMatcher()),
    "BipartiteMatcher": anchors.BipartiteMatcher,
    "CenterMatcher": anchors.CenterMatcher,
    "HardNegativeSampler": anchors.HardNegativeSampler,
    "HungarianMatcher": anchors.HungarianMatcher,
    "SimOTAMatcher": anchors.SimOTAMatcher,
    "TaskAlignedMatcher": anchors.TaskAlignedMatcher,
    "ThresholdMatcher": anchors.ThresholdMatcher,
    "ShapeMatcher": anchors.ShapeMatcher,
    "ResponsibleMatcher": anchors.ResponsibleMatcher,
    "DarknetBlock": lambda: backbones.DarknetBlock(8),
    "HGNetBackbone": lambda: backbones.HGNetBackbone((4, 4), [backbones.HGStage(2, 4, stride=None)], levels=(0,)),
    "ResNetBackbone": lambda: backbones.ResNetBackbone(resnet18()),
    "SequentialBackbone": lambda: backbones.SequentialBackbone([nn.Conv2d(3, 4, 1)], out_channels=[4], strides=[1]),
    "SmallBackbone": lambda: backbones.SmallBackbone((4, 8)),
    "BoxSides": lambda: boxes.sides_of(torch.ones(2, 4)),
    "DeltaCoder": boxes.DeltaCoder,
    "DistanceCoder": boxes.DistanceCoder,
    "DistributionCoder": lambda: boxes.DistributionCoder(boxes.DistanceCoder(), bins=2),
    "EdgeCoder": lambda: boxes.EdgeCoder(bins=4),
    "GridCoder": boxes.GridCoder,
    "SpatialPyramidPool": lambda: boxes.SpatialPyramidPool(stride=4),
    "PyramidRoIAlign": lambda: boxes.PyramidRoIAlign(2, strides=[4]),
    "EdgeLoss": lambda: losses.EdgeLoss(boxes.EdgeCoder(bins=4)),
    "TokenCoder": lambda: boxes.TokenCoder(2, bins=5),
    "DenoisingQueries": lambda: detectors.DenoisingQueries(2, 8),
    "LevelwisePostprocess": detectors.LevelwisePostprocess,
    "Postprocess": detectors.Postprocess,
    "Preprocess": lambda: detectors.Preprocess(None),
    "ProposalPostprocess": detectors.ProposalPostprocess,
    "SetPostprocess": detectors.SetPostprocess,
    "RegionFeatures": lambda: detectors.RegionFeatures(nn.Flatten(), feature_size=192, size=8, context=0),
    "SequenceTargetBuilder": lambda: detectors.SequenceTargetBuilder(boxes.TokenCoder(2, bins=5), max_objects=3),
    "BoxGrammar": lambda: heads.BoxGrammar(boxes.TokenCoder(2, bins=5)),
    "BoxHead": lambda: heads.BoxHead(nn.Flatten(), 128, num_classes=2),
    "CellHead": lambda: heads.CellHead(8, (8, 8), per_cell=1, num_classes=2),
    "ClassificationHead": lambda: heads.ClassificationHead(8, 1, num_classes=2),
    "DenseHead": lambda: heads.DenseHead(heads.ClassificationHead(8, 1, num_classes=2), heads.RegressionHead(8, 1)),
    "EdgeHead": lambda: heads.EdgeHead(8, num_classes=2, bins=4),
    "EmbeddingHead": lambda: heads.EmbeddingHead(8, 2),
    "FCOSHead": lambda: heads.FCOSHead(8),
    "GridHead": lambda: heads.GridHead([8], [1], num_classes=2),
    "ImageHead": lambda: heads.ImageHead(8, 2),
    "KeypointHead": lambda: heads.KeypointHead(8, 2, channels=(4,)),
    "MaskHead": lambda: heads.MaskHead(8, 2, channels=(4,)),
    "MultiBoxHead": head,
    "QualityEstimator": lambda: heads.QualityEstimator(bins=4),
    "RPNHead": lambda: heads.RPNHead(8, 1),
    "RegressionHead": lambda: heads.RegressionHead(8, 1),
    "RefinementHead": lambda: heads.RefinementHead(8, num_classes=2),
    "SegmentationHead": lambda: heads.SegmentationHead([8], 2),
    "SetPredictionHead": lambda: heads.SetPredictionHead(8, num_classes=2),
    "TokenSampler": heads.TokenSampler,
    "Attention": lambda: layers.Attention(8, 2),
    "BoxPositions": lambda: layers.BoxPositions(8),
    "DecoderLayer": lambda: layer(layers.DecoderLayer),
    "EncoderLayer": lambda: layer(layers.EncoderLayer),
    "DeformableAttention": lambda: layers.DeformableAttention(8, 2, levels=1),
    "DeformableDecoderLayer": lambda: layers.DeformableDecoderLayer(
        8, 2, hidden=8, memory_attention=layers.DeformableAttention(8, 2, levels=1)
    ),
    "DeformableEncoderLayer": lambda: layers.DeformableEncoderLayer(
        8, hidden=8, attention=layers.DeformableAttention(8, 2, levels=1)
    ),
    "ConditionalAttention": lambda: layers.ConditionalAttention(8, 2),
    "ConditionalDecoderLayer": lambda: layers.ConditionalDecoderLayer(8, 2, hidden=8),
    "ConditionalDecoder": lambda: layers.ConditionalDecoder(
        [layers.ConditionalDecoderLayer(8, 2, hidden=8)],
        points=nn.Linear(8, 2),
        scale=nn.Identity(),
        norm=nn.Identity(),
    ),
    "PointQueries": lambda: layers.PointQueries(3, 8),
    "CSPRepBlock": lambda: layers.CSPRepBlock(8, 8),
    "ELANBlock": lambda: layers.ELANBlock(8, 8, width=4),
    "GridPositions": lambda: layers.GridPositions(8),
    "MapAttention": lambda: layers.MapAttention(
        layers.GridPositions(8), layers.TransformerEncoder([layer(layers.EncoderLayer)])
    ),
    "RepVGGBlock": lambda: layers.RepVGGBlock(8, 8),
    "L2Norm": lambda: layers.L2Norm(8),
    "LearnedPositions": lambda: layers.LearnedPositions(8),
    "Passthrough": layers.Passthrough,
    "SinePositions": lambda: layers.SinePositions(8),
    "TransformerDecoder": lambda: layers.TransformerDecoder([layer(layers.DecoderLayer)]),
    "TransformerEncoder": lambda: layers.TransformerEncoder([layer(layers.EncoderLayer)]),
    "FCOSLoss": losses.FCOSLoss,
    "FocalSetLoss": losses.FocalSetLoss,
    "HourglassLoss": losses.HourglassLoss,
    "MultiBoxLoss": losses.MultiBoxLoss,
    "ObjectnessLoss": losses.ObjectnessLoss,
    "QualityLoss": losses.QualityLoss,
    "RCNNLoss": losses.RCNNLoss,
    "RPNLoss": losses.RPNLoss,
    "RetinaNetLoss": losses.RetinaNetLoss,
    "SequenceLoss": losses.SequenceLoss,
    "SetPredictionLoss": losses.SetPredictionLoss,
    "VarifocalSetLoss": losses.VarifocalSetLoss,
    "YOLOLoss": losses.YOLOLoss,
    "YOLOv1Loss": losses.YOLOv1Loss,
    "CocoMetrics": lambda: metrics.CocoMetrics(2),
    "LocalizationMetrics": lambda: metrics.LocalizationMetrics(2),
    "MultiLabelMetrics": lambda: metrics.MultiLabelMetrics(2),
    "ProposalRecall": metrics.ProposalRecall,
    "SegmentationMetrics": lambda: metrics.SegmentationMetrics(2),
    "VocMetrics": lambda: metrics.VocMetrics(2),
    "CrossStitch": lambda: multitask.CrossStitch(2, 8),
    "SharedTrunk": lambda: multitask.SharedTrunk(backbones.SmallBackbone((4,)), ["a"]),
    "StitchedTrunk": lambda: multitask.StitchedTrunk(
        {name: backbones.SmallBackbone((4,)) for name in "ab"}, multitask.cross_stitches(2, [4])
    ),
    "TransferTrunk": lambda: multitask.TransferTrunk(
        backbones.SmallBackbone((4,)), {"a": backbones.SmallBackbone((4,))}, branch="b"
    ),
    "FixedWeights": lambda: multitask.FixedWeights(["a", "b"], [1.0, 1.0]),
    "UncertaintyWeights": lambda: multitask.UncertaintyWeights(["a", "b"]),
    "DynamicWeightAverage": lambda: multitask.DynamicWeightAverage(["a", "b"]),
    "FPN": lambda: necks.FPN([8], [4], channels=8),
    "Hourglass": lambda: necks.Hourglass([8], [4], channels=8),
    "SSDExtra": lambda: necks.SSDExtra([8], [4], levels=()),
    "PassthroughNeck": lambda: necks.PassthroughNeck([8], [4], channels=8, passed=0),
    "HybridNeck": lambda: necks.HybridNeck(
        *([8], [4]), channels=4, attention=nn.Identity(), fuse=nn.Identity, lateral=nn.Identity, downsample=nn.Identity
    ),
    "YOLONeck": lambda: necks.YOLONeck([8], [4]),
    "SlidingWindow": lambda: proposals.SlidingWindow(nn.Flatten(), size=4, stride=4),
    "Detector": lambda: detectors.tiny_ssd(2),
    "BallTreeIndex": lambda: filled(retrieval.BallTreeIndex(8)),
    "BruteForceIndex": lambda: filled(retrieval.BruteForceIndex(8)),
    "FaissIndex": lambda: filled(retrieval.FaissIndex(8)),
    "LanceIndex": lambda: filled(retrieval.LanceIndex(8, tempfile.mkdtemp())),
    "ShardedIndex": lambda: retrieval.ShardedIndex(filled(retrieval.BruteForceIndex(8))),
    "ArcFaceLoss": lambda: retrieval.ArcFaceLoss(2, 8),
    "ContrastiveLoss": retrieval.ContrastiveLoss,
    "CosineDistance": retrieval.CosineDistance,
    "CrossBatchMemory": lambda: retrieval.CrossBatchMemory(retrieval.TripletLoss(), 4, 8),
    "GatheredLoss": lambda: retrieval.GatheredLoss(retrieval.TripletLoss()),
    "MultiSimilarityLoss": retrieval.MultiSimilarityLoss,
    "ProxyAnchorLoss": lambda: retrieval.ProxyAnchorLoss(2, 8),
    "SupervisedContrastiveLoss": retrieval.SupervisedContrastiveLoss,
    "TripletLoss": retrieval.TripletLoss,
    "EuclideanDistance": retrieval.EuclideanDistance,
    "ColorDistortion": tricks.ColorDistortion,
    "CopyPaste": tricks.CopyPaste,
    "DetectionMixup": tricks.DetectionMixup,
    "Mixup": lambda: tricks.Mixup(2),
    "Mosaic": lambda: tricks.Mosaic((8, 8)),
    "RandomObjectScale": tricks.RandomObjectScale,
    "SyncBatchNorm": lambda: tricks.SyncBatchNorm(8),
    "KeepAll": tricks.KeepAll,
    "NMSFusion": tricks.NMSFusion,
    "SoftNMSFusion": tricks.SoftNMSFusion,
    "WeightedBoxesFusion": tricks.WeightedBoxesFusion,
    "TestTimeAugmentation": lambda: tricks.TestTimeAugmentation(detectors.tiny_ssd(2).eval(), fusion=tricks.KeepAll()),
    "TiledInference": lambda: tricks.TiledInference(
        detectors.tiny_ssd(2).eval(), tile=8, overlap=2, merge=tricks.KeepAll()
    ),
}
GIVEN: dict[str, dict[str, Any]] = {
    "cluster_anchors": {"count": 1},
    "crop_windows": {"classifier": nn.Flatten(), "size": 4},
    "scan_windows": {"network": nn.Identity(), "size": 4, "stride": 4},
    "pad_rows": {"length": 2},
    "SequenceLoss": {"coder": boxes.TokenCoder(2, bins=5)},
    "Detector": {"images": [torch.zeros(3, 64, 64)]},
    "draw_boxes": {"image": torch.zeros(3, 8, 8)},
    "save_drawings": {"folder": tempfile.gettempdir()},
    "box_costs": {"cost": losses.l1_cost, "coder": CODER},
}
"""Arguments that no annotation tells."""
KINDS: dict[str, Any] = {
    "list": [["a"]],
    "none": None,
    "text": "boxes",
    "picture": Image.new("RGB", (8, 8)),
}


def made(annotation: Any) -> Any:
    """A good value of an annotation: a tensor of its shape and type, or the tuple, list or dict that it names."""
    if rule := rule_of(annotation):
        return 2 if rule.single else [2] * (rule.length or 1)
    for kind in alternatives(annotation):
        if is_tensor(kind):
            return made_tensor(kind)
        if inspect.isclass(kind) and hasattr(kind, "_fields"):
            return made_record(kind)
        if typing.get_origin(kind) in (list, tuple, Sequence):
            return [made(typing.get_args(kind)[0])]
        if typing.is_typeddict(kind):
            return {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}
        if kind in (int, float):
            return kind(1)
        if kind is losses.BoxCoder:
            return CODER
    return None


def made_tensor(kind: Any) -> Tensor:
    letters = [] if kind is Tensor else [letter for letter in kind.dim_str.split() if letter[0] not in "*."]
    shape = [int(letter) if letter.isdigit() else SIDES.get(letter.lstrip("#"), 2) for letter in letters]
    if kind.__name__.startswith("Int"):
        return torch.zeros(shape, dtype=torch.int64)
    if kind.__name__.startswith("Bool"):
        return torch.ones(shape, dtype=torch.bool)
    return torch.tensor([0.0, 0, 4, 4]).expand(shape).clone() if shape[-1:] == [4] else torch.ones(shape)


def made_record(kind: Any) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {field: made(hints[field]) for field in kind._fields if field not in kind._field_defaults}
    if kind is Anchors:
        values["counts"] = (len(values["boxes"]),)
    return kind(**values) if kind is not Images else Images(torch.ones(2, 3, 8, 8), torch.full((2, 2), 8))


def is_of_tensors(annotation: Any) -> bool:
    """Whether an argument is a tensor, or a tuple or list of them."""
    return any(
        is_tensor(kind)
        or (inspect.isclass(kind) and hasattr(kind, "_fields"))
        or (typing.get_origin(kind) in (list, Sequence) and any(map(is_of_tensors, typing.get_args(kind))))
        for kind in alternatives(annotation)
    )
