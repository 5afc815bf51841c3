"""Camera frames in: TH2 histograms in ROOT files, HDF5 data sets, MIDAS banks. Knows no torch.

There is one orientation, whatever the file: ``image[y, x]``, y upwards; pixel (x, y) is bin (x + 1, y + 1) of the TH2.
A TH2 therefore comes in as ``values().T``; HDF5 data sets hold the image as it is; the rows of a MIDAS bank, which the
camera reads out from the top, are turned upside down.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import uproot
from numpy.typing import NDArray

from sparsereco import remote
from sparsereco.errors import InputError, reason
from sparsereco.io import expand

NAME = re.compile(r"pic_run(\d+)_ev(\d+)")
"""Name of a frame in ROOT and HDF5 files."""

QUEST = (2304, 4096)
"""Shape of the only sensor that is not square, which MIDAS files do not tell."""

Image = NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One exposure."""

    run: int
    event: int
    image: Image  # (H, W) [counts]
    file: str
    entry: int
    """Its place in the file."""

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.file}: frame {self.entry} (run {self.run}, event {self.event})"


@dataclass(frozen=True)
class FrameFile:
    """One file with frames."""

    file: str
    kind: str
    """ROOT, HDF5 or MIDAS."""
    entries: int


def survey_frames(files: Iterable[str], on_bad_file: Callable[[InputError], None] | None = None) -> list[FrameFile]:
    """Opens every file and counts its frames; a MIDAS file has to be unpacked for that.

    Args:
        files: local paths, globs and URLs.
        on_bad_file: called with the error of a file that cannot be read.

    Raises:
        InputError: a file cannot be used and ``on_bad_file`` is not given.
    """
    found = []
    for path, _ in expand(files):
        try:
            kind = _kind(path)
            if kind == "MIDAS":
                found.append(FrameFile(path, kind, sum(1 for _ in _midas_banks(path, skip=True))))
            else:
                with _opened(path, kind) as (names, _read):
                    found.append(FrameFile(path, kind, len(names)))
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)
    return found


def iterate_frames(
    files: Iterable[str],
    entry_start: int = 0,
    entry_stop: int | None = None,
    on_bad_file: Callable[[InputError], None] | None = None,
) -> Iterator[Frame]:
    """Reads frames one by one, in the order of the files and by run and event within a file.

    Args:
        files: local paths, globs and URLs.
        entry_start: first frame, counted over all files together.
        entry_stop: first frame not read any more, counted likewise.
        on_bad_file: called with the error of a file that cannot be read (further); reading goes on with the next file.

    Raises:
        InputError: a file cannot be used and ``on_bad_file`` is not given, or the range is none.
    """
    stop = math.inf if entry_stop is None else entry_stop
    if not 0 <= entry_start <= stop:
        raise InputError(f"entries {entry_start} to {entry_stop} are no range: expected 0 <= start <= stop")
    before = 0
    for path, _ in expand(files):
        try:
            for frame in _frames(path, entry_start - before, stop - before):
                if frame is None:
                    before += 1
                    continue
                yield frame
                before += 1
                if before >= stop:
                    return
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)


def _frames(path: str, start: float, stop: float) -> Iterator[Frame | None]:
    """Frames of a file; None for those before ``start``, none from ``stop`` on."""
    kind = _kind(path)
    if kind == "MIDAS":
        run = int(match[1]) if (match := re.search(r"run(\d+)", remote.name(path))) else 0
        for entry, (event, data) in enumerate(_midas_banks(path)):
            if entry >= stop:
                return
            yield Frame(run, event, _from_midas(path, event, data), path, entry) if entry >= start else None
        return
    with _opened(path, kind) as (names, read):
        for entry, name in enumerate(names):
            if entry >= stop:
                return
            if entry < start:
                yield None
                continue
            match = NAME.search(name) or re.search(r"run(\d+)()", remote.name(path))
            try:
                image = np.asarray(read(name))
            except Exception as error:  # uproot and h5py have many exceptions for damaged files, of no common class
                raise InputError(f"{path}: frame '{name}' cannot be read: {error}", file=path, entry=entry) from error
            if image.ndim != 2 or image.dtype.kind not in "uif":
                raise InputError(
                    f"{path}: frame '{name}' is {image.ndim}-dimensional {image.dtype}, expected an image of numbers",
                    file=path,
                    entry=entry,
                )
            yield Frame(int(match[1]) if match else 0, int(match[2] or 0) if match else 0, image, path, entry)


def _kind(path: str) -> str:
    """ROOT, HDF5 or MIDAS, by what the file begins with.

    Raises:
        InputError: no such file, or none of the three.
    """
    with remote.opened(path) as file:
        try:
            head = file.read(8)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason(error)}", file=path) from error
    if head.startswith(b"root"):
        return "ROOT"
    if head == b"\x89HDF\r\n\x1a\n":
        return "HDF5"
    if remote.name(path).endswith((".mid", ".mid.gz")):
        return "MIDAS"
    raise InputError(f"{path} holds no frames: expected a ROOT, HDF5 or MIDAS file (.mid, .mid.gz)", file=path)


