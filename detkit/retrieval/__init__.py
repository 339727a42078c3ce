"""Metric learning and retrieval: distances, losses that shape embeddings, indexes that search them, and metrics.

Embeddings are (N, D) float tensors; labels (N,) whole numbers or (N, C) label sets. Of any distance the smaller is the
nearer. Nothing here knows of detectors: what a detector found goes in as plain tensors.
"""

from detkit.retrieval.distances import CosineDistance, Distance, EuclideanDistance, squared_distances
from detkit.retrieval.labels import same_labels, takes_part

__all__ = ["CosineDistance", "Distance", "EuclideanDistance", "same_labels", "squared_distances", "takes_part"]
