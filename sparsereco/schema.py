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

    def part(self, *names: str) -> Schema:
        """The same tree with some of its branches."""
        groups = {counter: tuple(b for b in group if b.name in names) for counter, group in self.groups.items()}
        return Schema(self.tree, tuple(b for b in self.scalars if b.name in names), groups)

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
            Branch("vtx_ke", "kinetic energy of all its hadrons together", "MeV"),
            Branch("vtx_ke_err", "standard error of the kinetic energy of all hadrons", "MeV"),
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
            Branch("gap_e", "expected energy in it: that of every candidate, times its probability", "MeV"),
        ),
    },
)
"""Output of the infill, same entries as the input: what is added to the hits, and the gaps that were looked at."""


def _floats(prefix: str, names: dict[str, tuple[str, str]]) -> tuple[Branch, ...]:
    """Float branches by name, with meaning and unit."""
    return tuple(Branch(prefix + name, meaning, unit) for name, (meaning, unit) in names.items())


_FRAME_ID = (
    Branch("run", "run number", dtype="int32"),
    Branch("event", "event number", dtype="int32"),
    Branch("pedestal_run", "run of the pedestal", dtype="int32"),
)

_PROFILE = {
    "amp": ("amplitude of the Gaussian", "counts"),
    "mean": ("its mean", "pixel"),
    "sigma": ("its standard deviation", "pixel"),
    "chi2": ("chi2 of the fit per degree of freedom", ""),
    "status": ("0 where the fit converged, 1 where not", ""),
}

FRAMES = Schema(
    "Events",
    (
        *_FRAME_ID,
        Branch("status", "0; 1 for a frame that could not be used, whose entry is empty", dtype="int32"),
        *_floats(
            "",
            {
                "cmos_integral": ("sum of the image", "counts"),
                "cmos_mean": ("its mean per pixel", "counts"),
                "cmos_rms": ("its standard deviation", "counts"),
                "t_pedsub": ("time for subtraction and normalisation", "s"),
                "t_zerosup": ("time for zero suppression or the network", "s"),
                "t_medianfilter": ("time for the median filter", "s"),
                "t_rebin": ("time for macro-pixels", "s"),
                "t_noisered": ("time for the noise reductor", "s"),
                "t_DBSCAN": ("time for clustering", "s"),
                "t_variables": ("time for the features", "s"),
                "t_regions": ("time for the regions", "s"),
                "lp_len": ("macro-pixels given to DBSCAN", ""),
            },
        ),
    ),
    {
        "nSc": (
            *_floats(
                "sc_",
                {
                    "size": ("pixels of the cluster, 16 per macro-pixel", ""),
                    "nhits": ("pixels that the selector chose", ""),
                    "integral": ("light, after vignetting", "counts"),
                    "corrintegral": ("light without what the threshold adds", "counts"),
                    "rms": ("standard deviation of the pixel values", "counts"),
                    "energy": ("energy by the calibration, from corrintegral", "keV"),
                    "pathlength": ("extent along the main axis", "mm"),
                    "redpixIdx": ("place of its first pixel in redpix_*; exact below 2^24", ""),
                    "theta": ("angle of the main axis to x, -pi/2 to pi/2", "rad"),
                    "length": ("extent along the main axis", "pixel"),
                    "width": ("extent across", "pixel"),
                    "longrms": ("rms along the axis, weighted by light", "pixel"),
                    "latrms": ("rms across, weighted by light", "pixel"),
                    "lfullrms": ("rms along the axis of all pixels alike", "pixel"),
                    "tfullrms": ("rms across of all pixels alike", "pixel"),
                    "lp0amplitude": ("main peak of the profile along the axis: height", "counts"),
                    "lp0prominence": ("its prominence", "counts"),
                    "lp0fwhm": ("its full width at half maximum", "pixel"),
                    "lp0mean": ("its place from the centroid", "pixel"),
                    "tp0fwhm": ("main peak across: full width at half maximum", "pixel"),
                    "xmean": ("x weighted by light", "pixel"),
                    "ymean": ("y weighted by light", "pixel"),
                    "xmin": ("smallest x", "pixel"),
                    "xmax": ("largest x", "pixel"),
                    "ymin": ("smallest y", "pixel"),
                    "ymax": ("largest y", "pixel"),
                    "pearson": ("correlation of x and y, weighted by light", ""),
                    **{f"tgauss{name}": value for name, value in list(_PROFILE.items())[:3]},
                    **{f"t{name}": value for name, value in list(_PROFILE.items())[3:]},
                    **{f"lgauss{name}": value for name, value in list(_PROFILE.items())[:3]},
                    **{f"l{name}": value for name, value in list(_PROFILE.items())[3:]},
                    "score": ("score by its selector", ""),
                },
            ),
            Branch("sc_polynomial", "order of the curve it was grown along; 0: none", dtype="int32"),
            Branch("sc_redpix_begin", "place of its first pixel in redpix_*", dtype="int32"),
        ),
        "nRedpix": (
            Branch("redpix_ix", "x of the pixel", "pixel", "int32"),
            Branch("redpix_iy", "y of the pixel", "pixel", "int32"),
            Branch("redpix_iz", "light of the pixel", "counts"),
            Branch("redpix_hit", "1 where the selector chose the pixel", dtype="uint8"),
        ),
    },
)
"""Output of the camera chain: one entry per frame; clusters in descending integral, and their pixels in that order."""

