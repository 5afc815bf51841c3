"""Geant4 against range tables, the bank, what is composed from it, and the response of the detector."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
from conftest import ROOT

from sparsereco.detector import Detector, Response
from sparsereco.errors import InputError
from sparsereco.kinematics import track_range
from sparsereco.schema import HITS, TRUTH
from sparsereco.sim import geant4
from sparsereco.sim.bank import BIRKS, ENERGIES, FRACTIONS, Bank, _merge, make_bank
from sparsereco.sim.compose import (
    MARGIN,
    PRESETS,
    TrackBank,
    deposits,
    draw_crossing_muons,
    draw_interactions,
    merge,
    random_rotations,
)
from sparsereco.sim.geant4 import MUON, PROTON
from sparsereco.sim.response import Deposits, quenched, respond
from sparsereco.sim.sample import concatenate, draw_sample, to_records

DETECTOR = Detector()
SUPERFGD = Response(crosstalk=0.03, threshold=3.0, noise_hits=20.0, crossing_muons=0.3)

# NIST PSTAR (M. J. Berger et al., NIST Standard Reference Database 124), polystyrene of 1.06 g/cm3: kinetic energy
# [MeV], range in the continuous slowing-down approximation and projected range [g/cm2].
PSTAR = [(20.0, 0.4324, 0.4318), (40.0, 1.515, 1.513), (60.0, 3.151, 3.147)]
MM = 10 / 1.06


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digest(bank: Bank) -> str:
    return hashlib.sha256(b"".join(getattr(bank, field.name).tobytes() for field in fields(Bank))).hexdigest()


@pytest.fixture(scope="module")
def tracks(bank: Bank) -> TrackBank:
    return TrackBank(bank)


def deposited(*rows: tuple[float, float, float, float, int], dedx: float = 0.0, n_events: int = 1) -> Deposits:
    """Deposits given by x, y, z [mm], energy [MeV] and event."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    energy = table[:, 3].float()
    return Deposits(table[:, :3].float(), energy, torch.full_like(energy, dedx), table[:, 4].long(), n_events)


@pytest.mark.parametrize(("ke", "csda", "projected"), PSTAR)
def test_protons_stop_where_the_tables_say(bank: Bank, ke: float, csda: float, projected: float) -> None:
    steps = list(geant4.simulate([("proton", ke)] * 40, seed=3))
    depth = np.array([event[:, 5].max() for event in steps])
    assert depth.mean() == pytest.approx(projected * MM, rel=0.01)
    assert depth.std() / depth.mean() < 0.025  # range straggling of protons is about 1.2 %
    assert [event[:, 6].sum() for event in steps] == pytest.approx([ke] * 40)
    assert track_range(np.array([ke]), np.array([PROTON]))[0] == pytest.approx(csda * MM, rel=0.01)


def test_merged_deposits_keep_energy_light_and_centre(bank: Bank) -> None:
    steps = list(geant4.simulate([("proton", 35.0), ("mu-", 400.0), ("alpha", 20.0)], seed=4))
    position, energy, dedx, counts = _merge(steps)
    offsets = np.append(0, counts.cumsum())
    for event, start, stop in zip(steps, offsets, offsets[1:], strict=False):
        own = slice(start, stop)
        raw, length = event[:, 6], np.maximum(event[:, 7], 1e-4)
        light = raw / (1 + BIRKS * raw / length)
        merged = energy[own] / (1 + BIRKS * dedx[own])
        assert energy[own].sum() == pytest.approx(raw.sum(), rel=1e-5)
        assert merged.sum() == pytest.approx(light.sum(), rel=1e-5)
        centre = (light[:, None] * (event[:, :3] + event[:, 3:6]) / 2).sum(0) / light.sum()
        np.testing.assert_allclose(
            (merged[:, None] * position[own]).sum(0) / merged.sum(), centre, rtol=1e-4, atol=1e-3
        )


def test_a_bank_holds_every_species_at_its_energies(bank: Bank) -> None:
    assert len(bank) == 600
    assert len(bank.offsets) == 601
    for code, share in FRACTIONS.items():
        ke = bank.ke[bank.pdg == code]
        low, high = ENERGIES[code]
        assert len(ke) == round(600 * share)
        assert ke.min() >= low
        assert ke.max() <= high
        assert ke.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / np.sqrt(12 * len(ke)))
    contained = np.isin(bank.pdg, [2212, 1000010020, 1000010030, 1000020040])
    total = np.add.reduceat(bank.energy, bank.offsets[:-1])
    np.testing.assert_allclose(total[contained], bank.ke[contained], rtol=1e-4)
    assert (total <= bank.ke * 1.0001).all()
    distance = np.linalg.norm(bank.position, axis=1)
    inner = np.delete(np.arange(1, len(distance)), bank.offsets[1:-1] - 1)
    assert (np.diff(distance)[inner - 1] >= 0).all()


