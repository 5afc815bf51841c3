"""LArCV files in: sparse tensors and clusters in three dimensions, as LArCV 2 writes them, as records of ``hits``.

A file has a tree per product: ``sparse3d_NAME_tree`` with an object `larcv::EventSparseTensor3D` per entry, or
``cluster3d_NAME_tree`` with an `EventClusterVoxel3D`, which ROOT has split into a branch per number. A voxel is known
by one number: x runs fastest, then y, then z, in the grid that the object's `Voxel3DMeta` describes
(DeepLearnPhysics/larcv2, larcv/core/DataFormat/Voxel3DMeta.cxx).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from sparsereco.errors import BranchError, InputError
from sparsereco.io import Chunk, expand, iterate, open_source
from sparsereco.schema import CHARGE_HITS, Branch, Schema

MM = 10.0
"""Millimetres in the files' unit of length, and the number that stands for that unit in the files."""
CENTIMETRES = 1


def _floats(*names: str) -> tuple[Branch, ...]:
    return tuple(Branch(name, "of the grid", dtype="float64") for name in names)


TENSOR = Schema(
    "sparse3d_pcluster_tree",
    (
        Branch("_run", "run number", dtype="int32"),
        Branch("_subrun", "subrun number", dtype="int32"),
        Branch("_event", "event number", dtype="int64"),
        *(Branch(f"_meta._{axis}num", "voxels along the axis", dtype="int64") for axis in "xyz"),
        *_floats(*(f"_meta._p1.{axis}" for axis in "xyz"), *(f"_meta._{axis}len" for axis in "xyz")),
        Branch("_meta._unit", "unit of length: 0 unknown, 1 cm, 2 wires and ticks", dtype="int32"),
    ),
    {
        "_voxel_v": (
            Branch("_voxel_v._id", "number of the voxel", dtype="int64"),
            Branch("_voxel_v._value", "its energy", "MeV"),
        )
    },
)
"""What is read of a sparse tensor; by default that of the energy that particles left."""
CLUSTERS = Schema("cluster3d_pcluster_tree", TENSOR.scalars, {})
"""What is read of clusters, beside their voxels."""
VOXELS = "_voxel_vv._voxel_v"


def from_larcv(files: Iterable[str], step_size: int) -> Iterator[Chunk]:
    """Reads sparse tensors, or clusters where the tree is called so; of clusters that share a voxel it gets the sum.

    Args:
        files: ``FILE[:TREE]``, local paths, globs or URLs.
        step_size: events per chunk.

    Raises:
        InputError: what `io.iterate` raises, or a voxel outside of its grid, a grid that is not in cm, or an energy
            that is none.
        BranchError: the tree holds neither, or what is not split.
    """
    try:
        for path, tree in expand(files):
            read = _clusters if (tree or "").startswith("cluster3d_") else _tensors
            for chunk in read(path if tree is None else f"{path}:{tree}", step_size):
                yield replace(chunk, events=_hits(chunk))
    except BranchError as error:
        raise BranchError(
            f"tree '{error.tree}' of {error.file} has no readable branch '{error.branch}': expected a sparse tensor or "
            "clusters of LArCV 2 (sparse3d_NAME_tree, cluster3d_NAME_tree), split into their numbers; images, and "
            "objects that are not split, cannot be read",
            file=error.file,
            tree=error.tree,
            branch=error.branch,
        ) from error


def _tensors(file: str, step_size: int) -> Iterator[Chunk]:
    """Chunks of `TENSOR`."""
    return iterate([file], TENSOR, step_size=step_size)


def _clusters(file: str, step_size: int) -> Iterator[Chunk]:
    """Chunks of `TENSOR` with the voxels of all clusters of an event together."""
    ((path, tree),) = expand([file])
    with open_source(path, CLUSTERS, tree) as source:
        for chunk in iterate([file], CLUSTERS, step_size=step_size):
            try:
                packed = source.handle[VOXELS].array(
                    uproot.AsJagged(uproot.AsDtype("u1")), chunk.entry_start, chunk.entry_stop, array_cache=None
                )
                clusters = [_unpacked(ak.to_numpy(entry).tobytes()) for entry in packed]
            except (uproot.KeyInFileError, ValueError, struct.error) as error:
                raise BranchError(str(error), file=path, tree=source.tree, branch=VOXELS) from error
            events = dict(zip(ak.fields(chunk.events), ak.unzip(chunk.events), strict=True))
            for branch, column in zip(TENSOR.groups["_voxel_v"], (0, 1), strict=True):
                lists = [cluster[column] for cluster in clusters]
                flat = np.concatenate([np.zeros(0, branch.dtype), *lists]).astype(branch.dtype)
                events[branch.name] = ak.unflatten(flat, [len(one) for one in lists])
            yield replace(chunk, events=ak.zip(events, depth_limit=1))


