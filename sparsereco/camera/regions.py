"""Regions of a frame that are worth keeping: boxes around what a selector took, enlarged, merged, as polygons.

The edge of pixel x is at x - 0.5 and x + 0.5; regions are made of whole macro-pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import awkward as ak
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects
from shapely import Polygon
from skimage.draw import polygon2mask
from skimage.measure import label

from sparsereco.camera.config import RegionConfig
from sparsereco.camera.significance import BIN


@dataclass(frozen=True)
class Regions:
    """The regions of a frame."""

    polygons: list[Polygon]
    """(R) outlines without holes; x, y [pixel]."""
    label: NDArray[np.int64]  # (h, w) of macro-pixels: the region's number from 1, 0 outside
    score: NDArray[np.float64]  # (R,) best score inside


def find_regions(
    points: NDArray[np.int64], score: NDArray[np.float64], shape: tuple[int, int], settings: RegionConfig
) -> Regions:
    """Regions around points.

    Args:
        points: (N, 2) y, x of macro-pixels.
        score: (N,) how far a point is from noise.
        shape: rows and columns of macro-pixels.
        settings: how boxes are made.
    """
    if not len(points):
        return Regions([], np.zeros(shape, np.int64), np.zeros(0))
    kept = np.zeros(shape, bool)
    kept[tuple(points.T)] = True
    # A box per cell that a component lies in: a single one around a long track would be mostly empty.
    component = label(kept, connectivity=2)[tuple(points.T)]
    _, box = np.unique(np.column_stack([component, points // settings.cell]), axis=0, return_inverse=True)
    low, high = np.full((box.max() + 1, 2), max(shape)), np.zeros((box.max() + 1, 2), int)
    np.minimum.at(low, box, points)
    np.maximum.at(high, box, points + 1)
    low, high = np.maximum(low - settings.margin, 0), np.minimum(high + settings.margin, shape)
    inside = np.zeros(shape, bool)
    for (top, left), (bottom, right) in zip(low, high, strict=True):
        inside[top:bottom, left:right] = True
    inside = binary_fill_holes(inside)
    number, regions = label(inside, connectivity=1, return_num=True)

    outlines = [
        _outline(number[where] == region, [side.start for side in where])
        for region, where in enumerate(find_objects(number), 1)
    ]
    best = np.full(regions, -np.inf)
    np.maximum.at(best, number[tuple(points.T)] - 1, score)
    return Regions(outlines, number, best)


def _outline(mask: NDArray[np.bool_], corner: list[int]) -> Polygon:
    """Polygon around a connected part of macro-pixels without holes, whose box begins at y, x of ``corner``."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (y, left), (_, right) = np.nonzero(steps == 1), np.nonzero(steps == -1)  # of the runs of each row
    top, left, right = y + corner[0], left + corner[1], right + corner[1]
    rows = shapely.box(*(BIN * side - 0.5 for side in (left, top, right, top + 1)))
    return shapely.union_all(rows).normalize()


def label_pixels(polygons: list[NDArray], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Which polygon the centre of each pixel lies in.

    Args:
        polygons: (C, 2) x, y of the corners of each [pixel]; they do not overlap.
        shape: rows and columns of the frame.

    Returns:
        (H, W) number of the polygon from 1, 0 outside of all.
    """
    labels = np.zeros(shape, np.int32)
    for number, corners in enumerate(polygons, 1):
        # Corners lie at the edges of pixels, half a pixel from the centres: none of those is on the line.
        low = np.maximum(np.ceil(corners.min(0)), 0).astype(int)
        high = np.minimum(np.floor(corners.max(0)) + 1, shape[::-1]).astype(int)
        inside = polygon2mask((high - low)[::-1], (corners - low)[:, ::-1])
        labels[low[1] : high[1], low[0] : high[0]][inside] = number
    return labels


def polygons_of(event: ak.Record) -> list[NDArray]:
    """(C, 2) x, y of the corners of each region of a record of the tree ``roi``."""
    corners = np.stack([np.asarray(event.corner_x), np.asarray(event.corner_y)], 1).astype(float)
    edges = np.cumsum([0, *np.asarray(event.roi_corners)])
    return [corners[first:last] for first, last in pairwise(edges)]
