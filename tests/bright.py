"""A detector that is a pure function of the pixels at an object: it finds connected bright areas, exactly."""

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor, nn

from detkit.structures import Detection


class BrightAreas(nn.Module):
    """Boxes around connected pixels above 0.5 of an image (1, H, W), with all that an object may have.

    The score is the mean brightness, and so are the scores of the two classes, which differ by the shape; keypoints are
    the middles of the left and the right side of the box, whose scores are the most that shines there; best first.
    """

    def __init__(self, *, rich: bool = True) -> None:
        super().__init__()
        self.rich, self.seen = rich, []

    def forward(self, images: Sequence[Tensor]) -> list[Detection]:
        self.seen += [[tuple(image.shape) for image in images]]
        return [self.areas(image[0]) for image in images]

    def areas(self, image: Tensor) -> Detection:
        marked, count = ndimage.label((image > 0.5).numpy(), structure=torch.ones(3, 3).numpy())
        masks = torch.from_numpy(marked) == torch.arange(1, count + 1)[:, None, None]
        places = [(part[1].start, part[0].start, part[1].stop, part[0].stop) for part in ndimage.find_objects(marked)]
        boxes = torch.tensor(places, dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([float(image[mask].double().mean()) for mask in masks])
        x1, y1, x2, y2 = boxes.unbind(1)
        labels = (x2 - x1 > y2 - y1).long()
        order = scores.sort(descending=True, stable=True).indices
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        if self.rich:
            middle, one = (y1 + y2) / 2, torch.ones_like(x1)
            keypoints = torch.stack((torch.stack((x1, middle, one), 1), torch.stack((x2, middle, one), 1)), 1)
            columns = [[image[y:b, x].max(), image[y:b, r - 1].max()] for x, y, r, b in places]
            shone = torch.tensor(columns, dtype=torch.float32).reshape(-1, 2)
            found |= {"masks": masks, "keypoints": keypoints, "keypoints_scores": shone}
            found |= {"embeddings": torch.stack((scores, y2 - y1), 1), "class_scores": scores[:, None].expand(-1, 2)}
        return {key: rows[order] for key, rows in found.items()}  # pyright: ignore[reportReturnType]


def scattered(height: int, width: int, *, largest: int, count: int, seed: int) -> Tensor:
    """An image (1, H, W) of up to ``count`` bright rectangles with sides up to ``largest`` that do not touch."""
    generator = torch.Generator().manual_seed(seed)
    image, taken = torch.zeros(1, height, width), torch.zeros(height, width, dtype=torch.bool)

    def drawn(most: int) -> int:
        return int(torch.randint(0, most, (1,), generator=generator))

    for _ in range(count):
        h, w = 1 + drawn(min(largest, height)), 1 + drawn(min(largest, width))
        top, left = drawn(height - h + 1), drawn(width - w + 1)
        around = taken[max(0, top - 1) : top + h + 1, max(0, left - 1) : left + w + 1]
        if not around.any():
            taken[top : top + h, left : left + w] = True
            image[0, top : top + h, left : left + w] = 0.6 + 0.4 * torch.rand(h, w, generator=generator)
    return image


def assert_same_objects(found: Detection, expected: Detection, *, tolerance: float = 0.0) -> None:
    """The same objects, in any order: a box stands for one."""
    assert found.keys() == expected.keys()
    assert len(found["boxes"]) == len(expected["boxes"])
    orders = [sorted(range(len(rows["boxes"])), key=lambda i: rows["boxes"][i].tolist()) for rows in (found, expected)]
    for key in expected:
        one, other = (rows[key][order] for rows, order in zip((found, expected), orders, strict=True))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, msg=lambda said, key=key: f"{key}: {said}")
