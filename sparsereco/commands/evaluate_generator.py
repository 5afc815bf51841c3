"""`tools/evaluate.py generator`: how like those of Geant4 are generated images of single particles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from sparsereco import cli
from sparsereco.commands import common, reports
from sparsereco.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsereco.vertex.discrimination import Verdict
    from sparsereco.vertex.fidelity import Trial

TEXT = """\
Generated images of single particles against those of Geant4, per species: the area under the ROC curve of two
classifiers that try to tell them apart (0.5: they cannot), distances of distributions, and a check of gradients.

Every comparison is also made for Geant4 against itself, which shows what is noise, for the formulas without training,
and for a look-up of the nearest image of --library particles of the training bank. With --dense also for the published
design, a dense image from a transformer, in the middle 5 x 5 x 5 voxels, and there for the generator, too. Needs no
reconstruction.

examples:
  tools/evaluate.py generator --bank banks/test.npz --library-bank banks/vertex.npz -o report
  tools/baselines/dense_generator.py --bank banks/vertex.npz -o runs/dense_generator.safetensors --minutes 30
  tools/evaluate.py generator --dense runs/dense_generator.safetensors -o report

exit codes: 0 done, 1 failed while running, 2 wrong usage, file or setting, 130 interrupted
"""

SHOWN = ("voxels", "charge", "along, mean", "across, mean")
"""Summaries whose distributions are drawn."""


def parser() -> jsonargparse.ArgumentParser:
    """Options of `evaluate.py generator`."""
    one = common.evaluate_parser(TEXT)
    add = one.add_argument
    add("--bank", default="banks/test.npz", metavar="FILE", help="tracks that the generator was not trained on")
    add("--library-bank", default="banks/vertex.npz", metavar="FILE", help="tracks of the look-up")
    add("--library", type=int, default=50_000, metavar="N", help="images of each species in the look-up")
    add("--weights", type=str | None, metavar="FILE", help="checkpoint of the generator; the shipped one by default")
    add("--dense", type=str | None, metavar="FILE", help="checkpoint of tools/baselines/dense_generator.py")
    add(
        "-n",
        "--number",
        type=int,
        default=8000,
        metavar="N",
        help="images of each species and kind, to learn and to judge",
    )
    add("--epochs", type=int, default=8, metavar="N", help="of the training of the CNN")
    add("--seed", type=int, default=1, metavar="N", help="seed of all random numbers")
    return one


def run(args: jsonargparse.Namespace, argv: list[str]) -> None:
    """Compares, prints and writes."""
    cli.set_up_logging(args.quiet, args.verbose)
    for name, least in (("number", 100), ("library", 1), ("epochs", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: expected at least {least}, got {getattr(args, name)}")
    common.check_banks([args.bank, args.library_bank])

    import torch

    from sparsereco import checkpoint
    from sparsereco.kinematics import particle_name
    from sparsereco.provenance import environment
    from sparsereco.sim.bank import Bank
    from sparsereco.sim.compose import TrackBank
    from sparsereco.vertex import fidelity
    from sparsereco.vertex.adversary import ImageStream, draw_singles
    from sparsereco.vertex.dense_generator import MARGIN, DenseGenerator, DenseGeneratorConfig
    from sparsereco.vertex.discrimination import by_cnn, by_trees
    from sparsereco.vertex.generator import GENERATED, Generator, GeneratorConfig

    reports.check_output(args)
    weights = Path(args.weights or checkpoint.WEIGHTS / "generator.safetensors")
    model = checkpoint.load(weights, Generator, GeneratorConfig)
    dense = checkpoint.load(args.dense, DenseGenerator, DenseGeneratorConfig) if args.dense else None
    stream = ImageStream()
    bank, library = (TrackBank(Bank.load(path)) for path in (args.bank, args.library_bank))
    learn, judge = fidelity.halves(bank)

    rows: list[tuple[str, ...]] = []
    numbers: dict[str, Any] = {}
    pictures: dict[str, Figure] = {}
    with cli.progress("generator", len(GENERATED), "species", args.quiet) as advance:
        for index, code in enumerate(GENERATED):
            name = particle_name(code)
            random = torch.Generator().manual_seed(args.seed * 1_000_003 + index)
            species = torch.full((args.number,), index)
            sources: dict[str, fidelity.Source] = {
                "generator": fidelity.generated(model, stream.detector),
                "formulas": fidelity.generated(Generator(model.settings), stream.detector),
                "look-up": fidelity.Lookup(draw_singles(stream, library, torch.full((args.library,), index), random)),
            }
            if dense:
                sources["generator, middle"] = fidelity.generated(model, stream.detector, MARGIN)
                sources["dense, middle"] = dense.images
            fit, test = (fidelity.draw_trials(sources, stream, half, species, random) for half in (learn, judge))
            found: dict[str, Any] = {}
            for source, trial in test.items():
                trees, cnn = by_trees(fit[source], trial, args.seed), by_cnn(fit[source], trial, args.epochs, args.seed)
                apart = fidelity.distances(trial.made, trial.real, fidelity.ENERGY_EDGES[code])
                found[source] = {"trees": trees, "cnn": cnn, "distances": apart}
                rows.append((f"{name}: {source}", f"{_area(trees)}, {_area(cnn)}", f"{2 * args.number:,}"))
            ke = 600.0 if index == len(GENERATED) - 1 else 40.25
            gradients = fidelity.gradient_errors(model, index, ke, random)
            numbers[name] = {"sources": found, "gradient_errors": gradients}
            for part, trials in by_window(test).items():
                pictures[f"summaries_{name}{part}"] = draw_summaries(f"{name}{part.replace('_', ', ')}", trials)
            pictures[f"examples_{name}"] = draw_examples(code, test, stream.detector.pitch)
            pictures[f"roc_{name}"] = draw_roc(name, found)
            advance(1)

    provenance = {
        **environment(["evaluate.py", *argv]),
        "weights_sha256": checkpoint.sha256(weights),
        "dense": checkpoint.metadata(args.dense) if args.dense else None,
    }
    reports.write_report(
        args,
        reports.Report(
            "generator",
            "Generated images against Geant4",
            f"{weights.name} against Geant4, {args.number:,} images of each species and kind; "
            "areas by trees and by a CNN",
            tuple(rows),
            sections(numbers, tuple(rows), pictures),
            pictures,
            {"species": numbers},
            provenance,
        ),
    )


def _area(verdict: Verdict) -> str:
    return f"{verdict.auc.value:.3f} +- {verdict.auc.error:.3f}"


def by_window(trials: Mapping[str, Trial]) -> dict[str, dict[str, Trial]]:
    """The trials on whole images, "", and those on the middle of them, "_middle", where there are any."""
    parts: dict[str, dict[str, Trial]] = {}
    for source, trial in trials.items():
        part = "_middle" if source.endswith(", middle") else ""
        parts.setdefault(part, {})[source] = trial
    return parts


def sections(numbers: Mapping[str, Any], rows: tuple[tuple[str, ...], ...], figures: Mapping[str, object]) -> list[Any]:
    """What the page shows, in this order."""
    from sparsereco.report import Section

    shown = [Section("Told apart from Geant4", header=("what", "area by trees, by CNN", "images"), rows=rows)]
    for name, one in numbers.items():
        shown.append(Section(f"{name}: ROC curves", figure=f"roc_{name}"))
        for part, title in (("", "summaries of the images"), ("_middle", "summaries of the middle 5 x 5 x 5")):
            if f"summaries_{name}{part}" in figures:
                shown.append(Section(f"{name}: {title}", figure=f"summaries_{name}{part}"))
        text = "The same particles by each source, summed along z, with a straight track from their start."
        shown.append(Section(f"{name}: examples", text, figure=f"examples_{name}"))
        apart = {source: values["distances"] for source, values in one["sources"].items()}
        table = tuple(
            (quantity, *(", ".join(f"{value:.3f}" for value in apart[source][quantity]) for source in apart))
            for quantity in apart["Geant4"]
        )
        text = "Wasserstein distances in units of the standard deviation, in three bins of rising energy."
        shown.append(Section(f"{name}: distances", text, header=("quantity", *apart), rows=table))
        errors = tuple((what, f"{100 * error:.2f} %") for what, error in one["gradient_errors"].items())
        text = "Automatic against numerical gradients of the expected image, relative error."
        shown.append(Section(f"{name}: gradients", text, header=("with respect to", "error"), rows=errors))
    return shown


def draw_roc(name: str, found: Mapping[str, Any]) -> Figure:
    """ROC curves of both classifiers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, classifier in zip(figure.subplots(1, 2, sharey=True), ("trees", "cnn"), strict=True):
        for source, values in found.items():
            verdict = values[classifier]
            axes.plot(verdict.false_rate, verdict.true_rate, label=f"{source} {_area(verdict)}")
        axes.set(xlabel="Geant4's images taken for made ones", title=f"{name}, by {classifier}", aspect="equal")
        axes.legend(loc="lower right", fontsize="small")
    figure.axes[0].set_ylabel("made images recognised")
    return figure


