"""
7. Sequences
============

Pix2Seq writes detections down: each object is five words, four coordinates and a class, and a language model continues
the text. ``TokenCoder`` translates between boxes and words.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from detkit.boxes import TokenCoder
from detkit.data import DigitScenes, collate
from detkit.detectors import small_pix2seq
from detkit.tricks import warmup_cosine

STEPS = 60

coder = TokenCoder(num_classes=10, bins=48)
boxes, labels = torch.tensor([[12.0, 30.0, 60.0, 90.0]]), torch.tensor([7])
size = torch.tensor([96, 96])  # height, width
words = coder.encode(boxes, labels, size)
print("words:", words.tolist())
print("read back:", [part.tolist() for part in coder.decode(words, size)])

# %%
# A coordinate is rounded to one of 48 bins of 2 px. Training is the next-word loss of a language model; sixty steps
# only show that it falls.

torch.manual_seed(0)
detector = small_pix2seq(10)
optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
schedule = warmup_cosine(optimizer, warmup_steps=5, total_steps=STEPS + 6)
history = []
for images, targets in DataLoader(DigitScenes(8 * STEPS), 8, collate_fn=collate):
    losses = detector(images, targets)
    optimizer.zero_grad()
    torch.stack([*losses.values()]).sum().backward()
    optimizer.step()
    schedule.step()
    history.append(sum(loss.item() for loss in losses.values()))

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(history)
axes.set(xlabel="step", ylabel="cross-entropy of the next word")