def _unpacked(entry: bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers and energies of the voxels in the clusters of an event, in ascending order, each number once.

    ROOT has put the members of the voxels of a cluster one after the other: a head of 12 bytes for all clusters (size
    and version, with a bit each that says so, and a checksum of the class), then of each cluster how many voxels it
    has, their numbers, and their energies (`TStreamerInfo::ReadBuffer`, case ``kSTL``).

    Raises:
        ValueError: it is not so, or (`struct.error`) there is less than that.
    """
    size, version = struct.unpack_from(">IH", entry)
    if size != (0x40000000 | len(entry) - 4) or not version & 0x4000:
        raise ValueError("the voxels are not written member by member")
    place = 12
    numbers, energies = [np.zeros(0, np.int64)], [np.zeros(0)]
    while place < len(entry):
        (n,) = struct.unpack_from(">I", entry, place)
        numbers.append(np.frombuffer(entry, ">i8", n, place + 4).astype(np.int64))
        energies.append(np.frombuffer(entry, ">f4", n, place + 4 + 8 * n).astype(np.float64))
        place += 4 + 12 * n
    number, inverse = np.unique(np.concatenate(numbers), return_inverse=True)
    return number, np.bincount(inverse, np.concatenate(energies), len(number)).astype(np.float64)


def _hits(chunk: Chunk) -> ak.Array:
    """The voxels of a chunk of `TENSOR` by place and energy; the grid may be another one in each event."""
    events = chunk.events
    voxels, energies = events["_voxel_v._id"], events["_voxel_v._value"]
    counts = np.asarray(ak.num(voxels))
    lengths = np.asarray(ak.num(energies))
    _check(chunk, counts == lengths, "values of voxels", lengths, "as many as voxels")
    number, energy = (np.asarray(ak.flatten(column)) for column in (voxels, energies))
    entry = np.repeat(np.arange(len(events)), counts)
    shape, origin, pitch = (
        np.stack([np.asarray(events[name.format(axis)]) for axis in "xyz"], 1)
        for name in ("_meta._{}num", "_meta._p1.{}", "_meta._{}len")
    )
    unit = np.asarray(events["_meta._unit"])
    _check(chunk, (counts == 0) | (unit == CENTIMETRES), "unit of length", unit, f"{CENTIMETRES} (cm)")
    sized = (shape > 0).all(1) & (pitch > 0).all(1) & np.isfinite(pitch).all(1) & np.isfinite(origin).all(1)
    _check(chunk, (counts == 0) | sized, "grid of voxels", shape, "at least one along each axis, of finite size")
    x, y, z = shape[entry].T
    inside = (number >= 0) & (number < x * y * z)
    _check(chunk, inside, "voxel", number, "the number of one in its grid", entry)
    _check(chunk, np.isfinite(energy) & (energy >= 0), "energy", energy, "finite, at least 0 MeV", entry)
    index = np.stack([number % x, number // x % y, number // (x * y)], 1)
    centre = MM * (origin[entry] + (index + 0.5) * pitch[entry])
    fields = {name: events[f"_{name}"] for name in ("run", "subrun", "event")}
    fields |= {f"hit_{axis}": ak.unflatten(centre[:, i], counts) for i, axis in enumerate("xyz")}
    fields["hit_e"] = energies
    return ak.zip({b.name: ak.values_astype(fields[b.name], b.dtype) for b in CHARGE_HITS.branches}, depth_limit=1)


def _check(
    chunk: Chunk, good: np.ndarray, what: str, values: np.ndarray, expected: str, entry: np.ndarray | None = None
) -> None:
    """Raises an error for the first value that is not good, of an entry each or of the entries given."""
    if not good.all():
        row = int(good.argmin())
        place = chunk.entry_start + (row if entry is None else int(entry[row]))
        raise InputError(
            f"{chunk.file}: entry {place} of tree '{chunk.tree}': {what} {values[row].tolist()}, expected {expected}",
            file=chunk.file,
            tree=chunk.tree,
            entry=place,
        )
