"""
3. Matching
===========

Which anchor learns which object? A matcher decides; all of them are called alike, so one can be swapped for another.
"""

import matplotlib.pyplot as plt
import torch

from detkit.anchors import ATSSMatcher, BipartiteMatcher, DefaultBoxes, ThresholdMatcher
from detkit.data import DigitScenes
from detkit.structures import batch_images, pad_targets
from detkit.viz import draw_boxes

image, target = DigitScenes(5)[4]
images, targets = batch_images([image.float() / 255]), pad_targets([target])
layout = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=(8, 16))
anchors = layout([torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 6, 6)], images)

# %%
# ``matched`` holds for each anchor the number of its object, -1 for background, -2 for anchors that are left out.

matchers = {
    "threshold": ThresholdMatcher(positive_iou=0.5, negative_iou=0.4),
    "bipartite": BipartiteMatcher(positive_iou=0.5),
    "ATSS": ATSSMatcher(candidates=9),
}
figure, panels = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for panel, (name, matcher) in zip(panels, matchers.items(), strict=True):
    matched = matcher(anchors, targets).matched[0]
    learning = matched >= 0
    panel.imshow(draw_boxes(image, anchors.boxes[learning], labels=target["labels"][matched[learning]], enlarge=3))
    panel.set_title(f"{name}: {int(learning.sum())} of {len(matched)} learn")
    panel.axis("off")
    print(name, "anchors per object:", matched[learning].bincount(minlength=len(target["labels"])).tolist())