def test_a_bank_comes_back_from_disk(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "bank.npz"
    bank.save(path)
    assert digest(Bank.load(path)) == digest(bank)
    assert [file.name for file in path.parent.iterdir()] == ["bank.npz"]


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", position=np.zeros(3))
    (tmp_path / "text.npz").write_text("not a bank")
    for name, message in (("missing.npz", "No such file"), ("other.npz", "is no bank"), ("text.npz", "is no bank")):
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            Bank.load(tmp_path / name)


def test_the_same_seed_gives_the_same_bank_in_a_fresh_process(bank: Bank, tmp_path: Path) -> None:
    """And nothing of Geant4 reaches stdout."""
    code = f"from sparsereco.sim.bank import make_bank; make_bank(40, seed=8).save({str(tmp_path / 'bank.npz')!r})"
    fresh = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert fresh.stdout == ""
    expected = digest(Bank.load(tmp_path / "bank.npz"))
    assert digest(make_bank(40, seed=8)) == expected
    assert digest(make_bank(40, seed=9)) != expected


def test_rotations_are_rotations_and_isotropic() -> None:
    rotation = random_rotations(4000, seeded())
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(4000, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4000))
    assert rotation.mean(0).abs().max() < 5 / np.sqrt(3 * 4000)
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(trace.square().mean() - 1) < 0.1  # uniform over SO(3): <tr R> = 0, <(tr R)^2> = 1
    assert abs(trace.mean()) < 0.1


LIMITS = {"conf1": {2212: (1, 5)}, "conf2": {2212: (0, 4), 1000010020: (0, 1), 1000010030: (0, 1)}}


@pytest.mark.parametrize(("preset", "limits"), LIMITS.items())
def test_interactions_are_what_the_preset_says(tracks: TrackBank, preset: str, limits: dict) -> None:
    n = 2000
    vertex, particles = draw_interactions(tracks, PRESETS[preset], DETECTOR, n, seeded(1))
    half = torch.tensor(DETECTOR.size) / 2
    assert (vertex.abs() <= half - MARGIN).all()
    assert ((half - MARGIN - vertex.abs()).amin(0) < 5).all()
    counts = {
        code: torch.bincount(particles.interaction[particles.pdg == code], minlength=n) for code in [MUON, *limits]
    }
    assert sum(int(count.sum()) for count in counts.values()) == len(particles.pdg)
    assert (counts.pop(MUON) == 1).all()
    for code, (low, high) in limits.items():
        assert counts[code].unique().tolist() == list(range(low, high + 1))
    assert (sum(counts.values()) >= 1).all()
    assert (particles.interaction.diff() >= 0).all()
    first = torch.cat([torch.tensor([True]), particles.interaction.diff() > 0])
    assert (particles.pdg[first] == MUON).all()
    assert torch.equal(particles.ke, tracks.ke[particles.track])
    assert torch.equal(tracks.pdg[particles.track], particles.pdg)
    assert particles.direction.mean(0).abs().max() < 5 / np.sqrt(3 * len(particles.pdg))


def test_a_species_that_the_bank_lacks_is_named(tracks: TrackBank) -> None:
    with pytest.raises(ValueError, match=r"no track of PDG code 321; it has .*2212"):
        tracks.sample(torch.tensor([2212, 321]), seeded())


def test_deposits_are_turned_and_moved_tracks(tracks: TrackBank) -> None:
    _, particles = draw_interactions(tracks, PRESETS["conf1"], DETECTOR, 20, seeded(2))
    made, owner = deposits(tracks, particles, 20)
    per_particle = torch.zeros(len(particles.pdg)).index_add(0, owner, made.energy)
    protons = particles.pdg == PROTON
    torch.testing.assert_close(per_particle[protons], particles.ke[protons], rtol=1e-4, atol=1e-4)
    assert torch.equal(made.event, particles.interaction[owner])
    arm = made.position - particles.start[owner]
    near, near_owner = deposits(tracks, particles, 20, reach=50.0)
    assert len(near.energy) == (arm.norm(dim=1) < 50).sum()
    assert torch.equal(near_owner.unique(), owner.unique())
    # A track begins in its direction.
    begin = (arm.norm(dim=1) < 20) & (particles.pdg[owner] == MUON)
    cosine = torch.nn.functional.normalize(arm[begin], dim=1) * particles.direction[owner[begin]]
    assert cosine.sum(1).median() > 0.99


