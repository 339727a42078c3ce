"""Draw where DETR's queries and Pix2Seq's tokens look: attention.png --detr WEIGHTS --pix2seq WEIGHTS.

train.py makes such weights, with ``--size 96 96`` and ``--recipe small_detr`` or ``small_pix2seq``. Needs matplotlib.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from detkit.boxes import cxcywh_to_xyxy
from detkit.data import DigitScenes
from detkit.detectors import Detector, small_detr, small_pix2seq
from detkit.viz import attention_maps, save_picture
from detkit.weights import load_weights

SIDE, SCENE, WORDS = 96, 3, ("top", "left", "bottom", "right", "class")


def draw_queries(axes: Any, detector: Detector, image: Tensor) -> None:
    """The best queries of DETR: their box, and the points at which the last layer looks for it."""
    seen: list[tuple[Tensor, Tensor]] = []
    stage: Any = detector.stages["objects"]
    last = stage.decoder.layers[-1].memory_attention
    hook = last.register_forward_pre_hook(lambda part, given: seen.append(part.look(given[0], given[1], given[3])))
    batch, _ = detector.preprocess([image])
    logits, boxes, *_ = stage(detector.trunk(batch.tensors), batch, None).found
    hook.remove()
    scores, labels = stage.criterion.scores(logits[-1, 0]).max(-1)
    corners = cxcywh_to_xyxy(boxes[-1, 0]) * SIDE
    locations, weights = (rows[0].flatten(1, 2) for rows in seen[0])
    for panel, query in zip(axes, scores.argsort(descending=True), strict=False):
        panel.imshow(image.permute(1, 2, 0))
        x1, y1, x2, y2 = corners[query].tolist()
        panel.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="tab:orange")
        panel.scatter(*(locations[query] * SIDE).T, s=400 * weights[query], color="red", edgecolors="white", alpha=0.7)
        panel.set(title=f"query {query}: {labels[query]} ({scores[query]:.2f})", xlim=(0, SIDE), ylim=(SIDE, 0))


def draw_words(axes: Any, detector: Detector, image: Tensor) -> None:
    """The first object that Pix2Seq says: at each of its five tokens, which cells the last layer looks at."""
    with attention_maps(detector) as maps:
        detector([image])
    steps = maps["sequence.decoder.decoder.layers.1.memory_attention"][: len(WORDS)]
    for panel, word, weights in zip(axes, WORDS, steps, strict=True):
        cells = weights[0].mean(0).reshape(1, 1, SIDE // 16, SIDE // 16)
        shown = torch.nn.functional.interpolate(cells, (SIDE, SIDE), mode="bilinear")[0, 0]
        panel.imshow(image.float().mean(0), cmap="gray")
        panel.imshow(shown, alpha=0.55, cmap="inferno")
        panel.set_title(f"before saying: {word}")


@torch.no_grad()
def main() -> None:
    """Let both look at one scene, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/attention.png", type=Path, help="PNG to write")
    for name in ("detr", "pix2seq"):
        parser.add_argument(f"--{name}", type=Path, help="its weights")
    args, _ = parser.parse_args(), torch.manual_seed(0)
    image, _ = DigitScenes(SCENE + 1, split="test")[SCENE]
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    axes: Any = figure.subplots(2, len(WORDS))
    for row, draw, detector, weights in (
        (axes[0], draw_queries, small_detr(10, size=(SIDE, SIDE)), args.detr),
        (axes[1], draw_words, small_pix2seq(10), args.pix2seq),
    ):
        if weights is not None:
            load_weights(detector, weights)
        draw(row, detector.eval(), image)
    for panel in axes.flat:
        panel.set_axis_off()
    save_picture(args.path, figure)


if __name__ == "__main__":
    main()
