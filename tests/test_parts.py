"""Units, part files and manifests, without workers."""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import pytest
from conftest import some_hits
from scale_work import Job, write_numbers

from sparsereco.errors import InputError, OutputError
from sparsereco.io import HITS, Chunk, RootWriter, read, regroup
from sparsereco.parts import Input, Parts, Tally, divide, write_part

INPUTS = [Input("a.root", "hits", 10, "u1"), Input("b.root", "hits", 0, "u2"), Input("c.root", "hits", 5, "u3")]


@pytest.mark.parametrize(
    ("start", "stop", "size", "expected"),
    [
        (0, None, 4, [("a", 0, 4), ("a", 4, 8), ("a", 8, 10), ("b", 0, 0), ("c", 0, 4), ("c", 4, 5)]),
        (0, None, 99, [("a", 0, 10), ("b", 0, 0), ("c", 0, 5)]),
        (3, 8, 4, [("a", 3, 7), ("a", 7, 8), ("b", 0, 0)]),
        (8, 12, 4, [("a", 8, 10), ("b", 0, 0), ("c", 0, 2)]),
        (15, None, 4, [("b", 0, 0)]),
    ],
)
def test_units_cover_the_range_once(start: int, stop: int | None, size: int, expected: list) -> None:
    units = divide(INPUTS, start, stop, size)
    assert [(unit.file[0], unit.entry_start, unit.entry_stop) for unit in units] == expected
    assert [unit.number for unit in units] == list(range(len(units)))


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (4, 3)])
def test_a_range_that_is_none(start: int, stop: int) -> None:
    with pytest.raises(InputError, match="are no range: expected 0 <= start <= stop"):
        divide(INPUTS, start, stop, 4)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 100])
def test_regrouped_chunks_do_not_depend_on_the_step(step: int) -> None:
    def chunks(file: str, n: int, first: int) -> list[Chunk]:
        events = some_hits(n, first)
        starts = range(0, n, step) if n else [0]
        return [Chunk(file, "hits", "", s, min(s + step, n), events[s : s + step]) for s in starts]

    given = [*chunks("a", 10, 0), *chunks("b", 0, 0), *chunks("c", 8, 50)]
    found = list(regroup(given, 4))
    edges = [("a", 0, 4), ("a", 4, 8), ("a", 8, 10), ("b", 0, 0), ("c", 0, 4), ("c", 4, 8)]
    assert [(chunk.file, chunk.entry_start, chunk.entry_stop) for chunk in found] == edges
    assert [e for chunk in found for e in chunk.events["event"].tolist()] == [*range(10), *range(50, 58)]


def test_what_is_held_for_the_next_chunk_does_not_grow() -> None:
    """A file of any length is read in the memory of a chunk."""
    events = some_hits(650)
    given = (Chunk("a", "hits", "", s, s + 65, ak.to_packed(events[s : s + 65])) for s in range(0, 650, 65))
    sizes = [chunk.events.nbytes for chunk in regroup(given, 64)]
    assert max(sizes) < 3 * sizes[0]


def test_a_gap_between_chunks_is_kept() -> None:
    events = some_hits(6)
    given = [Chunk("a", "hits", "", 0, 2, events[:2]), Chunk("a", "hits", "", 4, 6, events[4:])]
    assert [(c.entry_start, c.entry_stop) for c in regroup(given, 10)] == [(0, 2), (4, 6)]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    parts = Parts(tmp_path / "out.root", {"settings": {"seed": 1, "cuts": [1, 2]}, "inputs": []})
    parts.open(resume=False, force=False)
    return parts


def fill(parts: Parts, tmp_path: Path, *numbers: int) -> None:
    job = Job(str(tmp_path))
    for unit in (divide(INPUTS[:1], 0, None, 4)[number] for number in numbers):
        write_part(parts.folder, unit, parts.digest, lambda writer, unit=unit: write_numbers(job, unit, writer))


def test_parts_become_one_output_in_order(parts: Parts, tmp_path: Path) -> None:
    units = divide(INPUTS[:1], 0, None, 4)
    fill(parts, tmp_path, 2, 0, 1)
    tally = Tally()
    with RootWriter(tmp_path / "out.root") as writer:
        for unit in units:
            parts.merge(unit, [HITS], writer, tally)
    assert read(tmp_path / "out.root", HITS)["event"].tolist() == list(range(10))
    assert tally.events == 10
    assert list(tally.inputs.values()) == [{"file": "a.root", "tree": "hits", "entry_start": 0, "entry_stop": 10}]
    parts.remove()
    assert not parts.folder.exists()


def test_only_whole_parts_of_the_same_run_count(parts: Parts, tmp_path: Path) -> None:
    units = divide(INPUTS[:1], 0, None, 4)
    fill(parts, tmp_path, 0, 1)
    whole = parts.path(units[0]).read_bytes()
    parts.path(units[0]).write_bytes(whole[: len(whole) // 2])
    assert [parts.record(unit) is not None for unit in units] == [False, True, False]
    other = Parts(tmp_path / "out.root", {"settings": {}})
    assert [other.record(unit) for unit in units] == [None, None, None]
    with RootWriter(tmp_path / "out.root") as writer, pytest.raises(InputError, match="is gone or damaged"):
        parts.merge(units[0], [HITS], writer, Tally())


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"settings": {"seed": 2, "cuts": [1, 2]}, "inputs": []}, "another run: settings.seed was 1, is 2"),
        ({"settings": {"seed": 1, "cuts": [1, 3]}, "inputs": []}, r"settings.cuts\[1\] was 2, is 3"),
        ({"settings": {"seed": 1, "cuts": [1, 2]}, "inputs": ["a"]}, r'inputs was \[\], is \["a"\]'),
        ({"settings": {"seed": 1, "cuts": [1, 2]}, "inputs": [], "unit": 4}, "unit was null, is 4"),
    ],
)
def test_a_manifest_of_another_run_is_refused(parts: Parts, tmp_path: Path, about: dict, message: str) -> None:
    other = Parts(tmp_path / "out.root", about)
    with pytest.raises(InputError, match=message):
        other.open(resume=True, force=True)
    with pytest.raises(InputError, match="holds parts of an earlier run: --resume goes on with them, -f starts again"):
        other.open(resume=False, force=False)
    other.open(resume=False, force=True)
    assert json.loads((other.folder / "manifest.json").read_text()) == about


def test_a_foreign_folder_is_not_removed(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out.root", {})
    parts.folder.mkdir()
    (parts.folder / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"out.root.parts is no folder of parts: move it away"):
        parts.open(resume=False, force=True)
    with pytest.raises(InputError, match="has no manifest that can be read"):
        parts.open(resume=True, force=False)
    assert (parts.folder / "thesis.tex").exists()


def test_a_folder_that_vanishes(parts: Parts, tmp_path: Path) -> None:
    unit = divide(INPUTS[:1], 0, None, 4)[0]
    job = Job(str(tmp_path), vanishes=(0,))
    with pytest.raises(OutputError, match=r"output .* cannot be written: No such file or directory"):
        write_part(parts.folder, unit, parts.digest, lambda writer: write_numbers(job, unit, writer))
    with pytest.raises(OutputError, match="there is no folder"):
        write_part(parts.folder, unit, parts.digest, lambda writer: write_numbers(job, unit, writer))
    nowhere = Parts(tmp_path / "no" / "out.root", {})
    with pytest.raises(OutputError, match=r"out.root.parts cannot be made: No such file or directory"):
        nowhere.open(resume=False, force=False)