def test_crossing_muons_enter_at_the_surface(tracks: TrackBank) -> None:
    muons = draw_crossing_muons(tracks, DETECTOR, 3000, 0.3, seeded(3))
    assert abs(len(muons.pdg) / 3000 - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 3000)
    assert (muons.pdg == MUON).all()
    beyond = muons.start.abs() - torch.tensor(DETECTOR.size) / 2
    torch.testing.assert_close(beyond.amax(1), torch.zeros(len(beyond)), rtol=0, atol=1e-2)
    face = beyond.argmax(1, keepdim=True)
    inward = -(muons.direction * muons.start.sign()).gather(1, face)
    assert (inward > 0).all()
    assert len(draw_crossing_muons(tracks, DETECTOR, 100, 0.0, seeded(3)).pdg) == 0


def test_the_light_is_that_of_birks_law() -> None:
    """Poisson with the expected mean, in the voxel of the deposit; what falls outside is lost."""
    made = deposited(
        (5, 5, 5, 1.0, 0), (-5, 5, 5, 2.0, 0), (961, 0, 0, 9.0, 0), (5, 5, 5, 0.5, 1), dedx=10.0, n_events=2
    )
    per_mev = 85.8 / (1 + 0.126 * 10)
    signals = torch.stack([respond(made, DETECTOR, generator=seeded(seed)).signal for seed in range(400)])
    expected = torch.tensor([2.0, 1.0, 0.5]) * per_mev
    torch.testing.assert_close(signals.mean(0), expected, rtol=0, atol=float(5 * (expected.max() / 400).sqrt()))
    torch.testing.assert_close(signals.var(0) / expected, torch.ones(3), rtol=0, atol=0.4)
    voxels = respond(made, DETECTOR, generator=seeded())
    assert voxels.coords.tolist() == [[95, 28, 92], [96, 28, 92], [96, 28, 92]]
    assert voxels.offsets.tolist() == [0, 2, 3]
    scaled = respond(made, DETECTOR, light_scale=torch.tensor([1.0, 100.0]), generator=seeded()).signal[2]
    assert scaled == pytest.approx(50 * per_mev, rel=0.15)


def test_crosstalk_moves_light_to_the_six_neighbours() -> None:
    detector = replace(DETECTOR, response=Response(crosstalk=0.03, light_yield=1e6))
    made = deposited((5, 5, 5, 1.0, 0), (-955, -275, -915, 1.0, 1), n_events=2)
    voxels = respond(made, detector, generator=seeded())
    bulk, corner = voxels.signal[: voxels.offsets[1]] / 1e6, voxels.signal[voxels.offsets[1] :] / 1e6
    torch.testing.assert_close(bulk, torch.tensor([0.03] * 3 + [0.82] + [0.03] * 3), rtol=0.05, atol=0)
    assert bulk.sum() == pytest.approx(1, rel=0.01)
    assert corner.sum() == pytest.approx(1 - 3 * 0.03, rel=0.01)
    assert len(corner) == 4


def test_nothing_below_the_threshold_is_read_out() -> None:
    detector = replace(DETECTOR, response=Response(threshold=3.0))
    made = deposited(*((10 * x + 5, 5, 5, 3 / 85.8, 0) for x in range(90)))
    signal = torch.cat([respond(made, detector, generator=seeded(seed)).signal for seed in range(40)])
    assert signal.min() == 3
    assert len(signal) / 3600 == pytest.approx(0.5768, abs=0.04)  # Poisson of mean 3 gives 3 or more


def test_noise_has_its_mean_number_and_size() -> None:
    detector = replace(DETECTOR, response=Response(threshold=3.0, noise_hits=20.0, noise_pe=2.0))
    voxels = respond(deposited(n_events=500), detector, generator=seeded())
    counts = voxels.offsets.diff().double()
    assert counts.mean().item() == pytest.approx(20, abs=5 * np.sqrt(20 / 500))
    assert counts.var().item() == pytest.approx(20, rel=0.3)
    assert voxels.signal.min() >= 4
    assert (voxels.signal.mean() - 3).item() == pytest.approx(1 / (1 - np.exp(-0.5)), rel=0.05)  # whole p.e.
    spread = voxels.coords.double().mean(0) / torch.tensor(DETECTOR.shape)
    torch.testing.assert_close(spread, torch.full((3,), 0.5).double(), rtol=0, atol=0.02)


