"""ISMRMRD (MRD) raw data in HDF5 (https://ismrmrd.readthedocs.io), Cartesian two-dimensional multi-slice, read with h5py:
the format's own library opens files for writing.

A group holds `xml`, the header, and `data`, one readout per row: an acquisition header and interleaved float32 samples.
Read are image lines, sorted by their encoding counters: x is the phase-encoded axis, y the readout. Averages are
averaged; noise readouts give the noise covariance of the coils; readout oversampling is removed in image space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.coils import noise_covariance
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import one_line
from mri_n2n.formats.encoding import Encoding, read_encoding
from mri_n2n.formats.hdf5 import (
    FILE_FACTOR,
    MAX_EXPANSION,
    check_size,
    checked_dataset,
    open_hdf5,
    size_limit,
)
from mri_n2n.formats.mrd_notes import geometry_of, noted_noise_variance, noted_simulated

FORMAT = "mrd"
ROWS_AT_ONCE = 64  # readouts in memory beside their slice

HEAD = np.dtype(
    [("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
     ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
     ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)), ("discard_pre", "<u2"),
     ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"), ("trajectory_dimensions", "<u2"),
     ("sample_time_us", "<f4"), ("position", "<f4", (3,)), ("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)),
     ("slice_dir", "<f4", (3,)), ("patient_table_position", "<f4", (3,)),
     ("idx", [("kspace_encode_step_1", "<u2"), ("kspace_encode_step_2", "<u2"), ("average", "<u2"), ("slice", "<u2"),
              ("contrast", "<u2"), ("phase", "<u2"), ("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"),
              ("user", "<u2", (8,))]),
     ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))]
)  # fmt: skip
# Bits of `flags`, counted from 1 as in the specification.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
# Navigator, phase correction, feedback, dummy, surface coil correction, phase stabilisation: no image data.
NOT_IMAGE = (23, 24, 26, 27, 28, 29, 30, 31)


def open_scan(path: Path | str, repetition: int | None = None) -> Scan:
    """Check a file and index its readouts without reading samples. repetition: one of several; None: their mean.

    Errors: NotFoundError; InputError for files that are damaged, not Cartesian or not two-dimensional.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        group = _group(file, path)
        encoding = _encoding(file, path, f"{group}/xml")
        data = checked_dataset(file, path, f"{group}/data", (1,), "V")
        check_size(path, "the headers of its readouts", len(data) * 400, size_limit())
        if not _holds_readouts(data.dtype):
            raise InputError(f"{one_line(path)}: {group}/data holds no readouts of ISMRMRD")
        heads = _heads(data["head"])
    flags, index = heads["flags"], heads["idx"]
    has = lambda *bits: sum(flags >> np.uint64(bit - 1) & np.uint64(1) for bit in bits) > 0  # noqa: E731
    image = ~has(NOISE, *NOT_IMAGE)
    if encoding.calibration == "separate":  # another measurement, perhaps of another contrast
        image &= ~(has(CALIBRATION) & ~has(CALIBRATION_AND_IMAGING))
    image &= heads["encoding_space_ref"] == 0
    if not image.any():
        raise InputError(f"{one_line(path)} holds no image readouts")
    for name in ("kspace_encode_step_2", "contrast", "phase", "set"):
        if len(np.unique(index[name][image])) > 1:
            raise InputError(f"{one_line(path)} varies in {name}; two-dimensional scans of one contrast are read")
    repetitions = np.unique(index["repetition"][image])
    if repetition is not None:
        if not 0 <= repetition < len(repetitions):
            raise OptionError(f"{one_line(path)} has repetitions 0 to {len(repetitions) - 1}; no number {repetition}")
        image &= index["repetition"] == repetitions[repetition]
    coils = np.unique(heads["active_channels"][image])
    lines = index["kspace_encode_step_1"].astype(int) + encoding.matrix[1] // 2 - encoding.phase_center
    if len(coils) != 1 or not ((0 <= lines[image]) & (lines[image] < encoding.matrix[1])).all():
        raise InputError(f"{one_line(path)}: numbers of coils or of lines do not fit its header")
    used = heads["number_of_samples"].astype(int) - heads["discard_pre"] - heads["discard_post"]
    if not ((0 < used[image]) & (used[image] <= encoding.matrix[0])).all():
        raise InputError(
            f"{one_line(path)}: readouts are longer than the encoded matrix of {encoding.matrix[0]} samples"
        )
    numbers = np.unique(index["slice"][image])
    rows = {number: np.flatnonzero(image & (index["slice"] == value)) for number, value in enumerate(numbers)}
    shares = (wanted / encoded for wanted, encoded in zip(encoding.recon_field_of_view, encoding.field_of_view))
    y, x = (
        max(1, min(n, round(n * share))) for n, share in zip(encoding.matrix, shares, strict=True)
    )  # without oversampling
    shape = (len(rows), int(coils[0]), y, encoding.matrix[1])
    first, last = encoding.acquired_lines
    padded = 0 < last - first < encoding.matrix[1]
    _check_sizes(path, heads, shape[0], shape[1], encoding.matrix)
    simulated = noted_simulated(encoding)
    try:
        stored_variance = noted_noise_variance(encoding)
    except ValueError as error:
        raise InputError(f"{one_line(path)}: {one_line(error)}") from None
    after_reversal = _centers_after_reversal(heads[image])
    averages = min(len(found) / len(np.unique(lines[found])) for found in rows.values())
    covariance = _covariance(path, group, np.flatnonzero(has(NOISE)), heads, rows[0])

    def read_slice(number: int) -> tuple[np.ndarray, np.ndarray]:
        """(coils, y, x) k-space and (y, x) mask."""
        kspace = np.zeros((shape[1], *encoding.matrix), dtype=np.complex64)
        count = np.zeros(encoding.matrix, dtype=np.int64)
        for row, readout in _readouts(path, group, rows[number], heads):
            head = heads[row]
            center = int(head["center_sample"]) - int(head["discard_pre"])
            if has_bit(head, REVERSE):
                readout, center = readout[:, ::-1], center if after_reversal else readout.shape[1] - 1 - center
            start = encoding.matrix[0] // 2 - center
            if start < 0 or start + readout.shape[1] > encoding.matrix[0]:
                raise InputError(f"{one_line(path)}: a readout's centre lies outside the encoded matrix")
            place = slice(start, start + readout.shape[1])
            kspace[:, place, lines[row]] += readout
            count[place, lines[row]] += 1
        kspace /= np.maximum(count, 1)
        return _without_oversampling(kspace, count > 0, y)

    def read(start: int, stop: int) -> Acquisition:
        if not 0 <= start < stop <= shape[0]:
            raise ValueError(f"slices must be in 0..{shape[0]}; got {start}..{stop}")
        kspace, masks = zip(*(read_slice(number) for number in range(start, stop)), strict=True)
        kspace, masks = np.stack(kspace), np.stack(masks)[:, None]
        if not np.isfinite(kspace).all():
            raise InputError(f"{one_line(path)}: k-space holds NaN or infinite samples; expected finite")
        variance = stored_variance
        if covariance is not None:
            variance = float(covariance.diagonal().real.mean()) / max(1.0, averages)
        same = (masks == masks[:1]).all()
        mask = torch.from_numpy((masks[:1] if same else masks).astype(np.float32))
        return Acquisition(torch.from_numpy(kspace), mask, None, None, variance)

    return Scan(
        path=path,
        format=FORMAT,
        shape=shape,
        read=read,
        geometry=geometry_of(heads, rows, encoding, shape),
        mask_source="stored",
        simulated=simulated,
        has_reference=False,
        noise_covariance=covariance,
        repetitions=len(repetitions),
        image_matrix=(y, x) if x < encoding.matrix[1] else None,
        acquired_columns=(first, last) if padded else None,
    )


