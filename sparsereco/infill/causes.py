"""What a missing voxel can be told from: whether the track that left it touches hits, and how often.

A method sees hits only. A track that touches them on two sides of a gap can be joined, one that touches them once goes
on for as long as nobody knows, and of one that touches none, as a secondary inside the gap, nothing is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sparsereco.infill.metrics import Match, Truth, VoxelSet, match, nearest, places, scores
from sparsereco.stats import fraction

TOUCH = 1.8
"""Voxels with centres this near touch, by a corner at least [voxels]."""


def unreached(truth: Truth, hits: VoxelSet) -> NDArray[np.bool_]:
    """(N,) whether a missing voxel belongs to a connected piece of them, of whatever tracks, that touches no hit."""
    where = places(truth.voxels)
    n, piece = _pieces(where)
    touched = np.zeros(n, bool)
    touched[piece[nearest(where, places(hits))[0] < TOUCH]] = True
    return ~touched[piece]


def contacts(truth: Truth, hits: VoxelSet) -> NDArray[np.int64]:
    """(N,) at how many places hits touch the connected piece of its own track that a missing voxel belongs to.

    Hits that touch each other are one place, whatever track they are of: a track beside others touches theirs.
    """
    where, live = places(truth.voxels), places(hits)
    n, piece = _pieces(np.concatenate([where, 1e4 * truth.part[:, None]], 1))
    live = live[nearest(live, where)[0] < TOUCH]
    if not len(live):
        return np.zeros(len(where), np.int64)
    _, place = _pieces(live)
    pairs = cKDTree(where).sparse_distance_matrix(cKDTree(live), TOUCH, output_type="ndarray")
    touching = np.unique(np.stack([piece[pairs["i"]], place[pairs["j"]]], 1), axis=0)
    return np.bincount(touching[:, 0], minlength=n)[piece]


def by_contacts(truth: Truth, m: Match, count: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Share of the missing voxels, and of them the share with a filled one within one voxel, by `contacts`."""
    groups = (("none", count == 0), ("one", count == 1), ("two or more", count >= 2))
    return [
        {"contacts": name, "share": fraction(own), "recall_near": fraction(m.found_near[own])} for name, own in groups
    ]


def limit(truth: Truth, count: NDArray[np.int64]) -> dict[str, Any]:
    """The scores of filling exactly the missing voxels of tracks that touch a hit: all else would be a guess."""
    known, v = count > 0, truth.voxels
    return scores(truth, match(truth, VoxelSet(v.event[known], v.coords[known], v.energy[known], v.gap[known])))


def _pieces(where: NDArray[np.float64]) -> tuple[int, NDArray[np.int64]]:
    """How many connected pieces there are of places, and the piece of each."""
    pairs = cKDTree(where).query_pairs(TOUCH, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(where), len(where)))
    n, piece = connected_components(graph, directed=False)
    return n, piece
