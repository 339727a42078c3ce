"""Converts DETR checkpoints in the layout of facebook's release to Detectors, and Detectors to state_dicts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from detkit._door import door
from detkit._ranges import Count
from detkit.anchors import HungarianMatcher
from detkit.detectors import Detector
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.weights.detr_layout import FACEBOOK, OURS, detector_of, detr_renames, detr_stage_of, published_steps
from detkit.weights.torchvision_trunk import Rename, state_to_ours, state_to_theirs

_BACKBONE = "backbone.0.body."


@door
def detr_from_facebook(state: Mapping[str, Tensor], *, heads: Count = 8, dilated: bool = False) -> Detector:
    """A Detector with the weights of facebook's DETR: ``checkpoint["model"]`` as released, or trained with its code.

    All sizes, pre- or post-norm, and the kind of positions are read from ``state``; ``heads`` and ``dilated`` (DC5)
    cannot be read from it. Dropout, loss weights and the frozen parts (batch norm, stem and first stage) follow the
    paper. The detector is in training mode, on the device and in the precision of the weights. Labels are the
    checkpoint's: the published COCO ones are category ids, 91 classes. Images are resized as
    :class:`~detkit.detectors.Preprocess` does, without PIL's filter. Raises ValueError if the keys or shapes are not
    those of a DETR on a ResNet, for example for a model with masks.

    >>> detr_from_facebook({"detr.query_embed.weight": torch.zeros(5, 8)})
    Traceback (most recent call last):
    ValueError: detr_from_facebook: there is no rule for the key 'detr.query_embed.weight'...
    """
    split = _split(state)
    renames = [*detr_renames(split, FACEBOOK, other=FACEBOOK), Rename(_BACKBONE, "trunk.")]
    try:
        ours = state_to_ours(split, renames)
        trunk = {key.removeprefix("trunk."): value for key, value in ours.items() if key.startswith("trunk.")}
        steps = published_steps(trunk, dilated=dilated)
        detector = detector_of(ours, steps, HungarianMatcher(), SetPredictionLoss(), heads=(heads, heads))
        example = ours["objects.queries.weight"]
        detector.to(example.device, example.dtype).load_state_dict(ours)
    except (KeyError, RuntimeError, ValueError) as error:
        missing = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"detr_from_facebook: {missing}") from error
    for key, parameter in detector.trunk.named_parameters():
        parameter.requires_grad_(key.startswith(("layer2", "layer3", "layer4")))
    return detector


@door
def to_facebook_detr(detector: Detector) -> dict[str, Tensor]:
    """The state_dict of ``detector`` under the keys of facebook's DETR: the ``model`` of its checkpoints.

    Works for every detector from :func:`detr_from_facebook` and ``from_transformers``, and for the DETR recipes on a
    ResNet. Values are shared where they need no change. Raises ValueError for another detector.

    >>> from detkit.backbones import SmallBackbone
    >>> from detkit.detectors import detr
    >>> to_facebook_detr(detr(2, backbone=SmallBackbone()))
    Traceback (most recent call last):
    ValueError: to_facebook_detr: the trunk is a SmallBackbone; allowed is a ResNetBackbone
    """
    name, _ = detr_stage_of(detector, "to_facebook_detr")
    state = detector.state_dict()
    renames = [*detr_renames(state, OURS, other=FACEBOOK, stage=name), Rename(_BACKBONE, "trunk.")]
    return _joined(state_to_theirs(state, renames))


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits the joint matrix (3 D, D) of queries, keys and values into three entries."""
    parts: dict[str, Tensor] = {}
    for key, values in state.items():
        place, _, kind = key.rpartition("in_proj_")
        if place:
            parts |= {f"{place}{i}_proj.{kind}": rows for i, rows in zip("qkv", values.chunk(3), strict=True)}
        else:
            parts[key] = values
    return parts


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`_split`."""
    joined: dict[str, Tensor] = {}
    for key, values in state.items():
        place, query, kind = key.rpartition("q_proj.")
        if query:
            joined[f"{place}in_proj_{kind}"] = torch.cat([state[f"{place}{i}_proj.{kind}"] for i in "qkv"])
        elif "k_proj." not in key and "v_proj." not in key:
            joined[key] = values
    return joined
