"""What the vertex stages are trained on: endless streams of composed events, and the losses on them; calibration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sparsereco import bounds
from sparsereco.detector import Detector, Response
from sparsereco.sim.compose import PRESETS, TrackBank
from sparsereco.sim.geant4 import MUON
from sparsereco.sim.response import quenched
from sparsereco.sim.sample import Sample, concatenate, draw_sample
from sparsereco.vertex.config import FinderSettings
from sparsereco.vertex.crop import FAR, HALF, MAX_VOXELS, REACH, Crops, cut_crops, surroundings, within
from sparsereco.vertex.decomposer import Decomposer
from sparsereco.vertex.finder import Finder, embed, find_vertices, finder_loss
from sparsereco.vertex.hadrons import MAX_HADRONS, SPECIES, Hadrons
from sparsereco.vertex.tracks import find_tracks


@dataclass(frozen=True)
class EventStream:
    """What the events of a training look like: both presets, both responses, a light yield never quite known."""

    bank: str = "banks/vertex.npz"
    """File of `tools/simulate.py bank`."""
    conf2: float = 0.4
    """Share of batches of preset conf2; the others are conf1."""
    superfgd: float = 0.4
    """Share of batches with the superfgd response; the others are ideal."""
    light_spread: float = 0.04
    """Relative spread of the light yield from event to event."""
    crosstalk_loss: tuple[float, ...] = (1.0, 1.15, 1.15, 1.15)
    """One of these is a further factor where there is crosstalk: a light yield may be the nominal one before that loss,
    or, as mostly, after it by what leaving tracks show, as `tools/reco.py` sets it."""
    detector: Detector = field(default_factory=Detector)

    def __post_init__(self) -> None:
        bounds.share(self, "events.", "conf2", "superfgd")
        bounds.not_negative(self, "events.", "light_spread")
        bounds.positive(self, "events.", "crosstalk_loss")


SUPERFGD = Response(crosstalk=0.03, threshold=3.0, noise_hits=20.0, crossing_muons=0.3)


def draw_batch(
    stream: EventStream,
    bank: TrackBank,
    n: int,
    generator: torch.Generator,
    reach: float = float("inf"),
    pile_up: float = 0.0,
) -> tuple[Sample, Tensor]:
    """Composes ``n`` events of both responses; ``reach`` and ``pile_up`` as in `draw_sample`.

    Returns:
        The events, and (n,) bool, whether there may be light nuclei in each.
    """
    parts, light_nuclei = [], []
    realistic = round(stream.superfgd * n)
    for count, response in ((n - realistic, stream.detector.response), (realistic, SUPERFGD)):
        if count:
            light = 1 + stream.light_spread * torch.randn(count, generator=generator)
            if response.crosstalk > 0:
                factors = torch.tensor(stream.crosstalk_loss)
                light = light * factors[torch.randint(len(factors), (count,), generator=generator)]
            conf2 = bool(torch.rand((), generator=generator) < stream.conf2)
            preset = PRESETS["conf2" if conf2 else "conf1"]
            light_nuclei.append(torch.full((count,), conf2))
            detector = replace(stream.detector, response=response)
            scale = light.clamp(min=0.5)
            parts.append(draw_sample(bank, preset, detector, count, generator, scale, reach, pile_up))
    return concatenate(parts), torch.cat(light_nuclei)


def _in_voxels(position: Tensor, detector: Detector) -> Tensor:
    return (position - torch.tensor(detector.origin)) / detector.pitch


def finder_step(
    model: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of the finder on a fresh batch."""
    batch, _ = draw_batch(stream, bank, n, generator, pile_up=0.06)
    visible, _ = model.visible(batch.hits)
    logit, offset, _ = model(visible)
    return finder_loss(logit, offset, visible, _in_voxels(batch.vertex, stream.detector), batch.event)


