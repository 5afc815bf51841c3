"""`VertexChain`: full-detector events in, vertices, hadrons, leaving tracks and their images out.

import uproot
from sparsereco import VertexChain

chain = VertexChain()
events = uproot.open("run7.root:hits").arrays()
light = chain.measure_light(events[:500])
if light.usable:
    chain.light_scale = light.scale
reco = chain(events)
for event in reco:
    print(event.event, event.vtx_x.tolist(), event.part_pdg.tolist(), event.part_ke.tolist())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import torch
from torch import Tensor

from sparsereco import checkpoint
from sparsereco.checks import check_hits
from sparsereco.schema import RECO
from sparsereco.vertex.config import VertexConfig
from sparsereco.vertex.crop import MAX_VOXELS, REACH, Crops, Tracks, cut_crops, surroundings, within
from sparsereco.vertex.decomposer import Decomposer, DecomposerConfig
from sparsereco.vertex.expected import measured_light
from sparsereco.vertex.finder import Finder, FinderConfig, Vertices, embed, find_vertices
from sparsereco.vertex.generator import Generator, GeneratorConfig
from sparsereco.vertex.hadrons import SPECIES, Decomposition
from sparsereco.vertex.halo import TrackLight, track_light
from sparsereco.vertex.light import LightYield, light_yield
from sparsereco.vertex.ranges import stopping_energy
from sparsereco.vertex.refine import Refined, Refiner
from sparsereco.vertex.tracks import find_tracks
from sparsereco.voxels import VoxelError, Voxels, rank_in_group

MIN_SHARE = 0.02
"""A smaller share of a voxel's light is left out of a particle's image."""


@dataclass(frozen=True)
class Around:
    """What is found before crops are taken apart."""

    hits: Voxels
    vertices: Vertices
    centre: Tensor  # (V, 3) int64, central voxel of each crop
    around: Voxels  # the hits around each crop, one event per crop
    tracks: Tracks


@dataclass(frozen=True)
class Prepared:
    """What the decomposer and the refinement work from."""

    near: Around
    crops: Crops

    def light(self) -> Tensor:
        """(V, voxels) of all voxels of the crops [p.e.]."""
        around = self.near.around
        place = around.coords.long() - self.near.centre[around.event]
        return measured_light(place, around.signal, around.event, len(self.crops))


class VertexChain:
    """The vertex system with its weights loaded.

    Args:
        config: settings; the shipped weights by default.
        device: torch device that the networks run on.

    Raises:
        CheckpointError: weights that are missing, broken or of another class.
    """

    def __init__(self, config: VertexConfig | None = None, device: str = "cpu") -> None:
        self.config = config or VertexConfig()
        self.device = device
        self.light_scale = 1.0 if self.config.light_scale is None else self.config.light_scale
        """Signals are divided by this; `measure_light` tells what it should be."""
        self._paths = {
            "finder": Path(self.config.finder_weights or checkpoint.WEIGHTS / "finder.safetensors"),
            "decomposer": Path(self.config.decomposer_weights or checkpoint.WEIGHTS / "decomposer.safetensors"),
        }
        self.finder = checkpoint.load(self._paths["finder"], Finder, FinderConfig).to(device)
        self.decomposer = checkpoint.load(self._paths["decomposer"], Decomposer, DecomposerConfig).to(device)
        self.refiner: Refiner | None = None
        """Fits what the decomposer found to the light, if that is wanted."""
        self.fits: Counter[str] = Counter()
        """What the fits did so far: ``dropped`` starts, whose loss or derivatives were not finite; vertices that got a
        hadron ``more`` than was named, and one ``fewer``."""
        if self.config.refine:
            path = Path(self.config.generator_weights or checkpoint.WEIGHTS / "generator.safetensors")
            generator = checkpoint.load(path, Generator, GeneratorConfig)
            self._paths["generator"] = path
            detector = self.config.detector
            self.refiner = Refiner(generator, detector.response, detector.pitch, self.config.refinement, device)

    def __call__(self, events: ak.Array) -> ak.Array:
        """Reconstructs events; each is treated on its own, whatever else is in the array.

        Args:
            events: records with the fields of the tree ``hits``; ``run``, ``subrun`` and ``event`` may be missing.

        Returns:
            Records with the fields of the tree ``reco``, one per event.

        Raises:
            VoxelError: a hit outside the detector, a signal that is NaN, infinite or negative, or lists of unequal
                length.
        """
        self._check(events)
        parts = [self._batch(part) for part in self._parts(events)]
        return ak.concatenate(parts) if parts else self._batch(events)

    def provenance(self) -> dict[str, Any]:
        """Settings and hashes of the weights, as JSON values."""
        weights = {name: {"file": path.name, "sha256": checkpoint.sha256(path)} for name, path in self._paths.items()}
        config = asdict(self.config) | {"light_scale": self.light_scale}
        return {"config": config, "weights": weights}

    def measure_light(self, events: ak.Array) -> LightYield:
        """The light yield of events, over the nominal one, from the tracks that leave their vertices.

        Half a per cent needs some hundred events with a leaving muon. Raises what a call raises.
        """
        self._check(events)
        tracks = [self._around(part).tracks.light for part in self._parts(events)]
        light = torch.cat(tracks).cpu() if tracks else torch.zeros(0)
        return light_yield(light * self.light_scale, float(self.decomposer.track_light))

    def track_light(self, events: ak.Array) -> TrackLight:
        """Light on and beside the tracks that leave the vertices of events: what `halo.fit_response` works from.

        Signals are taken as they are, whatever ``light_scale``. Raises what a call raises.
        """
        self._check(events)
        nears = [self._around(part) for part in self._parts(events)]
        found = TrackLight.joined([track_light(near.around, near.centre, near.tracks) for near in nears])
        return TrackLight(found.on.cpu() * self.light_scale, found.beside.cpu() * self.light_scale)

    def _on_device(self) -> AbstractContextManager[object]:
        """Where new tensors are made. On the CPU they are anyway, and torch's context costs time in every call."""
        return nullcontext() if self.device == "cpu" else torch.device(self.device)

    def _check(self, events: ak.Array) -> None:
        bad = check_hits(events, self.config.detector)
        if bad:
            raise VoxelError(f"event {bad[0].offset}: {bad[0].branch} has {bad[0].value:g}, expected {bad[0].expected}")

    def _parts(self, events: ak.Array) -> Iterator[ak.Array]:
        """Events in portions of one forward pass each."""
        for start in range(0, len(events), self.config.batch_size):
            yield events[start : start + self.config.batch_size]

    def _around(self, events: ak.Array) -> Around:
        """Vertices of events, and the hits and leaving tracks around each."""
        with torch.inference_mode(), self._on_device():
            hits = self._voxels(events)
            vertices = find_vertices(self.finder, hits, self.config.finder, self.config.detector.pitch)
            centre = torch.minimum(
                torch.floor(vertices.position).long().clamp(min=0), torch.tensor(self.config.detector.shape) - 1
            )
            around = surroundings(hits, vertices.event, centre)
            tracks = find_tracks(around, centre, self.config.tracks.min_pe, self.config.tracks.max_tracks)
        return Around(hits, vertices, centre, within(around, centre, REACH), tracks)

    def prepare(self, events: ak.Array) -> Prepared:
        """Vertices, and the crops around them, of events that go through in one pass."""
        near = self._around(events)
        with torch.inference_mode(), self._on_device():
            context = embed(self.finder, near.around)
            crops = cut_crops(near.around, context, near.centre, near.tracks, MAX_VOXELS)
        return Prepared(near, crops)

    def decompose(self, crops: Crops) -> Decomposition:
        """What the decomposer makes of crops."""
        settings = self.config.decomposer
        with torch.inference_mode(), self._on_device():
            return self.decomposer(crops, settings.light_nuclei, settings.max_hadrons)

    def _batch(self, events: ak.Array) -> ak.Array:
        prepared = self.prepare(events)
        near, crops = prepared.near, prepared.crops
        found = self.decompose(crops)
        with torch.inference_mode(), self._on_device():
            pitch, min_pe = self.config.detector.pitch, self.config.tracks.min_pe
            energy = stopping_energy(near.hits, near.vertices.event, near.centre, near.tracks, pitch, min_pe)
        fitted = None
        if self.refiner is not None:
            with self._on_device():
                fitted = self.refiner(crops, prepared.light(), found)
            found = fitted.found
            self.fits.update(dropped=fitted.dropped, more=fitted.more, fewer=fitted.fewer)
        return self._records(events, near.vertices, crops, found, energy, fitted)

    def _voxels(self, events: ak.Array) -> Voxels:
        counts = ak.num(events["hit_x"]).to_numpy()
        flat = {name: ak.flatten(events[name]).to_numpy() for name in ("hit_x", "hit_y", "hit_z", "hit_pe")}
        position = np.stack([flat["hit_x"], flat["hit_y"], flat["hit_z"]], 1)
        coords = torch.from_numpy(self.config.detector.index(position))
        signal = torch.from_numpy(flat["hit_pe"].astype(np.float32) / np.float32(self.light_scale))
        event = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        return Voxels.make(coords, signal, event, len(counts), self.config.detector.shape).to(self.device)

    def _records(
        self,
        events: ak.Array,
        vertices: Vertices,
        crops: Crops,
        found: Decomposition,
        energy: Tensor,
        fitted: Refined | None,
    ) -> ak.Array:
        """Flat tensors of a batch to one record per event; ``energy`` (T,) is that of the leaving tracks [MeV]."""
        n, pitch = len(events), self.config.detector.pitch
        origin = torch.tensor(self.config.detector.origin)
        vertices, crops, found = (_on_cpu(value) for value in (vertices, crops, found))
        corner = crops.centre + 0.5  # (V, 3) centre of the crop in voxels

        # Hadrons are named in descending energy but for near-equal ones; the output is sorted strictly.
        order = torch.argsort(found.ke, descending=True, stable=True)
        order = order[torch.argsort(found.crop[order], stable=True)]
        vertex_in_event = rank_in_group(vertices.event)
        columns: dict[str, tuple[Tensor, Tensor]] = {}

        def put(prefix: str, event: Tensor, **values: Tensor) -> None:
            for name, value in values.items():
                if value.ndim == 2:
                    columns.update({f"{prefix}_{name}{axis}": (event, value[:, i]) for i, axis in enumerate("xyz")})
                else:
                    columns[f"{prefix}_{name}"] = event, value

        where = (corner + found.vertex) * pitch + origin
        deviance, ndf = torch.full((len(where),), float("nan")), torch.zeros(len(where))
        if fitted is not None:
            deviance, ndf = fitted.deviance.cpu(), fitted.ndf.cpu()
        put("vtx", vertices.event, **{"": where, "s": found.vertex_err * pitch, "score": vertices.score})
        put("vtx", vertices.event, ke=found.total.clamp(min=0), ke_err=found.total_err, deviance=deviance, ndf=ndf)
        crop = found.crop[order]
        pdg = torch.tensor(SPECIES)[found.species[order]]
        put(
            "part",
            vertices.event[crop],
            vtx=vertex_in_event[crop],
            pdg=pdg,
            score=found.score[order],
            ke=found.ke[order],
        )
        put(
            "part",
            vertices.event[crop],
            ke_err=found.ke_err[order],
            d=found.direction[order],
            dir_err=found.dir_err[order],
        )
        tracks = crops.tracks
        leaving = (corner[tracks.crop] + tracks.point) * pitch + origin
        event = vertices.event[tracks.crop]
        put(
            "trk",
            event,
            **{
                "vtx": vertex_in_event[tracks.crop],
                "": leaving,
                "d": tracks.direction,
                "ke": energy.cpu(),
            },
        )
        of_track = None if fitted is None else fitted.track_share.cpu()
        voxel, part, pe = _images(crops, found, order, vertices.event, of_track)
        event = vertices.event[crops.crop[voxel]]
        by_event = torch.argsort(event, stable=True)
        centre = ((crops.place + corner[crops.crop])[voxel] * pitch + origin)[by_event]
        pe = pe[by_event] * self.light_scale
        put("img", event[by_event], **{"part": part[by_event], "": centre, "pe": pe})

        fields = {
            name: events[name] if name in ak.fields(events) else np.zeros(n, np.int64)
            for name in ("run", "subrun", "event")
        }
        types = {branch.name: branch.dtype for branch in RECO.branches}
        fields |= {name: _by_event(event, value, n, types[name]) for name, (event, value) in columns.items()}
        return ak.zip(
            {branch.name: ak.values_astype(fields[branch.name], branch.dtype) for branch in RECO.branches},
            depth_limit=1,
        )


