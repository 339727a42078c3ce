"""Data sets, augmentation and samplers for a training loop.

Readers (:class:`CocoDataset`, :class:`VocDataset`, :class:`YoloDataset`, :class:`CsvDataset`, :class:`PetDataset`)
check annotations when they are built and open nothing outside their folder; :class:`DigitScenes` draws scenes of real
handwritten digits without any download; :func:`write_shards` packs any of them into WebDataset shards, which
:class:`ShardDataset` reads. All return (image, target) pairs of tv_tensors, so torchvision.transforms.v2
applies. :class:`Augmented` makes those transforms a pure function of (seed, epoch, index), and the samplers resume
exactly at the next sample. :func:`save_coco` writes any of them as a COCO file. For pictures without annotations there
are :func:`read_image` and :func:`image_paths`.
"""

from detkit.data.coco import CocoDataset
from detkit.data.coco_writer import save_coco
from detkit.data.files import MAX_IMAGE_PIXELS
from detkit.data.images import image_paths, read_image
from detkit.data.pets import PetDataset
from detkit.data.samplers import BalancedBatchSampler, ResumableSampler
from detkit.data.scenes import DigitScenes
from detkit.data.shard_writer import write_shards
from detkit.data.shards import ShardDataset
from detkit.data.statistics import ObjectStatistics, object_statistics
from detkit.data.table import CsvDataset
from detkit.data.transforms import (
    Augmented,
    flip_augmentation,
    large_scale_jitter,
    localization_augmentation,
    sanitize,
    short_side_augmentation,
    ssd_augmentation,
)
from detkit.data.truth import coco_ground_truth
from detkit.data.voc import VocDataset, VocFolders
from detkit.data.yolo import YoloDataset
from detkit.structures import collate

__all__ = [
    "MAX_IMAGE_PIXELS",
    "Augmented",
    "BalancedBatchSampler",
    "CocoDataset",
    "CsvDataset",
    "DigitScenes",
    "ObjectStatistics",
    "PetDataset",
    "ResumableSampler",
    "ShardDataset",
    "VocDataset",
    "VocFolders",
    "YoloDataset",
    "coco_ground_truth",
    "collate",
    "flip_augmentation",
    "image_paths",
    "large_scale_jitter",
    "localization_augmentation",
    "object_statistics",
    "read_image",
    "sanitize",
    "save_coco",
    "short_side_augmentation",
    "ssd_augmentation",
    "write_shards",
]
