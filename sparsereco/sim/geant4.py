"""Geant4 on single particles that start in the middle of a uniform block.

It runs from the wheel ``geant4-pybind`` without its data files, which leaves ionisation, multiple scattering and delta
rays; bremsstrahlung, decays and hadronic interactions are off.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTON, DEUTERON, TRITON, ALPHA, MUON, PION = 2212, 1000010020, 1000010030, 1000020040, 13, 211

NAMES = {PROTON: "proton", DEUTERON: "deuteron", TRITON: "triton", ALPHA: "alpha", MUON: "mu-", PION: "pi+"}
"""Geant4's particle name of each PDG code."""


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
