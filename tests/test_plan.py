"""The simulation of runs on workers behind docs/planning.md, against what can be worked out by hand."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from tool_loader import TOOLS, load_tool

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


def test_no_run_of_the_plan_is_its_own_pedestal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    costs, systems, runs = load_tool("benchmarks/costs"), [], []
    monkeypatch.setattr(costs, "system", lambda folder, name, unit, number, made, options: systems.append(options))
    monkeypatch.setattr(costs, "measure", lambda tool, words: runs.append((tool, words)))
    list(costs.systems(tmp_path, Namespace(events=1000, bank=None, lar_bank=None)))
    assert len(systems) == 4
    *made, (tool, (_, frames, *options)) = runs
    assert tool == "reco.py"
    assert frames not in options
    pedestal, averaged = (options[options.index(option) + 1] for option in ("--pedestal", "--save-pedestal"))
    assert {pedestal, frames} == {words[words.index("-o") + 1] for _, words in made}
    assert systems[-1] == ["--pedestal", averaged]
