"""Options that are whole numbers: one check for all."""

import pytest

from convwright.errors import ConvwrightError, check_counts, check_given_counts


@pytest.mark.parametrize("wrong", [0, -3, True, 2.0, "5", None])
def test_what_is_no_whole_number_from_the_least_one_on_is_refused(wrong):
    with pytest.raises(ConvwrightError, match=f"steps={wrong!r} must be a whole number from 1 on"):
        check_counts(beam=1, steps=wrong)


def test_none_is_allowed_where_an_option_may_be_left_out():
    check_given_counts(2, jobs=None, eta=2)
    with pytest.raises(ConvwrightError, match="eta=1 must be a whole number from 2 on"):
        check_given_counts(2, jobs=None, eta=1)
