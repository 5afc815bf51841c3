"""The simulation of runs on workers behind docs/planning.md, against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tool_loader import load_tool

model = load_tool("benchmarks/workers_model")


@pytest.mark.parametrize(("workers", "hours"), [(1, 20), (2, 10), (3, 7), (40, 1)])
def test_equal_units_take_as_long_as_the_fullest_worker(workers: int, hours: int) -> None:
    one = model.simulate(np.full(20, 3600.0), 0.0, 0.0, model.Site(workers, 0.0, 0.0), 1)
    assert one.hours == pytest.approx(hours)
    assert one.useful == pytest.approx(20 / (workers * hours))
    assert (one.lost, one.given_up, one.behind) == (0, 0, 0)


def test_the_client_that_merges_is_the_limit_of_many_workers() -> None:
    one = model.simulate(np.full(100, 60.0), 30.0, 0.0, model.Site(50, 0.0, 0.0), 1)
    assert one.hours * 3600 == pytest.approx(60 + 100 * 30)
    assert one.merging == pytest.approx(3000 / 3060)
    assert one.behind == 98  # two of the first fifty are merged while the second fifty are done


def test_lost_workers_cost_time_and_no_units() -> None:
    sound = model.simulate(np.full(200, 600.0), 0.0, 0.0, model.Site(10, 0.0, 0.0), 1)
    lossy = model.simulate(np.full(200, 600.0), 0.0, 0.0, model.Site(10, 0.0, 0.3), 1)
    assert lossy.lost > 3
    assert lossy.given_up == 0
    assert lossy.hours > sound.hours
    assert lossy.useful < sound.useful


def test_a_unit_that_kills_its_workers_is_given_up() -> None:
    one = model.simulate(np.full(3, 3600.0), 0.0, 0.0, model.Site(2, 0.0, 100.0), 1)
    assert one.given_up == 3
    assert one.lost == 3 * model.ATTEMPTS
