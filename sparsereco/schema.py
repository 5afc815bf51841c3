"""The trees of input and output files, as data: reader, writer and documentation take names, types and units from here.

Branches are float32 unless they say otherwise. The jagged branches of a group have one length per event, kept in the
group's counter branch (``nhit`` for ``hit_x``, ...); the counter exists in the file only, never in an awkward array.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Branch:
    """One branch."""

    name: str
    """Its name in the file and in the awkward record."""
    meaning: str
    """What it holds, for documentation."""
    unit: str = ""
    """Unit, empty for pure numbers."""
    dtype: str = "float32"
    """NumPy name of its numeric type."""


@dataclass(frozen=True)
class Schema:
    """One tree: one entry per event."""

    tree: str
    """Name of the tree."""
    scalars: tuple[Branch, ...]
    """Branches with one value per event."""
    groups: dict[str, tuple[Branch, ...]]
    """Branches with a list per event, under the name of the counter that they share."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches in the order of the file, counters left out."""
        return self.scalars + tuple(branch for group in self.groups.values() for branch in group)

    @property
    def counters(self) -> dict[str, str]:
        """The counter of each jagged branch."""
        return {branch.name: counter for counter, group in self.groups.items() for branch in group}

    @property
    def units(self) -> dict[str, str]:
        """The unit of each branch that has one."""
        return {branch.name: branch.unit for branch in self.branches if branch.unit}


@dataclass(frozen=True)
class BranchNames:
    """What a file calls the branches of ``hits``. Nothing else about another experiment's files is in the code."""

    run: str | None = "run"
    """Branch with the run number; null where the file has none: 0 is taken."""
    subrun: str | None = "subrun"
    """Branch with the subrun number; null where the file has none: 0 is taken."""
    event: str | None = "event"
    """Branch with the event number; null where the file has none: the entry number is taken."""
    hit_x: str = "hit_x"
    """Branch with the x of the voxel centres [mm]."""
    hit_y: str = "hit_y"
    """Branch with the y of the voxel centres [mm]."""
    hit_z: str = "hit_z"
    """Branch with the z of the voxel centres [mm]."""
    hit_pe: str = "hit_pe"
    """Branch with the signals [p.e.]."""


@dataclass(frozen=True)
class ChargeBranchNames:
    """What a file calls the branches of ``hits`` of a liquid-argon detector."""

    run: str | None = "run"
    """Branch with the run number; null where the file has none: 0 is taken."""
    subrun: str | None = "subrun"
    """Branch with the subrun number; null where the file has none: 0 is taken."""
    event: str | None = "event"
    """Branch with the event number; null where the file has none: the entry number is taken."""
    hit_x: str = "hit_x"
    """Branch with the x of the voxel centres [mm]."""
    hit_y: str = "hit_y"
    """Branch with the y of the voxel centres [mm]."""
    hit_z: str = "hit_z"
    """Branch with the z of the voxel centres [mm]."""
    hit_e: str = "hit_e"
    """Branch with the energies [MeV]."""


def _axes(prefix: str, meaning: str, unit: str = "") -> tuple[Branch, Branch, Branch]:
    """The three branches ``<prefix>x``, ``<prefix>y``, ``<prefix>z``."""
    x, y, z = (Branch(f"{prefix}{axis}", f"{axis} of {meaning}", unit) for axis in "xyz")
    return x, y, z


_EVENT_ID = (
    Branch("run", "run number", dtype="int32"),
    Branch("subrun", "subrun number", dtype="int32"),
    Branch("event", "event number", dtype="int64"),
)

HITS = Schema(
    "hits",
    _EVENT_ID,
    {"nhit": (*_axes("hit_", "the voxel's centre", "mm"), Branch("hit_pe", "signal of the voxel", "p.e."))},
)
"""Input: the voxels above threshold."""

