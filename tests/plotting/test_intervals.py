"""Confidence intervals."""

import math

import pytest

from dcem.plotting.intervals import interval


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [1.0, 2.0, math.inf]])
def test_what_has_no_interval_has_none(values: list[float]) -> None:
    assert math.isnan(interval(values)[1])
