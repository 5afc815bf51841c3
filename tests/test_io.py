"""ROOT files in and out: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from conftest import WriteHits, some_hits

from sparsereco import writer
from sparsereco.detector import Detector
from sparsereco.io import (
    HITS,
    RECO,
    TRUTH,
    BranchError,
    BranchNames,
    InputError,
    RootWriter,
    Schema,
    check_hits,
    drop_hits,
    iterate,
    read,
    survey,
)


def random_events(schema: Schema, n_events: int) -> ak.Array:
    """Records with the fields of a schema and lists of 0 to 3 random numbers."""
    rng = np.random.default_rng(5)
    fields = {branch.name: rng.integers(0, 100, n_events).astype(branch.dtype) for branch in schema.scalars}
    for group in schema.groups.values():
        counts = rng.integers(0, 4, n_events)
        for branch in group:
            fields[branch.name] = ak.unflatten(rng.integers(0, 100, counts.sum()).astype(branch.dtype), counts)
    return ak.zip(fields, depth_limit=1)


@pytest.mark.parametrize("schema", [HITS, TRUTH, RECO], ids=lambda schema: schema.tree)
def test_what_is_written_comes_back_in_names_types_and_values(tmp_path: Path, schema: Schema) -> None:
    events = random_events(schema, 20)
    with RootWriter(tmp_path / "a.root") as writer:
        writer.extend(schema.tree, schema, events[:7])
        writer.extend(schema.tree, schema, events[7:])
    back = read(tmp_path / "a.root", schema)
    assert back.fields == [branch.name for branch in schema.branches]
    assert str(back.type) == str(events.type)
    assert back.tolist() == events.tolist()


def test_small_batches_share_a_basket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [some_hits(20, 20 * i) for i in range(6)]
    monkeypatch.setattr(writer, "BASKETS", 3 * events[0].nbytes - 1000)
    with RootWriter(tmp_path / "a.root") as file:
        for some in events:
            file.extend("hits", HITS, some)
    with uproot.open(tmp_path / "a.root") as file:
        branch = file["hits"]["hit_pe"]
        assert [branch.basket_entry_start_stop(i) for i in range(branch.num_baskets)] == [(0, 60), (60, 120)]
    assert read(tmp_path / "a.root", HITS).tolist() == ak.concatenate(events).tolist()


def test_the_file_has_root_leaves_with_one_counter_per_group(tmp_path: Path) -> None:
    with RootWriter(tmp_path / "a.root") as writer:
        writer.extend("reco", RECO, random_events(RECO, 5))
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["reco"]
        assert file.classnames(cycle=False) == {"reco": "TTree"}
        titles = {branch.name: branch.title for branch in tree.branches}
    assert [name for name in titles if name.startswith("n")] == ["nvtx", "npart", "ntrk", "nimg"]
    for counter, group in RECO.groups.items():
        letters = {"float32": "F", "int32": "I"}
        assert {b.name: titles[b.name] for b in group} == {
            b.name: f"{b.name}[{counter}]/{letters[b.dtype]}" for b in group
        }
    assert titles["event"] == "event/L"


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
@pytest.mark.parametrize("step_size", [1, 3, "1 kB", "100 MB"])
def test_chunks_join_to_the_whole(write_hits: WriteHits, rntuple: bool, step_size: int | str) -> None:
    events = some_hits(25)
    path = write_hits("a.root", events, rntuple=rntuple)
    chunks = list(iterate([str(path)], HITS, step_size=step_size))
    assert ak.concatenate([chunk.events for chunk in chunks]).tolist() == events.tolist()
    assert [chunk.entry_start for chunk in chunks] == [0] + [chunk.entry_stop for chunk in chunks[:-1]]
    assert all(chunk.entry_stop - chunk.entry_start == len(chunk.events) for chunk in chunks)
    if isinstance(step_size, int):
        assert max(len(chunk.events) for chunk in chunks) == step_size
    with uproot.open(path) as file:
        assert {chunk.uuid for chunk in chunks} == {str(file.file.uuid)}


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 30), (4, 9), (8, 22), (12, None), (None, 10), (10, 20), (29, 99), (5, 5)]
)
def test_an_entry_range_counts_over_all_files(write_hits: WriteHits, start: int | None, stop: int | None) -> None:
    files = [str(write_hits(f"{part}.root", some_hits(10, first_event=10 * part))) for part in range(3)]
    chunks = list(iterate(files, HITS, step_size=4, entry_start=start, entry_stop=stop))
    numbers = [event for chunk in chunks for event in chunk.events["event"].tolist()]
    assert numbers == list(range(30))[start:stop]
    assert all(chunk.entry_stop <= 10 for chunk in chunks)


def test_a_file_after_the_entry_range_is_not_opened(write_hits: WriteHits) -> None:
    path = str(write_hits("a.root", some_hits(10)))
    assert len(list(iterate([path, "no_such.root"], HITS, entry_stop=10))) == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4), (0, -1)])
def test_an_entry_range_that_is_none(start: int, stop: int | None) -> None:
    with pytest.raises(InputError, match="expected 0 <= start <= stop"):
        next(iterate(["a.root"], HITS, entry_start=start, entry_stop=stop))


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
def test_no_events_are_one_empty_chunk(write_hits: WriteHits, rntuple: bool) -> None:
    (chunk,) = iterate([str(write_hits("a.root", some_hits(0), rntuple=rntuple))], HITS)
    assert (len(chunk.events), chunk.entry_start, chunk.entry_stop) == (0, 0, 0)
    assert str(chunk.events.type) == str(some_hits(0).type)


def test_globs_and_tree_names(write_hits: WriteHits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (2, 1):
        write_hits(f"run{part}.root", some_hits(2, first_event=part), tree="other")
    write_hits("odd:name[1].root", some_hits(2, first_event=5))
    monkeypatch.chdir(tmp_path)
    chunks = list(iterate(["run*.root:other", "odd:name[1].root", "odd:name[1].root:hits"], HITS))
    assert [(chunk.file, chunk.tree) for chunk in chunks] == [
        ("run1.root", "other"),
        ("run2.root", "other"),
        ("odd:name[1].root", "hits"),
        ("odd:name[1].root", "hits"),
    ]
    with pytest.raises(InputError, match=r"no file matches 'nothing\*.root'"):
        next(iterate(["nothing*.root"], HITS))


def test_the_only_tree_is_taken_whatever_its_name(write_hits: WriteHits, tmp_path: Path) -> None:
    path = write_hits("a.root", some_hits(3), tree="voxels")
    assert len(read(path, HITS)) == 3
    with uproot.update(path) as file:
        file.mktree("more", {"x": "float32"})
    with pytest.raises(
        InputError, match=r"no tree 'hits' in .*a.root; it has: voxels, more; choose one with FILE:TREE"
    ):
        read(path, HITS)


def test_other_branch_names_and_types_are_mapped(tmp_path: Path) -> None:
    """Doubles, an unsigned run, fixed-size lists, dots in names, no subrun, no event number."""
    with uproot.recreate(tmp_path / "a.root") as file:
        types = {"runNo": "uint32", "v.x": "var * float64", "v.y": "var * int16", "v.z": np.dtype(("f4", (2,)))}
        file.mktree("t", {**types, "charge": "var * float64"}, counter_name=lambda name: f"n{name[-1]}")
        jagged = ak.Array([[1.0, 2.0], [3.0, 4.0]])
        columns = {"v.x": jagged, "v.y": ak.values_astype(jagged, "i2"), "v.z": np.ones((2, 2), "f4"), "charge": jagged}
        file["t"].extend({"runNo": np.array([8, 9], "u4"), **columns})
    names = BranchNames("runNo", None, None, "v.x", "v.y", "v.z", "charge")
    (chunk,) = iterate([str(tmp_path / "a.root")], HITS, names=names, entry_start=1)
    assert str(chunk.events.type) == str(some_hits(1).type)
    assert chunk.events.tolist() == [
        {"run": 9, "subrun": 0, "event": 1, "hit_x": [3, 4], "hit_y": [3, 4], "hit_z": [1, 1], "hit_pe": [3, 4]}
    ]


def test_an_integer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    events = some_hits(3)
    fields = {name: events[name] for name in events.fields} | {"run": np.array([1, 5_000_000_000, 2])}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("hits", {n: "int64" if n in ("run", "event") else t for n, t in _types(events).items()})
        file["hits"].extend(fields)
    with pytest.raises(InputError, match="entry 1 of tree 'hits': branch 'run' has 5000000000, expected int32"):
        read(tmp_path / "a.root", HITS)


def _types(events: ak.Array) -> dict[str, str]:
    return {name: str(events[name].type.content) for name in events.fields}


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
def test_a_misspelt_branch_is_named_with_its_neighbours(write_hits: WriteHits, rntuple: bool) -> None:
    path = str(write_hits("run7.root", some_hits(3), rntuple=rntuple))
    message = (
        r"branch 'hit_pes' not in tree 'hits' of .*run7.root; nearest: 'hit_pe'.*; set it with --branches.hit_pe NAME"
    )
    with pytest.raises(BranchError, match=message) as caught:
        next(iterate([path], HITS, names=BranchNames(hit_pe="hit_pes")))
    error = caught.value
    assert isinstance(error, KeyError)
    assert (error.file, error.tree, error.branch) == (path, "hits", "hit_pes")
    with pytest.raises(BranchError, match=r"branch 'Q' not in tree 'hits' of .*; it has: 'event', 'hit_pe', 'hit_x'"):
        next(iterate([path], HITS, names=BranchNames(hit_pe="Q")))


@pytest.mark.parametrize(
    ("name", "message"),
    [("run", "is int32, expected a list of numbers per event"), ("word", "is string, expected a list of numbers")],
)
def test_a_branch_of_the_wrong_type_is_named(tmp_path: Path, name: str, message: str) -> None:
    events = some_hits(2)
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("hits", _types(events) | {"word": "string"})
        file["hits"].extend({name: events[name] for name in events.fields} | {"word": ak.Array(["a", "b"])})
    with pytest.raises(BranchError, match=f"branch '{name}' in tree 'hits' of .*a.root {message}"):
        next(iterate([str(tmp_path / "a.root")], HITS, names=BranchNames(hit_y=name)))
    with pytest.raises(BranchError, match=r"branch 'hit_x' .* is var \* float32, expected one number per event"):
        next(iterate([str(tmp_path / "a.root")], HITS, names=BranchNames(event="hit_x")))


def test_a_file_truncated_anywhere_is_an_input_error(write_hits: WriteHits, tmp_path: Path) -> None:
    data = write_hits("a.root", some_hits(300)).read_bytes()
    cut = tmp_path / "cut.root"
    for length in [*range(0, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut.root (is empty|is truncated|is no ROOT file|cannot be read)"):
            list(iterate([str(cut)], HITS))


def test_damage_in_the_middle_names_file_and_entries(write_hits: WriteHits) -> None:
    """The chunks before the damage are still good; with `on_bad_file` reading goes on behind it."""
    path = write_hits("a.root", some_hits(0))
    with RootWriter(path, force=True) as writer:
        for part in range(4):
            writer.extend("hits", HITS, some_hits(50, seed=part))
            writer.flush("hits")
    with uproot.open(path) as file:
        chunk, _ = file["hits"]["hit_pe"].basket_chunk_cursor(2)
        damaged, size = chunk.start, chunk.stop - chunk.start
    data = bytearray(path.read_bytes())
    data[damaged + 80 : damaged + size] = bytes(size - 80)
    path.write_bytes(data)

    seen = []
    with pytest.raises(InputError, match=r"a.root: entries 100 to 150 of tree 'hits' cannot be read") as caught:
        seen += [chunk.entry_stop for chunk in iterate([str(path)], HITS, step_size=50)]
    assert caught.value.entry == 100

    errors: list[InputError] = []
    good = str(write_hits("b.root", some_hits(5)))
    chunks = list(iterate([str(path), good], HITS, step_size=50, on_bad_file=errors.append))
    assert [len(chunk.events) for chunk in chunks] == [50, 50, 5]
    assert len(errors) == 1


def test_survey_reads_no_events_and_reports_bad_files(write_hits: WriteHits, tmp_path: Path) -> None:
    good = str(write_hits("a.root", some_hits(6)))
    errors: list[InputError] = []
    (source,) = survey([str(tmp_path), good], HITS, on_bad_file=errors.append)
    assert (source.file, source.tree, source.entries) == (good, "hits", 6)
    assert [str(error) for error in errors] == [f"{tmp_path} is a directory, expected a file"]


def changed(events: ak.Array, branch: str, event: int, value: float) -> ak.Array:
    """The same events with one more hit in one of them, one value of which is given."""
    lists = {name: events[name].tolist() for name in HITS.counters}
    for name in lists:
        lists[name][event].append(value if name == branch else 5.0)
    for name, column in lists.items():
        events = ak.with_field(events, ak.values_astype(ak.Array(column), "float32"), name)
    return events


@pytest.mark.parametrize(
    ("branch", "value", "expected"),
    [
        ("hit_x", 960.0, r"a position in \[-960, 960\) mm"),
        ("hit_x", -960.5, r"a position in \[-960, 960\) mm"),
        ("hit_y", np.nan, r"a position in \[-280, 280\) mm"),
        ("hit_z", np.inf, r"a position in \[-920, 920\) mm"),
        ("hit_pe", np.nan, "a finite signal of at least 0 p.e."),
        ("hit_pe", -np.inf, "a finite signal of at least 0 p.e."),
        ("hit_pe", np.inf, "a finite signal of at least 0 p.e."),
        ("hit_pe", -1.0, "a finite signal of at least 0 p.e."),
    ],
)
def test_a_bad_hit_is_found_and_named(write_hits: WriteHits, branch: str, value: float, expected: str) -> None:
    events = changed(changed(some_hits(9), branch, 4, value), branch, 4, 2 * value)
    (chunk,) = iterate([str(write_hits("a.root", events))], HITS, entry_start=2)
    (bad,) = check_hits(chunk.events, Detector())
    assert (bad.offset, bad.branch) == (2, branch)
    names = BranchNames(**{branch: "Q"})
    with pytest.raises(
        InputError, match=rf"a.root: entry 4 of tree 'hits': branch 'Q' has {value:g}, expected {expected}"
    ):
        raise bad.error(chunk, names)


def test_good_events_pass_and_every_bad_one_is_listed_once() -> None:
    events = some_hits(12)
    assert check_hits(events, Detector()) == []
    assert check_hits(events[:0], Detector()) == []
    edge = changed(changed(events, "hit_x", 0, -960.0), "hit_pe", 1, 0.0)
    assert check_hits(edge, Detector()) == []
    worse = changed(changed(changed(events, "hit_pe", 7, -1.0), "hit_x", 7, 1e9), "hit_z", 3, 920.0)
    assert [bad.offset for bad in check_hits(worse, Detector())] == [3, 7]


def test_unequal_lists_are_found() -> None:
    events = some_hits(4)
    events = ak.with_field(events, events["hit_y"][:, :-1], "hit_y")
    bad = check_hits(events, Detector())
    assert [one.offset for one in bad] == np.flatnonzero(ak.num(events["hit_x"])).tolist()
    assert bad[0].value == len(events["hit_y"][bad[0].offset])
    assert bad[0].expected == "as many values as 'hit_pe'"


def test_dropping_hits_leaves_the_other_events_alone() -> None:
    events = some_hits(6)
    dropped = drop_hits(events, [2, 5])
    for offset in range(6):
        if offset in (2, 5):
            assert len(dropped["hit_pe"][offset]) == len(dropped["hit_x"][offset]) == 0
            assert dropped["event"][offset] == events["event"][offset]
        else:
            assert dropped[offset].tolist() == events[offset].tolist()


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"output .*a.root exists already; -f replaces it"):
        RootWriter(path)
    with RootWriter(path, force=True) as writer:
        writer.extend("hits", HITS, some_hits(2))
        assert path.read_text() == "mine"
    assert len(read(path, HITS)) == 2
    with pytest.raises(InputError, match="is a directory"):
        RootWriter(tmp_path, force=True)
    with pytest.raises(InputError, match=r"output no/such/a.root: there is no folder no/such"):
        RootWriter("no/such/a.root")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device or a pipe, expected a file"):
        RootWriter(tmp_path / "pipe", force=True)


def test_an_output_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "a.root.part").mkdir()
    with pytest.raises(InputError, match=r"output .*a.root cannot be created"), RootWriter(tmp_path / "a.root"):
        pass


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_output_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    def write() -> None:
        with RootWriter(tmp_path / "a.root") as writer:
            writer.extend("hits", HITS, some_hits(2))
            assert writer.part.exists()
            raise interruption

    with pytest.raises(interruption):
        write()
    assert list(tmp_path.iterdir()) == []


def test_lists_of_a_group_must_be_equally_long(tmp_path: Path) -> None:
    events = some_hits(4)
    events = ak.with_field(events, events["hit_y"][:, :-1], "hit_y")
    with (
        pytest.raises(ValueError, match="branches of 'nhit' in tree 'hits' differ in length"),
        RootWriter(tmp_path / "a.root") as writer,
    ):
        writer.extend("hits", HITS, events)


def test_provenance_is_a_string_object(tmp_path: Path) -> None:
    record = {"version": "1", "inputs": [{"file": "a", "entry_stop": 3}]}
    with RootWriter(tmp_path / "a.root") as writer:
        writer.provenance(record)
    with uproot.open(tmp_path / "a.root") as file:
        assert file.classnames(cycle=False) == {"provenance": "TObjString"}
        assert json.loads(str(file["provenance"])) == record
