"""Batches for augmentations: images and targets with every kind of entry, each of which tells its object."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from strategies import boxes

Batch = tuple[list[torch.Tensor], list[dict[str, Any]]]


@st.composite
def batches(draw: st.DrawFn, *, fewest: int = 1, masks: bool | None = None, segmentation: bool = True) -> Batch:
    """One to five small images with up to seven hostile objects each, numbered over all images by their labels."""
    generator, first = torch.Generator().manual_seed(draw(st.integers(0, 999))), 0
    dtype = draw(st.sampled_from([torch.uint8, torch.float32]))
    with_masks, with_more = draw(st.booleans()) if masks is None else masks, draw(st.booleans())
    images, targets = [], []
    for _ in range(draw(st.integers(fewest, 5))):
        height, width = draw(st.integers(1, 30)), draw(st.integers(1, 30))
        rows = draw(boxes(inverted=False, huge=1e6)) * draw(st.sampled_from([0.2, 1.0]))
        pixels = torch.randint(0, 256, (3, height, width), generator=generator)
        images.append(pixels.byte() if dtype == torch.uint8 else pixels / 255)
        targets.append(target_of(rows, (height, width), first, generator, masks=with_masks, more=with_more))
        if with_more and segmentation:
            targets[-1]["segmentation"] = torch.randint(0, 9, (height, width), generator=generator).byte()
        first += len(rows)
    return images, targets


def target_of(rows, size, first, generator, *, masks, more) -> dict[str, Any]:
    """Objects numbered from ``first``, in all that belongs to them."""
    numbers, (height, width) = torch.arange(first, first + len(rows)), size
    target = {"boxes": rows, "labels": numbers, "image_id": first, "file_name": f"{first}.png"}
    if masks:
        target["masks"] = (torch.rand(len(rows), height, width, generator=generator) < 0.4).byte()
    if more:
        points = torch.rand(len(rows), 2, 3, generator=generator) * torch.tensor([width * 1.2, height * 1.2, 3])
        target["keypoints"] = torch.cat((points[..., :2], points[..., 2:].floor()), dim=-1)
        target |= {"iscrowd": (numbers % 3 == 0).long(), "weights": 0.5 + numbers / 10, "area": numbers + 1.0}
        target |= {"identities": numbers + 3, "track": numbers + 5, "names": np.array([f"o{i}" for i in numbers])}
    return target


def copied(value: Any) -> Any:
    """A deep copy, to compare with afterwards."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [copied(part) for part in value]
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def assert_in_step(targets: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """All that is said of an object in ``result`` is said of the one that its label numbers."""
    numbers = result["labels"]
    assert len(result["boxes"]) == len(numbers)
    for key in ("identities", "track", "names", "iscrowd", "masks", "keypoints", "weights", "area"):
        if any(key in target for target in targets):
            assert len(result[key]) == len(numbers), key
    if "identities" in result:
        assert result["identities"].tolist() == (numbers + 3).tolist()
        assert result["track"].tolist() == (numbers + 5).tolist()
        assert result["names"].tolist() == [f"o{i}" for i in numbers.tolist()]
        assert result["iscrowd"].tolist() == (numbers % 3 == 0).long().tolist()
