"""Reconstructed events as records with vectors, for an analysis.

import sparsereco

events = sparsereco.read("reco.root")
protons = events.particles[events.particles.pdg == 2212]
pairs = protons[ak.num(protons) == 2]
print(pairs[:, 0].deltaangle(pairs[:, 1]), (pairs[:, 0] + pairs[:, 1]).mass)
"""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import vector

from sparsereco import io
from sparsereco.kinematics import MASSES
from sparsereco.schema import RECO


def read(file: str | Path) -> ak.Array:
    """The events of a reconstruction of the vertex system.

    Args:
        file: what `tools/reco.py vertex` wrote, FILE or FILE:TREE.

    Returns:
        One record per event with ``run``, ``subrun``, ``event`` and four lists of records:

        - ``vertices``: 3D vectors [mm] with standard errors ``sx``, ``sy``, ``sz``, and ``score``, ``deviance``,
          ``ndf``;
        - ``particles``: momentum 4D vectors [MeV] with ``vtx`` (index in ``vertices``), ``pdg``, ``score``, ``ke``,
          ``ke_err`` [MeV], ``dir_err`` [rad], in descending energy per vertex;
        - ``tracks``: ``point`` [mm] and ``direction``, 3D vectors, where a track leaves the crop, with ``vtx`` and
          ``ke`` [MeV], -1 where that is unknown;
        - ``images``: 3D vectors, the centres of voxels [mm], with the light ``pe`` of ``part``, an index in
          ``particles``, or -1 - t for track t.

    Raises:
        InputError: no such file or tree, or branches that are missing.
    """
    vector.register_awkward()
    events = io.read(file, RECO)
    pdg, ke = events["part_pdg"], ak.values_astype(events["part_ke"], np.float64)
    counts, codes = ak.num(pdg), ak.flatten(pdg).to_numpy()
    mass = ak.unflatten(np.array([MASSES.get(abs(int(code)), np.nan) for code in codes], np.float64), counts)
    ke = ak.where(ke > 0, ke, 0.0)  # an energy of 0 may be rounded to less
    momentum = np.sqrt(ke * (ke + 2 * mass))
    particles = {f"p{axis}": momentum * events[f"part_d{axis}"] for axis in "xyz"} | {"mass": mass}
    particles |= {name: events[f"part_{name}"] for name in ("vtx", "pdg", "score", "ke", "ke_err", "dir_err")}
    errors = {name: events[f"vtx_{name}"] for name in ("sx", "sy", "sz", "score", "deviance", "ndf")}
    return ak.zip(
        {
            **{name: events[name] for name in ("run", "subrun", "event")},
            "vertices": _vectors(events, "vtx_", errors),
            "particles": ak.zip(particles, with_name="Momentum4D"),
            "tracks": ak.zip(
                {
                    "vtx": events["trk_vtx"],
                    "ke": events["trk_ke"],
                    "point": _vectors(events, "trk_", {}),
                    "direction": _vectors(events, "trk_d", {}),
                }
            ),
            "images": _vectors(events, "img_", {"part": events["img_part"], "pe": events["img_pe"]}),
        },
        depth_limit=1,
    )


def _vectors(events: ak.Array, prefix: str, more: dict[str, ak.Array]) -> ak.Array:
    """3D vectors of the branches ``<prefix>x``, ``y``, ``z``, with more fields."""
    return ak.zip({axis: events[prefix + axis] for axis in "xyz"} | more, with_name="Vector3D")
