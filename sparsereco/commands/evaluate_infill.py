"""`tools/evaluate.py infill`: filled voxels against the missing ones, and against baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError
from sparsereco.schema import CHARGE_HITS, INFILL, INFILL_TRUTH

if TYPE_CHECKING:
    import awkward as ak
    import numpy as np
    from numpy.typing import NDArray

    from sparsereco.infill.gaps import Gaps
    from sparsereco.infill.metrics import Truth, VoxelSet

TEXT = """\
Filled voxels and their energy against the truth, and against methods without a network.

Reads a tree `infill` as tools/reco.py writes it, and the trees `truth` and `hits` of the same events in the same order.
The geometry is that of the reconstruction. Prints a table; writes report.json (all numbers), report.html (one
self-contained page) and figures/ into the output directory; -f replaces them as a whole.

The probabilities are held against the truth as far down as the file has them: for their calibration over all of them
reconstruct with --min_prob 0.01 --min_peak 0.

example:
  tools/evaluate.py infill filled.root sample.root -o report

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py infill`."""
    parser = common.evaluate_parser(TEXT)
    add = parser.add_argument
    add("reco", metavar="RECO[:TREE]", help="reconstruction; tree `infill` unless named")
    add("truth", metavar="TRUTH[:TREE]", help="truth; tree `truth` unless named, hits from tree `hits`")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)

    import awkward as ak
    import numpy as np

    from sparsereco.events import check_finite, check_same_events, read_provenance
    from sparsereco.infill import causes, figures, metrics
    from sparsereco.infill.gaps import Gaps, detector_of
    from sparsereco.io import read, survey
    from sparsereco.provenance import environment
    from sparsereco.stats import fraction

    reports.check_output(args)
    reco_sources, truth_sources = survey([args.reco], INFILL), survey([args.truth], INFILL_TRUTH)
    reco, truth_events = read(args.reco, INFILL), read(args.truth, INFILL_TRUTH)
    check_same_events(reco, truth_events, args.reco, args.truth)
    check_finite(reco, INFILL, args.reco)
    check_finite(truth_events, INFILL_TRUTH, args.truth)
    if not len(truth_events) or not ak.count(truth_events["miss_e"]):
        raise InputError(
            f"{args.truth}: nothing is missing in any of its {len(truth_events):,} events", file=args.truth
        )
    made = read_provenance(reco_sources[0].file)
    detector = detector_of(made, args.reco)
    if detector is None:
        raise InputError(f"{args.reco}: its provenance describes no detector", file=args.reco)
    gaps = Gaps(detector)
    hit_events = read(truth_sources[0].file, CHARGE_HITS, "hits")
    check_same_events(hit_events, truth_events, f"tree 'hits' of {args.truth}", "the truth")

    truth = true_voxels(truth_events, gaps)
    probability = ak.flatten(reco["fill_prob"]).to_numpy().astype(np.float64)
    error = ak.flatten(reco["fill_e_err"]).to_numpy().astype(np.float64)
    filler = metrics.match(truth, voxels_of(reco, "fill", gaps))
    hits = voxels_of(hit_events, "hit", gaps)
    simple, single, length, beside = baselines(hit_events, gaps)
    # Where several tracks run through a gap, the energy there is not that of one crossing.
    single &= metrics.lone_tracks(truth)
    matches = {"network": filler} | {name: metrics.match(truth, filled) for name, filled in simple.items()}
    summary = metrics.summarise(truth, matches, single, length, gaps.detector.pitch)
    seen = np.repeat(np.arange(len(reco)), ak.num(reco["gap_id"]).to_numpy())
    stated = (ak.flatten(reco[name]).to_numpy() for name in ("gap_id", "gap_e"))
    true, expected = metrics.energies(truth, filler.filled)[0], metrics.expected_energies(truth, seen, *stated)
    used = single & (true > 0)
    touched = causes.contacts(truth, hits)
    within, pull = metrics.coverage(filler, truth, error)
    calibration = metrics.calibration(probability, filler.exact >= 0)
    mistakes, mistakes_beside = metrics.mistakes(truth, filler.filled, beside)
    summary |= {
        "expected_energy": metrics.energy_scores(true[used], expected[used]),
        "coverage": within,
        "calibration": calibration,
        "unreached": fraction(causes.unreached(truth, hits)),
        "by_contacts": causes.by_contacts(truth, filler, touched),
        "limit": causes.limit(truth, touched),
        "mistakes": mistakes,
        "mistakes_beside": mistakes_beside,
    }
    shown = most_telling(truth)
    pictures = {
        "counts": figures.voxel_counts(truth, {name: matches[name] for name in ("network", "straight line")}),
        "energy": figures.energy(truth, {name: matches[name] for name in ("network", "straight line")}, single),
        "joined": figures.joined_by_angle(summary["methods"]),
        "calibration": figures.calibration(calibration, pull),
        "display": figures.display(truth, hits, filler.filled, shown),
    }

    inputs = [
        {"file": source.file, "tree": source.tree, "uuid": source.uuid, "entries": source.entries}
        for source in (*reco_sources, *truth_sources)
    ]
    reports.write_report(
        args,
        reports.Report(
            "infill",
            "Infill against truth",
            f"{args.reco} against {args.truth}, {len(truth_events):,} events; errors are statistical, one sigma",
            figures.headline(summary),
            figures.sections(summary),
            pictures,
            summary,
            {**environment(["evaluate.py", *argv]), "inputs": inputs, "reconstruction": made},
        ),
    )


def voxels_of(events: ak.Array, prefix: str, gaps: Gaps) -> VoxelSet:
    """The voxels of a group of branches; their gaps by the geometry."""
    import awkward as ak
    import numpy as np

    from sparsereco.infill.metrics import VoxelSet

    counts = ak.num(events[f"{prefix}_x"]).to_numpy()
    position = np.stack([ak.flatten(events[f"{prefix}_{axis}"]).to_numpy() for axis in "xyz"], 1)
    coords = gaps.detector.index(position)
    energy = ak.flatten(events[f"{prefix}_e"]).to_numpy().astype(np.float64)
    return VoxelSet(np.repeat(np.arange(len(events)), counts), coords, energy, gaps.of(coords))


def true_voxels(events: ak.Array, gaps: Gaps) -> Truth:
    """What is missing; the geometry must agree about where."""
    import awkward as ak
    import numpy as np

    from sparsereco.infill.metrics import Truth

    voxels = voxels_of(events, "miss", gaps)
    if (voxels.gap < 0).any():
        event = int(voxels.event[voxels.gap < 0][0])
        raise InputError(f"entry {event} of the truth has missing voxels where the reconstruction's detector is live")
    n_parts = ak.num(events["part_pdg"]).to_numpy()
    first = np.cumsum(n_parts) - n_parts
    direction = np.stack([ak.flatten(events[f"part_d{axis}"]).to_numpy() for axis in "xyz"], 1).astype(np.float64)
    bounds = [gaps.bounds(gap) for gap in range(gaps.n_regions)]
    axis = [0 if pair is None else int((pair[1] - pair[0]).argmin()) for pair in bounds]
    drift = "xyz".index(gaps.detector.channels.drift)
    return Truth(
        voxels,
        ak.flatten(events["miss_part"]).to_numpy() + first[voxels.event],
        np.repeat(np.arange(len(events)), n_parts),
        ak.flatten(events["part_pdg"]).to_numpy(),
        direction,
        len(events),
        gaps.width,
        np.array(axis + [(drift + 1) % 3] * (gaps.n - gaps.n_regions)),
    )


def baselines(
    events: ak.Array, gaps: Gaps, batch: int = 100
) -> tuple[dict[str, VoxelSet], NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]:
    """What methods without a network fill.

    Returns:
        Voxels by method; (n_events, G) whether exactly one pair of ends was joined there, the length of that line
        [voxels], and whether hits lie beside the gap.
    """
    import numpy as np
    import torch

    from sparsereco.infill import baselines as simple
    from sparsereco.infill.chain import to_voxels
    from sparsereco.infill.ends import find_ends
    from sparsereco.infill.metrics import VoxelSet
    from sparsereco.infill.tracks import find_lines

    parts: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    shape = (len(events), gaps.n)
    pairs, length, beside = np.zeros(shape, int), np.zeros(shape), np.zeros(shape, bool)
    for start in range(0, len(events), batch):
        hits = to_voxels(events[start : start + batch], gaps.detector)
        ends = find_ends(hits, gaps)
        lines = find_lines(ends, hits, gaps)
        linked = lines.linked.numpy()
        where = lines.event.numpy()[linked] + start, lines.gap.numpy()[linked]
        np.add.at(pairs, where, 1)
        length[where] = lines.length.numpy()[linked]
        beside[ends.event.numpy() + start, ends.gap.numpy()] = True
        for name, filled in (
            ("straight line", simple.straight_lines(ends, lines, hits, gaps, lone=False)),
            ("straight line, lone ends too", simple.straight_lines(ends, lines, hits, gaps, lone=True)),
            ("reflection", simple.reflection(ends, lines, hits, gaps)),
            ("nothing", simple.nothing()),
        ):
            row = filled.event + start, filled.coords, filled.energy.double(), filled.gap
            parts.setdefault(name, []).append(row)
    sets = {
        name: VoxelSet(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))
        for name, rows in parts.items()
    }
    return sets, pairs == 1, length, beside


def most_telling(truth: Truth, number: int = 3) -> list[int]:
    """Events to show: of those with something missing, the ones at even places in the order of how much."""
    import numpy as np

    count = np.bincount(truth.voxels.event, minlength=truth.n_events)
    order = np.argsort(count, kind="stable")[np.sort(count) > 0]
    places = np.linspace(0.4, 0.9, number) * (len(order) - 1)
    return [int(event) for event in dict.fromkeys(order[places.astype(int)].tolist())]


COMMAND = common.Command("missing voxels in liquid argon", TEXT, parser, run)
