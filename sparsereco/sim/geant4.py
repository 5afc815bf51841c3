"""Single-particle energy deposits from Geant4, made once and kept on disk as a `Bank` of tracks.

A uniform block is isotropic, so one bank of tracks that start at the origin along +z serves every vertex and every
direction: `sparsereco.sim.compose` rotates and moves them. Geant4 runs from the wheel ``geant4-pybind`` without its
data files, which leaves ionisation, multiple scattering and delta rays; bremsstrahlung, decays and hadronic
interactions are off.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sparsereco.errors import InputError

PROTON, DEUTERON, TRITON, ALPHA, MUON, PION = 2212, 1000010020, 1000010030, 1000020040, 13, 211

NAMES = {PROTON: "proton", DEUTERON: "deuteron", TRITON: "triton", ALPHA: "alpha", MUON: "mu-", PION: "pi+"}
"""Geant4's particle name of each PDG code."""

ENERGIES = {PROTON: (0, 60), DEUTERON: (0, 60), TRITON: (0, 60), ALPHA: (0, 60), MUON: (300, 1000), PION: (0, 60)}
"""Kinetic energies of the bank, uniform [MeV] (arXiv 2310.19695: hadrons 0-60, leaving muon 300-1000)."""

FRACTIONS = {PROTON: 0.53, DEUTERON: 0.14, TRITON: 0.14, MUON: 0.12, PION: 0.04, ALPHA: 0.03}
"""Share of each species in a bank."""

BIRKS = 0.126
"""Birks constant with which merged deposits keep their quenching exactly [mm/MeV]."""

NEAR, FINE, COARSE = 90.0, 0.5, 3.0
"""Deposits are merged within 0.5 mm up to 90 mm from the start, within 3 mm beyond: little against a voxel [mm]."""


@dataclass(frozen=True)
class Medium:
    """The uniform block that particles start in the middle of."""

    material: str = "G4_POLYSTYRENE"
    """NIST name of the material."""
    reach: float = 2500.0
    """Nothing is followed further from the start than this, along any axis [mm]."""
    max_step: float = float("inf")
    """No step is longer: within one, the energy loss does not fluctuate [mm]."""
    atoms: tuple[tuple[str, int], ...] = ()
    """Symbol and number of each element, where the material is none of NIST's."""
    density: float = 0.0
    """Of such a material [g/cm3]."""


POLYSTYRENE = Medium()

_STEP_LIMITS = ("MuHad", "LightIons", "Ions")
_DATA_SETS = (
    "G4NEUTRONHPDATA G4LEDATA G4LEVELGAMMADATA G4RADIOACTIVEDATA G4PARTICLEXSDATA G4PIIDATA G4REALSURFACEDATA "
    "G4SAIDXSDATA G4ABLADATA G4INCLDATA G4ENSDFSTATEDATA G4CHANNELINGDATA G4NUDEXLIBDATA G4URRPTDATA"
).split()
_NEED_DATA_SETS = frozenset(
    "eBrem phot compt conv Rayl GammaGeneralProc annihil ePairProd hBrems hPairProd muBrems muPairProd CoulombScat "
    "nuclearStopping".split()
)


Arrays = TypeVar("Arrays")
"""A dataclass whose fields are all arrays."""


@dataclass(frozen=True)
class Bank:
    """Tracks as ragged deposits: track t owns rows offsets[t] to offsets[t + 1], by distance from its start."""

    position: NDArray[np.float32]  # (N, 3)
    """Relative to the start of the track, which leaves along +z [mm]."""
    energy: NDArray[np.float32]  # (N,)
    """Deposited energy [MeV]."""
    dedx: NDArray[np.float32]  # (N,)
    """Energy loss per length that gives the deposit its quenching [MeV/mm]."""
    offsets: NDArray[np.int64]  # (T + 1,)
    pdg: NDArray[np.int32]  # (T,)
    ke: NDArray[np.float32]  # (T,)
    """Kinetic energy at the start [MeV]."""

    def __len__(self) -> int:
        return len(self.pdg)

    def save(self, path: str | Path) -> None:
        """Writes the bank as an uncompressed npz file; the file appears only when it is complete."""
        save_arrays(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Reads a bank.

        Raises:
            InputError: No such file, or not one that `save` wrote.
        """
        return load_arrays(path, cls, "bank of vertex tracks", "tools/simulate.py bank")


def save_arrays(path: str | Path, bank: Any) -> None:
    """Writes a dataclass of arrays as an uncompressed npz file; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **{f.name: getattr(bank, f.name) for f in fields(bank)})
    part.replace(path)


