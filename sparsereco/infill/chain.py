"""`InfillChain`: hits of a detector with gaps in, the missing voxels of its tracks out.

import uproot
from sparsereco.infill.chain import InfillChain
from sparsereco.infill.gaps import LArDetector

detector = LArDetector(size=(285, 1241.52, 620.76), centres=((-161.5, 0, 0), (161.5, 0, 0)))
chain = InfillChain(detector)
for event in chain(uproot.open("run7.root:hits").arrays()):
    print(event.event, event.fill_x.tolist(), event.fill_e.tolist())
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import torch
from torch import Tensor

from sparsereco import checkpoint
from sparsereco.infill.candidates import Problem, bend, make_problem
from sparsereco.infill.checks import check_charge_hits
from sparsereco.infill.choice import choose
from sparsereco.infill.config import InfillConfig
from sparsereco.infill.ends import Ends, find_ends
from sparsereco.infill.gaps import Gaps, LArDetector
from sparsereco.infill.model import Filler, FillerConfig
from sparsereco.infill.tracks import Lines, find_lines
from sparsereco.schema import INFILL
from sparsereco.voxels import VoxelError, Voxels


class InfillChain:
    """The infill with its weights loaded, for one detector.

    Args:
        detector: its boxes of live argon; what is dead follows.
        config: settings; the shipped weights by default.
        device: torch device that the network runs on.

    Raises:
        CheckpointError: weights that are missing, broken or of another class.
        InputError: a list of dead channels that cannot be read.
    """

    def __init__(self, detector: LArDetector, config: InfillConfig | None = None, device: str = "cpu") -> None:
        self.config, self.device, self.gaps = config or InfillConfig(), device, Gaps(detector)
        self._path = Path(self.config.weights or checkpoint.WEIGHTS / "filler.safetensors")
        self.filler = checkpoint.load(self._path, Filler, FillerConfig).to(device)

    def __call__(self, events: ak.Array) -> ak.Array:
        """Fills the gaps of events; each is treated on its own, whatever else is in the array.

        Args:
            events: records with the fields of the tree ``hits``; ``run``, ``subrun`` and ``event`` may be missing.

        Returns:
            Records with the fields of the tree ``infill``, one per event.

        Raises:
            VoxelError: a hit outside the detector or in a dead region, an energy that is NaN, infinite or negative, or
                lists of unequal length.
        """
        bad = check_charge_hits(events, self.gaps)
        if bad:
            raise VoxelError(f"event {bad[0].offset}: {bad[0].branch} has {bad[0].value:g}, expected {bad[0].expected}")
        size = self.config.batch_size
        parts = [self._batch(events[start : start + size]) for start in range(0, len(events), size)]
        return ak.concatenate(parts) if parts else self._batch(events)

    def provenance(self) -> dict[str, Any]:
        """Settings, detector and hash of the weights, as JSON values."""
        weights = {"file": self._path.name, "sha256": checkpoint.sha256(self._path)}
        return {"config": asdict(self.config), "detector": asdict(self.gaps.detector), "weights": weights}

    def _batch(self, events: ak.Array) -> ak.Array:
        hits = to_voxels(events, self.gaps.detector)
        ends, lines, problem = pose(hits, self.gaps)
        with torch.inference_mode():
            filling = self.filler(problem.to(self.device))
        probability, energy, error = (v.cpu() for v in (filling.probability, filling.energy, filling.error))
        kept = choose(problem, probability, self.gaps.n, self.config)
        event, gap = problem.event[kept], problem.gap[kept]
        where = self.gaps.detector.centre(problem.coords[kept].numpy())
        columns = {f"fill_{axis}": (event, where[:, i]) for i, axis in enumerate("xyz")}
        columns |= {
            "fill_e": (event, energy[kept].numpy()),
            "fill_e_err": (event, error[kept].numpy()),
            "fill_prob": (event, probability[kept].numpy()),
            "fill_gap": (event, gap.numpy()),
        }
        columns |= self._seen_gaps(ends, lines, event, gap)
        # What is left out as unlikely still holds energy: a delta ray that nobody can place, on average.
        seen, number = columns["gap_id"]
        key = seen * self.gaps.n + torch.from_numpy(number)
        whole = torch.zeros(len(events) * self.gaps.n).index_add(
            0, problem.event * self.gaps.n + problem.gap, probability * energy
        )
        columns["gap_e"] = seen, whole[key].numpy()
        n = len(events)
        fields = {
            name: events[name] if name in ak.fields(events) else np.zeros(n, np.int64)
            for name in ("run", "subrun", "event")
        }
        for name, (of, values) in columns.items():
            fields[name] = ak.unflatten(values, np.bincount(of.numpy(), minlength=n))
        return ak.zip({b.name: ak.values_astype(fields[b.name], b.dtype) for b in INFILL.branches}, depth_limit=1)

    def _seen_gaps(self, ends: Ends, lines: Lines, event: Tensor, gap: Tensor) -> dict[str, tuple[Tensor, np.ndarray]]:
        """The group ``ngap``: gaps that hits lie next to, or that something was filled into (event, gap per voxel)."""
        n = self.gaps.n
        seen, filled = torch.unique(torch.cat([ends.event * n + ends.gap, event * n + gap])), event * n + gap
        linked = lines.linked
        # A joined pair counts for the gap between its ends, once.
        joined = torch.bincount(
            torch.searchsorted(seen, lines.event[linked] * n + lines.gap[linked]), minlength=len(seen)
        )
        of, number = seen // n, (seen % n).numpy()
        wide = self.gaps.width[number] > self.filler.settings.widest
        return {
            "gap_id": (of, number),
            "gap_joined": (of, joined.numpy()),
            "gap_alone": (of, (~torch.isin(seen, filled)).numpy()),
            "gap_wide": (of, wide),
        }


def to_voxels(events: ak.Array, detector: LArDetector) -> Voxels:
    """The hits of checked events; hits in the same voxel are summed [MeV]."""
    counts = ak.num(events["hit_x"]).to_numpy()
    flat = {name: ak.flatten(events[name]).to_numpy() for name in ("hit_x", "hit_y", "hit_z", "hit_e")}
    position = np.stack([flat["hit_x"], flat["hit_y"], flat["hit_z"]], 1)
    event = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    energy = torch.from_numpy(flat["hit_e"].astype(np.float32))
    return Voxels.make(torch.from_numpy(detector.index(position)), energy, event, len(counts), detector.shape)


def pose(hits: Voxels, gaps: Gaps) -> tuple[Ends, Lines, Problem]:
    """From hits to what the network is asked: ends of tracks, lines through gaps, candidates."""
    ends = find_ends(hits, gaps)
    lines = find_lines(ends, hits, gaps)
    curve = bend(lines, ends.position, ends.direction)
    return ends, lines, make_problem(hits, gaps, lines, curve, ends.hits)
