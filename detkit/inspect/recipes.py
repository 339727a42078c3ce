"""``python -m detkit.inspect.recipes``: what each recipe costs, as a table in Markdown.

    python -m detkit.inspect.recipes --size 320 320
    python -m detkit.inspect.recipes --recipes fpn_ssd small_fcos

Times are of the processor, of one thread, the least of ``--repeat`` runs: of an image in training one half of a step on
two images with five objects each, forwards and backwards, in inference that of an image alone. Images have 480 x 640
pixels; ``--size`` is what recipes resize them to that take a size, others have their own. The smallest object is the
square, in pixels of the input, that has an anchor in nine of ten places.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from detkit.detectors import Detector
from detkit.inspect.anchors import AnchorFit
from detkit.inspect.program import build, takes_size
from detkit.train.options import TRAINABLE, trainable

_SIZE, _OBJECTS, _CLASSES, _KEYPOINTS = (480, 640), 5, 20, 17


def target(size: Sequence[int], generator: torch.Generator) -> dict[str, Any]:
    """Five objects in an image of ``size`` (height, width), with everything that any recipe learns from."""
    height, width = size
    low = torch.rand(_OBJECTS, 2, generator=generator) * torch.tensor([0.7 * width, 0.7 * height])
    boxes = torch.cat((low, low + torch.tensor([0.25 * width, 0.25 * height])), 1)
    masks = torch.zeros(_OBJECTS, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    points = boxes[:, None, :2].expand(-1, _KEYPOINTS, -1) + 5
    keypoints = torch.cat((points, torch.full((_OBJECTS, _KEYPOINTS, 1), 2.0)), 2)
    return {"boxes": boxes, "labels": torch.arange(_OBJECTS), "masks": masks, "keypoints": keypoints}


def least(function: Callable[[], Any], repeat: int) -> float:
    """The processor's seconds of the fastest of some runs, after one that does not count.

    >>> least(lambda: None, 2) < 0.1
    True
    """
    times = []
    for _ in range(repeat + 1):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times[1:])


def measure(recipe: str, size: tuple[int, int], *, repeat: int = 3) -> list[str]:
    """The cells of one recipe's row."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    detector = build(recipe, _CLASSES, **({"size": size} if takes_size(recipe) else {})).to(
        memory_format=torch.channels_last
    )
    images = [torch.rand(3, *_SIZE, generator=generator) for _ in range(2)]
    targets = [target(_SIZE, generator) for _ in images]
    parameters = sum(value.numel() for value in detector.parameters())
    trained = least(lambda: sum(detector(images, targets).values()).backward(), repeat) / 2  # pyright: ignore
    detector.eval()
    with torch.no_grad():
        detected = least(lambda: detector(images[:1]), repeat)
    return [
        f"`{recipe}`",
        _input(detector),
        f"{parameters / 1e6:.1f} M",
        f"{trained:.2f}",
        f"{detected:.2f}",
        smallest(detector),
    ]


def smallest(detector: Detector) -> str:
    """The side of the smallest object that finds an anchor; nothing for detectors without any."""
    try:
        side = AnchorFit(detector).smallest(_SIZE)
    except ValueError:
        return ""
    return "none" if side is None else f"{side}"


def main(argv: list[str] | None = None) -> None:
    """Print the table, row by row."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m detkit.inspect.recipes", description=__doc__, formatter_class=raw)
    parser.add_argument("--recipes", nargs="+", type=trainable, default=TRAINABLE, metavar="RECIPE")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("H", "W"))
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        print(
            "| recipe | input | parameters | training, s an image | inference, s an image | smallest object, pixels |"
        )
        print("|---|---|---|---|---|---|")
        for name in args.recipes:
            print("| " + " | ".join(measure(name, tuple(args.size), repeat=args.repeat)) + " |", flush=True)
    finally:
        torch.set_num_threads(threads)


def _input(detector: Detector) -> str:
    size, longest = detector.preprocess.size, detector.preprocess.max_size
    if isinstance(size, int):
        return f"short side {size}" + (f", long {longest}" if longest else "")
    return "as it is" if size is None else f"{size[0]} x {size[1]}"


if __name__ == "__main__":
    main()