def load_arrays(path: str | Path, kind: type[Arrays], what: str, make: str) -> Arrays:
    """Reads what `save_arrays` wrote.

    Args:
        path: the file.
        kind: the dataclass.
        what: it is, for errors.
        make: the command that makes one, likewise.

    Raises:
        InputError: No such file, or not one of this kind.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return kind(**{f.name: arrays[f.name] for f in fields(kind)})  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"bank {path} cannot be read: {error.strerror or error}", file=str(path)) from error
    except (ValueError, KeyError, TypeError, BadZipFile) as error:  # numpy takes other files for pickles, or one array
        raise InputError(f"{path} is no {what}; make one with {make}", file=str(path)) from error


def make_bank(n: int, seed: int, on_progress: Callable[[int], None] = lambda done: None) -> Bank:
    """Simulates a bank of about ``n`` tracks, with at least one of each species of `FRACTIONS`.

    Args:
        n: number of tracks.
        seed: of the energies and of Geant4.
        on_progress: called with the number of tracks finished since the last call.
    """
    random = np.random.default_rng(seed)
    pdg = np.repeat(list(FRACTIONS), [max(1, round(n * share)) for share in FRACTIONS.values()])
    low, high = np.array([ENERGIES[code] for code in pdg]).T
    ke = random.uniform(low, high)
    parts, chunk = [], 500
    for start in range(0, len(pdg), chunk):
        jobs = [
            (NAMES[code], energy)
            for code, energy in zip(pdg[start : start + chunk], ke[start : start + chunk], strict=True)
        ]
        parts.append(_merge(list(simulate(jobs, seed=seed + 1 + start))))
        on_progress(len(jobs))
    lengths = np.concatenate([part[3] for part in parts])
    position, energy, dedx = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Bank(position, energy, dedx, np.append(0, lengths.cumsum()), pdg.astype(np.int32), ke.astype(np.float32))


def simulate(jobs: list[tuple[str, float]], seed: int, medium: Medium = POLYSTYRENE) -> Iterator[NDArray[np.float64]]:
    """Runs Geant4 on single particles that start at the centre of a block along +z.

    Args:
        jobs: Geant4 particle name and kinetic energy [MeV].
        seed: of Geant4's generator.
        medium: the block.

    Yields:
        per job (N, 8): x, y, z before and after the step [mm], deposited energy [MeV], step length [mm].
    """
    engine = _engine()
    engine["fill"](medium)
    engine["seed"](seed)
    engine["jobs"][:] = jobs
    engine["events"].clear()
    engine["beam_on"](len(jobs))
    yield from engine["events"]


def _merge(events: list[NDArray[np.float64]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Merges steps within small cells, keeping deposited and quenched energy and the charge-weighted position."""
    lengths = np.array([len(e) for e in events])
    steps = np.concatenate(events)
    owner = np.repeat(np.arange(len(events)), lengths)
    before, after, energy, length = steps[:, :3], steps[:, 3:6], steps[:, 6], np.maximum(steps[:, 7], 1e-4)
    visible = energy / (1 + BIRKS * energy / length)

    # A step longer than 1 mm is spread evenly along itself, so that it can cross a voxel boundary.
    pieces = np.maximum(1, np.ceil(np.linalg.norm(after - before, axis=1))).astype(int)
    row = np.repeat(np.arange(len(steps)), pieces)
    where = (np.arange(len(row)) - np.repeat(pieces.cumsum() - pieces, pieces) + 0.5) / pieces[row]
    position = before[row] + (after - before)[row] * where[:, None]
    energy, visible, owner = (energy / pieces)[row], (visible / pieces)[row], owner[row]

    near = np.abs(position).max(1) < NEAR
    cell = np.floor(position / np.where(near, FINE, COARSE)[:, None]).astype(np.int64) + 2**14
    key = (((owner * 2 + near) * 2**15 + cell[:, 0]) * 2**15 + cell[:, 1]) * 2**15 + cell[:, 2]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    total = np.bincount(inverse, energy)
    light = np.bincount(inverse, visible)
    merged = np.stack([np.bincount(inverse, visible * position[:, i]) / light for i in range(3)], 1)
    dedx = (total / light - 1) / BIRKS
    order = np.lexsort((np.linalg.norm(merged, axis=1), owner[first]))
    counts = np.bincount(owner[first], minlength=len(events))
    f32 = np.float32
    return merged[order].astype(f32), total[order].astype(f32), dedx[order].astype(f32), counts