def decomposer_batch(
    finder: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator
) -> tuple[Crops, Tensor, Tensor, Hadrons]:
    """Crops as the chain cuts them, with reconstructed tracks and the finder's embedding.

    Also whether there may be light nuclei in each, the true vertices and hadrons.
    """
    batch, light_nuclei = draw_batch(stream, bank, n, generator, reach=(FAR + 2) * stream.detector.pitch)
    vertex = _in_voxels(batch.vertex, stream.detector)
    centre = torch.floor(_guess(finder, batch, vertex, stream.detector, generator)).long()
    around = surroundings(batch.hits, torch.arange(n), centre)
    tracks, near = find_tracks(around, centre), within(around, centre, REACH)
    context = embed(finder, near)
    forget = torch.rand(n, generator=generator) < 0.1
    context = context * ~forget[near.event, None]
    crops = cut_crops(near, context, centre, tracks, MAX_VOXELS)
    return crops, light_nuclei, vertex - centre - 0.5, _true_hadrons(batch, crops, stream.detector)


def _guess(finder: Finder, batch: Sample, vertex: Tensor, detector: Detector, generator: torch.Generator) -> Tensor:
    """Where the finder puts each vertex, (V, 3) [voxels]; where it misses one, somewhere as near as it usually is.

    Crops centred by anything else would not do: a guess whose error knows nothing of the event tells the network where
    the vertex is, as nobody will in use.
    """
    with torch.no_grad():
        found = find_vertices(finder, batch.hits, FinderSettings(), detector.pitch)
    guess = vertex + 0.3 * torch.randn(vertex.shape, generator=generator)
    near = (found.position - vertex[found.event]).norm(dim=1) < _FOUND
    return guess.index_copy(0, found.event[near], found.position[near])


_FOUND = 2.0
"""A candidate this near to the truth has found it [voxels]."""


def _true_hadrons(batch: Sample, crops: Crops, detector: Detector) -> Hadrons:
    """The hadrons of each interaction, padded, and their shares in the light of the voxels of the crops."""
    particles, n = batch.particles, len(crops)
    rows = (particles.pdg != MUON).nonzero()[:, 0]
    interaction = particles.interaction[rows]
    count = torch.bincount(interaction, minlength=n)
    slot = torch.arange(len(rows)) - (count.cumsum(0) - count)[interaction]
    species = torch.zeros(n, MAX_HADRONS, dtype=torch.int64)
    for index, code in enumerate(SPECIES):
        of_code = particles.pdg[rows] == code
        species[interaction[of_code], slot[of_code]] = index
    ke = torch.zeros(n, MAX_HADRONS).index_put((interaction, slot), particles.ke[rows])
    direction = torch.zeros(n, MAX_HADRONS, 3).index_put((interaction, slot), particles.direction[rows])

    # Light of every particle in every voxel of its 7 x 7 x 7 crop; column 0 is the muon's, column 1 + s hadron s's.
    side = 2 * HALF + 1
    column = torch.zeros(len(particles.pdg), dtype=torch.int64).index_put((rows,), 1 + slot)
    made = batch.deposits
    place = torch.floor(_in_voxels(made.position, detector)).long() - crops.centre[made.event] + HALF
    inside = ((place >= 0) & (place < side)).all(1)
    cell = ((made.event * side + place[:, 0]) * side + place[:, 1]) * side + place[:, 2]
    light = torch.zeros(n * side**3, 1 + MAX_HADRONS)
    visible = quenched(made.energy, made.dedx, detector.response.birks)
    light.view(-1).index_add_(0, (cell * (1 + MAX_HADRONS) + column[batch.owner])[inside], visible[inside])
    place = crops.place + HALF
    seen = light[((crops.crop * side + place[:, 0]) * side + place[:, 1]) * side + place[:, 2]]
    return Hadrons(ke, direction, species, count, seen[:, 1:] / seen.sum(1, keepdim=True).clamp(min=1e-6))