TRUTH = Schema(
    "truth",
    _EVENT_ID + _axes("vtx_", "the vertex", "mm"),
    {
        "npart": (
            Branch("part_pdg", "species: 13, 2212, 1000010020 or 1000010030", dtype="int32"),
            Branch("part_ke", "kinetic energy at the vertex", "MeV"),
            *_axes("part_d", "the direction at the vertex, a unit vector"),
        )
    },
)
"""Simulation only: the leaving muon and the hadrons, same entries as ``hits``."""

RECO = Schema(
    "reco",
    _EVENT_ID,
    {
        "nvtx": (
            *_axes("vtx_", "the vertex", "mm"),
            *_axes("vtx_s", "the vertex: standard error", "mm"),
            Branch("vtx_score", "score of the vertex (0 to 1)"),
            Branch("vtx_deviance", "deviance of the fitted image from the crop, NaN where none is fitted"),
            Branch("vtx_ndf", "degrees of freedom of the deviance, 0 where none is fitted"),
        ),
        "npart": (
            Branch("part_vtx", "index of its vertex in the event", dtype="int32"),
            Branch("part_pdg", "species: 2212, 1000010020 or 1000010030", dtype="int32"),
            Branch("part_score", "probability that the vertex has this hadron (0 to 1)"),
            Branch("part_ke", "kinetic energy at the vertex", "MeV"),
            Branch("part_ke_err", "standard error of the kinetic energy", "MeV"),
            *_axes("part_d", "the direction at the vertex, a unit vector"),
            Branch("part_dir_err", "standard error of the direction", "rad"),
        ),
        "ntrk": (
            Branch("trk_vtx", "index of its vertex in the event", dtype="int32"),
            *_axes("trk_", "the point where it leaves the crop", "mm"),
            *_axes("trk_d", "the direction there, a unit vector"),
            Branch("trk_ke", "kinetic energy, -1 where unknown", "MeV"),
        ),
        "nimg": (
            Branch("img_part", "index of the particle in the event; -1 - t for leaving track t", dtype="int32"),
            *_axes("img_", "the voxel's centre", "mm"),
            Branch("img_pe", "light of this particle in the voxel", "p.e."),
        ),
    },
)
"""Output: one entry per input event, also where nothing is found; hadrons in descending energy per vertex."""

CHARGE_HITS = Schema(
    "hits",
    _EVENT_ID,
    {"nhit": (*_axes("hit_", "the voxel's centre", "mm"), Branch("hit_e", "energy of the voxel", "MeV"))},
)
"""Input of the infill: the live voxels above threshold."""

INFILL_TRUTH = Schema(
    "truth",
    _EVENT_ID,
    {
        "nmiss": (
            *_axes("miss_", "the centre of a dead voxel that would be above threshold", "mm"),
            Branch("miss_e", "its energy", "MeV"),
            Branch("miss_gap", "the gap that it lies in", dtype="int32"),
            Branch("miss_part", "index of the particle that left most there", dtype="int32"),
        ),
        "npart": (
            Branch("part_pdg", "species", dtype="int32"),
            Branch("part_ke", "kinetic energy at the start, 0 where unknown", "MeV"),
            *_axes("part_d", "the direction at the start, a unit vector"),
        ),
    },
)
"""Simulation only: what the dead regions hide, same entries as ``hits``."""

INFILL = Schema(
    "infill",
    _EVENT_ID,
    {
        "nfill": (
            *_axes("fill_", "the voxel's centre", "mm"),
            Branch("fill_e", "energy of the voxel", "MeV"),
            Branch("fill_e_err", "standard error of the energy", "MeV"),
            Branch("fill_prob", "probability that the voxel is above threshold (0 to 1)"),
            Branch("fill_gap", "the gap that it lies in", dtype="int32"),
        ),
        "ngap": (
            Branch("gap_id", "a gap that hits lie next to", dtype="int32"),
            Branch("gap_joined", "number of pairs of track ends that were joined through it", dtype="int32"),
            Branch("gap_alone", "1 where nothing was filled in", dtype="int32"),
            Branch("gap_wide", "1 where it is wider than the network was trained for", dtype="int32"),
        ),
    },
)
"""Output of the infill, same entries as the input: what is added to the hits, and the gaps that were looked at."""
