"""Matching without the matrix of all objects and all anchors: only pairs that overlap enough to matter are looked at.

Nothing here decides what matches: threshold.py and bipartite.py, one folder up, define it on the matrix, and are
searched here with the same result, bit for bit. A reader of a matcher need not read on.
"""
