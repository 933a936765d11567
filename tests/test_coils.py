"""Coils: whitening and compression against their definitions, ESPIRiT against closed-form sensitivities and sigpy."""

import numpy as np
import pytest
import torch

from mri_n2n.coils import (
    calibration_region,
    combine,
    compression_matrix,
    noise_covariance,
    sensitivity_maps,
    whitening_matrix,
)
from mri_n2n.errors import InputError
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import evaluate_series, phantom_kspace, random_head, random_series


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated_noise(coils: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Complex noise (coils, samples) and its covariance."""
    mixing = torch.randn((coils, coils), dtype=torch.complex64, generator=generator(seed))
    white = torch.randn((coils, samples), dtype=torch.complex64, generator=generator(seed + 1))
    return mixing @ white, mixing @ mixing.conj().T


def test_covariance_is_estimated_and_whitened_with_its_mean_variance_kept():
    noise, covariance = correlated_noise(5, 200_000)
    torch.testing.assert_close(noise_covariance(noise), covariance, rtol=0.03, atol=0.05)
    white = noise_covariance(whitening_matrix(noise_covariance(noise)) @ noise)
    variance = noise_covariance(noise).diagonal().real.mean()
    torch.testing.assert_close(white, variance * torch.eye(5, dtype=white.dtype), rtol=0, atol=1e-3 * variance.item())


def test_white_coils_stay_as_they_are():
    torch.testing.assert_close(whitening_matrix(3.0 * torch.eye(4, dtype=torch.complex64)), torch.eye(4) + 0j)


def test_a_doubled_coil_has_no_whitening():
    noise, _ = correlated_noise(3, 100)
    with pytest.raises(InputError, match="positive definite"):
        whitening_matrix(noise_covariance(torch.cat((noise, noise[:1]))))


def test_compression_keeps_the_most_energy_that_so_few_coils_can_hold():
    """Eckart and Young: the energy left out is that of the smallest singular values; white noise stays white."""
    kspace = phantom_kspace((31, 40), 6, generator(2), real=False)[None]
    matrix = compression_matrix(kspace, 3)
    torch.testing.assert_close(matrix @ matrix.conj().T, torch.eye(3) + 0j, rtol=0, atol=1e-5)
    singular = np.linalg.svd(kspace[0].flatten(1).numpy(), compute_uv=False)
    assert combine(matrix, kspace).abs().square().sum().item() == pytest.approx((singular[:3] ** 2).sum(), rel=1e-4)
    all_of_them = combine(compression_matrix(kspace, 6), kspace)
    torch.testing.assert_close(root_sum_of_squares(ifft2c(all_of_them)), root_sum_of_squares(ifft2c(kspace)))


@pytest.mark.parametrize(("shape", "size"), [((20, 31), (8, 9)), ((21, 30), (7, 6)), ((20, 30), (1, 2))])
def test_calibration_region_is_the_full_rectangle_about_the_centre(shape, size):
    mask = torch.zeros(shape)
    (y, x), (high, wide) = shape, size
    mask[y // 2 - high // 2 :, x // 2 - wide // 2 :][:high, :wide] = 1
    mask[0], mask[-1] = 1, 1  # samples elsewhere
    assert calibration_region(mask) == size


def test_calibration_region_of_lines_of_everything_and_of_nothing():
    lines = torch.zeros((16, 33))
    lines[:, 16 - 2 : 16 + 2], lines[:, 3] = 1, 1
    assert calibration_region(lines) == (16, 4)
    assert calibration_region(torch.ones((5, 8))) == (5, 8)
    assert calibration_region(torch.zeros((5, 8))) == (0, 0)


def inside(kspace: torch.Tensor) -> torch.Tensor:
    image = root_sum_of_squares(ifft2c(kspace[None]))[0]
    return image > 0.1 * image.max()


@pytest.mark.parametrize(("coils", "shape"), [(1, (40, 40)), (4, (75, 64)), (8, (64, 91))])
def test_maps_are_those_of_the_phantom_up_to_phase(coils, shape):
    series = random_series(coils, generator(3), real=False)
    kspace = phantom_kspace(shape, coils, generator(3), real=False, head=random_head(generator(7)))
    maps = sensitivity_maps(kspace[None], (24, 24))[0]
    truth = torch.from_numpy(evaluate_series(series, shape))
    truth = truth / truth.abs().square().sum(0).sqrt()
    where = inside(kspace)
    overlap = (maps.conj() * truth.to(maps.dtype)).sum(0).abs()  # 1 for equal directions
    assert (1 - overlap[where]).max() < 1e-2
    torch.testing.assert_close(maps.abs().square().sum(0)[where], torch.ones(int(where.sum())))


@pytest.mark.parametrize(("coils", "shape"), [(4, (60, 53)), (8, (48, 64))])
def test_maps_agree_with_sigpy(coils, shape):
    mri = pytest.importorskip("sigpy.mri")
    kspace = torch.stack([phantom_kspace(shape, coils, generator(seed), real=False) for seed in (4, 5)])
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator(6))
    kspace = kspace + 0.002 * kspace.abs().max() * noise
    maps = sensitivity_maps(kspace, (24, 24)).numpy()
    for one, found in zip(kspace, maps, strict=True):
        theirs = mri.app.EspiritCalib(one.numpy(), show_pbar=False).run()
        where = inside(one).numpy()
        assert np.abs(theirs - found)[:, where].max() < 1e-2
        assert ((np.abs(theirs).sum(0) > 0) == (np.abs(found).sum(0) > 0)).mean() > 0.99
