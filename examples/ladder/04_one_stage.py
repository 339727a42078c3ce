"""
4. An SSD, trained
==================

Trunk, head, anchors, matcher, coder, criterion and postprocess are parts; ``Detector`` lets images through them. The
detector of ``detkit.demo`` is composed so, in fifteen lines. Here it learns for some seconds.
"""

# sphinx_gallery_thumbnail_number = -1
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from detkit.data import DigitScenes, collate
from detkit.demo import digit_detector
from detkit.tricks import warmup_cosine
from detkit.viz import side_by_side

STEPS = 250

torch.manual_seed(0)
detector = digit_detector().to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3, weight_decay=0.05)
schedule = warmup_cosine(optimizer, warmup_steps=max(1, STEPS // 20), total_steps=STEPS + 1)

# %%
# With targets a detector returns its losses, weighted; their sum is the objective.

history = []
for images, targets in DataLoader(DigitScenes(8 * STEPS), 8, collate_fn=collate):
    losses = detector(images, targets)
    optimizer.zero_grad()
    torch.stack([*losses.values()]).sum().backward()
    optimizer.step()
    schedule.step()
    history.append({name: loss.item() for name, loss in losses.items()})

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for name in history[0]:
    axes.plot([step[name] for step in history], label=name)
axes.set(xlabel="step", yscale="log")
axes.legend()

# %%
# Without targets it returns detections: boxes, scores and labels, the best first. Left the truth, right what was found.

images, targets = collate([DigitScenes(4, split="test")[i] for i in range(4)])
with torch.no_grad():
    found = detector.eval()(images)
picture = side_by_side(images, targets, found, score_threshold=0.4, columns=2)
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
axes.imshow(picture)
axes.axis("off")
