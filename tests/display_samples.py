"""Small files of the infill and of the camera whose content is known, for displays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

from sparsereco.frames import histogram
from sparsereco.infill.gaps import Gaps, LArDetector
from sparsereco.io import RootWriter
from sparsereco.schema import CHARGE_HITS, FRAME_TRUTH, FRAMES, INFILL, INFILL_TRUTH, ROIS, Schema

GAPS = Gaps(LArDetector((76.0, 76.0, 76.0), ((-57.0, 0.0, 0.0), (57.0, 0.0, 0.0))))
SHAPE = (64, 96)


def events(schema: Schema, n: int, **columns: Any) -> ak.Array:
    """n events of a schema: columns as given, all else 0 or, where the events have lists, as long as a given one."""
    lengths = {schema.counters[name]: ak.num(ak.Array(columns[name])) for name in columns if name in schema.counters}
    fields = {}
    for branch in schema.branches:
        if branch.name in columns:
            column = ak.Array(columns[branch.name])
        elif branch.name in schema.counters:
            counts = lengths.get(schema.counters[branch.name], np.zeros(n, int))
            column = ak.unflatten(np.zeros(int(ak.sum(counts))), counts)
        else:
            column = ak.Array(np.zeros(n))
        fields[branch.name] = ak.values_astype(column, branch.dtype)
    return ak.zip(fields, depth_limit=1)


def infill_files(folder: Path, n: int = 3) -> tuple[Path, Path]:
    """A track along x through a gap, and five voxels filled in: three of the five that are missing, and two others."""
    detector = GAPS.detector
    row = detector.centre(np.stack([np.arange(50), np.full(50, 10), np.full(50, 10)], 1))
    dead = np.flatnonzero(GAPS.of(detector.index(row)) >= 0)[:5]
    live = np.flatnonzero(GAPS.of(detector.index(row)) == -1)
    wrong = row[dead[:2]] + [0, 2 * detector.pitch, 0]

    def place(prefix: str, centres: np.ndarray) -> dict[str, Any]:
        return {f"{prefix}{axis}": [centres[:, i].tolist()] * n for i, axis in enumerate("xyz")}

    ids = {"run": [1] * n, "event": list(range(n))}
    with RootWriter(folder / "sample.root") as writer:
        hits = events(CHARGE_HITS, n, **ids, **place("hit_", row[live]), hit_e=[[0.8] * len(live)] * n)
        writer.extend("hits", CHARGE_HITS, hits)
        truth = {"miss_e": [[0.7] * 5] * n, "part_pdg": [[13]] * n, "part_ke": [[900.0]] * n}
        writer.extend("truth", INFILL_TRUTH, events(INFILL_TRUTH, n, **ids, **place("miss_", row[dead]), **truth))
    with RootWriter(folder / "filled.root") as writer:
        filled = place("fill_", np.concatenate([row[dead[:3]], wrong]))
        gaps = {"fill_e": [[0.6] * 5] * n, "gap_id": [[0]] * n, "gap_joined": [[1]] * n}
        writer.extend("infill", INFILL, events(INFILL, n, **ids, **filled, **gaps))
        writer.provenance({"chain": {"detector": dataclasses.asdict(detector)}})
    return folder / "filled.root", folder / "sample.root"


def camera_files(folder: Path) -> tuple[Path, Path]:
    """Two frames: one has two clusters of 4 x 4 pixels, in regions like an L and a square, and a true track."""
    x, y = (side.ravel() for side in np.meshgrid(np.arange(4), np.arange(4)))
    columns = {
        "run": [2, 2], "event": [0, 1], "sc_energy": [[1.5, 0.5], []], "sc_size": [[16, 16], []],
        "sc_xmax": [[15, 43], []], "sc_ymax": [[23, 43], []], "sc_redpixIdx": [[0, 16], []],
        "redpix_ix": [[*(x + 12), *(x + 40)], []], "redpix_iy": [[*(y + 20), *(y + 40)], []],
        "redpix_hit": [[1, 1, 1, 1] + [0] * 12 + [1] * 16, []],
    }  # fmt: skip
    with RootWriter(folder / "reco.root") as writer:
        writer.extend("Events", FRAMES, events(FRAMES, 2, **columns))
        corners = np.array(
            [(8, 16), (20, 16), (20, 24), (16, 24), (16, 28), (8, 28), (36, 36), (48, 36), (48, 48), (36, 48)]
        )
        regions = {"roi_area": [[128, 144], []], "roi_nhits": [[4, 16], []], "roi_integral": [[1500.0, 500.0], []]}
        regions |= {"roi_score": [[9.5, 6.25], []], "roi_corners": [[6, 4], []]}
        regions |= {f"corner_{axis}": [(corners[:, i] - 0.5).tolist(), []] for i, axis in enumerate("xy")}
        writer.extend("roi", ROIS, events(ROIS, 2, run=[2, 2], event=[0, 1], **regions))
    rng = np.random.default_rng(1)
    with RootWriter(folder / "run2.root") as writer:
        for event in range(2):
            image = rng.normal(99, 3.6, SHAPE).round().astype(np.int32)
            writer.put(f"pic_run2_ev{event}", histogram(f"pic_run2_ev{event}", image))
        truth = {"run": [2, 2], "eventnumber": [0, 1], "particle_type": [[11], []], "energy": [[1.4], []]}
        truth |= {"redpix_ix": [[13, 14], []], "redpix_iy": [[21, 21], []]}
        writer.extend("event_info", FRAME_TRUTH, events(FRAME_TRUTH, 2, **truth))
    return folder / "reco.root", folder / "run2.root"
