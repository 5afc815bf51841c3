"""Pedestals: mean and standard deviation of every pixel, measured in one pass, written and read as the experiment does.

Also what else is known of a sensor before a track is looked for: hot pixels, vignetting, and frames that are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uproot
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from sparsereco import remote
from sparsereco.errors import InputError
from sparsereco.frames import Frame, histogram
from sparsereco.writer import RootWriter

Floats = NDArray[np.float32]

HOT_MEAN, HOT_SIGMA = 20.0, 5.0
"""A pixel is hot where its mean is that many counts off the median, or its noise that many times the median."""

SPARK = 100.0, 9e6
"""A frame is a spark where its sum is above 2 x offset per pixel plus this many counts (the experiment's rule)."""


@dataclass(frozen=True)
class Pedestal:
    """What the pixels of a camera show without light."""

    mean: Floats  # (H, W) [counts]
    sigma: Floats  # (H, W) standard deviation [counts]
    run: int = 0
    frames: int = 0
    """How many it was measured on; 0 where a file does not say."""

    @property
    def hot(self) -> NDArray[np.bool_]:
        """(H, W) pixels that cannot be used: hot, dead, or unknown."""
        mean, sigma = np.median(self.mean), np.median(self.sigma)
        with np.errstate(invalid="ignore"):
            good = (np.abs(self.mean - mean) < HOT_MEAN) & (self.sigma > 0) & (self.sigma < HOT_SIGMA * sigma)
        return ~good


def measure_pedestal(frames: Iterable[Frame]) -> Pedestal:
    """Mean and standard deviation of any number of frames, in the memory of a few.

    Args:
        frames: of one camera, at least two.

    Raises:
        InputError: fewer than two frames, or frames of different shapes.
    """
    first: Frame | None = None
    n = 0
    for frame in frames:
        check_frame(frame)
        if first is None:
            first = frame
            offset = first.image.astype(np.float32)  # sums of differences from it do not lose digits
            total, squares = np.zeros(offset.shape), np.zeros(offset.shape)
        if frame.image.shape != offset.shape:
            raise InputError(
                f"{frame.name} has {_size(frame.image.shape)} pixels, "
                f"expected {_size(offset.shape)} as in {first.name}",
                file=frame.file,
            )
        difference = frame.image - offset
        total += difference
        squares += difference * difference
        n += 1
    if first is None or n < 2:
        raise InputError(f"a pedestal needs at least two frames, got {n}")
    variance = np.maximum(squares - total**2 / n, 0) / (n - 1)
    return Pedestal((offset + total / n).astype("f4"), np.sqrt(variance).astype("f4"), first.run, n)


def write_pedestal(
    path: str | Path, pedestal: Pedestal, force: bool = False, made: Mapping[str, object] | None = None
) -> None:
    """Writes ``pedmap`` (bin errors: standard deviations), ``pedmapsigma``, and their distributions.

    Args:
        path: the file.
        pedestal: what is written.
        force: replace a file that is there already.
        made: how it was made, for the provenance.

    Raises:
        InputError: the file is there already and ``force`` is not set.
    """
    mean, sigma = (image.astype(np.float64) for image in (pedestal.mean, pedestal.sigma))
    with RootWriter(path, force) as writer:
        writer.put("pedmap", histogram("pedmap", mean, sigma))
        writer.put("pedmapsigma", histogram("pedmapsigma", sigma))
        centre = float(np.floor(np.median(mean)))
        writer.put("pedmean", np.histogram(mean, np.linspace(centre - 3, centre + 3, 501)))
        writer.put("pedrms", np.histogram(sigma, np.linspace(0, 10, 1001)))
        writer.put("pedinfo", json.dumps({"run": pedestal.run, "frames": pedestal.frames}))
        if made is not None:
            writer.provenance(made)


def read_pedestal(path: str) -> Pedestal:
    """Reads a file with ``pedmap`` and, where it has one, ``pedmapsigma``; else the bin errors are the deviations.

    Raises:
        InputError: no such file, no ROOT file, no pedestal in it, or a pedestal that no pixel has.
    """
    if not remote.is_remote(path) and not Path(path).is_file():
        raise InputError(f"no such pedestal: {path}", file=path)
    try:
        with remote.connection(path), uproot.open({path: None}) as root:
            names = [name for name, kind in root.classnames(cycle=False).items() if kind.startswith("TH2")]
            if "pedmap" not in names:
                raise InputError(
                    f"{path} holds no pedestal: expected a TH2 'pedmap', it has {', '.join(names) or 'no TH2'}",
                    file=path,
                )
            mean = root["pedmap"].values().T
            sigma = (root["pedmapsigma"].values() if "pedmapsigma" in names else root["pedmap"].errors()).T
            info = str(root["pedinfo"]) if "pedinfo" in root else "{}"
    except InputError:
        raise
    except Exception as error:  # uproot has many exceptions for damaged files, of no common class
        raise InputError(f"{path} cannot be read as a pedestal: {error}", file=path) from error
    if not (np.isfinite(mean).any() and (sigma > 0).any()):
        raise InputError(f"{path}: the pedestal has no pixel with a mean and a deviation above 0", file=path)
    return Pedestal(mean.astype("f4"), sigma.astype("f4"), **json.loads(info))


def read_vignetting(path: str, shape: tuple[int, ...]) -> Floats:
    """A map of the light that arrives, interpolated to the pixels of a sensor; its largest value is 1.

    Args:
        path: ROOT file with a TH2, of any binning over the whole sensor; the first whose name has ``normmap`` in it.
        shape: of the sensor.

    Raises:
        InputError: no such file or map, or a map that is not positive.
    """
    if not remote.is_remote(path) and not Path(path).is_file():
        raise InputError(f"no such vignetting map: {path}", file=path)
    try:
        with remote.connection(path), uproot.open({path: None}) as root:
            kinds = root.classnames(cycle=False).items()
            names = [name for name, kind in kinds if kind.startswith("TH2") and "normmap" in name]
            if not names:
                raise InputError(f"{path} holds no vignetting map: expected a TH2 'normmap'", file=path)
            coarse = root[names[0]].values().T
    except InputError:
        raise
    except Exception as error:  # as in `read_pedestal`
        raise InputError(f"{path} cannot be read as a vignetting map: {error}", file=path) from error
    places = [(np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(shape, coarse.shape, strict=True)]
    fine = map_coordinates(coarse, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest", output=np.float32)
    fine /= fine.max()
    # Bins beside the image are 0 in real maps; what is not lit cannot be corrected.
    return np.maximum(fine, 0.05)


def check_frame(frame: Frame, pedestal: Pedestal | None = None) -> None:
    """Finds a frame that cannot be reconstructed.

    Raises:
        InputError: another size than the pedestal, sides that macro-pixels of 4 x 4 do not fill, values that are not
            finite, no light and no offset at all, saturation, or a spark.
    """
    image = frame.image
    if pedestal is not None and image.shape != pedestal.mean.shape:
        raise InputError(
            f"{frame.name} has {_size(image.shape)} pixels, expected {_size(pedestal.mean.shape)} as in the pedestal "
            "(is it of another camera?)",
            file=frame.file,
        )
    if any(side % 4 or side < 16 for side in image.shape):
        raise InputError(f"{frame.name} has {_size(image.shape)} pixels, expected sides that are multiples of 4")
    total = float(image.sum(dtype=np.float64 if image.dtype.kind == "f" else np.int64))
    if not np.isfinite(total):
        bad = int((~np.isfinite(image)).sum())
        raise InputError(f"{frame.name} has {bad:,} pixels that are not finite", file=frame.file)
    if total == 0 and not image.any():
        raise InputError(f"{frame.name} is 0 everywhere: nothing was read out", file=frame.file)
    full = float((image[::4, ::4] >= 65535).mean())
    if full > 0.01:
        raise InputError(f"{frame.name} is saturated: {100 * full:.0f} % of its pixels", file=frame.file)
    offset = SPARK[0] if pedestal is None else float(np.median(pedestal.mean[::8, ::8]))
    if total > 2 * offset * image.size + SPARK[1]:
        raise InputError(f"{frame.name} is a spark: {total:.3g} counts", file=frame.file)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
