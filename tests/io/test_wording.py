"""Numbers in words."""

import pytest

from helpers.io.wording import number_of


@pytest.mark.parametrize(("n", "said"), [(0, "0 facts"), (1, "1 fact"), (2, "2 facts")])
def test_one_thing_is_singular(n, said):
    assert number_of(n, "fact") == said


def test_an_irregular_plural_is_given():
    assert number_of(3, "country", "countries") == "3 countries"
