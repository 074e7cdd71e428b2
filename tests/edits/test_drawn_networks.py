"""Networks and edits drawn at random: every result is what its edit promises, as a judge of its own finds out."""

from __future__ import annotations

import collections
import warnings

import pytest
from drawn_networks import try_network


@pytest.mark.parametrize("seed", [*range(40), 286, 689])
def test_edits_of_a_drawn_network_do_what_they_promise(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_network(seed, collections.Counter())