@contextmanager
def _opened(path: str, kind: str) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    """Names of the frames in a ROOT or HDF5 file by run and event, and a function that reads one."""
    with ExitStack() as stack:
        try:
            if kind == "ROOT":
                stack.enter_context(remote.connection(path))
                root = stack.enter_context(uproot.open({path: None}, array_cache=None, object_cache=None))
                there = root.classnames(cycle=False)
                names = [key for key, kind in there.items() if kind.startswith("TH2")]
            else:
                import h5py

                file = stack.enter_context(h5py.File(stack.enter_context(remote.opened(path)), "r"))
                names = there = list(file)
        except InputError:
            raise
        except Exception as error:  # as in `_frames`
            raise InputError(f"{path} cannot be read as {kind} file: {error}", file=path) from error
        named = sorted((name for name in names if NAME.search(name)), key=_number)
        if not named and kind == "HDF5" and "Image" in names:
            named = ["Image"]
        if not named and len(there):
            raise InputError(
                f"{path} holds no frames: expected names like pic_run1_ev0, it has {', '.join(sorted(there)[:5])}",
                file=path,
            )
        yield named, lambda name: root[name].values().T if kind == "ROOT" else file[name][()]


def _number(name: str) -> tuple[int, int]:
    match = NAME.search(name)
    assert match is not None
    return int(match[1]), int(match[2])


def _midas_banks(path: str, skip: bool = False) -> Iterator[tuple[int, bytes]]:
    """Event number and bytes of the bank CAM0 of every event of a MIDAS file; no bytes where they are skipped.

    Event header: id, trigger mask (16 bits each), serial number, time, size (32 bits each); then size and flags of all
    banks, then the banks, padded to 8 bytes (MIDAS wiki, "Event structure").
    """
    done = 0
    with remote.opened(path) as raw:
        packed = remote.name(path).endswith(".gz")
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        try:
            while header := file.read(16):
                if len(header) < 16:
                    raise EOFError("it ends within the header of an event")
                kind, _, serial, _, size = struct.unpack("<HHIII", header)
                body = file.read(size)
                if len(body) < size:
                    raise EOFError("it ends within an event")
                if kind & 0x8000:  # begin or end of run, message
                    continue
                bank = _find_bank(body, b"CAM0")
                if bank is not None:
                    yield serial, b"" if skip else bank
                    done += 1
        except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
            raise InputError(f"{path} is truncated or damaged after {done} frames: {error}", file=path) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read after {done} frames: {reason(error)}", file=path) from error


def _find_bank(body: bytes, wanted: bytes) -> bytes | None:
    """Content of a bank of an event, None where it has none of that name."""
    _, flags = struct.unpack_from("<II", body)
    layout, length = ("<4sIII", 16) if flags & 0x20 else ("<4sII", 12) if flags & 0x10 else ("<4sHH", 8)
    place = 8
    while place + length <= len(body):
        name, _, size = struct.unpack_from(layout, body, place)[:3]
        place += length
        if name == wanted:
            if place + size > len(body):
                raise EOFError(f"bank {name.decode()} is cut off")
            return body[place : place + size]
        place += -(-size // 8) * 8
    return None


def _from_midas(path: str, event: int, data: bytes) -> Image:
    """The image of a bank, whose shape follows from its size."""
    pixels = np.frombuffer(data, "<u2")
    side = math.isqrt(len(pixels))
    shape = (side, side) if side * side == len(pixels) else QUEST
    if len(pixels) != shape[0] * shape[1]:
        raise InputError(
            f"{path}: event {event} has {len(pixels):,} pixels, expected a square or {QUEST[0]} x {QUEST[1]}", file=path
        )
    return pixels.reshape(shape)[::-1]


def histogram(name: str, image: Image, error: Image | None = None) -> Any:
    """An image as TH2, of the type of its numbers (TH2I, TH2F, TH2D).

    Args:
        name: of the histogram.
        image: (H, W) int32, float32 or float64.
        error: (H, W) errors of the bins.
    """
    from uproot.writing.identify import to_TAxis, to_TH2x

    height, width = image.shape
    axes = [to_TAxis(f"{axis}axis", "", n, -0.5, n - 0.5) for axis, n in (("x", width), ("y", height))]
    squares = None if error is None else np.pad(np.asarray(error, np.float64) ** 2, 1).ravel()
    total = float(image.sum(dtype=np.float64))
    return to_TH2x(
        name, name, np.pad(image, 1).ravel(), image.size, total, total, 0.0, 0.0, 0.0, 0.0, 0.0, squares, *axes
    )  # fmt: skip
