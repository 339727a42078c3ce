"""Draw what augmentations of whole batches make of four pictures, with the boxes and masks that move along.

Run: python examples/draw_augmentation.py COCO runs/augmentation.jpg (COCO holds images/ and
annotations/instances_train.json with masks; --ids names four other pictures)

Above: the batch as it is, a vase, giraffes, a dog among teddy bears and a bus. Below, of the same batch: a mosaic, two
pictures mixed up, the objects of one pasted onto another, and other colors.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from detkit.data import CocoDataset, collate
from detkit.structures import Target
from detkit.tricks import ColorDistortion, CopyPaste, DetectionMixup, Mosaic
from detkit.viz import draw_detections

IDS = (30, 72, 309, 471)
SIDE, TITLE = 360, 24
AUGMENTATIONS = {  # and which of the four results is drawn
    "Mosaic": (Mosaic((640, 640), scale_range=(0.6, 1.2)), 0),
    "DetectionMixup": (DetectionMixup(even=True), 2),
    "CopyPaste": (CopyPaste(object_probability=1.0, scale_range=(0.6, 0.9)), 3),
    "ColorDistortion": (ColorDistortion(hue=(0.15, 0.15), saturation=(1.5, 1.5), part_probability=1.0), 0),
}


def panel(image: torch.Tensor, target: Target, title: str, categories: list[str]) -> Image.Image:
    """The picture with its objects, as large as fits a square, below its title."""
    picture = draw_detections(image, target, categories=categories, mask_alpha=0.3, enlarge=1)
    picture.thumbnail((SIDE, SIDE))
    framed = Image.new("RGB", (SIDE + 8, SIDE + TITLE + 8), "white")
    framed.paste(picture, (4, TITLE))
    ImageDraw.Draw(framed).text((4, 2), title, "black", font_size=16)
    return framed


def main() -> None:
    """Augment the four pictures in each way, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("path", nargs="?", default="runs/augmentation.jpg", type=Path, help="picture to write")
    parser.add_argument("--ids", type=int, nargs=4, default=IDS, help="of four pictures of the json")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.coco
    dataset = CocoDataset(folder / "images", folder / "annotations" / "instances_train.json", masks=True)
    batch = collate([dataset[dataset.image_ids.index(image_id)] for image_id in options.ids])
    categories = list(dataset.categories)
    panels = [panel(*sample, "as it is", categories) for sample in zip(*batch, strict=True)]
    for name, (augment, shown) in AUGMENTATIONS.items():
        images, targets = augment(*batch, generator=torch.Generator().manual_seed(options.seed))
        panels.append(panel(images[shown], targets[shown], name, categories))
        print(f"{name}: {len(batch[1][shown]['labels'])} objects, then {len(targets[shown]['labels'])}")
    width, height = panels[0].size
    sheet = Image.new("RGB", (4 * width, 2 * height), "white")
    for i, one in enumerate(panels):
        sheet.paste(one, (i % 4 * width, i // 4 * height))
    options.path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.path, quality=85)


if __name__ == "__main__":
    main()
