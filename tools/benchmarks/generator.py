"""Images of single particles: the generator against Geant4, on one core."""

from __future__ import annotations

import time
from typing import Any

import jsonargparse
import torch

from sparsereco import checkpoint
from sparsereco.kinematics import particle_name
from sparsereco.sim import geant4
from sparsereco.sim.bank import make_bank
from sparsereco.sim.compose import TrackBank
from sparsereco.vertex.adversary import ImageStream, draw_singles, generate
from sparsereco.vertex.generator import GENERATED, Generator, GeneratorConfig

BATCH = 256


def run(args: jsonargparse.Namespace) -> list[dict[str, Any]]:
    """Both in alternation, by species; Geant4's time ends with the deposits, the generator's with the image."""
    images, rounds = args.images, args.rounds
    torch.set_num_threads(1)
    model, stream = (
        checkpoint.load(checkpoint.WEIGHTS / "generator.safetensors", Generator, GeneratorConfig),
        ImageStream(),
    )
    bank = TrackBank(make_bank(400, seed=1))
    rows = []
    for index, code in enumerate(GENERATED):
        random = torch.Generator().manual_seed(index)
        like = draw_singles(stream, bank, torch.full((BATCH,), index), random)
        jobs = [(geant4.NAMES[code], float(ke)) for ke in like.ke.repeat(-(-images // BATCH))[:images]]
        times: dict[str, list[float]] = {"generator": [], "geant4": []}
        for number in range(rounds):
            start = time.perf_counter()
            with torch.inference_mode():
                for _ in range(max(1, images // BATCH)):
                    generate(model, like, stream.detector, random)
            times["generator"].append((time.perf_counter() - start) / (max(1, images // BATCH) * BATCH))
            start = time.perf_counter()
            done = sum(1 for _ in geant4.simulate(jobs, seed=number + 1))
            times["geant4"].append((time.perf_counter() - start) / done)
        fast = {name: 1e6 * min(values) for name, values in times.items()}
        rows.append({"species": particle_name(code), **fast, "ratio": fast["geant4"] / fast["generator"]})
        print("{species:3} generator {generator:6.1f} us, Geant4 {geant4:7.1f} us: {ratio:.1f} x".format(**rows[-1]))
    return rows
