"""Metric learning and retrieval: distances, losses that shape embeddings, indexes that search them, and metrics.

Embeddings are (N, D) float tensors; labels (N,) whole numbers or (N, C) label sets. Of any distance the smaller is the
nearer. Nothing here knows of detectors: what a detector found goes in as plain tensors.
"""

from detkit.retrieval.ball_tree import BallTreeIndex
from detkit.retrieval.brute_force import BruteForceIndex
from detkit.retrieval.class_distances import ClassDistances, class_distances
from detkit.retrieval.clusters import ClusterAgreement, cluster_agreement
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
from detkit.retrieval.precision import (
    Gallery,
    NeighborPrecision,
    RetrievalScores,
    map_at_r,
    neighbor_average_precision,
    precision_at_k,
    r_precision,
    recall_at_k,
)
from detkit.retrieval.proxies import ArcFaceLoss, ProxyAnchorLoss, arcface, proxy_anchor_loss
from detkit.retrieval.sharded import ShardedIndex

__all__ = [
    "ArcFaceLoss",
    "BallTreeIndex",
    "BruteForceIndex",
    "ClassDistances",
    "ClusterAgreement",
    "ContrastiveLoss",
    "CosineDistance",
    "CrossBatchMemory",
    "Distance",
    "EuclideanDistance",
    "FaissIndex",
    "Gallery",
    "GatheredLoss",
    "Index",
    "LanceIndex",
    "MetricLoss",
    "MultiSimilarityLoss",
    "NeighborPrecision",
    "Neighbors",
    "ProxyAnchorLoss",
    "RetrievalScores",
    "ShardedIndex",
    "SupervisedContrastiveLoss",
    "TableIndex",
    "TripletLoss",
    "arcface",
    "chopra_cost",
    "class_distances",
    "cluster_agreement",
    "contrastive_cost",
    "contrastive_loss",
    "hardest_pairs",
    "informative_pairs",
    "inner_products",
    "map_at_r",
    "multi_similarity_loss",
    "neighbor_average_precision",
    "precision_at_k",
    "proxy_anchor_loss",
    "r_precision",
    "recall_at_k",
    "same_labels",
    "semi_hard_pairs",
    "squared_distances",
    "supervised_contrastive_loss",
    "takes_part",
    "triplet_cost",
    "triplet_loss",
]
