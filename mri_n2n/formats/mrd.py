"""ISMRMRD (MRD) raw data in HDF5 (https://ismrmrd.readthedocs.io), Cartesian two-dimensional multi-slice, read with h5py:
the format's own library opens files for writing.

A group holds `xml`, the header, and `data`, one readout per row: an acquisition header and interleaved float32 samples.
Read are image lines, sorted by their encoding counters: x is the phase-encoded axis, y the readout. Averages are
averaged; noise readouts give the noise covariance of the coils; readout oversampling is removed in image space.
What the format has no place for (codes and array axes of NIfTI, a noise variance without readouts, whether the scan is
simulated) stands in user parameters of the header.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Geometry, Scan
from mri_n2n.coils import noise_covariance
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import one_line
from mri_n2n.formats.encoding import Encoding, read_encoding
from mri_n2n.formats.hdf5 import (
    FILE_FACTOR,
    MAX_EXPANSION,
    UNITS,
    check_size,
    checked_dataset,
    hdf5_output,
    open_hdf5,
    size_limit,
    usable_affine,
)

FORMAT = "mrd"
OURS = "mri_n2n_"  # begins the names of our user parameters
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
            raise InputError(f"{one_line(path)} has {len(repetitions)} repetitions; no number {repetition}")
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
    oversampling = encoding.field_of_view[0] / encoding.recon_field_of_view[0]
    y = round(encoding.matrix[0] / oversampling)
    shape = (len(rows), int(coils[0]), y, encoding.matrix[1])
    _check_sizes(path, heads, shape[0], shape[1], encoding.matrix)
    simulated = {"0": False, "1": True}.get(encoding.user_parameters.get(f"{OURS}simulated"))
    stored_variance = _noise_variance(encoding)
    covariance = _covariance(path, group, np.flatnonzero(has(NOISE)), heads, rows[0])

    def read_slice(number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(coils, y, x) k-space, (y, x) mask, and how often its lines were averaged."""
        kspace = np.zeros((shape[1], *encoding.matrix), dtype=np.complex64)
        count = np.zeros(encoding.matrix, dtype=np.int64)
        for row, readout in _readouts(path, group, rows[number], heads):
            head = heads[row]
            center = int(head["center_sample"]) - int(head["discard_pre"])
            if has_bit(head, REVERSE):
                readout, center = readout[:, ::-1], readout.shape[1] - 1 - center
            start = encoding.matrix[0] // 2 - center
            if start < 0 or start + readout.shape[1] > encoding.matrix[0]:
                raise InputError(f"{one_line(path)}: a readout's centre lies outside the encoded matrix")
            place = slice(start, start + readout.shape[1])
            kspace[:, place, lines[row]] += readout
            count[place, lines[row]] += 1
        kspace /= np.maximum(count, 1)
        return *_without_oversampling(kspace, count > 0, y), int(np.median(count[count > 0]))

    def read(start: int, stop: int) -> Acquisition:
        if not 0 <= start < stop <= shape[0]:
            raise ValueError(f"slices must be in 0..{shape[0]}; got {start}..{stop}")
        kspace, masks, averages = zip(*(read_slice(number) for number in range(start, stop)), strict=True)
        kspace, masks = np.stack(kspace), np.stack(masks)[:, None]
        if not np.isfinite(kspace).all():
            raise InputError(f"{one_line(path)}: k-space holds NaN or infinite samples; expected finite")
        variance = stored_variance
        if covariance is not None:
            variance = float(covariance.diagonal().real.mean()) / min(averages)
        same = (masks == masks[:1]).all()
        mask = torch.from_numpy((masks[:1] if same else masks).astype(np.float32))
        return Acquisition(torch.from_numpy(kspace), mask, None, None, variance)

    return Scan(
        path=path,
        format=FORMAT,
        shape=shape,
        read=read,
        geometry=_geometry(heads, rows, encoding, shape),
        mask_source="stored",
        simulated=simulated,
        has_reference=False,
        noise_covariance=covariance,
        repetitions=len(repetitions),
    )


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


def _noise_variance(encoding: Encoding) -> float | None:
    """The noise variance that `write_scan` noted, None without."""
    try:
        variance = float(encoding.user_parameters[f"{OURS}noise_variance"])
    except (KeyError, ValueError):
        return None
    return variance if 0 <= variance < math.inf else None


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


