"""`CameraChain`: camera frames in, clusters with their pixels, features and energies out.

from sparsereco import CameraChain
from sparsereco.camera.pedestal import read_pedestal
from sparsereco.frames import iterate_frames

chain = CameraChain(read_pedestal("pedestal.root"))
for frame in iterate_frames(["run7.root"]):
    event = chain(frame)
    print(event.event, event.sc_energy.tolist())
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import awkward as ak
import numpy as np
import torch
from numpy.typing import NDArray

from sparsereco import checkpoint
from sparsereco.camera.cluster import Clusters, features, find_clusters, pixels_of
from sparsereco.camera.config import CameraConfig
from sparsereco.camera.pedestal import Pedestal, check_frame, read_vignetting
from sparsereco.camera.regions import find_regions
from sparsereco.camera.select import Selection, load_network, make_above, make_select, weights_of
from sparsereco.camera.significance import BIN
from sparsereco.camera.threshold import FILTER, NETWORK, excess
from sparsereco.frames import Frame
from sparsereco.schema import FRAMES, ROIS


class CameraChain:
    """The camera system for one pedestal.

    Args:
        pedestal: of the camera that took the frames.
        config: settings; the U-Net with the shipped weights by default.
        device: torch device that the selection runs on.

    Raises:
        CheckpointError: weights that are missing, broken or of another class.
        InputError: a vignetting map that cannot be used.
    """

    def __init__(self, pedestal: Pedestal, config: CameraConfig | None = None, device: str = "cpu") -> None:
        self.pedestal, self.config, self.device = pedestal, config or CameraConfig(), device
        maps = (np.nan_to_num(image) for image in (pedestal.mean, pedestal.sigma))
        mean, sigma, hot = (torch.from_numpy(np.ascontiguousarray(image)) for image in (*maps, pedestal.hot))
        self._offset = float(np.median(pedestal.mean[::8, ::8]))
        network = load_network(self.config)
        self._above = make_above(self.config, network)
        self._select = make_select(self.config, network, mean, sigma, hot, device)
        path = self.config.vignetting
        self._light = None if path is None else read_vignetting(path, pedestal.mean.shape)

    def __call__(self, frame: Frame) -> ak.Record:
        """Reconstructs a frame.

        Returns:
            A record with the fields of the trees ``Events`` and ``roi``.

        Raises:
            InputError: a frame of another size than the pedestal, empty, saturated, not finite, or a spark.
        """
        check_frame(frame, self.pedestal)
        image = torch.from_numpy(np.ascontiguousarray(frame.image, np.float32))  # counts are exact up to 2^24
        chosen = self._select(image)
        start = time.perf_counter()
        settings = self.config.cluster
        margin = settings.margin
        if self.config.selector == "nsigma":  # by its own rules
            margin, settings = 0, replace(settings, min_samples=self.config.nsigma.min_samples)
        clusters = find_clusters(chosen.points, chosen.weight, chosen.score, settings, margin, chosen.adds_up)
        seconds = chosen.seconds | {"t_DBSCAN": time.perf_counter() - start}
        start = time.perf_counter()
        columns = self._measure(clusters, chosen)
        seconds["t_variables"] = time.perf_counter() - start
        start = time.perf_counter()
        columns |= self._outline(chosen)
        seconds["t_regions"] = time.perf_counter() - start
        above = image.float().sub_(self._offset).flatten()
        mean, squares = float(above.mean()), float(torch.dot(above, above)) / len(above)
        scalars = {
            "status": 0,
            "cmos_integral": (mean + self._offset) * len(above),
            "cmos_mean": mean + self._offset,
            "cmos_rms": max(squares - mean**2, 0) ** 0.5,
            "lp_len": len(chosen.points),
        }
        return self._record(frame, {**scalars, **seconds}, columns)

    def empty(self, frame: Frame) -> ak.Record:
        """The entry of a frame that cannot be used."""
        return self._record(frame, {"status": 1}, {})

    def provenance(self) -> dict[str, Any]:
        """Settings, pedestal, and the hash of the weights, as JSON values."""
        known: dict[str, Any] = {"config": asdict(self.config)}
        known["pedestal"] = {
            "run": self.pedestal.run,
            "frames": self.pedestal.frames,
            "hot": int(self.pedestal.hot.sum()),
        }
        path = weights_of(self.config)
        if path is not None:
            known["weights"] = {"selector": {"file": path.name, "sha256": checkpoint.sha256(path)}}
        return known

    def _measure(self, clusters: Clusters, chosen: Selection) -> dict[str, NDArray]:
        """Columns of the two groups of a frame, clusters in descending integral."""
        height, width = chosen.residual.shape
        # A margin may reach beyond the frame.
        inside = ((clusters.macro >= 0) & (clusters.macro < (height // BIN, width // BIN))).all(1)
        macro, label = clusters.macro[inside], clusters.label[inside]
        pixel = pixels_of(macro)
        owner = np.repeat(label, BIN**2)
        y, x = pixel.T
        value = chosen.residual[y, x].astype(float)
        factor = np.ones(len(value)) if self._light is None else 1 / self._light[y, x]
        light = value * factor
        integral, factors, pixels = (np.bincount(owner, each, len(clusters)) for each in (light, factor, None))
        noise = 1.4826 * np.median(np.abs(chosen.residual[::8, ::8]))  # of a Gaussian, by its median absolute deviation
        spread = noise * (NETWORK if self.config.selector == "unet" else FILTER)
        corrected = integral - excess(self._above(clusters.score), spread) * factors / pixels
        kept = np.argsort(-integral, kind="stable")
        if self.config.selector == "nsigma":
            kept = kept[clusters.score[kept] >= self.config.nsigma.min_score]

        hit = np.zeros((height // BIN, width // BIN, BIN**2), bool)
        hit[tuple(chosen.points.T)] = chosen.hits
        hits = hit[tuple(macro.T)].ravel()
        first = np.searchsorted(owner, np.arange(len(clusters) + 1))
        rows = [np.arange(first[c], first[c + 1]) for c in kept]
        measured = [features(x[r].astype(float), y[r].astype(float), light[r], self.config.pixel) for r in rows]
        size = np.array([len(r) for r in rows], np.int64)
        begin = np.cumsum(size) - size
        every = np.concatenate([np.zeros(0, np.int64), *rows])
        columns: dict[str, NDArray] = {
            "sc_size": size,
            "sc_nhits": np.array([hits[r].sum() for r in rows]),
            "sc_integral": integral[kept],
            "sc_corrintegral": corrected[kept],
            "sc_energy": corrected[kept] * self.config.kev_per_count,
            "sc_redpixIdx": begin,
            "sc_redpix_begin": begin,
            "sc_score": clusters.score[kept],
            "sc_polynomial": clusters.order[kept],
            "redpix_ix": x[every],
            "redpix_iy": y[every],
            "redpix_iz": light[every],
            "redpix_hit": hits[every],
        }
        return columns | {f"sc_{name}": np.array([one[name] for one in measured]) for name in (measured or [{}])[0]}

    def _outline(self, chosen: Selection) -> dict[str, NDArray]:
        """Columns of the two groups of the tree ``roi``, regions in descending light."""
        height, width = chosen.residual.shape
        shape = (height // BIN, width // BIN)
        found = find_regions(chosen.points, chosen.score, shape, self.config.region)
        macro = np.argwhere(found.label)
        owner = found.label[tuple(macro.T)] - 1
        y, x = pixels_of(macro).T
        light = chosen.residual[y, x].astype(float)
        if self._light is not None:
            light /= self._light[y, x]
        n = len(found.polygons)
        integral = np.bincount(np.repeat(owner, BIN**2), light, n)
        order = np.argsort(-integral, kind="stable")
        hits = np.bincount(found.label[tuple(chosen.points.T)] - 1, chosen.hits.sum(1), n)
        corners = [np.array(found.polygons[region].exterior.coords)[:-1] for region in order]
        every = np.concatenate([np.zeros((0, 2)), *corners])
        return {
            "roi_area": BIN**2 * np.bincount(owner, minlength=n)[order],
            "roi_nhits": hits[order],
            "roi_integral": integral[order],
            "roi_score": found.score[order],
            "roi_corners": np.array([len(one) for one in corners], int),
            "corner_x": every[:, 0],
            "corner_y": every[:, 1],
        }

    def _record(self, frame: Frame, scalars: Mapping[str, Any], columns: Mapping[str, NDArray]) -> ak.Record:
        rows, width = frame.image.shape
        known = {"run": frame.run, "event": frame.event, "pedestal_run": self.pedestal.run, "rows": rows}
        known |= {"columns": width, **scalars}
        fields: dict[str, Any] = {}
        for branch in (*FRAMES.branches, *ROIS.branches):
            if branch.name in FRAMES.counters or branch.name in ROIS.counters:
                column = columns.get(branch.name, np.zeros(0))
                fields[branch.name] = ak.values_astype(ak.unflatten(column, [len(column)]), branch.dtype)
            else:
                fields[branch.name] = np.array([known.get(branch.name, 0)], branch.dtype)
        return ak.zip(fields, depth_limit=1)[0]