_FRAME_SIZE = (
    Branch("rows", "rows of the frame", dtype="int32"),
    Branch("columns", "columns of the frame", dtype="int32"),
)

ROIS = Schema(
    "roi",
    (*_FRAME_ID[:2], *_FRAME_SIZE),
    {
        "nRoi": (
            Branch("roi_area", "pixels inside", dtype="int32"),
            Branch("roi_nhits", "pixels inside that the selector chose", dtype="int32"),
            Branch("roi_integral", "light inside, after vignetting", "counts"),
            Branch("roi_score", "best score by the selector inside"),
            Branch("roi_corners", "corners of the polygon", dtype="int32"),
        ),
        "nCorner": (
            Branch("corner_x", "x of a corner, at the edge of a pixel; region by region, along the outline", "pixel"),
            Branch("corner_y", "y of the corner", "pixel"),
        ),
    },
)
"""Output of the camera chain, same entries as ``Events``: regions that are worth keeping, as polygons without holes."""

SPARSE_FRAMES = Schema(
    "sparse_frames",
    (*_FRAME_ID[:2], *_FRAME_SIZE),
    {
        "nPixel": (
            Branch("pixel_x", "x of a pixel", "pixel", "int32"),
            Branch("pixel_y", "y of the pixel", "pixel", "int32"),
            Branch("pixel_value", "what it showed, as in the frame", "counts"),
        )
    },
)
"""Frames reduced to their regions, row by row."""

FRAME_TRUTH = Schema(
    "event_info",
    (Branch("run", "run number", dtype="int32"), Branch("eventnumber", "event number", dtype="int32")),
    {
        "ntrack": (
            Branch("particle_type", "PDG code: 11, or of He, C, F", dtype="int32"),
            Branch("energy", "kinetic energy", "keV"),
            Branch("x_vertex", "x where it starts", "pixel"),
            Branch("y_vertex", "y where it starts", "pixel"),
            Branch("z_vertex", "distance to the GEM where it starts", "mm"),
            Branch("light", "light on the sensor", "counts"),
        ),
        "nRedpix": (
            Branch("redpix_ix", "x of a lit pixel", "pixel", "int32"),
            Branch("redpix_iy", "y of a lit pixel", "pixel", "int32"),
            Branch("redpix_iz", "its expected light", "counts"),
            Branch("redpix_track", "index of its track in the frame", dtype="int32"),
        ),
    },
)
"""Simulation of the camera: one entry per frame. A pixel is lit where at least half a count of light is expected."""
