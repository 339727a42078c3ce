"""Metric learning and retrieval: distances, losses that shape embeddings, indexes that search them, and metrics.

Embeddings are (N, D) float tensors; labels (N,) whole numbers or (N, C) label sets. Of any distance the smaller is the
nearer. Nothing here knows of detectors: what a detector found goes in as plain tensors.
"""

from detkit.retrieval.ball_tree import BallTreeIndex
from detkit.retrieval.brute_force import BruteForceIndex
from detkit.retrieval.distances import CosineDistance, Distance, EuclideanDistance, inner_products, squared_distances
from detkit.retrieval.faiss_index import FaissIndex
from detkit.retrieval.index import Index, Neighbors, TableIndex
from detkit.retrieval.labels import same_labels, takes_part
from detkit.retrieval.lance_index import LanceIndex
from detkit.retrieval.losses import (
    ContrastiveLoss,
    MultiSimilarityLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
    chopra_cost,
    contrastive_cost,
    contrastive_loss,
    multi_similarity_loss,
    supervised_contrastive_loss,
    triplet_cost,
    triplet_loss,
)
from detkit.retrieval.memory import CrossBatchMemory, GatheredLoss
from detkit.retrieval.pairs import MetricLoss, hardest_pairs, informative_pairs, semi_hard_pairs
from detkit.retrieval.proxies import ArcFaceLoss, ProxyAnchorLoss, arcface, proxy_anchor_loss
from detkit.retrieval.sharded import ShardedIndex

__all__ = [
    "ArcFaceLoss",
    "BallTreeIndex",
    "BruteForceIndex",
    "ContrastiveLoss",
    "CosineDistance",
    "CrossBatchMemory",
    "Distance",
    "EuclideanDistance",
    "FaissIndex",
    "GatheredLoss",
    "Index",
    "LanceIndex",
    "MetricLoss",
    "MultiSimilarityLoss",
    "Neighbors",
    "ProxyAnchorLoss",
    "ShardedIndex",
    "SupervisedContrastiveLoss",
    "TableIndex",
    "TripletLoss",
    "arcface",
    "chopra_cost",
    "contrastive_cost",
    "contrastive_loss",
    "hardest_pairs",
    "informative_pairs",
    "inner_products",
    "multi_similarity_loss",
    "proxy_anchor_loss",
    "same_labels",
    "semi_hard_pairs",
    "squared_distances",
    "supervised_contrastive_loss",
    "takes_part",
    "triplet_cost",
    "triplet_loss",
]
