"""Numbers that compare a vertex reconstruction with the truth.

`compare` lines both up once; `summarise` turns the comparison into plain numbers for a report. Residuals are
reconstructed minus true. Medians, spreads (68.27 % of the absolute residuals) and their errors: see `stats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import awkward as ak
import numpy as np

from sparsereco.kinematics import particle_name, track_range
from sparsereco.matching import (
    Hadrons,
    Pairs,
    best_vertex,
    optimal_partners,
    pair,
    rank_partners,
    reco_hadrons,
    true_hadrons,
)
from sparsereco.stats import (
    ONE_SIGMA,
    Estimate,
    confusion,
    fraction,
    median,
    percent,
    precision,
    profile,
    rate,
    recall,
    spread,
)

NEAR_VERTEX = 20.0
"""A vertex closer to the true one than this counts as found [mm]."""
FAST_HADRON = 20.0
"""Hadrons above this true kinetic energy [MeV] enter the headline angle; slower ones often stay in one voxel."""
LONG_HADRON = 10.0
"""Hadrons above this true kinetic energy [MeV] enter the headline species; slower ones all look alike."""
RAYLEIGH_68 = float(np.sqrt(-2 * np.log(1 - ONE_SIGMA)))
"""68.27 % of the angles lie within this many standard errors per transverse axis (1.515)."""
RANGE_EDGES = np.array([0, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100])
"""Bins of the true range [mm]."""


@dataclass(frozen=True)
class Comparison:
    """Truth and reconstruction of E events side by side."""

    true: Hadrons
    reco: Hadrons
    optimal: Pairs
    """Matched for the smallest disagreement."""
    rank: Pairs
    """Matched by rank in energy."""
    true_total: np.ndarray
    """(E,) kinetic energy of all hadrons [MeV]."""
    reco_total: np.ndarray
    """(E,) that of the vertex with the highest score [MeV], 0 where none is found."""
    total_err: np.ndarray
    """(E,) its standard error [MeV], NaN where there is no vertex."""
    true_vertex: np.ndarray
    """(E, 3) [mm]."""
    reco_vertex: np.ndarray
    """(E, 3) vertex with the highest score [mm], NaN where there is none."""
    vertex_err: np.ndarray
    """(E, 3) its standard errors [mm]."""
    nearest: np.ndarray
    """(E,) distance from the true vertex to the nearest reconstructed one [mm], inf where there is none."""

    @property
    def distance(self) -> np.ndarray:
        """(E,) distance of the best vertex to the true one [mm], NaN where there is none."""
        return np.linalg.norm(self.reco_vertex - self.true_vertex, axis=1)


def compare(truth: ak.Array, reco: ak.Array) -> Comparison:
    """Line up events that have the same entries.

    Args:
        truth: events of schema `truth`.
        reco: events of schema `reco`, one per event of `truth` and in the same order.

    Raises:
        ValueError: the numbers of events differ.
    """
    if len(truth) != len(reco):
        raise ValueError(f"expected as many reconstructed as true events, got {len(reco)} and {len(truth)}")
    true, found = true_hadrons(truth), reco_hadrons(reco)
    true_vertex = np.stack([ak.to_numpy(truth[f"vtx_{axis}"]) for axis in "xyz"], axis=1).astype(np.float64)
    best = _of_best_vertex(reco, "vtx_ke", "vtx_ke_err", *(f"vtx_{kind}{axis}" for kind in ("", "s") for axis in "xyz"))
    squares = sum((reco[f"vtx_{axis}"] - truth[f"vtx_{axis}"]) ** 2 for axis in "xyz")
    return Comparison(
        true,
        found,
        pair(true, found, optimal_partners),
        pair(true, found, rank_partners),
        true.ke.sum(1),
        np.nan_to_num(best[:, 0]),
        best[:, 1],
        true_vertex,
        best[:, 2:5],
        best[:, 5:],
        np.sqrt(ak.to_numpy(ak.fill_none(ak.min(squares, axis=1), np.inf)).astype(np.float64)),
    )


def _of_best_vertex(reco: ak.Array, *branches: str) -> np.ndarray:
    """(E, branches) of the vertex with the highest score, NaN where there is none."""
    best = best_vertex(reco)
    chosen = ak.local_index(reco.vtx_score, axis=1) == best
    columns = [ak.fill_none(ak.firsts(reco[branch][chosen]), np.nan) for branch in branches]
    return np.stack([ak.to_numpy(column) for column in columns], axis=1).astype(np.float64)


def species_confusion(pairs: Pairs) -> tuple[list[int], np.ndarray]:
    """PDG codes that occur, in ascending order, and counts [reconstructed, true] of the pairs.

    The last row holds the true hadrons without partner, the last column the reconstructed ones.
    """
    codes = [int(pdg) for pdg in np.union1d(pairs.true_pdg[pairs.has_true], pairs.reco_pdg[pairs.has_reco])]
    position = {pdg: i for i, pdg in enumerate(codes)} | {0: len(codes)}
    reco_class, true_class = (
        np.array([position[int(pdg)] for pdg in column], np.int64) for column in (pairs.reco_pdg, pairs.true_pdg)
    )
    return codes, confusion(reco_class, true_class, len(position))


def energy_edges(energies: np.ndarray) -> np.ndarray:
    """Twelve bins from 0 to the largest energy, but at least to 60 MeV, in whole MeV."""
    return np.linspace(0, 12 * np.ceil(max(60.0, energies.max(initial=0)) / 12), 13)


def summarise(
    comparison: Comparison,
    energy_baselines: Mapping[str, np.ndarray] | None = None,
    vertex_baselines: Mapping[str, np.ndarray] | None = None,
) -> dict:
    """All numbers of a report as nested dicts of numbers, arrays and the dataclasses of `stats`.

    Args:
        comparison: of E events.
        energy_baselines: (E,) total hadronic kinetic energy [MeV] by name of the method.
        vertex_baselines: (E, 3) vertex [mm], NaN where there is none, by name of the method.
    """
    energy_baselines, vertex_baselines = energy_baselines or {}, vertex_baselines or {}
    return {
        "events": len(comparison.true_total),
        "table": headline(comparison, energy_baselines),
        "total_energy": _total_energy(comparison),
        "hadron_energy": {"optimal": _hadron_energy(comparison.optimal), "rank": _hadron_energy(comparison.rank)},
        "number": _number(comparison),
        "species": _species(comparison.optimal),
        "unmatched": _unmatched(comparison.optimal),
        "direction": {"optimal": _direction(comparison.optimal), "rank": _direction(comparison.rank)},
        "vertex": _vertex(comparison),
        "calibration": _calibration(comparison),
        "baselines": _baselines(comparison, energy_baselines, vertex_baselines),
    }


def headline(comparison: Comparison, energy_baselines: Mapping[str, np.ndarray]) -> list[dict]:
    """The rows that sum up a reconstruction: name, unit and `Estimate`."""
    pairs, matched = comparison.optimal, comparison.optimal.matched
    distance = comparison.distance
    total = comparison.reco_total - comparison.true_total
    fast = matched & (pairs.true_ke > FAST_HADRON)
    rows = [
        (f"vertex within {NEAR_VERTEX:.0f} mm", "%", percent(fraction(distance < NEAR_VERTEX))),
        ("vertex distance in 3D, median", "mm", median(distance[np.isfinite(distance)])),
        ("hadron number right", "%", percent(fraction(comparison.true.count == comparison.reco.count))),
        ("kinetic energy of matched hadrons, spread", "MeV", spread((pairs.reco_ke - pairs.true_ke)[matched])),
        ("total hadronic kinetic energy, spread", "MeV", spread(total)),
    ]
    if energy_baselines:
        spreads = {name: spread(energy - comparison.true_total) for name, energy in energy_baselines.items()}
        best = min(spreads, key=lambda name: spreads[name].value)
        rows.append((f"total energy, spread of the best baseline ({best})", "MeV", spreads[best]))
        ratio = spread_ratio(total, energy_baselines[best] - comparison.true_total)
        rows.append(("total energy, spread over that of the best baseline", "", ratio))
    long = matched & (pairs.true_ke > LONG_HADRON)
    if len(np.unique(pairs.true_pdg[long])) > 1:
        right = fraction((pairs.true_pdg == pairs.reco_pdg)[long])
        rows.append((f"species right, hadrons above {LONG_HADRON:.0f} MeV", "%", percent(right)))
    angles = median(np.degrees(pairs.angle[fast]))
    rows.append((f"direction of hadrons above {FAST_HADRON:.0f} MeV, median", "deg", angles))
    return [{"name": name, "unit": unit, "estimate": estimate} for name, unit, estimate in rows]


def spread_ratio(residuals: np.ndarray, reference: np.ndarray, resamplings: int = 200) -> Estimate:
    """Ratio of two spreads over the same events; error from a bootstrap, as both share the events' fluctuations.

    Not finite where the spread in the denominator is 0.

    Args:
        residuals: (N,).
        reference: (N,) residuals of the method in the denominator.
        resamplings: bootstrap samples, drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    n = len(residuals)
    draws = [rng.integers(0, n, n) for _ in range(resamplings)] if n else []
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [spread(residuals[draw]).value / np.float64(spread(reference[draw]).value) for draw in draws]
        value = spread(residuals).value / np.float64(spread(reference).value)
        error = float(np.std(ratios)) if n else np.nan
    return Estimate(float(value), error, n)


