"""Options that are whole numbers: one check for all."""

import pytest

from convwright.errors import ConvwrightError, brief, check_counts, check_given_counts


@pytest.mark.parametrize("wrong", [0, -3, True, 2.0, "5", None])
def test_what_is_no_whole_number_from_the_least_one_on_is_refused(wrong):
    with pytest.raises(ConvwrightError, match=f"steps={wrong!r} must be a whole number from 1 on"):
        check_counts(beam=1, steps=wrong)


def test_numbers_that_torch_does_not_take_are_refused():
    with pytest.raises(ConvwrightError, match=r"seed=9{28}\.\.\.9+ is larger than any number that torch takes"):
        check_counts(seed=10**70 - 1)


def test_what_is_shown_of_a_value_is_short_whatever_its_size():
    many = ["x"] * 9
    for _ in range(9):  # shared: 9**10 values
        many = [many] * 9
    assert len(brief(many)) < 20_000
    assert brief({"a": 1}) == "{'a': 1}"


def test_none_is_allowed_where_an_option_may_be_left_out():
    check_given_counts(2, jobs=None, eta=2)
    with pytest.raises(ConvwrightError, match="eta=1 must be a whole number from 2 on"):
        check_given_counts(2, jobs=None, eta=1)
