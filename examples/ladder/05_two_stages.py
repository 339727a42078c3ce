"""
5. Two stages
=============

A stage refines what the one before it found. In Faster R-CNN the first proposes boxes of any object, the second looks
at each proposal again, names it and corrects it.
"""

# sphinx_gallery_thumbnail_number = -1
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from detkit.data import DigitScenes, collate
from detkit.detectors import small_faster_rcnn
from detkit.tricks import warmup_cosine
from detkit.viz import draw_boxes, draw_detections

STEPS = 300

torch.manual_seed(0)
detector = small_faster_rcnn(10, size=(96, 96)).to(memory_format=torch.channels_last)
print("stages:", list(detector.stages))
optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=0.05)
schedule = warmup_cosine(optimizer, warmup_steps=10, total_steps=STEPS + 11)
losses = {}
for images, targets in DataLoader(DigitScenes(8 * STEPS), 8, collate_fn=collate):
    losses = detector(images, targets)
    optimizer.zero_grad()
    torch.stack([*losses.values()]).sum().backward()
    optimizer.step()
    schedule.step()
print({name: round(loss.item(), 3) for name, loss in losses.items()})

# %%
# The stages are modules of their own: the first alone gives its proposals. Below, the best ten of them, and what the
# second stage made of all.

image, _ = DigitScenes(3, split="test")[2]
with torch.no_grad():
    detector.eval()
    batch, _ = detector.preprocess([image])
    features = detector.trunk(batch.tensors)
    rpn = detector.stages["rpn"]
    proposals = rpn.detections(rpn(features, batch, None), batch)
    (found,) = detector([image])

figure, panels = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
panels[0].imshow(draw_boxes(image, proposals.boxes[0, :10], enlarge=4))
panels[0].set_title("ten proposals")
panels[1].imshow(draw_detections(image, found, score_threshold=0.3, enlarge=4))
panels[1].set_title("detections")
for panel in panels:
    panel.axis("off")
