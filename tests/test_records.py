"""Reconstructed events as records with vectors."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
from synthetic import reco_events, truth_events

import sparsereco
from sparsereco.errors import InputError
from sparsereco.io import RECO, RootWriter
from sparsereco.kinematics import MASSES


@pytest.fixture
def reco() -> ak.Array:
    return reco_events(truth_events(40))


@pytest.fixture
def file(reco: ak.Array, tmp_path: Path) -> Path:
    with RootWriter(tmp_path / "reco.root") as writer:
        writer.create("reco", RECO)
        writer.extend("reco", RECO, reco)
    return tmp_path / "reco.root"


def test_particles_are_momentum_vectors(file: Path, reco: ak.Array) -> None:
    events = sparsereco.read(file)
    particles = events.particles
    assert ak.all(particles.pdg == reco.part_pdg)
    energy = particles.E - particles.mass
    assert ak.all(np.abs(energy - np.maximum(reco.part_ke, 0)) < 1e-3)
    proton = particles[particles.pdg == 2212]
    assert ak.all(proton.mass == MASSES[2212])
    fast = reco.part_ke > 0.1
    direction = particles[fast].to_Vector3D().unit()
    for axis in "xyz":
        assert ak.all(np.abs(getattr(direction, axis) - reco[f"part_d{axis}"][fast]) < 1e-5)
    several = particles[ak.num(particles) >= 2]
    together = several[:, 0] + several[:, 1]
    assert ak.all(together.mass >= several[:, 0].mass + several[:, 1].mass - 1e-6)


def test_vertices_tracks_and_images_are_vectors(file: Path, reco: ak.Array) -> None:
    events = sparsereco.read(file)
    assert ak.all(events.event == reco.event)
    assert ak.all(np.abs(events.vertices.mag**2 - (reco.vtx_x**2 + reco.vtx_y**2 + reco.vtx_z**2)) < 1.0)
    assert ak.all(events.vertices.sx == reco.vtx_sx)
    assert ak.all(ak.num(events.tracks) == ak.num(reco.trk_vtx))
    assert ak.all(np.abs(events.tracks.direction.mag - 1) < 1e-4)
    assert ak.all(events.images.pe == reco.img_pe)
    own = events.vertices[events.particles.vtx]
    assert ak.all(ak.num(own) == ak.num(events.particles)), "a particle knows its vertex"


def test_no_events_are_no_records(reco: ak.Array, tmp_path: Path) -> None:
    with RootWriter(tmp_path / "none.root") as writer:
        writer.create("reco", RECO)
    events = sparsereco.read(tmp_path / "none.root")
    assert len(events) == 0
    assert {"vertices", "particles", "tracks", "images"} <= set(events.fields)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        sparsereco.read(tmp_path / "absent.root")