def _by_multiplicity(multiplicity: np.ndarray, residuals: np.ndarray) -> dict:
    numbers = np.unique(multiplicity)
    chosen = {str(n): residuals[multiplicity == n] for n in numbers}
    return {n: {"median": median(r), "spread": spread(r)} for n, r in chosen.items()}


def _total_energy(c: Comparison) -> dict:
    residuals = c.reco_total - c.true_total
    return {
        "unit": "MeV",
        "median": median(residuals),
        "spread": spread(residuals),
        "against_true_energy": profile(c.true_total, residuals, energy_edges(c.true_total)),
        "by_multiplicity": _by_multiplicity(c.true.count, residuals),
    }


def _hadron_energy(pairs: Pairs) -> dict:
    residuals, matched = pairs.reco_ke - pairs.true_ke, pairs.matched
    real = pairs.has_true
    return {
        "unit": "MeV",
        "median": median(residuals[matched]),
        "spread": spread(residuals[matched]),
        "spread_with_unmatched": spread(residuals),
        "against_true_energy": profile(pairs.true_ke[matched], residuals[matched], energy_edges(pairs.true_ke)),
        "by_multiplicity": _by_multiplicity(pairs.multiplicity[matched], residuals[matched]),
        "by_multiplicity_with_unmatched": _by_multiplicity(pairs.multiplicity, residuals),
        "matched_share": fraction(matched[real]),
    }


