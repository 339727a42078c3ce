"""Class-agnostic proposals without a network: sliding windows, selective search, and proposals read from files. They
are passed to ``Detector(images, proposals=)``; ``detkit.metrics.ProposalRecall`` evaluates them.
"""

from detkit.proposals.external import Proposals, load_proposals, pad_proposals
from detkit.proposals.selective_search import selective_search
from detkit.proposals.sliding_window import SlidingWindow, crop_windows, scan_windows, sliding_windows

__all__ = [
    "Proposals",
    "SlidingWindow",
    "crop_windows",
    "load_proposals",
    "pad_proposals",
    "scan_windows",
    "selective_search",
    "sliding_windows",
]
