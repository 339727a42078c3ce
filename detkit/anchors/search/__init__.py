"""Fast search: matching without the IoU of all pairs, from those pairs that overlap enough to matter.

Nothing here decides what matches: that is defined on the matrix of all pairs by threshold.py and bipartite.py, one
folder up. The search gives the same result, bit for bit, so a reader of a matcher can skip this folder.
"""