def _number(c: Comparison) -> dict:
    counts = confusion(c.reco.count, c.true.count)
    return {
        "right": fraction(c.true.count == c.reco.count),
        "counts": counts,
        "recall": recall(counts),
        "precision": precision(counts),
    }


def _species(pairs: Pairs) -> dict:
    codes, counts = species_confusion(pairs)
    return {
        "pdg": codes,
        "labels": [particle_name(code) for code in codes],
        "right": fraction((pairs.true_pdg == pairs.reco_pdg)[pairs.matched]),
        "counts": counts,
        "recall": recall(counts),
        "precision": precision(counts),
    }


def _unmatched(pairs: Pairs) -> dict:
    missed, invented = ~pairs.has_reco[pairs.has_true], ~pairs.has_true[pairs.has_reco]
    true_ke, reco_ke = pairs.true_ke[pairs.has_true], pairs.reco_ke[pairs.has_reco]
    return {
        "false_negatives": fraction(missed),
        "false_positives": fraction(invented),
        "false_negatives_against_true_energy": rate(true_ke, missed, energy_edges(true_ke)),
        "false_positives_against_reco_energy": rate(reco_ke, invented, energy_edges(reco_ke)),
    }


def _direction(pairs: Pairs) -> dict:
    matched, degrees = pairs.matched, np.degrees(pairs.angle)
    length = track_range(pairs.true_ke, pairs.true_pdg)
    return {
        "unit": "deg",
        "median": median(degrees[matched]),
        "median_fast": median(degrees[matched & (pairs.true_ke > FAST_HADRON)]),
        "spread": spread(degrees[matched]),
        "median_with_unmatched": median(degrees),
        "against_true_energy": profile(pairs.true_ke[matched], degrees[matched], energy_edges(pairs.true_ke)),
        "against_true_range": profile(length[matched], degrees[matched], RANGE_EDGES),
        "against_true_range_with_unmatched": profile(length, degrees, RANGE_EDGES),
    }


