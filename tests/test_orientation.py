"""Where things are: marked voxels keep their place in millimetres from every format that says where it lies, to every one."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from dicom_series import exact_weights, read_slices, read_voxels, write_scan_at, write_series
from test_raw_formats import XML, write_mrd

import mri_n2n
from mri_n2n.errors import InputError
from mri_n2n.fourier import fft2c
from mri_n2n.simulation import SimulationOptions, simulate_file

SHAPE = (14, 18, 6)
SIZES = np.array([0.9, 1.3, 2.5])  # mm
# A distinct intensity at one voxel of each octant, none of them at the mirror image of another.
MARKS = {(1, 2, 0): 900.0, (12, 3, 1): 840.0, (2, 15, 0): 780.0, (11, 13, 2): 720.0,
         (3, 1, 5): 660.0, (10, 4, 4): 600.0, (0, 16, 3): 540.0, (13, 12, 4): 480.0}  # fmt: skip


def oblique(hand: int) -> np.ndarray:
    """An affine with three rotations and three voxel sizes; hand -1: left-handed."""
    turns = np.eye(3)
    for axis, angle in enumerate((0.3, -0.2, 0.5)):
        one = np.eye(3)
        a, b = (n for n in range(3) if n != axis)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turns = turns @ one
    affine = np.eye(4)
    affine[:3, :3] = turns * SIZES * [1, 1, hand]
    affine[:3, 3] = -12.5, 31.25, 8.0
    return affine


def marked() -> np.ndarray:
    """(i, j, k) float32: another grey in each octant, with some texture, and the marks."""
    upper = [(np.arange(size) >= size // 2).astype(int) for size in SHAPE]
    array = 30.0 + 20 * (upper[0][:, None, None] + 2 * upper[1][None, :, None] + 4 * upper[2][None, None, :])
    array += np.random.default_rng(0).random(SHAPE)
    for place, value in MARKS.items():
        array[place] = value
    return array.astype(np.float32)


def expected(affine: np.ndarray, marks: dict = MARKS) -> np.ndarray:
    """(marks, 3) millimetres."""
    return np.array([affine[:3, :3] @ place + affine[:3, 3] for place in marks])


def found(places: np.ndarray, values: np.ndarray, marks: dict = MARKS) -> np.ndarray:
    """(marks, 3) millimetres of the voxels with the marks' intensities, of which there is one each."""
    at = [np.flatnonzero(np.abs(values - value) < 5) for value in marks.values()]
    assert [len(one) for one in at] == [1] * len(marks)
    return places[np.concatenate(at)]


