"""Searches never give up for what they cost, so that tests of hostile anchors see them and not the matrix."""

from collections.abc import Iterator

import pytest

from detkit.anchors.search import overlap_index


@pytest.fixture(autouse=True, scope="package")
def patient_searches() -> Iterator[None]:
    """Let all leaves be looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap_index, "_MOST_OF_ALL", 1)
        yield
