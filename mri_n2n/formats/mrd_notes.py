"""Where the readouts of an MRD file lie, and what the format has no place for: codes and array axes of NIfTI, a noise
variance without noise readouts, and whether a scan is simulated stand in user parameters of its header."""

from __future__ import annotations

import math

import numpy as np

from mri_n2n.acquisition import MILLIMETRES, Geometry, Scan
from mri_n2n.formats.encoding import Encoding
from mri_n2n.formats.hdf5 import UNITS, usable_affine

OURS = "mri_n2n_"  # begins the names of our user parameters


def geometry_of(
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
    affine[:3, 1] = read * encoding.field_of_view[0] / encoding.matrix[0]
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
    fields, spacing = places(geometry, shape)
    _, _, y, x = shape
    sizes = np.array([encoding.field_of_view[1] / x, encoding.field_of_view[0] / encoding.matrix[0]])
    far = 1e-2 * spacing.min() + 1e-6 * np.abs(fields["position"]).max()  # the readouts' numbers are float32
    return bool(
        np.allclose(sizes, spacing[:2], rtol=1e-4, atol=0)
        and all(
            np.allclose(firsts[name], place, rtol=0, atol=far if name == "position" else 1e-4)
            for name, place in fields.items()
        )
    )


def places(geometry: Geometry, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fields (slices, 3) of the readouts' headers, in L, P, S and mm, and the spacing (x, y, slice) in mm.

    Zeros, which say nothing, and a spacing of 1 where neither code nor unit tells a place in millimetres.
    """
    slices, _, y, x = shape
    if geometry.spatial_unit not in MILLIMETRES or not geometry.qform_code + geometry.sform_code:
        names = ("phase_dir", "read_dir", "slice_dir", "position")
        return {name: np.zeros((slices, 3)) for name in names}, np.ones(3)
    low, high = (axis for axis in range(3) if axis != geometry.slice_axis)
    scale = MILLIMETRES[geometry.spatial_unit]
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


def noted_noise_variance(encoding: Encoding) -> float | None:
    """The noise variance that `write_scan` noted, None without. ValueError for a number that it cannot be."""
    try:
        variance = float(encoding.user_parameters[f"{OURS}noise_variance"])
    except (KeyError, ValueError):
        return None
    if not 0 <= variance < math.inf:
        raise ValueError(f"noise_variance must be a number of at least 0; got {variance}")
    return variance


def noted_simulated(encoding: Encoding) -> bool | None:
    """Whether `write_scan` noted that the scan is simulated, None when it did not say."""
    return {"0": False, "1": True}.get(encoding.user_parameters.get(f"{OURS}simulated", ""))


def notes(scan: Scan, noise_variance: float | None) -> str:
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
    entries = "".join(
        f"<userParameter{kind}><name>{OURS}{name}</name><value>{value}</value></userParameter{kind}>"
        for kind, values in (("Long", long), ("Double", double), ("String", string))
        for name, value in values.items()
    )
    return f"<userParameters>{entries}</userParameters>" if entries else ""
