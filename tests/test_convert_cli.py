"""Files of other formats become input of the chains, and what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import uproot
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.io import CHARGE_HITS, HITS, read

Convert = Callable[..., int]

TABLE = """event,x,y,z,signal
7,5,15,25,100.5
3,5,15,35,20
7,15,15,25,50
3,5,25,35,10
"""


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    monkeypatch.chdir(tmp_path)
    return lambda *argv: cli.main(load_tool("convert").run, [str(word) for word in argv])


def test_a_table_becomes_hits(convert: Convert) -> None:
    Path("hits.csv").write_text(TABLE)
    assert convert("csv", "hits.csv", "-o", "hits.root") == cli.DONE
    events = read("hits.root", HITS)
    assert events.event.tolist() == [7, 3]
    assert events.hit_pe.tolist() == [[100.5, 50.0], [20.0, 10.0]]
    assert events.hit_x.tolist() == [[5.0, 15.0], [5.0, 5.0]]
    assert "convert.py" in str(uproot.open("hits.root")["provenance"])


def test_columns_and_units_of_others(convert: Convert) -> None:
    Path("charge.csv").write_text("id, px, py, pz, dE, more\n0,0.5,1.5,2.5,0.25,9\n\n")
    columns = {"event": "id", "x": "px", "y": "py", "z": "pz", "signal": "dE"}
    options = [word for name, column in columns.items() for word in (f"--columns.{name}", column)]
    assert convert("csv", "charge.csv", "-o", "c.root", "--signal", "hit_e", "--unit", "cm", *options) == cli.DONE
    event = read("c.root", CHARGE_HITS)[0]
    assert (event.hit_x.tolist(), event.hit_z.tolist(), event.hit_e.tolist()) == ([5.0], [25.0], [0.25])


def test_a_table_of_a_spreadsheet(convert: Convert) -> None:
    """It begins with a byte order mark, and has other ends of lines."""
    Path("hits.csv").write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    assert convert("csv", "hits.csv", "-o", "hits.root") == cli.DONE
    assert read("hits.root", HITS).hit_pe.tolist() == [[100.5, 50.0], [20.0, 10.0]]


def test_a_table_without_lines_has_no_events(convert: Convert) -> None:
    Path("hits.csv").write_text("event,x,y,z,signal\n")
    assert convert("csv", "hits.csv", "-o", "hits.root") == cli.DONE
    assert len(read("hits.root", HITS)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event,x,y,z,sigmal\n1,2,3,4,5\n", "no column 'signal'; there are sigmal"),
        ("", "no column 'event'; there are none"),
        ("event,x,y,z,signal\n1,2,3,4,5\n1,2,3,many,5\n", "line 3: expected numbers in the columns"),
        ("event,x,y,z,signal\n1,2,3\n", "line 2: expected numbers"),
        ("event,x,y,z,signal\n1.5,2,3,4,5\n", "line 2: expected a whole number in the column 'event', got 1.5"),
        (
            "event,x,y,z,signal\n\n1,2,3,4,5\nnan,2,3,4,5\n",
            "line 4: expected a whole number in the column 'event', got",
        ),
        ("event,x,y,z,signal\n1e19,2,3,4,5\n", "expected a whole number in the column 'event', got 1e+19"),
        ("event,x,y,z,signal\n1,2,nan,4,5\n", "line 2: expected a finite number in the column 'y', got nan"),
        ("event,x,y,z,signal\n1,2,3,4,1e39\n", "line 2: expected a finite number in the column 'signal', got 1e+39"),
        ("event,x,y,x,z,signal\n1,2,3,4,5,6\n", "2 columns have the name 'x'"),
        ("event;x;y;z;signal\n1;2;3;4;5\n", "there are event;x;y;z;signal; names and numbers are separated by commas"),
    ],
)
def test_a_bad_table_is_refused(convert: Convert, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hits.csv").write_text(text)
    assert convert("csv", "hits.csv", "-o", "hits.root") == cli.WRONG_INPUT
    assert message in capsys.readouterr().err
    assert not list(Path().glob("hits.root*"))


def test_what_is_no_text_or_not_there_is_refused(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    Path("binary.csv").write_bytes(bytes(range(256)))
    assert convert("csv", "binary.csv", "-o", "hits.root") == cli.WRONG_INPUT
    assert "is no table of text" in capsys.readouterr().err
    assert convert("csv", "absent.csv", "-o", "hits.root") == cli.WRONG_INPUT
    assert "no such file: absent.csv" in capsys.readouterr().err


def test_segments_become_voxels(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("x_start", "y_start", "z_start", "x_end", "y_end", "z_end", "dE")
    kinds = [("eventID", "i4"), ("trackID", "i4"), ("pdgId", "i4"), *((name, "f4") for name in names)]
    segments = np.zeros(3, kinds)
    segments["eventID"] = [4, 4, 9]
    segments["x_end"], segments["dE"] = 2.0, 1.0
    with h5py.File("segments.h5", "w") as file:
        file["segments"] = segments
    code = convert("edepsim", "segments.h5", "-o", "hits.root", "--detector", "gap10")
    assert code == cli.DONE, capsys.readouterr().err
    events = read("hits.root", CHARGE_HITS)
    assert events.event.tolist() == [4, 9]
    assert convert("edepsim", "segments.h5", "-o", "hits.root", "--detector", "gap10") == cli.WRONG_INPUT
    assert "exists already" in capsys.readouterr().err


def test_segments_need_a_geometry_and_a_file(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("edepsim", "segments.h5", "-o", "hits.root") == cli.WRONG_INPUT
    assert "no geometry given" in capsys.readouterr().err
    assert convert("edepsim", "segments.root", "-o", "hits.root", "--detector", "gap10") == cli.WRONG_INPUT
    assert "expected an HDF5 file" in capsys.readouterr().err
