"""`tools/evaluate.py embed`: classes of patches that were found without labels, against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError
from sparsereco.schema import FRAME_TRUTH, ROIS

if TYPE_CHECKING:
    import awkward as ak
    import numpy as np
    import torch

TEXT = """\
Unsupervised classes of the regions of camera frames, against the truth: electron recoils, nuclear recoils, noise.

Reads the tree `roi` as tools/reco.py camera writes it, and the frames with their tree `event_info`. A patch of 100 x
100 pixels around every region is an electron or a nucleus by the track that left most light in it; half as many patches
of noise are cut where no track is. Compares Deep Embedded Clustering with k-means on the pixels and on the numbers of
the autoencoder that it starts from, by the adjusted Rand index (1: as the truth, 0: by chance).

example:
  tools/evaluate.py embed reco.root run.root --pedestal pedmap.root -o report

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or branch, 130 interrupted
"""

KINDS = ("electron", "nucleus", "noise")
"""The true classes."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py embed`."""
    parser = common.evaluate_parser(TEXT)
    add = parser.add_argument
    add("reco", metavar="RECO", help="reconstruction with the tree `roi`")
    add("frames", metavar="FRAMES", help="ROOT file with the frames and the tree `event_info`")
    add("--pedestal", type=str | None, metavar="FILE", help="pedmap file; needed")
    add("--weights", type=str | None, metavar="FILE", help="checkpoint (.safetensors) instead of the shipped one")
    return parser


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)
    if args.pedestal is None:
        raise InputError("no pedestal given: expected --pedestal FILE, a pedmap file")

    import numpy as np
    import torch

    from sparsereco import checkpoint
    from sparsereco.camera import plots
    from sparsereco.camera.embed import Embedder, EmbedderConfig, kmeans
    from sparsereco.provenance import environment
    from sparsereco.report import Section

    reports.check_output(args)
    path = args.weights or checkpoint.WEIGHTS / "embed.safetensors"
    model = checkpoint.load(path, Embedder, EmbedderConfig)
    info = checkpoint.metadata(path)
    patches, kind, shown = label_patches(args)
    if len(patches) < 10 * model.settings.classes:
        raise InputError(f"expected at least {10 * model.settings.classes} patches, {args.reco} has {len(patches)}")

    with torch.inference_mode():
        prepared = model.prepare(patches)
        found = model(patches).argmax(1).numpy()
        start = model.start(prepared[:, None]).numpy()
    classes = model.settings.classes
    answers = {
        "Deep Embedded Clustering": found,
        "k-means on the autoencoder's numbers": kmeans(start, classes, 1).labels_,
        "k-means on prepared pixels": kmeans(prepared.flatten(1).numpy(), classes, 1).labels_,
        "k-means on pixels": kmeans(patches.flatten(1).numpy(), classes, 1).labels_,
    }
    table = np.zeros((classes, len(KINDS)), int)
    np.add.at(table, (found, kind), 1)
    scores = {name: rand_index(kind, answer) for name, answer in answers.items()}
    rows = index_rows(scores, info.get("silhouettes", {}))
    facts = f"{args.reco} against {args.frames}, {len(patches):,} patches, {classes} classes"
    counts = tuple((f"class {i}", *map(str, row)) for i, row in enumerate(table.tolist()))
    sections = [
        Section("Summary", "Errors: standard deviation over 200 resamplings.", ("quantity", "value", "entries"), rows),
        Section("Classes", "Patches by class and truth.", ("", *KINDS), counts),
        Section("A frame", "The regions of the first frame, by class.", figure="frame"),
        Section("Patches", "The first patches of each class, as they are drawn.", figure="patches"),
    ]
    with torch.inference_mode():
        labels = model(shown.patches).argmax(1).numpy() if len(shown.patches) else np.zeros(0, int)
    figures = {
        "frame": plots.classes_on_frame(shown.macro, shown.regions, labels, classes),
        "patches": plots.class_examples(prepared.numpy(), found, classes),
    }
    numbers = {"adjusted_rand": scores, "classes": table, "silhouettes": info.get("silhouettes", {})}
    record = {**environment(["evaluate.py", *argv]), "weights": checkpoint.sha256(path)}
    title = "Classes of camera patches against truth"
    reports.write_report(args, reports.Report("embed", title, facts, rows, sections, figures, numbers, record))