def _geometry(
    heads: np.ndarray, rows: dict[int, np.ndarray], encoding: Encoding, shape: tuple[int, ...]
) -> Geometry | None:
    """From the positions and directions of the readouts (patient coordinates L, P, S; mm); None when they are zero.

    What `write_scan` noted of the volume array it came from is taken when the readouts still lie where it says.
    """
    firsts = np.stack([heads[found[0]] for found in rows.values()])
    noted = _noted_geometry(encoding)
    if noted is not None and _lies_there(noted, firsts, encoding, shape):
        return noted
    read, phase, normal = (firsts[0][name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir"))
    directions = np.stack((phase, read, normal))
    if not np.allclose(directions @ directions.T, np.eye(3), atol=1e-2):
        return None
    positions = firsts["position"].astype(np.float64)
    _, _, y, x = shape
    step = normal * encoding.field_of_view[2]
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
        if not (
            np.allclose(np.diff(positions, axis=0), step, atol=1e-2 * np.linalg.norm(step)) and np.linalg.norm(step) > 0
        ):
            return None
    affine = np.eye(4)
    affine[:3, 0] = phase * encoding.field_of_view[1] / x
    affine[:3, 1] = read * encoding.recon_field_of_view[0] / y
    affine[:3, 2] = step
    affine[:3, 3] = positions[0] - affine[:3, 0] * (x // 2) - affine[:3, 1] * (y // 2)
    affine[:2] *= -1  # L, P, S to R, A, S
    if not usable_affine(affine):
        return None
    return Geometry(tuple(map(tuple, affine.tolist())), 2, 1, 1, "mm")


def _noted_geometry(encoding: Encoding) -> Geometry | None:
    """The geometry in our user parameters; None when they are not there or make no sense."""
    noted = {name[len(OURS) :]: text for name, text in encoding.user_parameters.items() if name.startswith(OURS)}
    try:
        affine = np.array([float(number) for number in noted["affine"].split()]).reshape(4, 4)
        axis, qform, sform = (int(noted[name]) for name in ("slice_axis", "qform_code", "sform_code"))
        unit = noted["spatial_unit"]
    except (KeyError, ValueError):
        return None
    known = axis in range(3) and qform in range(6) and sform in range(6) and unit in UNITS
    if not (known and usable_affine(affine)):
        return None
    return Geometry(tuple(map(tuple, affine.tolist())), axis, qform, sform, unit)


def _lies_there(geometry: Geometry, firsts: np.ndarray, encoding: Encoding, shape: tuple[int, ...]) -> bool:
    """Whether the first readouts of all slices lie where a geometry puts them, to a hundredth of a voxel."""
    places, spacing = _places(geometry, shape)
    _, _, y, x = shape
    sizes = np.array([encoding.field_of_view[1] / x, encoding.recon_field_of_view[0] / y])
    far = 1e-2 * spacing.min() + 1e-6 * np.abs(places["position"]).max()  # the readouts' numbers are float32
    return bool(
        np.allclose(sizes, spacing[:2], rtol=1e-4, atol=0)
        and all(
            np.allclose(firsts[name], place, rtol=0, atol=far if name == "position" else 1e-4)
            for name, place in places.items()
        )
    )


def _places(geometry: Geometry, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fields (slices, 3) of the readouts' headers, in L, P, S and mm, and the spacing (x, y, slice) in mm."""
    slices, _, y, x = shape
    low, high = (axis for axis in range(3) if axis != geometry.slice_axis)
    scale = {"meter": 1e3, "micron": 1e-3}.get(geometry.spatial_unit, 1.0)
    affine = np.asarray(geometry.affine)[:, [low, high, geometry.slice_axis, 3]]  # (x, y, slice) as our slices are
    affine = affine[:3] * np.array([-scale, -scale, scale])[:, None]
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    phase, read = (affine[:, axis] / spacing[axis] for axis in (0, 1))
    normal = np.cross(phase, read)  # slices that are shifted in their plane (a tilted gantry) keep their normal
    normal *= np.sign(normal @ affine[:, 2]) / np.linalg.norm(normal)
    spacing[2] = normal @ affine[:, 2]
    index = np.stack([np.full(slices, x // 2), np.full(slices, y // 2), np.arange(slices), np.ones(slices)])
    fields = {"phase_dir": phase, "read_dir": read, "slice_dir": normal}
    places = {name: np.broadcast_to(value, (slices, 3)) for name, value in fields.items()}
    return places | {"position": (affine @ index).T}, spacing


def write_scan(path: Path | str, slices: Iterable[Acquisition], scan: Scan, force: bool) -> None:
    """Write single slices as readouts along y of the lines that were sampled, complete or not at all.

    Errors: OutputError; OptionError for masks that are no lines, since a readout is measured as a whole, for slices
    without any, and for sizes that the format has no numbers for.
    """
    _, coils, y, x = scan.shape
    places, spacing = ({}, np.ones(3)) if scan.geometry is None else _places(scan.geometry, scan.shape)
    header = _xml(scan, spacing, scan.read(0, 1).noise_variance)
    try:
        read_encoding(header, scan.path)
    except InputError as error:
        raise OptionError(f"MRD cannot hold this scan: {error}") from None
    if max(scan.shape) >= 2**16:
        raise OptionError(f"MRD cannot hold {one_line(scan.path)}: (slices, coils, y, x) = {scan.shape} are too many")
    vlen = h5py.vlen_dtype(np.float32)
    dtype = np.dtype([("head", HEAD), ("traj", vlen), ("data", vlen)])
    with hdf5_output(path, force) as (file, check_disk):
        data = file.create_dataset("dataset/data", (0,), dtype, maxshape=(None,), chunks=(64,))
        for number, acquisition in enumerate(slices):
            mask = acquisition.mask[0, 0].numpy()
            if (mask != mask[:1]).any():
                raise OptionError(f"{one_line(scan.path)} is sampled at points; MRD holds readouts, lines along y")
            lines = np.flatnonzero(mask[0])
            if not len(lines):
                raise OptionError(f"slice {number} of {one_line(scan.path)} has no samples; MRD has no empty slices")
            table = np.zeros(len(lines), dtype)
            head = table["head"]
            head["version"], head["number_of_samples"], head["center_sample"] = 1, y, y // 2
            head["available_channels"] = head["active_channels"] = coils
            head["scan_counter"] = len(data) + np.arange(len(lines))
            head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = lines, number
            for name, place in places.items():
                head[name] = place[number]
            table["head"] = head
            for row, line in enumerate(lines):
                readout = np.ascontiguousarray(acquisition.kspace[0, :, :, line].numpy(), dtype=np.complex64)
                table[row]["traj"], table[row]["data"] = np.zeros(0, np.float32), readout.view(np.float32).ravel()
            data.resize(len(data) + len(lines), axis=0)
            data[len(data) - len(lines) :] = table
            check_disk()
        file["dataset/xml"] = np.array([header], dtype=h5py.string_dtype())


def _xml(scan: Scan, spacing: np.ndarray, noise_variance: float | None) -> str:
    """The header; its elements in the order of the format's schema."""
    _, _, y, x = scan.shape
    sizes = f"<matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>"
    field = "".join(f"<{n}>{mm:.9g}</{n}>" for n, mm in zip("xyz", spacing[[1, 0, 2]] * (y, x, 1), strict=True))
    space = f"{sizes}<fieldOfView_mm>{field}</fieldOfView_mm>"
    limits = f"<minimum>0</minimum><maximum>{x - 1}</maximum><center>{x // 2}</center>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>0</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1></encodingLimits>"
        f"<trajectory>cartesian</trajectory></encoding>{_notes(scan, noise_variance)}</ismrmrdHeader>"
    )


def _notes(scan: Scan, noise_variance: float | None) -> str:
    """Our user parameters: the geometry as it is stored elsewhere, noise variance and whether the scan is simulated."""
    long, double, string = {}, {}, {}
    if scan.simulated is not None:
        long["simulated"] = int(scan.simulated)
    if noise_variance is not None:
        double["noise_variance"] = repr(float(noise_variance))
    if scan.geometry is not None:
        long |= {name: getattr(scan.geometry, name) for name in ("slice_axis", "qform_code", "sform_code")}
        string["affine"] = " ".join(repr(float(number)) for row in scan.geometry.affine for number in row)
        string["spatial_unit"] = scan.geometry.spatial_unit
    notes = "".join(
        f"<userParameter{kind}><name>{OURS}{name}</name><value>{value}</value></userParameter{kind}>"
        for kind, values in (("Long", long), ("Double", double), ("String", string))
        for name, value in values.items()
    )
    return f"<userParameters>{notes}</userParameters>" if notes else ""
