"""Find faces with the published weights of two networks that this library does not have.

Run: python examples/face_detectors.py FOLDER runs/faces.jpg    (needs scikit-image: the extra "proposals")

FOLDER holds ulfg_RFB-320.pth and retinaface_mnet025.pth. The folder faces beside this file has their networks, written
down from the names and shapes of the tensors, and puts them together with detkit's parts. Both look at scikit-image's
portrait of an astronaut, or ``--image``, and at four of these at half the size, every other one in a mirror.
"""

import argparse
from pathlib import Path

import torch
from faces.detectors import retinaface, ultra_light
from PIL import Image
from skimage.data import astronaut
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import resize

from detkit.viz import draw_detections

DETECTORS = {"ulfg_RFB-320.pth": ultra_light, "retinaface_mnet025.pth": retinaface}
SIDE = 840  # at most, of the picture


def four_of(image: Tensor) -> Tensor:
    """The image at half its size, and what a mirror beside it and one below show."""
    half = resize(image, [max(1, side // 2) for side in image.shape[1:]])
    row = torch.cat((half, half.flip(2)), dim=2)
    return torch.cat((row, row.flip(2)), dim=1)


@torch.no_grad()
def main() -> None:
    """Print and draw what both find: one row of pictures for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the weights are")
    parser.add_argument("path", nargs="?", default="runs/faces.jpg", type=Path, help="picture to write")
    parser.add_argument("--image", type=Path, help="picture to look at")
    args = parser.parse_args()
    if missing := [name for name in DETECTORS if not (args.folder / name).is_file()]:
        parser.error(f"{args.folder} lacks {', '.join(missing)}; docs/published_weights.md says which files these are")

    image = torch.from_numpy(astronaut()).permute(2, 0, 1)
    if args.image is not None:
        image = decode_image(str(args.image), mode=ImageReadMode.RGB)
    scenes, pictures = [image, four_of(image)], []
    for name, build in DETECTORS.items():
        detector = build(torch.load(args.folder / name, map_location="cpu", weights_only=True))
        results = detector(scenes)
        for scene, found in zip(scenes, results, strict=True):
            pictures.append(draw_detections(scene, found, categories=["face"]))
            scores = ", ".join(f"{score:.3f}" for score in found["scores"])
            print(f"{name}: {len(found['scores'])} faces, scores {scores}")

    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % 2 * width, i // 2 * height))
    sheet.thumbnail((SIDE, SIDE))
    args.path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.path)
    print(f"picture={args.path}")


if __name__ == "__main__":
    main()
