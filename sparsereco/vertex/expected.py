"""The light that particles are expected to leave in a crop: of hadrons without noise, and of straight leaving tracks.

Lengths are in voxels, places relative to the centre of the crop, images flat (7 x 7 x 7 voxels).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsereco import ops
from sparsereco.detector import Response
from sparsereco.geometry import across
from sparsereco.vertex.crop import HALF
from sparsereco.vertex.generator import Generator
from sparsereco.vertex.hadrons import SPECIES

SIDE = 2 * HALF + 1
SHAPE = (SIDE, SIDE, SIDE)

STEPS, TRACK_STEPS = 24, 40
"""Deposits of a hadron, of equal light, and of a track, of equal length."""

SOFT, WIDE = 0.05, 0.15
"""Half-widths of a voxel's edges: of the image, and for the variance of what crosses them."""

LEAST, MOST = 0.3, 80.0
"""Energies of hadrons [MeV]."""

# From Geant4: a track leaves its first direction by this, times range and the squared share of it that is behind; these
# two numbers hold 96 % of the lateral variance. p, d, t.
_CURVATURE = 0.0215, 0.0145, 0.0115
_STRAGGLING = 0.012  # relative spread of the range


class ExpectedLight:
    """Deposits and images of hadrons and tracks.

    Args:
        generator: gives the deposits.
        response: light yield, Birks' constant and crosstalk of the detector. With crosstalk, signals are taken to be
            scaled to what leaving tracks show, as `VertexChain.measure_light` does.
        pitch: edge of a voxel [mm].
        device: of the images.
    """

    def __init__(self, generator: Generator, response: Response, pitch: float, device: str = "cpu") -> None:
        self.response = response
        # A voxel on a straight track loses to six neighbours and gets from two.
        self.gain = 1 / (1 - 4 * response.crosstalk)
        self.depth, self.light = (table.to(device) for table in _tables(generator, response, pitch))

    def range(self, species: Tensor, ke: Tensor) -> Tensor:
        """(H,) depth of the last deposit."""
        return _at(self.depth, species, ke)[:, -1]

    def deposits(
        self, vertex: Tensor, species: Tensor, ke: Tensor, direction: Tensor, latent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Deposits of H hadrons: positions (H, steps, 3) and light (H, steps) [p.e.]."""
        depth, light = _at(self.depth, species, ke), _at(self.light[..., None], species, ke)
        total = depth[:, -1:]
        bend = torch.tensor(_CURVATURE)[species, None] * total * (depth / total.clamp(min=1e-4)).square()
        along = depth * (1 + _STRAGGLING * latent[:, 2:])
        u, v = across(direction)
        aside = latent[:, :1] * u + latent[:, 1:2] * v
        position = vertex[:, None] + along[..., None] * direction[:, None] + bend[..., None] * aside[:, None]
        return position, (light * self.gain / STEPS).clamp(min=0).expand(-1, STEPS)

    def image(self, position: Tensor, charge: Tensor, offsets: Tensor, softness: float) -> Tensor:
        """(I, voxels) expected light, after crosstalk."""
        position = (position.reshape(-1, 3) + SIDE / 2).contiguous()
        image, _ = ops.soft_voxelize(position, charge.reshape(-1).contiguous(), offsets, softness=softness, shape=SHAPE)
        return leaked(image, self.response.crosstalk).flatten(1)

    def paths(self, vertex: Tensor, far: Tensor) -> Tensor:
        """(T, voxels) path of straight tracks from vertices to far points [voxels], with crosstalk as their light."""
        position, length = track_deposits(vertex, far)
        offsets = torch.arange(len(vertex) + 1) * TRACK_STEPS
        return self.image(position, length * self.gain, offsets, SOFT)


def track_deposits(vertex: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Points on straight tracks (T, steps, 3) and the length (T, steps) that each stands for."""
    arm = far - vertex
    place = (torch.arange(TRACK_STEPS) + 0.5) / TRACK_STEPS
    return vertex[:, None] + arm[:, None] * place[:, None], (arm.norm(dim=1, keepdim=True) / TRACK_STEPS).expand(
        -1, TRACK_STEPS
    )


def leaked(image: Tensor, crosstalk: float) -> Tensor:
    """Images (I, X, Y, Z) after a share of each voxel's light has gone to each face neighbour."""
    if crosstalk == 0:
        return image
    around = torch.zeros_like(image)
    for axis in (1, 2, 3):
        n = image.shape[axis]
        around.narrow(axis, 1, n - 1).add_(image.narrow(axis, 0, n - 1))
        around.narrow(axis, 0, n - 1).add_(image.narrow(axis, 1, n - 1))
    return (1 - 6 * crosstalk) * image + crosstalk * around


def measured_light(place: Tensor, signal: Tensor, crop: Tensor, n: int) -> Tensor:
    """(n, voxels) light of crops from hits: places (N, 3) relative to the central voxel, inside the crop or not."""
    inside = (place.abs() <= HALF).all(1)
    index = (place[inside] + HALF).long()
    voxel = (index[:, 0] * SIDE + index[:, 1]) * SIDE + index[:, 2]
    return torch.zeros(n, SIDE**3).index_put((crop[inside], voxel), signal[inside], accumulate=True)


def _tables(generator: Generator, response: Response, pitch: float) -> tuple[Tensor, Tensor]:
    """Depth of deposits of equal light [voxels] and total light [p.e.], by species and energy in steps of 1 MeV."""
    energies = torch.arange(MOST + 2)
    share = (np.arange(STEPS) + 0.5) / STEPS
    depths, lights = [], []
    with torch.no_grad():
        for species in range(len(SPECIES)):
            made = generator(species, energies)
            light = made.light(response.light_yield, response.birks).double().numpy()
            depth = made.position[..., 2].double().numpy()
            lights.append(light.sum(1))
            half = np.diff(depth, axis=1, prepend=-depth[:, :1])[:, :1] / 2
            edges = np.concatenate([np.zeros((len(depth), 1)), depth + half], 1)
            seen = np.concatenate([np.zeros((len(depth), 1)), light.cumsum(1)], 1)
            depths.append([np.interp(share * s[-1], s, e) for s, e in zip(seen, edges, strict=True)])
    return torch.from_numpy(np.stack(depths) / pitch).float(), torch.from_numpy(np.stack(lights)).float()


def _at(table: Tensor, species: Tensor, ke: Tensor) -> Tensor:
    """(H, ...) values of a table of `_tables`, linear between its energies."""
    low = ke.long().clamp(0, table.shape[1] - 2)
    fraction = (ke - low)[:, None]
    return table[species, low] * (1 - fraction) + table[species, low + 1] * fraction
