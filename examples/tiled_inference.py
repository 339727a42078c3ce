"""Find small faces in a large picture: at once, in tiles, and in tiles with the whole picture beside them.

Run: python examples/tiled_inference.py FOLDER runs/tiles.jpg    (needs scikit-image: the extra "proposals")

FOLDER holds ulfg_RFB-320.pth, the weights of a published detector that shrinks every picture to 320 x 240
(docs/published_weights.md). The picture is made of scikit-image's portrait of an astronaut, large once and small 66
times: shrunk as a whole, it has one face that is large enough. White lines are the tiles, which overlap.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from faces.detectors import ultra_light
from PIL import Image, ImageDraw
from skimage.data import astronaut
from torch import Tensor
from torchvision.transforms.functional import resize

from detkit.structures import Detection
from detkit.tricks import NMSFusion, TiledInference, image_tiles
from detkit.viz import draw_boxes

SMALL, LARGE = 128, 1024  # pixels of a portrait
TILE, OVERLAP = (240, 320), 64
SHOWN = (533, 410)  # pixels of the picture on the sheet


def crowd(portrait: Tensor) -> Tensor:
    """A picture (3, 1280, 1664) of one large portrait and 66 small ones."""
    picture = resize(portrait, [SMALL, SMALL]).repeat(1, 10, 13)
    picture[:, SMALL : SMALL + LARGE, SMALL : SMALL + LARGE] = resize(portrait, [LARGE, LARGE])
    return picture


def panel(picture: Tensor, found: Detection, *, tiles: bool) -> Image.Image:
    """The picture with what was found in it, smaller."""
    drawn = draw_boxes(picture, found["boxes"])
    for tile in image_tiles((picture.shape[1], picture.shape[2]), TILE, overlap=OVERLAP) if tiles else ():
        corners = (tile.left, tile.top, tile.right - 1, tile.bottom - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline="white", width=3)
    return drawn.resize(SHOWN)


def main() -> None:
    """Look at the picture in three ways, and draw what each found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the weights are")
    parser.add_argument("path", nargs="?", default="runs/tiles.jpg", type=Path, help="picture to write")
    args = parser.parse_args()

    weights = torch.load(args.folder / "ulfg_RFB-320.pth", map_location="cpu", weights_only=True)
    detector = ultra_light(weights).eval()
    options: dict[str, Any] = {"tile": TILE, "overlap": OVERLAP, "merge": NMSFusion(0.3), "batch_size": 8}
    looks = {
        "at once": detector,
        "in tiles": TiledInference(detector, **options),
        "in tiles and at once": TiledInference(detector, whole_image=True, **options),
    }
    picture = crowd(torch.from_numpy(astronaut()).permute(2, 0, 1))
    panels = []
    for name, look in looks.items():
        with torch.no_grad():
            (found,) = look([picture])
        print(f"{name}: {len(found['boxes'])} faces")
        panels.append(panel(picture, found, tiles=look is not detector))
    sheet = Image.new("RGB", (3 * SHOWN[0] + 12, SHOWN[1]), "white")
    for i, drawn in enumerate(panels):
        sheet.paste(drawn, (i * (SHOWN[0] + 6), 0))
    args.path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.path)
    print(f"picture={args.path}")


if __name__ == "__main__":
    main()
