"""
1. Boxes
========

A box is four numbers, (x1, y1, x2, y2) in pixels; many boxes are a tensor (N, 4). Functions on boxes stand alone.
"""

import matplotlib.pyplot as plt
import torch

from detkit.boxes import paired_box_iou, paired_distance_box_iou, paired_generalized_box_iou, xyxy_to_cxcywh

truth = torch.tensor([[30.0, 30.0, 70.0, 70.0]])
print("center and size:", xyxy_to_cxcywh(truth).tolist())

# %%
# How much two boxes overlap is their intersection over their union. Move a second box of the same size to the right:
# IoU falls to 0 and then says nothing about how far away the box is. GIoU and DIoU go on falling, which makes them
# losses that a prediction can follow home.

shift = torch.linspace(0, 80, 81)
moved = truth + torch.stack((shift, 0 * shift, shift, 0 * shift), dim=1)
truths = truth.expand_as(moved)

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, measure in {
    "IoU": paired_box_iou,
    "GIoU": paired_generalized_box_iou,
    "DIoU": paired_distance_box_iou,
}.items():
    axes.plot(shift, measure(moved, truths), label=name)
axes.set(xlabel="moved by, px (the box is 40 px wide)", ylabel="overlap")
axes.legend()

# %%
# Half a width away, a third of the union is shared:

assert abs(paired_box_iou(moved[20], truth[0]).item() - 1 / 3) < 1e-6
print("IoU after 20 px:", paired_box_iou(moved[20], truth[0]).item())