def decomposer_step(
    model: Decomposer, finder: Finder, stream: EventStream, bank: TrackBank, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of the decomposer on a fresh batch.

    Where the CPU multiplies in bfloat16, thrice as fast as in single precision, the network's blocks do.
    """
    batch = decomposer_batch(finder, stream, bank, n, generator)
    able = torch.cpu.get_capabilities()
    with torch.autocast("cpu", torch.bfloat16, enabled=able.get("avx512_bf16") or able.get("amx_bf16") or False):
        return model.loss(*batch, generator)


def calibrate(
    model: Decomposer, finder: Finder, stream: EventStream, bank: TrackBank, batches: int, seed: int
) -> dict[str, float]:
    """Scales the model's predicted errors so that 68 % intervals hold 68 % of held-out events, and measures it there.

    Args:
        model: its calibration buffers are set, for the prior that the events have.
        finder: gives the embedding.
        stream: what to calibrate on, of one preset; its bank should hold tracks that were not trained on.
        bank: the tracks of ``stream.bank``.
        batches: of 500 events.
        seed: of the events.

    Returns:
        Medians and 68 % quantiles: ``vertex`` [mm], ``ke`` [MeV], ``angle`` [deg] above 20 MeV, and ``count``, the
        share of events with the right number of hadrons.
    """
    assert stream.conf2 in (0, 1)
    prior = int(stream.conf2)
    for buffer in (model.vertex_calibration, model.ke_calibration, model.dir_calibration, model.total_calibration):
        buffer[prior] = 1
    pitch = stream.detector.pitch
    vertex, vertex_pull, total_pull, ke, ke_pull, angle, angle_pull, energy, right = ([] for _ in range(9))
    for k in range(batches):
        generator = torch.Generator().manual_seed(seed + k)
        crops, _, true_vertex, hadrons = decomposer_batch(finder, stream, bank, 500, generator)
        found = model(crops, bool(prior))
        residual = found.vertex - true_vertex
        vertex.append(residual.norm(dim=1) * pitch)
        vertex_pull.append((residual / found.vertex_err).abs().flatten())
        total_pull.append((found.total - hadrons.ke.sum(1)).abs() / found.total_err)
        named = torch.bincount(found.crop, minlength=len(crops))
        right.append((named == hadrons.count).float())
        for crop, slot, row in _pairs(found.crop, found.ke, found.direction, hadrons):
            ke.append((found.ke[row] - hadrons.ke[crop, slot]).abs())
            ke_pull.append(ke[-1] / found.ke_err[row])
            angle.append(torch.acos((found.direction[row] * hadrons.direction[crop, slot]).sum(-1).clamp(-1, 1)))
            angle_pull.append(angle[-1] / found.dir_err[row])
            energy.append(hadrons.ke[crop, slot])
    parts = vertex, vertex_pull, total_pull, ke, ke_pull, angle, angle_pull, energy, right
    joined = [torch.cat(part) for part in parts]
    vertex_, vertex_pull_, total_pull_, ke_, ke_pull_, angle_, angle_pull_, energy_, right_ = joined
    model.vertex_calibration[prior] = vertex_pull_.quantile(0.6827)
    model.total_calibration[prior] = total_pull_.quantile(0.6827)
    model.ke_calibration[prior] = ke_pull_.quantile(0.6827)
    model.dir_calibration[prior] = angle_pull_.quantile(0.6827) / RAYLEIGH_68
    return {
        "vertex": float(vertex_.median()),
        "ke": float(ke_.quantile(0.6827)),
        "angle": float(torch.rad2deg(angle_[energy_ > 20].median())),
        "count": float(right_.mean()),
    }


def measure_track_light(
    model: Decomposer, finder: Finder, stream: EventStream, bank: TrackBank, batches: int, seed: int
) -> None:
    """Sets what tracks of the stream's detector leave per length, on ``batches`` of 500 events; see `vertex.light`."""
    nominal = replace(stream, superfgd=0.0, light_spread=0.0)
    crops = [
        decomposer_batch(finder, nominal, bank, 500, torch.Generator().manual_seed(seed + k))[0] for k in range(batches)
    ]
    model.track_light.copy_(torch.cat([crop.tracks.light for crop in crops]).median())


RAYLEIGH_68 = 1.5151
"""68.27 % of a two-dimensional normal distribution lie within this many standard deviations."""


def _pairs(crop: Tensor, ke: Tensor, direction: Tensor, hadrons: Hadrons) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Optimal pairs in each crop that has both: crop, slot of the true hadron, row of the found one."""
    pairs = []
    first = torch.searchsorted(crop, torch.arange(len(hadrons.count) + 1))
    for c in range(len(hadrons.count)):
        rows = torch.arange(int(first[c]), int(first[c + 1]))
        n = int(hadrons.count[c])
        energy = (ke[rows, None] - hadrons.ke[c, :n]).abs() / 5
        angle = torch.rad2deg(torch.acos((direction[rows] @ hadrons.direction[c, :n].T).clamp(-1, 1))) / 30
        row, slot = linear_sum_assignment(np.asarray(energy + angle))
        pairs.append((torch.full((len(row),), c), torch.as_tensor(slot), rows[torch.as_tensor(row)]))
    return pairs