@cache
def _engine() -> dict[str, Any]:
    """Starts Geant4: once per process, since its run manager is a singleton that cannot be made twice."""
    _point_data_sets_at_empty_folders()
    try:
        with _not_under_ci():
            import geant4_pybind as g4
    except ImportError as error:
        raise ImportError(
            "the simulation needs Geant4: pip install 'sparsereco[sim]' (package geant4-pybind)"
        ) from error

    jobs: list[tuple[str, float]] = []
    events: list[NDArray[np.float64]] = []
    rows: list[tuple[float, ...]] = []
    reach = [POLYSTYRENE.reach]

    class Block(g4.G4VUserDetectorConstruction):
        def Construct(self) -> Any:
            material = g4.G4NistManager.Instance().FindOrBuildMaterial(POLYSTYRENE.material)
            box = g4.G4Box("block", POLYSTYRENE.reach, POLYSTYRENE.reach, POLYSTYRENE.reach)
            self.volume = g4.G4LogicalVolume(box, material, "block")
            self.keep = material, box
            self.limits = g4.G4UserLimits(sys.float_info.max)
            self.volume.SetUserLimits(self.limits)
            return g4.G4PVPlacement(None, g4.G4ThreeVector(), self.volume, "block", None, False, 0)

        def fill(self, medium: Medium) -> None:
            """Takes another material from the next run on."""
            nist = g4.G4NistManager.Instance()
            if medium.atoms and g4.G4Material.GetMaterial(medium.material, False) is None:
                symbols, numbers = (list(column) for column in zip(*medium.atoms, strict=True))
                elements, counts = g4.G4StringVector(symbols), g4.G4intVector(numbers)
                nist.ConstructNewMaterial(medium.material, elements, counts, medium.density * g4.g / g4.cm3)
            self.volume.SetMaterial(nist.FindOrBuildMaterial(medium.material))
            self.limits.SetMaxAllowedStep(min(medium.max_step, sys.float_info.max))
            reach[0] = medium.reach

    class Ionisation(g4.G4VModularPhysicsList):
        def __init__(self) -> None:
            super().__init__()
            self.RegisterPhysics(g4.G4EmStandardPhysics())
            self.RegisterPhysics(g4.G4StepLimiterPhysics())
            self.SetDefaultCutValue(0.2)  # mm; a delta ray that reaches further is followed

        def ConstructProcess(self) -> None:
            super().ConstructProcess()
            table = g4.G4ParticleTable.GetParticleTable()
            for name in [
                *NAMES.values(),
                "gamma",
                "e-",
                "e+",
                "mu+",
                "pi-",
                "GenericIon",
                "He3",
                "kaon+",
                "kaon-",
                "anti_proton",
            ]:
                particle = table.FindParticle(name)
                manager = particle.GetProcessManager() if particle else None
                if manager is None:
                    continue
                processes = manager.GetProcessList()
                for process in [processes[i] for i in range(manager.GetProcessListLength())]:
                    kind = process.GetProcessName()
                    if kind in _NEED_DATA_SETS or (name == "gamma" and kind != "Transportation"):
                        manager.RemoveProcess(process)

    class Gun(g4.G4VUserPrimaryGeneratorAction):
        def __init__(self) -> None:
            super().__init__()
            self.gun = g4.G4ParticleGun()

        def GeneratePrimaries(self, event: Any) -> None:
            name, ke = jobs[event.GetEventID()]
            self.gun.SetParticleDefinition(g4.G4ParticleTable.GetParticleTable().FindParticle(name))
            self.gun.SetParticlePosition(g4.G4ThreeVector())
            self.gun.SetParticleMomentumDirection(g4.G4ThreeVector(0, 0, 1))
            self.gun.SetParticleEnergy(ke)
            self.gun.GeneratePrimaryVertex(event)

    class Steps(g4.G4UserSteppingAction):
        def UserSteppingAction(self, step: Any) -> None:
            energy = step.GetTotalEnergyDeposit()
            if energy > 0:
                a, b = step.GetPreStepPoint().GetPosition(), step.GetPostStepPoint().GetPosition()
                rows.append((a.x, a.y, a.z, b.x, b.y, b.z, energy, step.GetStepLength()))
                if max(abs(b.x), abs(b.y), abs(b.z)) > reach[0]:
                    step.GetTrack().SetTrackStatus(g4.fStopAndKill)

    class EndOfEvent(g4.G4UserEventAction):
        def EndOfEventAction(self, event: Any) -> None:
            events.append(np.array(rows, np.float64).reshape(-1, 8))
            rows.clear()

    class Actions(g4.G4VUserActionInitialization):
        def Build(self) -> None:
            self.keep = Gun(), Steps(), EndOfEvent()
            for action in self.keep:
                self.SetUserAction(action)

    with _silent_stdout():
        manager = g4.G4RunManagerFactory.CreateRunManager(g4.G4RunManagerType.Serial)
    block = Block()
    keep = block, Ionisation(), Actions()
    for part in keep:
        manager.SetUserInitialization(part)
    command = g4.G4UImanager.GetUIpointer().ApplyCommand
    for quiet in ("em", "had"):
        command(f"/process/{quiet}/verbose 0")
    command("/run/verbose 0")
    for kind in _STEP_LIMITS:  # short steps at the end of the range, where the voxel image is decided
        command(f"/process/eLoss/StepFunction{kind} 0.05 0.02 mm")
    manager.Initialize()
    return {
        "jobs": jobs,
        "events": events,
        "fill": block.fill,
        "seed": g4.G4Random.setTheSeed,
        "beam_on": manager.BeamOn,
        "keep": (manager, keep),
    }


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Drops what C++ prints on stdout, Geant4's banner: a tool's stdout belongs to its user."""
    sys.stdout.flush()
    flush = ctypes.CDLL(None).fflush
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _not_under_ci() -> Iterator[None]:
    """Hides the variable CI: where it is set, geant4_pybind tidies a data folder in the home that may not exist."""
    kept = os.environ.pop("CI", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["CI"] = kept


def _point_data_sets_at_empty_folders() -> None:
    """geant4_pybind asks for its data sets on stdin unless each variable names a folder; a user's own ones are kept."""
    empty = Path(tempfile.mkdtemp(prefix="sparsereco-geant4-"))
    atexit.register(shutil.rmtree, empty, ignore_errors=True)
    for name in _DATA_SETS:
        if name not in os.environ:
            (empty / name).mkdir()
            os.environ[name] = str(empty / name)
    states = empty / "G4ENSDFSTATEDATA"
    if states.is_dir():
        (states / "ENSDFSTATE.dat").touch()