def _images(
    crops: Crops, found: Decomposition, order: Tensor, crop_event: Tensor, track_share: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Voxel row, particle in its event, and light of every entry of the images.

    Where nothing was fitted (no ``track_share`` (N,), or NaN), what no hadron takes is the light of the leaving track.
    """
    rank = torch.empty_like(order)
    rank[order] = rank_in_group(crop_event[found.crop[order]])
    particle = torch.zeros(len(crops), found.share.shape[1], dtype=torch.int64).index_put(
        (found.crop, found.step), rank
    )
    voxel, step = (found.share >= MIN_SHARE).nonzero(as_tuple=True)
    hadrons = voxel, particle[crops.crop[voxel], step], crops.signal[voxel] * found.share[voxel, step]

    track_rank = rank_in_group(crop_event[crops.tracks.crop])
    first = rank_in_group(crops.tracks.crop) == 0
    lead = torch.full((len(crops),), -1).index_copy(0, crops.tracks.crop[first], track_rank[first])
    taken = torch.where(found.share >= MIN_SHARE, found.share, 0.0).sum(1)
    rest = 1 - taken if track_share is None else torch.where(track_share.isnan(), 1 - taken, track_share)
    voxel = ((rest >= MIN_SHARE) & (lead[crops.crop] >= 0)).nonzero()[:, 0]
    leaving = voxel, -1 - lead[crops.crop[voxel]], crops.signal[voxel] * rest[voxel]
    voxel, part, pe = (torch.cat(pair) for pair in zip(hadrons, leaving, strict=True))
    return voxel, part, pe


def _by_event(event: Tensor, value: Tensor, n: int, dtype: str) -> ak.Array:
    """Flat values, sorted by event, to one list per event."""
    counts = np.bincount(event.numpy(), minlength=n)
    return ak.unflatten(np.ascontiguousarray(value.numpy().astype(dtype)), counts)


def _on_cpu(value: Any) -> Any:
    """A dataclass of tensors, moved to the CPU."""
    moved = {name: item.cpu() if isinstance(item, Tensor) else _on_cpu(item) for name, item in vars(value).items()}
    return type(value)(**moved)
