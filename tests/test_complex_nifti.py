"""Complex images in NIfTI, in one file or two: simulated, described and trained on."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

import mri_n2n
from mri_n2n import cli
from mri_n2n.datasets import find_sources
from mri_n2n.errors import InputError, OptionError, UserError
from mri_n2n.formats import ImageFiles, pairs_of_parts, read_images
from mri_n2n.fourier import ifft2c
from mri_n2n.options import TrainOptions
from mri_n2n.simulation import SimulationOptions, simulate_file
from mri_n2n.training import train

AFFINE = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])


def image(*shape: int) -> np.ndarray:
    """Complex, (i, j, k)."""
    generator = np.random.default_rng(1)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def save(path: Path, array: np.ndarray, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def as_slices(volume: np.ndarray) -> np.ndarray:
    return volume.transpose(2, 1, 0)  # axis 2: y the higher, x the lower of the others


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_one_complex_file(dtype, tmp_path):
    volume = image(9, 8, 3)
    path = save(tmp_path / "c.nii.gz", volume.astype(dtype))
    array, geometry = read_images(ImageFiles(path))
    assert (
        array.dtype == np.complex64 and np.allclose(array, as_slices(volume)) and np.allclose(geometry.affine, AFFINE)
    )
    assert mri_n2n.info(path)["kind"] == "NIfTI complex volume"


def test_magnitude_and_phase_in_radians_and_in_scanner_units(tmp_path):
    volume = image(9, 8, 3)
    magnitude = save(tmp_path / "m.nii", np.abs(volume))
    angle = np.angle(volume)
    turns = {
        "radians": angle.astype(np.float32),
        "signed": np.round(angle / np.pi * 4096).astype(np.int16),
        "unsigned": (np.round(angle / np.pi * 2048) % 4096).astype(np.uint16),
    }
    for name, phase in turns.items():
        files = ImageFiles(magnitude, phase=save(tmp_path / f"{name}.nii", phase))
        assert np.allclose(read_images(files)[0], as_slices(volume), atol=0.01), name
    degrees = save(tmp_path / "d.nii", np.degrees(angle).astype(np.float32))
    milliradians = save(tmp_path / "mr.nii", (1000 * angle).astype(np.int16))
    half = save(tmp_path / "half.nii", np.round(angle / np.pi * 2048).astype(np.int16))
    for other in (degrees, milliradians, half):
        with pytest.raises(InputError, match="expected radians"):
            read_images(ImageFiles(magnitude, phase=other))


def test_real_and_imaginary_part(tmp_path):
    volume = image(5, 6, 2)
    real, imag = save(tmp_path / "r.nii", volume.real.copy()), save(tmp_path / "i.nii", volume.imag.copy())
    assert np.array_equal(read_images(ImageFiles(real, imaginary=imag))[0], as_slices(volume))
    with pytest.raises(InputError, match="negative"):
        read_images(ImageFiles(real, phase=imag))


def test_parts_that_do_not_fit(tmp_path):
    volume = np.abs(image(5, 6, 2))
    magnitude = save(tmp_path / "m.nii", volume)
    moved = AFFINE.copy()
    moved[0, 3] += 1
    for other in (save(tmp_path / "small.nii", volume[:4]), save(tmp_path / "moved.nii", volume, moved)):
        with pytest.raises(InputError, match="two parts of one image"):
            read_images(ImageFiles(magnitude, phase=other))
    whole = save(tmp_path / "c.nii", image(5, 6, 2))
    with pytest.raises(InputError, match="complex already"):
        read_images(ImageFiles(whole, phase=magnitude))
    bad = image(5, 6, 2)
    bad[1, 1, 1] = complex(0, np.nan)
    with pytest.raises(InputError, match="NaN"):
        read_images(ImageFiles(save(tmp_path / "nan.nii", bad)))


def test_parts_are_paired_by_their_bids_entity(tmp_path):
    names = ["sub-1_part-mag_T1w.nii.gz", "sub-1_part-phase_T1w.nii.gz", "sub-2_T1w.nii.gz", "sub-3_part-real_x.nii", "sub-3_part-imag_x.nii", "sub-4_part-mag_T1w.nii.gz"]  # fmt: skip
    found = pairs_of_parts([tmp_path / name for name in names])
    assert [(f.first.name[:5], f.phase is not None, f.imaginary is not None) for f in found] == [
        ("sub-1", True, False), ("sub-2", False, False), ("sub-3", False, True), ("sub-4", False, False)
    ]  # fmt: skip
    with pytest.raises(InputError, match="other part is not there"):
        pairs_of_parts([tmp_path / names[1]])


def test_simulate_keeps_the_measured_phase(tmp_path, capsys):
    volume = image(12, 10, 2)
    magnitude = save(tmp_path / "m.nii", np.abs(volume))
    phase = save(tmp_path / "p.nii", np.angle(volume).astype(np.float32))
    command = ["simulate", str(magnitude), "-o", str(tmp_path / "s.h5"), "--acceleration", "1"]
    assert cli.main([*command, "--phase-volume", str(phase)]) == 0
    with h5py.File(tmp_path / "s.h5") as file:
        kspace, reference = torch.from_numpy(file["kspace"][()]), file["reconstruction_esc"][()]
        assert file.attrs["phase"] and file.attrs["simulated"]
    assert np.allclose(ifft2c(kspace), as_slices(volume), atol=1e-4)
    assert np.allclose(reference, np.abs(as_slices(volume)), atol=1e-4)
    with pytest.raises(OptionError, match="leave out --phase"):
        simulate_file(magnitude, tmp_path / "t.h5", SimulationOptions(phase=True), phase=phase)
    with pytest.raises(OptionError, match="not both"):
        simulate_file(magnitude, tmp_path / "t.h5", phase=phase, imaginary=phase)
    assert not (tmp_path / "t.h5").exists()


def test_complex_volumes_are_trained_on_with_their_phase(tmp_path):
    for subject in "ab":
        volume = image(16, 16, 2)
        save(tmp_path / "data" / f"sub-{subject}_part-mag_T1w.nii", np.abs(volume))
        save(tmp_path / "data" / f"sub-{subject}_part-phase_T1w.nii", np.angle(volume).astype(np.float32))
    split = find_sources("nifti", tmp_path / "data")
    assert len(split.train) == len(split.validation) == 1 and split.train[0].has_phase
    kspace = split.validation[0].load()
    assert np.allclose(ifft2c(kspace)[:, 0], as_slices(volume) / np.abs(volume).max(), atol=1e-5)
    options = TrainOptions(dataset="nifti", data=str(tmp_path / "data"), network="unet", steps=1, quiet=True)
    with pytest.raises(UserError, match="complex"):
        train(options, tmp_path / "run")