def _vertex(c: Comparison) -> dict:
    distance = c.distance
    found = np.isfinite(distance)
    residuals = (c.reco_vertex - c.true_vertex)[found]
    return {
        "unit": "mm",
        "found": fraction(found),
        "within_20mm": fraction(distance < NEAR_VERTEX),
        "any_within_20mm": fraction(c.nearest < NEAR_VERTEX),
        "distance_median": median(distance[found]),
        "distance_68": spread(distance[found]),
        "distance_by_multiplicity": _by_multiplicity(c.true.count[found], distance[found]),
        "axes": {a: {"median": median(r), "spread": spread(r)} for a, r in zip("xyz", residuals.T, strict=True)},
    }


def pulls(c: Comparison) -> dict[str, np.ndarray]:
    """Residual / standard error of everything that has a partner and an error.

    An axis of the vertex, the energy of a hadron and the total energy are unit Gaussians when calibrated. The angle is
    divided by `RAYLEIGH_68` standard errors, so that 68.27 % of its values, too, lie below 1.
    """
    located, pairs, summed = (c.vertex_err > 0).all(1), c.optimal, c.total_err > 0
    vertex = (c.reco_vertex - c.true_vertex)[located] / c.vertex_err[located]
    known = pairs.has_errors
    return {
        **{f"vertex_{axis}": column for axis, column in zip("xyz", vertex.T, strict=True)},
        "hadron_energy": (pairs.reco_ke - pairs.true_ke)[known] / pairs.ke_err[known],
        "direction": pairs.angle[known] / (RAYLEIGH_68 * pairs.dir_err[known]),
        "total_energy": (c.reco_total - c.true_total)[summed] / c.total_err[summed],
    }


def _calibration(c: Comparison) -> dict:
    values = pulls(c)
    true_ke = c.optimal.true_ke[c.optimal.has_errors]
    edges = energy_edges(true_ke)
    return {
        **{
            name: {"coverage": fraction(np.abs(pull) < 1), "pull_median": median(pull), "pull_spread": spread(pull)}
            for name, pull in values.items()
        },
        "hadron_energy_coverage_against_energy": rate(true_ke, np.abs(values["hadron_energy"]) < 1, edges),
        "direction_coverage_against_energy": rate(true_ke, values["direction"] < 1, edges),
    }


def _baselines(c: Comparison, energies: Mapping[str, np.ndarray], vertices: Mapping[str, np.ndarray]) -> dict:
    distances = {name: np.linalg.norm(position - c.true_vertex, axis=1) for name, position in vertices.items()}
    return {
        "total_energy": {
            name: {"median": median(energy - c.true_total), "spread": spread(energy - c.true_total)}
            for name, energy in energies.items()
        },
        "vertex": {
            name: {"within_20mm": fraction(d < NEAR_VERTEX), "distance_median": median(d[np.isfinite(d)])}
            for name, d in distances.items()
        },
    }
