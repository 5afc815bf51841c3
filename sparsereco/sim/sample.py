"""Samples of full-detector events with their truth: drawn, deposited and seen through the response."""

from __future__ import annotations

from dataclasses import dataclass

import awkward as ak
import numpy as np
import torch
from torch import Tensor

from sparsereco.detector import Detector
from sparsereco.schema import HITS, TRUTH, Schema
from sparsereco.sim.compose import Particles, Preset, TrackBank, deposits, draw_crossing_muons, draw_interactions, merge
from sparsereco.sim.response import Deposits, respond
from sparsereco.voxels import Voxels


@dataclass(frozen=True)
class Sample:
    """Events and what is true about them; interaction i lies in event ``event[i]``."""

    hits: Voxels
    vertex: Tensor  # (V, 3) [mm]
    event: Tensor  # (V,) int64, ascending
    particles: Particles
    deposits: Deposits  # of the particles, with the interaction as event
    owner: Tensor  # (N,) particle of each deposit


def draw_sample(
    bank: TrackBank,
    preset: Preset,
    detector: Detector,
    n: int,
    generator: torch.Generator,
    light_scale: Tensor | None = None,
    reach: float = float("inf"),
    pile_up: float = 0.0,
) -> Sample:
    """Draws ``n`` events with one interaction each.

    Args:
        light_scale: (n,) factor on the light yield of each event.
        reach: only deposits this close to the vertex [mm].
        pile_up: share of interactions that move into the next event, which leaves empty events and double ones.
    """
    vertex, particles = draw_interactions(bank, preset, detector, n, generator)
    made, owner = deposits(bank, particles, n, reach)
    event = (torch.arange(n) + (torch.rand(n, generator=generator) < pile_up)).clamp(max=n - 1)
    seen = Deposits(made.position, made.energy, made.dedx, event[made.event], n)
    if detector.response.crossing_muons > 0:
        crossing = draw_crossing_muons(bank, detector, n, detector.response.crossing_muons, generator)
        seen = merge(seen, deposits(bank, crossing, n)[0])
    return Sample(respond(seen, detector, light_scale, generator), vertex, event, particles, made, owner)


def concatenate(samples: list[Sample]) -> Sample:
    """One sample of all the events, in the order given."""
    hits = [sample.hits for sample in samples]
    first = torch.tensor([0, *(len(voxels) for voxels in hits)]).cumsum(0)[:-1].tolist()
    interactions = torch.tensor([0, *(len(sample.vertex) for sample in samples)]).cumsum(0)[:-1].tolist()
    tracks = torch.tensor([0, *(len(sample.particles.pdg) for sample in samples)]).cumsum(0)[:-1].tolist()
    rows = torch.tensor([0, *(len(voxels.coords) for voxels in hits)]).cumsum(0)[:-1].tolist()
    voxels = Voxels(
        torch.cat([voxels.coords for voxels in hits]),
        torch.cat([voxels.feats for voxels in hits]),
        torch.cat([hits[0].offsets[:1], *(v.offsets[1:] + row for v, row in zip(hits, rows, strict=True))]),
        hits[0].grid,
    )

    def shifted(values: list[Tensor], shifts: list[int]) -> Tensor:
        return torch.cat([value + shift for value, shift in zip(values, shifts, strict=True)])

    def joined(kind: str, name: str) -> Tensor:
        return torch.cat([getattr(getattr(sample, kind), name) for sample in samples])

    particles = Particles(
        shifted([sample.particles.interaction for sample in samples], interactions),
        *(joined("particles", name) for name in ("track", "pdg", "ke", "rotation", "start")),
    )
    made = Deposits(
        position=joined("deposits", "position"),
        energy=joined("deposits", "energy"),
        dedx=joined("deposits", "dedx"),
        event=shifted([sample.deposits.event for sample in samples], interactions),
        n_events=sum(sample.deposits.n_events for sample in samples),
    )
    return Sample(
        voxels,
        torch.cat([sample.vertex for sample in samples]),
        shifted([sample.event for sample in samples], first),
        particles,
        made,
        shifted([sample.owner for sample in samples], tracks),
    )


def to_records(sample: Sample, detector: Detector, first_event: int = 0, run: int = 1) -> tuple[ak.Array, ak.Array]:
    """The trees ``hits`` and ``truth`` of a sample without pile-up, numbered from ``first_event`` in a ``run``."""
    n = len(sample.hits)
    number = {"run": np.full(n, run), "subrun": np.zeros(n), "event": np.arange(first_event, first_event + n)}
    centre = detector.centre(sample.hits.coords.numpy())
    hits = {f"hit_{axis}": centre[:, i] for i, axis in enumerate("xyz")} | {"hit_pe": sample.hits.signal.numpy()}
    counts = sample.hits.offsets.diff().numpy()

    vertex = {f"vtx_{axis}": sample.vertex[:, i].numpy() for i, axis in enumerate("xyz")}
    direction = sample.particles.direction
    parts = {"part_pdg": sample.particles.pdg.numpy(), "part_ke": sample.particles.ke.numpy()}
    parts |= {f"part_d{axis}": direction[:, i].numpy() for i, axis in enumerate("xyz")}
    per_event = torch.bincount(sample.particles.interaction, minlength=n).numpy()

    jagged_hits = {name: ak.unflatten(value, counts) for name, value in hits.items()}
    jagged_parts = {name: ak.unflatten(value, per_event) for name, value in parts.items()}
    return _typed(HITS, number | jagged_hits), _typed(TRUTH, number | vertex | jagged_parts)


def _typed(schema: Schema, fields: dict[str, ak.Array]) -> ak.Array:
    return ak.zip({b.name: ak.values_astype(fields[b.name], b.dtype) for b in schema.branches}, depth_limit=1)
