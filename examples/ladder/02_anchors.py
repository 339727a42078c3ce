"""
2. Anchors
==========

Most detectors do not predict boxes out of nothing: they correct boxes laid over the image beforehand. Every cell of a
feature map gets the same few, its anchors.
"""

import matplotlib.pyplot as plt
import torch

from detkit.anchors import DefaultBoxes, cluster_anchors
from detkit.data import DigitScenes
from detkit.structures import batch_images
from detkit.viz import draw_boxes

image, target = DigitScenes(5)[4]
layout = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=(8, 16))

# %%
# The generator looks at the feature maps' sizes, 12 x 12 and 6 x 6 here, and at the images', and lays all boxes at
# once. Anchors run level by level, row by row.

maps = [torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 6, 6)]
anchors = layout(maps, batch_images([image.float() / 255]))
print(f"{len(anchors.boxes)} boxes, {layout.per_cell} a cell, {anchors.counts} a level")

middle = 4 * (6 * 12 + 6)
coarse = anchors.counts[0] + 4 * (3 * 6 + 3)
shown = torch.cat((anchors.boxes[middle : middle + 4], anchors.boxes[coarse : coarse + 4]))
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.imshow(draw_boxes(image, shown, labels=torch.tensor([0] * 4 + [1] * 4), enlarge=4))
axes.set_title("the boxes of one cell of each level")
axes.axis("off")

# %%
# Which sizes? Those of your objects: cluster them.

sizes = torch.cat([boxes[:, 2:] - boxes[:, :2] for boxes in (target["boxes"] for _, target in DigitScenes(200))])
print(cluster_anchors(sizes, 3, generator=torch.Generator().manual_seed(0)).round().tolist())