def test_the_response_is_pinned() -> None:
    """Same seed, same signals: what ships with the project was made with these."""
    made = deposited(*((10 * x + 5, 5, 5, 0.1 * (x + 1), 0) for x in range(6)), dedx=1.0)
    assert respond(made, DETECTOR, generator=seeded(7)).signal.tolist() == [10, 7, 10, 37, 52, 54]


@pytest.mark.parametrize("response", [Response(), SUPERFGD], ids=["ideal", "superfgd"])
def test_a_sample_and_its_records(tracks: TrackBank, response: Response) -> None:
    detector = replace(DETECTOR, response=response)
    sample = draw_sample(tracks, PRESETS["conf2"], detector, 30, seeded(5))
    again = draw_sample(tracks, PRESETS["conf2"], detector, 30, seeded(5))
    hits, truth = to_records(sample, detector, first_event=100)
    assert to_records(again, detector, first_event=100)[0].tolist() == hits.tolist()
    for schema, events in ((HITS, hits), (TRUTH, truth)):
        assert ak.fields(events) == [branch.name for branch in schema.branches]
        for branch in schema.branches:
            jagged = "var * " if branch.name in schema.counters else ""
            assert str(ak.type(events[branch.name])) == f"30 * {jagged}{branch.dtype}"
        assert events["event"].tolist() == list(range(100, 130))
    assert ak.all(truth["part_pdg"][:, 0] == MUON)
    assert ak.all(abs(truth["part_dx"] ** 2 + truth["part_dy"] ** 2 + truth["part_dz"] ** 2 - 1) < 1e-5)
    position = np.stack([ak.flatten(hits[f"hit_{axis}"]).to_numpy() for axis in "xyz"], 1)
    np.testing.assert_allclose(detector.centre(detector.index(position)), position)
    assert torch.equal(torch.from_numpy(detector.index(position)), sample.hits.coords.long())
    assert ak.min(hits["hit_pe"]) >= response.threshold
    # The light of an event is what its particles left, muons leave the detector.
    if response == Response():
        made = sample.deposits
        inside = (made.position.abs() < torch.tensor(DETECTOR.size) / 2).all(1)
        light = 85.8 * torch.zeros(30).index_add(0, made.event[inside], quenched(made.energy, made.dedx, 0.126)[inside])
        assert ak.sum(hits["hit_pe"], axis=1).to_numpy() == pytest.approx(light.numpy(), rel=0.1)


def test_pile_up_leaves_empty_events_and_double_ones(tracks: TrackBank) -> None:
    sample = draw_sample(tracks, PRESETS["conf1"], DETECTOR, 60, seeded(6), pile_up=0.3)
    per_event = torch.bincount(sample.event, minlength=60)
    assert {0, 1, 2} <= set(per_event.tolist())
    assert (sample.event.diff() >= 0).all()
    assert torch.equal(sample.hits.offsets.diff() == 0, per_event == 0)


def test_merged_deposits_and_concatenated_samples(tracks: TrackBank) -> None:
    both = merge(deposited((5, 5, 5, 1.0, 0), n_events=2), deposited((5, 5, 5, 2.0, 0), (5, 5, 5, 4.0, 1), n_events=2))
    assert both.energy.tolist() == [1, 2, 4]
    assert both.event.tolist() == [0, 0, 1]
    samples = [draw_sample(tracks, PRESETS["conf2"], DETECTOR, n, seeded(n), pile_up=0.2) for n in (3, 1, 4)]
    joined = concatenate(samples)
    assert len(joined.hits) == 8
    assert joined.hits.offsets[-1] == len(joined.hits.coords)
    for index, (sample, event, first) in enumerate(zip(samples, (0, 3, 4), (0, 3, 4), strict=True)):
        own = slice(joined.hits.offsets[event], joined.hits.offsets[event + len(sample.hits)])
        assert torch.equal(joined.hits.feats[own], sample.hits.feats)
        of_sample = slice(first, first + len(sample.vertex))
        assert torch.equal(joined.vertex[of_sample], sample.vertex)
        assert torch.equal(joined.event[of_sample] - event, sample.event)
        mine = (joined.particles.interaction >= first) & (joined.particles.interaction < first + len(sample.vertex))
        assert torch.equal(joined.particles.ke[mine], sample.particles.ke), index
    assert torch.equal(joined.particles.interaction[joined.owner], joined.deposits.event)
