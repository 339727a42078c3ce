"""Searches give up for memory only, never for time, so that tests of hostile anchors see them and not the matrix."""

from collections.abc import Iterator

import pytest

from detkit.anchors.search import overlap_index


@pytest.fixture(autouse=True, scope="module")
def patient_searches() -> Iterator[None]:
    """Let all leaves be looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap_index, "_MOST_SHARE", 1.0)
        yield
