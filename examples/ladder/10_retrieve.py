"""
10. Retrieve
============

What was detected can be searched: each object becomes a vector, near ones look alike. A network learns the vectors by a
metric loss, an index finds the nearest.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from detkit.boxes import crop_and_resize
from detkit.data import DigitScenes
from detkit.retrieval import BruteForceIndex, CosineDistance, SupervisedContrastiveLoss, recall_at_k

STEPS = 200


def objects(scenes: DigitScenes) -> tuple[torch.Tensor, torch.Tensor]:
    """Every digit of the scenes, cut out and resized to 20 x 20, and its class."""
    cut = [
        (crop_and_resize(image[None].float() / 255, target["boxes"][None], 20), target["labels"])
        for image, target in (scenes[i] for i in range(len(scenes)))
    ]
    return torch.cat([crops for crops, _ in cut]), torch.cat([labels for _, labels in cut])


seen, unseen = objects(DigitScenes(400)), objects(DigitScenes(150, split="test"))

# %%
# A small network, and a loss that pulls digits of one class together.

torch.manual_seed(0)
network = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(64 * 16, 32)),
)
criterion, optimizer = SupervisedContrastiveLoss(), torch.optim.AdamW(network.parameters(), lr=2e-3)
for _ in range(STEPS):
    rows = torch.randint(len(seen[1]), (128,))
    optimizer.zero_grad()
    criterion(network(seen[0][rows]), seen[1][rows]).backward()
    optimizer.step()

with torch.no_grad():
    embeddings = network(unseen[0])
for name, vectors in {"pixels": unseen[0].flatten(1), "embeddings": embeddings}.items():
    print(f"{name}: the nearest other digit is of the same class in {recall_at_k(vectors, unseen[1]).values[1]:.2f}")

# %%
# Index all of them, and ask for the neighbors of six.

index = BruteForceIndex(32, distance=CosineDistance())
index.add(embeddings, torch.arange(len(embeddings)))
neighbors = index.search(embeddings[:6], 7)

figure, panels = plt.subplots(6, 7, figsize=(7, 6), layout="constrained")
for row, ids in zip(panels, neighbors.ids, strict=True):
    for panel, number in zip(row, ids, strict=True):
        panel.imshow(unseen[0][number].permute(1, 2, 0))
        panel.axis("off")
panels[0, 0].set_title("query")