@dataclass(frozen=True)
class Shown:
    """What the figure of a frame needs."""

    macro: torch.Tensor  # (h, w) significance
    regions: ak.Record
    patches: torch.Tensor  # (R, 25, 25) one per region


def label_patches(args: jsonargparse.Namespace) -> tuple[torch.Tensor, np.ndarray, Shown]:
    """Patches around all regions and as many of noise, their true kinds, and the first frame with regions.

    Raises:
        InputError: no region at all, or the files are of different frames.
    """
    import numpy as np
    import torch
    from shapely import Polygon

    from sparsereco.camera.embed import PATCH, cut_patches
    from sparsereco.camera.pedestal import check_frame, read_pedestal
    from sparsereco.camera.regions import label_pixels, polygons_of
    from sparsereco.camera.significance import BIN, Normaliser
    from sparsereco.frames import iterate_frames
    from sparsereco.io import read
    from sparsereco.sim.camera import ELECTRON

    pedestal, regions, truth = read_pedestal(args.pedestal), read(args.reco, ROIS), read(args.frames, FRAME_TRUTH)
    if regions.event.tolist() != truth.eventnumber.tolist():
        raise InputError(
            f"{args.reco} ({len(regions):,} frames) and {args.frames} ({len(truth):,}) are not of the same"
        )
    normaliser = Normaliser(*(torch.from_numpy(a) for a in (pedestal.mean, pedestal.sigma, pedestal.hot)))
    maps, kinds, shown = [], [], None
    rng = np.random.default_rng(1)
    for frame, roi, true in zip(iterate_frames([args.frames]), regions, truth, strict=True):
        check_frame(frame, pedestal)
        macro = normaliser(torch.from_numpy(frame.image.astype("f4"))).macro
        y, x, light = (np.asarray(true[f"redpix_i{axis}"]) for axis in "yxz")
        outlines = polygons_of(roi)
        region = label_pixels(outlines, frame.image.shape)[y, x]
        middles = [np.array(Polygon(outline).centroid.coords[0])[::-1] / BIN for outline in outlines]
        centres, kind = [], []
        for number in range(1, len(outlines) + 1):
            inside = region == number
            if not inside.any():
                continue  # a false region; noise patches are cut below
            track = np.bincount(np.asarray(true.redpix_track)[inside], light[inside]).argmax()
            centres.append(middles[number - 1])
            kind.append(0 if true.particle_type[track] == ELECTRON else 1)
        patches = cut_patches(macro, np.array(centres).reshape(-1, 2))
        if shown is None and len(centres):
            shown = Shown(macro, roi, cut_patches(macro, np.array(middles)))
        lit = np.zeros(macro.shape, bool)
        lit[y // BIN, x // BIN] = True
        noise: list[np.ndarray] = []
        while len(noise) < (len(centres) + 1) // 2:
            place = rng.uniform(PATCH, np.array(macro.shape) - PATCH)
            top, left = np.rint(place).astype(int) - PATCH // 2
            if not lit[top : top + PATCH, left : left + PATCH].any():
                noise.append(place)
        maps += [patches, cut_patches(macro, np.array(noise).reshape(-1, 2))]
        kinds += [*kind, *[2] * len(noise)]
    if shown is None:
        raise InputError(f"{args.reco} has no region with a track")
    return torch.cat(maps), np.array(kinds), shown


def rand_index(kind: np.ndarray, answer: np.ndarray) -> Any:
    """Adjusted Rand index with the standard deviation over resampled patches."""
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    from sparsereco.stats import Estimate

    rng, n = np.random.default_rng(1), len(kind)
    draws = [rng.integers(n, size=n) for _ in range(200)]
    spread = np.std([adjusted_rand_score(kind[rows], answer[rows]) for rows in draws])
    return Estimate(float(adjusted_rand_score(kind, answer)), float(spread), n)


def index_rows(scores: dict[str, Any], silhouettes: dict[str, float]) -> tuple[tuple[str, str, str], ...]:
    """Rows of the table."""
    from sparsereco.stats import format_estimate

    rows = [(f"adjusted Rand index, {name}", format_estimate(e), f"{e.count:,}") for name, e in scores.items()]
    rows += [(f"mean silhouette with {k} classes, in training", f"{value:.3f}", "") for k, value in silhouettes.items()]
    return tuple(rows)


COMMAND = common.Command("classes of camera patches, found without labels", TEXT, parser, run)