def draw_examples(code: int, trials: Mapping[str, Trial], pitch: float, columns: int = 5) -> Figure:
    """A few particles of a PDG code, of rising energy, as each source shows them; voxels of ``pitch`` [mm]."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from sparsereco.kinematics import particle_name, track_range

    figure = Figure(figsize=(2 * columns, 2 * len(trials) + 0.4), layout="constrained")
    panels = figure.subplots(len(trials), columns, squeeze=False)
    ke = next(iter(trials.values())).made.ke.numpy()
    chosen = np.argsort(ke)[np.linspace(0, len(ke) - 1, columns + 2).astype(int)[1:-1]]
    for row, (source, trial) in zip(panels, trials.items(), strict=True):
        made = trial.made
        for axes, i in zip(row, chosen, strict=True):
            light = made.measured[i].sum(2).T.numpy()
            mesh = axes.pcolormesh(np.ma.masked_equal(light, 0), norm=LogNorm(1, 3000), cmap="viridis")
            start, end = (
                made.start[i],
                made.start[i] + float(track_range(ke[i], np.array(code))) / pitch * made.direction[i],
            )
            axes.plot([start[0], end[0]], [start[1], end[1]], color="#d55e00", lw=1)
            axes.plot(start[0], start[1], "o", color="#d55e00", ms=3)
            axes.set(aspect="equal", xlim=(0, len(light)), ylim=(0, len(light)), xticks=[], yticks=[])
        row[0].set_ylabel(source, fontsize="small")
    for axes, i in zip(panels[0], chosen, strict=True):
        axes.set_title(f"{ke[i]:.0f} MeV", fontsize="small")
    figure.colorbar(mesh, ax=panels, label="p.e.", shrink=0.6)
    figure.suptitle(particle_name(code))
    return figure


def draw_summaries(name: str, trials: Mapping[str, Trial]) -> Figure:
    """Distributions of some summaries, of Geant4 and of the sources."""
    import numpy as np
    from matplotlib.figure import Figure

    from sparsereco.vertex.fidelity import summaries

    figure = Figure(figsize=(10, 6), layout="constrained")
    shown = {
        "Geant4, others": next(iter(trials.values())).real,
        **{source: trial.made for source, trial in trials.items()},
    }
    columns = {source: summaries(images) for source, images in shown.items()}
    for axes, quantity in zip(figure.subplots(2, 2).flat, SHOWN, strict=True):
        reference = columns["Geant4, others"][quantity]
        low, high = np.quantile(reference, [0.001, 0.999])
        edges = np.arange(low - 0.5, high + 1.5) if quantity == "voxels" else np.linspace(low, high, 41)
        for source, values in columns.items():
            axes.hist(values[quantity], edges, histtype="step", label=source)
        unit = {"voxels": "", "charge": " [p.e.]"}.get(quantity, " [voxels]")
        axes.set(xlabel=quantity + unit, ylabel="images")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(f"{name}: images as measured")
    return figure


COMMAND = common.Command("generated images of single particles against Geant4", TEXT, parser, run)
