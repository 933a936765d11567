"""ISMRMRD (MRD) raw data in HDF5 (https://ismrmrd.readthedocs.io), Cartesian two-dimensional multi-slice, read with h5py:
the format's own library opens files for writing.

A group holds `xml`, the header, and `data`, one readout per row: an acquisition header and interleaved float32 samples.
Read are image lines, sorted by their encoding counters: x is the phase-encoded axis, y the readout. Averages are
averaged; noise readouts give the noise covariance of the coils; readout oversampling is removed in image space.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Geometry, Scan
from mri_n2n.coils import noise_covariance
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import atomic_output, one_line
from mri_n2n.formats.encoding import Encoding, read_encoding
from mri_n2n.formats.hdf5 import check_size, checked_dataset, open_hdf5, size_limit

FORMAT = "mrd"

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
        data = checked_dataset(file, path, f"{group}/data", (1,), "V", sparse=True)
        check_size(path, "the headers of its readouts", len(data) * 400, size_limit())
        if data.dtype.names is None or not {"head", "data"} <= set(data.dtype.names):
            raise InputError(f"{one_line(path)}: {group}/data holds no readouts of ISMRMRD")
        heads = data["head"]
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
        if repetition >= len(repetitions):
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
    covariance = _covariance(path, group, np.flatnonzero(has(NOISE)), heads, rows[0])

    def read_slice(number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(coils, y, x) k-space, (y, x) mask, and how often its lines were averaged."""
        kspace = np.zeros((shape[1], *encoding.matrix), dtype=np.complex64)
        count = np.zeros(encoding.matrix, dtype=np.int64)
        with open_hdf5(path) as file:
            samples = file[f"{group}/data"][rows[number]]["data"]
        for row, values in zip(rows[number], samples, strict=True):
            head = heads[row]
            readout = _readout(path, head, values)
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
        variance = None if covariance is None else float(covariance.diagonal().real.mean()) / min(averages)
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
        simulated=None,
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
    with open_hdf5(path) as file:
        samples = file[f"{group}/data"][noise]["data"]
    readouts = np.concatenate(
        [_readout(path, heads[row], values) for row, values in zip(noise, samples, strict=True)], 1
    )
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
    """From the positions and directions of the readouts (patient coordinates L, P, S; mm); None when they are zero."""
    firsts = [heads[found[0]] for found in rows.values()]
    read, phase, normal = (
        np.asarray(firsts[0][name], dtype=np.float64) for name in ("read_dir", "phase_dir", "slice_dir")
    )
    directions = np.stack((phase, read, normal))
    if not np.allclose(directions @ directions.T, np.eye(3), atol=1e-2):
        return None
    positions = np.stack([np.asarray(head["position"], dtype=np.float64) for head in firsts])
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
    return Geometry(tuple(map(tuple, affine.tolist())), 2, 1, 1, "mm")


def write_scan(path: Path | str, slices: Iterable[Acquisition], scan: Scan, force: bool) -> None:
    """Write single slices as readouts along y of the lines that were sampled, complete or not at all.

    Errors: OutputError; OptionError for masks that are no lines, since a readout is measured as a whole.
    """
    _, coils, y, x = scan.shape
    affine = np.eye(4) if scan.geometry is None else _axes_of_slices(scan.geometry)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    vlen = h5py.vlen_dtype(np.float32)
    with atomic_output(path, force) as temporary, h5py.File(temporary, "w") as file:
        dtype = np.dtype([("head", HEAD), ("traj", vlen), ("data", vlen)])
        data = file.create_dataset("dataset/data", (0,), dtype, maxshape=(None,), chunks=(64,))
        for number, acquisition in enumerate(slices):
            mask = acquisition.mask[0, 0].numpy()
            if (mask != mask[:1]).any():
                raise OptionError(f"{one_line(scan.path)} is sampled at points; MRD holds readouts, lines along y")
            lines = np.flatnonzero(mask[0])
            table = np.zeros(len(lines), dtype)
            head = table["head"]
            head["version"], head["number_of_samples"], head["center_sample"] = 1, y, y // 2
            head["available_channels"] = head["active_channels"] = coils
            head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = lines, number
            if scan.geometry is not None:
                place = affine @ [x // 2, y // 2, number, 1]
                for name, value in (("phase_dir", 0), ("read_dir", 1), ("slice_dir", 2)):
                    head[name] = affine[:3, value] / spacing[value]
                head["position"] = place[:3]
            table["head"] = head
            for row, line in enumerate(lines):
                readout = np.ascontiguousarray(acquisition.kspace[0, :, :, line].numpy(), dtype=np.complex64)
                table[row]["traj"], table[row]["data"] = np.zeros(0, np.float32), readout.view(np.float32).ravel()
            data.resize(len(data) + len(lines), axis=0)
            data[len(data) - len(lines) :] = table
        file["dataset/xml"] = np.array([_xml(y, x, spacing)], dtype=h5py.string_dtype())


def _axes_of_slices(geometry: Geometry) -> np.ndarray:
    """(x, y, slice) -> millimetres in L, P, S: the affine with its columns in the order of our slices."""
    low, high = (axis for axis in range(3) if axis != geometry.slice_axis)
    scale = {"meter": 1e3, "micron": 1e-3}.get(geometry.spatial_unit, 1.0)
    affine = np.asarray(geometry.affine)[:, [low, high, geometry.slice_axis, 3]]
    return affine * np.array([-scale, -scale, scale, 1])[:, None]


def _xml(y: int, x: int, spacing: np.ndarray) -> str:
    sizes = f"<matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>"
    field = "".join(f"<{n}>{mm:.9g}</{n}>" for n, mm in zip("xyz", spacing[[1, 0, 2]] * (y, x, 1), strict=True))
    space = f"{sizes}<fieldOfView_mm>{field}</fieldOfView_mm>"
    limits = f"<minimum>0</minimum><maximum>{x - 1}</maximum><center>{x // 2}</center>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>0</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1></encodingLimits>"
        "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )
