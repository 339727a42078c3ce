"""Draw what the losses of detkit.retrieval cost: of pairs by their distance, of triplets, and of an angle.

Run: python examples/draw_embedding_losses.py runs/embedding_losses.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor

from detkit.retrieval import (
    arcface,
    chopra_cost,
    contrastive_cost,
    multi_similarity_loss,
    supervised_contrastive_loss,
    triplet_cost,
)
from detkit.viz import save_picture

LABELS = torch.tensor([0, 0, 1])


def turned(degrees: Tensor) -> Tensor:
    """Unit vectors (N, 2) at these angles."""
    radians = degrees.deg2rad()
    return torch.stack((radians.cos(), radians.sin()), dim=1)


def main() -> None:
    """Four panels: pairs, triplets, an embedding that turns from its partner to a stranger, and one from its proxy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/embedding_losses.png", help="PNG to write")
    path = parser.parse_args().path
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    pairs, triplets, turning, proxies = figure.subplots(1, 4)
    distances = torch.linspace(0, 2, 101)
    for name, cost in (("contrastive", contrastive_cost), ("2005", chopra_cost)):
        for same, style in ((True, "-"), (False, "--")):
            costs = cost(distances, torch.full_like(distances, same, dtype=torch.bool))
            pairs.plot(distances, costs, style, label=f"{name}, {'same' if same else 'different'}")
    pairs.set(xlabel="distance", ylabel="cost", title="pairs", ylim=(0, 4))
    costs = triplet_cost(distances[:, None], distances)
    shown = triplets.contourf(distances, distances, costs, levels=12)
    triplets.set(xlabel="to the negative", ylabel="to the positive", title="triplets, margin 1")
    figure.colorbar(shown)
    angles = torch.linspace(0, 90, 91)
    ends = turned(torch.tensor([0.0, 90]))
    for loss in (supervised_contrastive_loss, multi_similarity_loss):
        costs = [loss(own[None], LABELS[:1], ends, LABELS[[0, 2]]) for own in turned(angles)]
        turning.plot(angles, torch.stack(costs), label=loss.__name__)
    turning.set(xlabel="degrees from the positive; the negative is at 90", title="between a positive and a negative")
    for margin in (0.0, 0.25, 0.5):
        costs = [arcface(own[None], LABELS[:1], ends, margin=margin, scale=8.0) for own in turned(angles)]
        proxies.plot(angles, torch.stack(costs), label=f"margin {margin}")
    proxies.set(xlabel="degrees from its proxy; another is at 90", title="ArcFace, scale 8")
    for axes in (pairs, turning, proxies):
        axes.legend(fontsize=8)
    save_picture(path, figure)
    print(f"a triplet at 1.0 and 0.5: {triplet_cost(torch.tensor(1.0), torch.tensor(0.5)):.1f}")


if __name__ == "__main__":
    main()