def nifti_voxels(path: Path, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 3) by the q-form or the s-form alone, and intensities (n,)."""
    image = nibabel.load(path)
    affine = image.get_qform() if form == "q" else image.get_sform()
    index = np.indices(image.shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).T, image.get_fdata().ravel()


def hdf5_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """By the rule of docs/files.md: slices along slice_axis; of the other axes the lower is x, the higher y."""
    with h5py.File(path) as file:
        slices, affine, axis = file["reconstruction"][()], file.attrs["affine"], int(file.attrs["slice_axis"])
        assert file.attrs["spatial_unit"] in ("mm", b"mm")
    low, high = (a for a in range(3) if a != axis)
    places, values = [], []
    for (s, y, x), value in np.ndenumerate(slices):
        voxel = [0, 0, 0, 1]
        voxel[axis], voxel[high], voxel[low] = s, y, x
        places.append((affine @ voxel)[:3])
        values.append(value)
    return np.array(places), np.array(values)


def series_of(folder: Path, affine: np.ndarray, axis: int, shape=SHAPE) -> Path:
    """A DICOM series of the slices of a volume along `axis`, each plane as seen in the array, right-handed."""
    low, high = (a for a in range(3) if a != axis)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    matrix, first = to_lps @ affine[:3, :3], to_lps @ affine[:3, 3]
    sizes = np.linalg.norm(matrix, axis=0)
    row, column = matrix[:, low] / sizes[low], matrix[:, high] / sizes[high]
    normal = np.cross(row, column)
    if normal @ matrix[:, axis] < 0:  # the stack begins at the other end
        first = first + matrix[:, axis] * (shape[axis] - 1)
    return write_series(
        folder, slices=shape[axis], rotation=np.stack((row, column, normal), axis=1), origin=first,
        pixel_spacing=(sizes[high], sizes[low]), slice_spacing=sizes[axis], size=(shape[high], shape[low]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return exact_weights(tmp_path_factory.mktemp("weights") / "exact.safetensors")


def volume_file(path: Path, affine: np.ndarray, codes: tuple[int, int] = (1, 2)) -> Path:
    image = nibabel.Nifti1Image(marked(), None)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def check_everywhere(
    scan: Path, affine: np.ndarray, axis: int, weights: Path, tmp_path: Path, shape=SHAPE, marks=MARKS
):
    """Reconstruct into every format; each puts the marks where the affine does. axis: of the slices."""
    named = scan.rename(scan.with_name(f"sub-01_T1w{scan.suffix}"))
    series = series_of(tmp_path / "series", affine, axis, shape)
    options = {"weights": weights, "dicom": series}
    mri_n2n.reconstruct(named, tmp_path / "plain", **options)
    mri_n2n.reconstruct(named, tmp_path / "bids", bids=True, **options)
    for folder, name in (("plain", "sub-01_T1w"), ("bids/sub-01/anat", "sub-01_desc-n2n_T1w")):
        place = tmp_path / folder / name
        forms = {
            "q-form": nifti_voxels(place.with_suffix(".nii.gz"), "q"),
            "s-form": nifti_voxels(place.with_suffix(".nii.gz"), "s"),
            "HDF5": hdf5_voxels(place.with_suffix(".h5")),
            "DICOM": read_voxels(place.with_suffix(".dicom")),
        }
        for form, voxels in forms.items():
            assert len(voxels[0]) == np.prod(shape)
            np.testing.assert_allclose(found(*voxels, marks), expected(affine, marks), atol=1e-3, err_msg=form)


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_from_a_simulated_scan(axis, hand, weights, tmp_path):
    volume = volume_file(tmp_path / "volume.nii.gz", oblique(hand))
    (scan,) = simulate_file(volume, tmp_path / "scan.h5", SimulationOptions(acceleration=1, axis=axis))
    check_everywhere(scan, oblique(hand), axis, weights, tmp_path)


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_from_a_converted_mrd_file(axis, hand, weights, tmp_path):
    volume = volume_file(tmp_path / "volume.nii.gz", oblique(hand))
    (scan,) = simulate_file(volume, tmp_path / "scan.h5", SimulationOptions(acceleration=1, axis=axis))
    mri_n2n.convert(scan, tmp_path / "scan.mrd", lossy=True)
    check_everywhere(tmp_path / "scan.mrd", oblique(hand), axis, weights, tmp_path)


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("oversampling", [1, 2])
def test_from_an_mrd_file_by_hand(oversampling, hand, weights, tmp_path):
    """Readout along y, phase encoding along x; a position is that of the centre pixel of its slice, index n // 2."""
    x, y, slices = SHAPE
    affine = oblique(hand)
    affine[:3, :3] *= np.array([150.0 / x, 200.0 / y, 2.5]) / SIZES  # the fields of view that write_mrd writes
    images = read_slices(marked(), 2)
    wide = np.zeros((slices, 1, oversampling * y, x), np.complex64)
    first = oversampling * y // 2 - y // 2
    wide[:, 0, first : first + y] = images
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]

    def place(table):
        for row in table:
            head = row["head"]
            for name, axis in (("phase_dir", 0), ("read_dir", 1), ("slice_dir", 2)):
                head[name] = lps[:, axis] / np.linalg.norm(lps[:, axis])
            head["position"] = lps @ [x // 2, y // 2, int(head["idx"]["slice"]), 1]
            row["head"] = head

    kspace = fft2c(torch.from_numpy(wide)).numpy()
    scan = write_mrd(tmp_path / "scan.h5", kspace, oversampling=oversampling, changes=[place])
    check_everywhere(scan, affine, 2, weights, tmp_path)


def test_from_a_fastmri_file_whose_header_asks_for_a_crop(weights, tmp_path):
    """The affine is that of all of k-space: the first voxel of the smaller image lies further in."""
    affine = oblique(-1)
    scan = write_scan_at(tmp_path / "scan.h5", marked(), affine)
    header = XML.format(x=18, y=14, rx=13, fx=180.0, frx=130.0, fy=140.0, last=13, center=7, trajectory="cartesian")
    header = header.replace("<x>13</x><y>14</y>", "<x>13</x><y>10</y>")
    with h5py.File(scan, "r+") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = header
        file["reconstruction_esc"] = read_slices(marked(), 2)[:, 3:16, 2:12]
    cropped = affine.copy()
    cropped[:3, 3] += affine[:3, :3] @ [7 - 5, 9 - 6, 0]
    inside = {place: value for place, value in MARKS.items() if 2 <= place[0] < 12 and 3 <= place[1] < 16}
    inside = {(i - 2, j - 3, k): value for (i, j, k), value in inside.items()}
    assert len(inside) >= 3
    check_everywhere(scan, cropped, 2, weights, tmp_path, shape=(10, 13, 6), marks=inside)
    quality = mri_n2n.evaluate(tmp_path / "plain" / "sub-01_T1w.h5", tmp_path / "sub-01_T1w.h5")
    assert quality.mean.nmse < 1e-6


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("codes", [(1, 2), (4, 4), (0, 3), (2, 0)])
def test_a_volume_comes_back_voxel_by_voxel(codes, hand, weights, tmp_path):
    """NIfTI -> simulated scan -> NIfTI, read by nibabel: each voxel within 1e-3 mm in both forms; codes, unit, type, scale."""
    affine = oblique(hand)
    volume = volume_file(tmp_path / "volume.nii.gz", affine, codes)
    (scan,) = simulate_file(volume, tmp_path / "scan.h5", SimulationOptions(acceleration=1))
    mri_n2n.reconstruct(scan, tmp_path / "out", weights=weights)
    image = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    assert image.shape == SHAPE and image.get_data_dtype() == np.float32
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == codes
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.get_fdata(), marked(), atol=1e-3)
    index = np.indices(SHAPE).reshape(3, -1)
    original = affine[:3, :3] @ index + affine[:3, 3:]
    for form, code in zip((image.get_qform(), image.get_sform(), image.affine), (*codes, 1), strict=True):
        if code:
            assert np.abs(form[:3, :3] @ index + form[:3, 3:] - original).max() < 1e-3


def test_no_place_is_invented(weights, tmp_path):
    """A scan that says nothing of its place: codes 0, "unknown", and no DICOM."""
    kspace = fft2c(torch.from_numpy(read_slices(marked(), 2)).to(torch.complex64)).numpy()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace
    (sidecar,) = mri_n2n.reconstruct(tmp_path / "scan.h5", tmp_path / "out", weights=weights)
    header = nibabel.load(tmp_path / "out" / "scan.nii.gz").header
    assert int(header["qform_code"]) == int(header["sform_code"]) == 0 and header.get_xyzt_units()[0] == "unknown"
    assert "unknown" in sidecar["geometry"]
    with h5py.File(tmp_path / "out" / "scan.h5") as file:
        assert "affine" not in file.attrs
    series = series_of(tmp_path / "series", oblique(1), 2)
    with pytest.raises(InputError, match="scan.h5 says nothing of where its slices lie"):
        mri_n2n.reconstruct(tmp_path / "scan.h5", tmp_path / "dicom", weights=weights, dicom=series)
    assert not (tmp_path / "dicom").exists()
