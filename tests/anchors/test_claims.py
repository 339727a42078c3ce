"""Rival claims: the order of pairs, and who wins an anchor."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from detkit.anchors.claims import highest_claim, pair_keys, pairs_of
from detkit.structures import NEGATIVE


def test_pairs_come_back_as_they_were_packed_and_keep_their_order():
    values = torch.tensor([-math.inf, -1.5, -1e-45, 0.0, 0.0, 0.25, 3e38])
    indices = torch.tensor([0, 5, 0, 2**31, 7, 3, 1])
    keys = pair_keys(values, indices)
    assert (keys.diff() > 0).all()
    found, places = pairs_of(keys)
    assert torch.equal(found, values)
    assert torch.equal(places, indices)


CLAIMS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-math.inf, -2.0, -1e-45, -0.0, 0.0, 0.5, 0.5, 3e38]), st.booleans()),
    min_size=4,
    max_size=4,
)


@given(rows=st.lists(CLAIMS, min_size=1, max_size=4))
def test_the_highest_claim_wins_and_ties_go_to_the_lower_object(rows):
    places, values, claimed = (torch.tensor([[[claim[i] for claim in row] for row in rows]]) for i in range(3))
    matched, value = highest_claim(places, values, claimed, 5)
    for anchor in range(5):
        rivals = [
            (-number, target)
            for target, row in enumerate(rows)
            for place, number, claims in row
            if place == anchor and claims
        ]
        assert matched[0, anchor] == (min(rivals)[1] if rivals else NEGATIVE)
        assert value[0, anchor] == (-min(rivals)[0] if rivals else 0)
