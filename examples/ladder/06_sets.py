"""
6. Sets
=======

DETR has neither anchors nor suppression: a fixed number of queries, each answers with one box or with "nothing". In
training, each object gets the one query that costs least in total, by the Hungarian algorithm.
"""

import matplotlib.pyplot as plt
import torch

from detkit.anchors import HungarianMatcher
from detkit.boxes import cxcywh_to_xyxy
from detkit.structures import Predictions, pad_targets
from detkit.viz import draw_boxes

# %%
# Three objects, five queries: boxes as fractions of the image, and logits for two classes and "nothing".

truth = cxcywh_to_xyxy(torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.3, 0.3, 0.3], [0.5, 0.75, 0.4, 0.2]]))
targets = pad_targets([{"boxes": truth, "labels": torch.tensor([0, 1, 1])}])
queries = cxcywh_to_xyxy(
    torch.tensor(
        [
            *([0.25, 0.2, 0.2, 0.25], [0.22, 0.22, 0.2, 0.2], [0.65, 0.35, 0.3, 0.3]),
            *([0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]),
        ]
    )
)
logits = torch.tensor([[2.0, 0, 0], [1.0, 0, 0], [0, 2.0, 0], [0, 1.0, 0], [0, 0, 2.0]])
matched = HungarianMatcher()(None, targets, Predictions(queries[None], logits=logits[None])).matched[0]
print("query -> object:", matched.tolist(), "(-1: learns to say nothing)")

# %%
# Two queries lie on object 0; only one may have it. Query 3 is nobody's favorite, but object 2 needs one.

canvas = torch.full((3, 240, 240), 235, dtype=torch.uint8)
figure, panels = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
panels[0].imshow(draw_boxes(canvas, truth * 240, labels=torch.arange(3), texts=["0", "1", "2"]))
panels[0].set_title("objects")
names = [f"query {q}" for q in range(5)]
panels[1].imshow(draw_boxes(canvas, queries * 240, labels=matched.where(matched >= 0, 7), texts=names))
panels[1].set_title("queries, in the color of their object")
for panel in panels:
    panel.axis("off")
