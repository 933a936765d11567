"""`simulate` on arrays and on files: what was acquired of which image."""

from importlib import import_module

import numpy as np
import pytest
import torch

import mri_n2n
from mri_n2n import SimulationOptions
from mri_n2n.errors import InputError, OptionError, OutputError, UserError
from mri_n2n.formats import write_nifti
from mri_n2n.fourier import ifft2c

simulation = import_module("mri_n2n.simulation")  # `mri_n2n.simulate` is the verb

IMAGES = np.random.default_rng(0).random((3, 45, 62)) * 700


def spectrum(images: np.ndarray) -> np.ndarray:
    """Centred orthonormal Fourier transform, by numpy."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes), norm="ortho"), axes)


def test_a_real_image_is_sampled_as_its_spectrum_with_independent_hermitian_masks():
    first, second = mri_n2n.simulate(IMAGES, options=SimulationOptions(acceleration=4, repetitions=2))
    for acquisition in (first, second):
        mask = acquisition.mask.numpy()
        assert acquisition.kspace.shape == (3, 1, 45, 62) and 0.2 < mask.mean() < 0.3
        wanted = mask * spectrum(IMAGES)[:, None]
        assert np.abs(acquisition.kspace.numpy() - wanted).max() < 1e-6 * np.abs(wanted).max()
        mirrored = np.roll(mask[0, 0, ::-1, ::-1], (0, 1), (0, 1))  # 62 is even: -N/2 is its own mirror image
        assert np.array_equal(mask[0, 0], mirrored)
    assert not torch.equal(first.mask, second.mask) and torch.equal(first.probability, second.probability)


def test_coils_share_one_object_and_noise_has_the_stated_variance():
    options = SimulationOptions(acceleration=2, coils=4, phase=True, noise=0.1, repetitions=2)
    noisy = mri_n2n.simulate(IMAGES, options=options)
    quiet = mri_n2n.simulate(IMAGES, options=SimulationOptions(**{**vars(options), "noise": 0.0}))
    noises = []
    common = (quiet[0].mask * quiet[1].mask).bool().expand(3, 4, 45, 62)
    assert torch.equal(quiet[0].kspace[common], quiet[1].kspace[common])  # coils and phase are of the object
    for with_noise, without in zip(noisy, quiet, strict=True):
        assert with_noise.kspace.shape == (3, 4, 45, 62) and torch.equal(with_noise.mask, without.mask)
        assert with_noise.noise_variance == pytest.approx((0.1 * IMAGES.max()) ** 2)
        sampled = with_noise.mask.bool().expand(3, 4, 45, 62)
        noise = (with_noise.kspace - without.kspace)[sampled]
        # |n|^2 is exponential: its mean over n samples has relative standard deviation n^-1/2.
        assert noise.abs().square().mean().item() == pytest.approx(with_noise.noise_variance, rel=4 / len(noise) ** 0.5)
        noises.append(with_noise.kspace - without.kspace)
    both = (noisy[0].mask * noisy[1].mask).bool().expand(3, 4, 45, 62)
    product = (noises[0] * noises[1].conj())[both].mean().abs().item()
    assert product < 5 * noisy[0].noise_variance / both.sum().item() ** 0.5


def test_a_single_slice_and_integers_are_images_too():
    (acquisition,) = mri_n2n.simulate(IMAGES[0].astype(np.uint16))
    assert acquisition.kspace.shape == (1, 1, 45, 62)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES + 1j, "complex128"),
        (np.zeros((2, 20, 20)), "no positive intensity"),
        (np.full((2, 20, 20), np.nan), "finite"),
        (np.ones((2, 2, 20, 20)), "slices, y, x"),
        (np.ones((0, 20, 20)), "no positive intensity"),
        (IMAGES - IMAGES.max() / 2, "magnitude volume is expected"),
    ],
)
def test_arrays_that_are_no_magnitude_images(images, message):
    with pytest.raises(InputError, match=message):
        mri_n2n.simulate(images)


def test_a_little_below_zero_is_what_interpolation_leaves():
    images = IMAGES - 0.04 * IMAGES.max()
    (acquisition,) = mri_n2n.simulate(images, options=SimulationOptions(acceleration=1))
    np.testing.assert_allclose(ifft2c(acquisition.kspace)[:, 0].real, images, atol=1e-4 * IMAGES.max())


def test_a_single_pixel_can_be_sampled_fully():
    (acquisition,) = mri_n2n.simulate(np.ones((1, 1)), options=SimulationOptions(acceleration=1))
    assert acquisition.kspace.shape == (1, 1, 1, 1) and acquisition.mask.item() == 1


def test_a_full_disk_keeps_no_repetition(tmp_path, monkeypatch):
    volume, written = tmp_path / "volume.nii.gz", []
    write_nifti(volume, IMAGES.astype(np.float32), None)
    write = simulation.write_scan

    def second_fails(path, *arguments, **options):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, *arguments, **options)

    for repetition in (1, 2):  # an earlier study of the same name
        (tmp_path / f"old_rep{repetition}.h5").write_bytes(b"earlier")
    monkeypatch.setattr(simulation, "write_scan", second_fails)
    with pytest.raises(OutputError, match="No space"):
        mri_n2n.simulate(volume, tmp_path / "scan.h5", SimulationOptions(repetitions=3))
    written.clear()
    with pytest.raises(OutputError, match="No space"):  # no mixture of the earlier study and the new one
        mri_n2n.simulate(volume, tmp_path / "old.h5", SimulationOptions(repetitions=2), force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"volume.nii.gz", "old_rep1.h5", "old_rep2.h5"}
    assert all((tmp_path / f"old_rep{repetition}.h5").read_bytes() == b"earlier" for repetition in (1, 2))


def test_intensities_beyond_float32_are_named(tmp_path):
    write_nifti(tmp_path / "volume.nii.gz", np.full((2, 20, 20), 3e38, np.float32), None)
    with pytest.raises(InputError, match="too large"):
        mri_n2n.simulate(tmp_path / "volume.nii.gz", tmp_path / "scan.h5")


def test_options_and_places_that_make_no_sense(tmp_path):
    wrong = {"coils": (0, 100000), "repetitions": (0,), "noise": (-1, 1e300, float("nan")), "seed": (-1, 10**25)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match=f"--{name}"):
                mri_n2n.simulate(IMAGES, options=SimulationOptions(**{name: value}))
    with pytest.raises(OptionError, match="options="):
        mri_n2n.simulate(IMAGES, SimulationOptions(acceleration=2))
    with pytest.raises(InputError, match="too large"):
        mri_n2n.simulate(np.full((2, 20, 20), 1e300))
    with pytest.raises(InputError, match="too large"):
        mri_n2n.simulate(np.full((2, 20, 20), 1e300), options=SimulationOptions(noise=0.1))
    with pytest.raises(OutputError, match="file to write"):
        mri_n2n.simulate(str(tmp_path / "volume.nii.gz"))


def test_evaluate_takes_arrays_too():
    moved = IMAGES + 7.0
    score = mri_n2n.evaluate(moved, IMAGES).mean
    assert score.psnr == pytest.approx(20 * np.log10(IMAGES.max() / 7.0))
    assert score.nmse == pytest.approx(49.0 / np.square(IMAGES).mean())
