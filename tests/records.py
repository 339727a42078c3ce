"""One record an operation: how to make arguments, what a slow reference gives, what is refused, and with which words.

tests/test_records.py and tests/compiled/test_compiled_records.py run every property over every record, so that a new
operation brings all its tests with a record of a few lines.
"""

from opspec import FLOATS, OpSpec
from records_boxes import CODERS, FORMATS, OVERLAPS, SUPPRESSION
from records_losses import LOSSES
from records_pooling import POOLING
from records_regions import REGIONS

__all__ = ["FLOATS", "RECORDS", "OpSpec"]

RECORDS: tuple[OpSpec, ...] = (*FORMATS, *OVERLAPS, *SUPPRESSION, *CODERS, *POOLING, *LOSSES, *REGIONS)