def _centers_after_reversal(heads: np.ndarray) -> bool:
    """Whether the centres of reversed readouts are meant as they lie once turned round: where readouts of even length have
    the sample after the middle as their centre in both directions, which no sample of theirs was before."""
    used = heads["number_of_samples"].astype(int) - heads["discard_pre"] - heads["discard_post"]
    center = heads["center_sample"].astype(int) - heads["discard_pre"]
    return bool((used % 2 == 0).all() and (center == used // 2).all())


def has_bit(head: np.void, bit: int) -> bool:
    return bool(int(head["flags"]) >> (bit - 1) & 1)


def is_mrd(file: h5py.File) -> bool:
    """Whether a group holds an XML header or readouts; what is missing or damaged, reading tells."""
    return bool(_groups(file, {"xml"}) + _groups(file, {"data"}))


def _groups(file: h5py.File, names: set[str]) -> list[str]:
    """The groups that hold these names."""
    found = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    return [name for name in found if isinstance(file[name], h5py.Group) and names <= set(file[name])]


def _group(file: h5py.File, path: Path) -> str:
    found = _groups(file, {"xml", "data"})
    if len(found) != 1:
        raise InputError(f"{one_line(path)} holds {len(found)} ISMRMRD data sets; expected one group with xml and data")
    return found[0]


def _encoding(file: h5py.File, path: Path, name: str) -> Encoding:
    encoding = read_encoding(checked_dataset(file, path, name, (1,), "OSV", sparse=True)[0], path)
    if encoding.trajectory != "cartesian" or encoding.partitions > 1:
        raise InputError(
            f"{one_line(path)}: {encoding.trajectory}, {encoding.partitions} partitions; two-dimensional Cartesian scans are read"
        )
    return encoding


def _holds_readouts(dtype: np.dtype) -> bool:
    """Whether the rows of a table are ISMRMRD's: acquisition headers with all their fields, and float32 samples."""
    if dtype.names is None or not {"head", "data"} <= set(dtype.names):
        return False

    def has_fields(found: np.dtype, expected: np.dtype) -> bool:
        if expected.names is None:  # a number, or an array of some
            return found.base.kind in "iuf" and found.shape == expected.shape
        names = found.names or ()
        return all(name in names and has_fields(found[name], expected[name]) for name in expected.names)

    return has_fields(dtype["head"], HEAD) and h5py.check_vlen_dtype(dtype["data"]) == np.dtype("<f4")


def _heads(found: np.ndarray) -> np.ndarray:
    """Headers with their fields in our order and types, whatever those of the file."""
    heads = np.zeros(len(found), HEAD)
    with np.errstate(invalid="ignore"):
        for name in HEAD.names:
            if HEAD[name].names is None:
                heads[name] = found[name]
            else:
                for inner in HEAD[name].names:
                    heads[name][inner] = found[name][inner]
    return heads


def _check_sizes(path: Path, heads: np.ndarray, slices: int, coils: int, matrix: tuple[int, int]) -> None:
    """InputError when readouts are larger than the file, which can only refer to one place many times, or when k-space
    is beyond the limits, or so much larger than the file that no scan would be."""
    size = path.stat().st_size
    if int((heads["active_channels"].astype(np.int64) * heads["number_of_samples"] * 8).sum()) > size:
        raise InputError(
            f"{one_line(path)}: the headers of its readouts declare more samples than the file holds; truncated?"
        )
    one = coils * math.prod(matrix) * 8
    check_size(path, "the scan", slices * one, size_limit() * FILE_FACTOR)
    check_size(path, "one slice", one, size_limit())
    if slices * one > MAX_EXPANSION * size + 2**20:
        raise InputError(
            f"{one_line(path)} declares {slices * one / 2**20:.0f} MiB of k-space in a file of {size / 2**20:.3g} MiB; "
            "no scan is undersampled so far"
        )


def _readouts(path: Path, group: str, rows: np.ndarray, heads: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a table with their readouts, see `_readout`. Only a few are in memory: a row can be longer than its
    header says, which shows when it was read."""
    at_once = max(1, min(ROWS_AT_ONCE, size_limit() // path.stat().st_size))
    with open_hdf5(path) as file:
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            for row, values in zip(some, file[f"{group}/data"][some]["data"], strict=True):
                yield row, _readout(path, heads[row], values)


def _readout(path: Path, head: np.void, values: np.ndarray) -> np.ndarray:
    """(coils, samples) complex64 of one readout, without the samples to discard."""
    channels, samples = int(head["active_channels"]), int(head["number_of_samples"])
    if values.dtype != np.float32 or values.size != 2 * channels * samples:
        raise InputError(
            f"{one_line(path)}: a readout holds {values.size} numbers, not 2 x {channels} coils x {samples} samples"
        )
    readout = values.view(np.complex64).reshape(channels, samples)
    return readout[:, int(head["discard_pre"]) : samples - int(head["discard_post"])]


def _covariance(path: Path, group: str, noise: np.ndarray, heads: np.ndarray, image: np.ndarray) -> torch.Tensor | None:
    """Noise covariance (coils, coils) of one image sample, from the noise readouts; None without them.

    Noise power is proportional to the bandwidth, the inverse of the dwell time.
    """
    if not len(noise):
        return None
    if len(np.unique(heads["active_channels"][noise])) > 1:
        return None
    readouts = np.concatenate([readout for _, readout in _readouts(path, group, noise, heads)], axis=1)
    if len(readouts) != heads[image[0]]["active_channels"] or readouts.shape[1] < 4 * len(readouts):
        return None
    dwell, image_dwell = (float(heads[rows[0]]["sample_time_us"]) for rows in (noise, image))
    ratio = dwell / image_dwell if dwell > 0 and image_dwell > 0 else 1.0
    return noise_covariance(torch.from_numpy(np.ascontiguousarray(readouts))) * ratio


def _without_oversampling(kspace: np.ndarray, mask: np.ndarray, y: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop the image of k-space (coils, y, x) to y pixels along the readout; the mask (y, x) is thinned out alike."""
    size = kspace.shape[1]
    if y == size:
        return kspace, mask
    images = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=1), axis=1, norm="ortho"), axes=1)
    images = images[:, size // 2 - y // 2 :][:, :y]
    cropped = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(images, axes=1), axis=1, norm="ortho"), axes=1)
    nearest = np.clip(np.round((np.arange(y) - y // 2) * size / y).astype(int) + size // 2, 0, size - 1)
    mask = mask[nearest]
    return (cropped * mask).astype(np.complex64), mask
