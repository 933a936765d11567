"""Coils: whitening and compression against their definitions, ESPIRiT against closed-form sensitivities and sigpy."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.coils import (
    calibration_region,
    coil_mixing,
    combine,
    compression_matrix,
    low_resolution_maps,
    noise_covariance,
    noise_free_combinations,
    patch_side,
    sensitivity_maps,
    whitening_matrix,
    with_sensitivity_maps,
)
from mri_n2n.errors import InputError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.noise import noise_variance_at_most
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


def test_combinations_without_noise_are_left_out_of_the_whitening():
    """A coil doubled with another gain and a sum of two: three coils with independent noise remain of five."""
    noise, _ = correlated_noise(3, 5000)
    covariance = noise_covariance(torch.cat((noise, 20j * noise[:1], noise[1:2] - noise[2:])))
    white, empty = whitening_matrix(covariance), noise_free_combinations(covariance)
    assert white.shape == (3, 5) and empty.shape == (2, 5)
    variance = covariance.diagonal().real.mean().item()
    torch.testing.assert_close(
        white @ covariance @ white.mH, variance * torch.eye(3) + 0j, rtol=0, atol=1e-4 * variance
    )
    spread = covariance.diagonal().real.sqrt()
    assert (empty @ noise_of_five(noise)).abs().max() < 1e-3
    torch.testing.assert_close((empty * spread) @ (empty * spread).mH, torch.eye(2) + 0j, rtol=0, atol=1e-4)
    assert noise_free_combinations(noise_covariance(noise)).shape == (0, 3)


def noise_of_five(noise: torch.Tensor) -> torch.Tensor:
    return torch.cat((noise, 20j * noise[:1], noise[1:2] - noise[2:]))


def scan_of(kspace: torch.Tensor, covariance: torch.Tensor | None = None) -> Scan:
    """A scan of fully sampled k-space (slices, coils, y, x)."""
    mask = torch.ones((1, 1, *kspace.shape[-2:]))
    read = lambda start, stop: Acquisition(kspace[start:stop], mask)  # noqa: E731
    return Scan(
        Path("scan"), "test", tuple(kspace.shape), read, None, "stored", True, False, noise_covariance=covariance
    )


def heads(slices: int, coils: int, shape: tuple[int, int] = (32, 30)) -> torch.Tensor:
    return torch.stack([phantom_kspace(shape, coils, generator(seed), real=False) for seed in range(slices)])


def test_dead_coils_are_left_out_and_named():
    """With noise readouts and without; a coil that has signal in one slice only is not dead, and neither is one that has
    noise alone."""
    kspace = heads(20, 5)
    kspace[:, [1, 4]] = 0
    mixing, said = coil_mixing(scan_of(kspace))
    torch.testing.assert_close(mixing, torch.eye(5)[[0, 2, 3]] + 0j)
    assert said == ["coils 1, 4 (counted from 0) have neither signal nor noise: left out"]
    noise, _ = correlated_noise(5, 5000)
    noise[[1, 4]] = 0
    covariance = noise_covariance(noise)
    mixing, said = coil_mixing(scan_of(kspace, covariance))
    assert mixing.shape == (3, 5) and not mixing[:, [1, 4]].any() and len(said) == 1
    variance = covariance.diagonal().real[[0, 2, 3]].mean().item()
    torch.testing.assert_close(
        mixing @ covariance @ mixing.mH, variance * torch.eye(3) + 0j, rtol=0, atol=1e-4 * variance
    )
    kspace[7, 1, 3, 4] = 1.0
    noise[4] = noise[0].flip(0)
    mixing, said = coil_mixing(scan_of(kspace))
    assert mixing.shape == (4, 5) and said == ["coil 4 (counted from 0) has neither signal nor noise: left out"]
    with pytest.raises(InputError, match=r"coil 1 \(counted from 0\) has signal, but none of the noise"):
        coil_mixing(scan_of(kspace, noise_covariance(noise)))
    kspace[:, 1] = kspace[:, 0].roll(1, -1)
    noise[1] = noise[2].flip(0)
    mixing, said = coil_mixing(scan_of(kspace, noise_covariance(noise)))
    assert mixing.shape == (5, 5) and said == []


def test_compression_of_many_coils_does_without_the_dead_ones():
    kspace = heads(2, 6)
    kspace[:, 0] = 0
    mixing, said = coil_mixing(scan_of(kspace), virtual_coils=5)
    assert mixing.shape == (5, 6) and len(said) == 1
    mixing, _ = coil_mixing(scan_of(kspace), virtual_coils=3)
    torch.testing.assert_close(mixing[:, 1:], compression_matrix(kspace[:, 1:], 3))
    assert not mixing[:, 0].any()


def test_doubled_coils_are_said_and_those_with_other_signals_refused():
    noise, kspace = correlated_noise(3, 5000)[0], heads(2, 3)
    doubled = torch.cat((kspace, 3 * kspace[:, :1]), dim=1)
    covariance = noise_covariance(torch.cat((noise, 3 * noise[:1])))
    mixing, (said,) = coil_mixing(scan_of(doubled, covariance))
    assert said.startswith("coils 0, 3 (counted from 0) have noise and signal that depend on one another's")
    assert "1 of 4 combinations" in said and mixing.shape == (3, 4)
    # As good as without the doubled coil: the same signal over the same noise.
    alone = coil_mixing(scan_of(kspace, noise_covariance(noise)))[0]
    power = combine(mixing, doubled).abs().square().sum(1) / combine(alone, kspace).abs().square().sum(1)
    torch.testing.assert_close(power, power[:1, :1, :1].expand_as(power), rtol=1e-3, atol=0)
    with pytest.raises(InputError, match=r"coils 0, 3 \(counted from 0\) have noise that depends"):
        coil_mixing(scan_of(torch.cat((kspace, 3 * kspace[:, 1:2]), dim=1), covariance))


@pytest.mark.parametrize("shift", [1, 2])
def test_maps_have_the_phase_of_the_first_coil_that_has_signal(shift):
    """A dead first coil takes nothing from the others' maps."""
    kspace = heads(1, 4)
    dead = torch.cat((torch.zeros_like(kspace[:, :shift]), kspace), dim=1)
    for found in (lambda k: sensitivity_maps(k, (24, 24)), low_resolution_maps):
        torch.testing.assert_close(found(dead)[:, shift:], found(kspace), rtol=0, atol=2e-3)
        assert found(dead)[:, :shift].abs().max() < 1e-6 and found(kspace).any()


def differing_slices() -> Acquisition:
    """Line masks of 24, 12 and 3 central columns, of everything and of nothing, and a slice without signal."""
    kspace = heads(6, 4)
    mask = torch.zeros((6, 1, 32, 30))
    for index, wide in enumerate((24, 12, 3, 30, 0, 24)):
        mask[index, :, :, 15 - wide // 2 : 15 + (wide + 1) // 2] = 1
    kspace[5] = 0
    return Acquisition(kspace * mask, mask)


def test_maps_of_a_slice_do_not_depend_on_its_neighbours():
    scan = differing_slices()
    together, caution = with_sensitivity_maps(scan)
    assert "too small for ESPIRiT" in caution
    for index, maps in enumerate(together.sensitivity_maps):
        one = Acquisition(scan.kspace[index : index + 1], scan.mask[index : index + 1])
        alone, said = with_sensitivity_maps(one)
        assert torch.equal(alone.sensitivity_maps[0], maps)
        assert said == (caution if index == 2 else None)
        assert maps.any() == (index < 4)
    same = replace(scan, mask=scan.mask[:1], kspace=scan.kspace * scan.mask[:1])
    each = replace(same, mask=scan.mask[:1].expand(6, 1, 32, 30))
    assert torch.equal(with_sensitivity_maps(same)[0].sensitivity_maps, with_sensitivity_maps(each)[0].sensitivity_maps)


def test_coils_are_computed_on_the_device_of_their_input():
    """With another device as the default, whatever is made without naming one would be there, and could not be mixed."""
    scan, (noise, covariance) = differing_slices(), correlated_noise(4, 100)
    singular = noise_covariance(torch.cat((noise[:3], noise[:1])))

    def results() -> list[torch.Tensor]:
        matrices = [whitening_matrix(covariance), whitening_matrix(singular), noise_free_combinations(singular)]
        matrices += [noise_covariance(noise), compression_matrix(scan.kspace, 2), combine(covariance, scan.kspace)]
        return [*matrices, with_sensitivity_maps(scan)[0].sensitivity_maps]

    expected = results()
    with torch.device("meta"):
        found = results()
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other)


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


@pytest.mark.parametrize("side", range(4, 18))
def test_maps_of_any_calibration_region_keep_the_image(side):
    """Whether ESPIRiT's or of low resolution: what is left of the coil images when the maps combine them and divide them again."""
    kspace = phantom_kspace((64, 53), 8, generator(3), real=False, head=random_head(generator(7)))
    mask = torch.zeros((64, 53))
    mask[32 - side // 2 :, 26 - side // 2 :][:side, :side] = 1
    found, caution = with_sensitivity_maps(Acquisition(kspace[None] * mask, mask[None, None], None))
    maps, images = found.sensitivity_maps[0], ifft2c(kspace)
    left = images - maps * (maps.conj() * images).sum(0)
    assert (caution is None) == (side >= 8) and left.norm() < 0.1 * images.norm()


@pytest.mark.parametrize("wide", range(3, 10))
def test_maps_of_few_lines_keep_the_image(wide):
    """From 5 lines in the centre on by ESPIRiT, which is not farther off than maps of low resolution by more than a tenth."""
    kspace = phantom_kspace((96, 91), 8, generator(3), real=False, head=random_head(generator(7)))
    mask = torch.zeros((96, 91))
    mask[:, ::4] = 1
    mask[:, 45 - wide // 2 :][:, :wide] = 1
    found, caution = with_sensitivity_maps(Acquisition(kspace[None] * mask, mask[None, None], None))
    images = ifft2c(kspace)
    left = lambda maps: (images - maps * (maps.conj() * images).sum(0)).norm() / images.norm()  # noqa: E731
    assert (caution is None) == (wide >= 5)
    low = left(low_resolution_maps(kspace[None] * mask)[0])
    assert left(found.sensitivity_maps[0]) <= 1.1 * low < 0.2


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(("wide", "noise"), [(7, 0.2), (9, 0.2), (24, 0.2)])
def test_maps_of_noisy_samples_keep_the_image(wide, noise, said):
    """Better than maps of low resolution, which average noise away; so, too, where the scan does not say how noisy it is."""
    images = ifft2c(phantom_kspace((96, 91), 8, generator(3), real=False, head=random_head(generator(7))))
    mask = (torch.rand((1, 91), generator=generator(4)) < 0.2).float().expand(96, -1).clone()
    mask[:, 45 - wide // 2 :][:, :wide] = 1
    level = noise * images.abs().max().item()
    noisy = fft2c(images) + level * torch.randn(images.shape, dtype=images.dtype, generator=generator(5))
    scan = Acquisition(noisy[None] * mask, mask[None, None], None, None, level**2 if said else None)
    found, caution = with_sensitivity_maps(scan)
    left = lambda maps: (images - maps * (maps.conj() * images).sum(0)).norm() / images.norm()  # noqa: E731
    assert caution is None and left(found.sensitivity_maps[0]) < 0.95 * left(low_resolution_maps(scan.kspace)[0])


def test_maps_of_noise_that_hides_the_patches_are_of_low_resolution():
    images = ifft2c(phantom_kspace((64, 53), 8, generator(3), real=False, head=random_head(generator(7))))
    level = 3 * images.abs().max().item()
    noisy = fft2c(images) + level * torch.randn(images.shape, dtype=images.dtype, generator=generator(5))
    maps = sensitivity_maps(noisy[None], (24, 24), noise_variance=level**2)
    noisy[:, calibration_mask((64, 53), 24) == 0] = 0  # what is outside may be held out to judge by
    torch.testing.assert_close(maps, low_resolution_maps(noisy[None]))
    assert maps.any()


def calibration_mask(shape: tuple[int, int], side: int) -> torch.Tensor:
    mask = torch.zeros(shape)
    mask[shape[0] // 2 - side // 2 :, shape[1] // 2 - side // 2 :][:side, :side] = 1
    return mask


@pytest.mark.parametrize("coils", [1, 3])
def test_noise_of_a_single_sample_is_unknown(coils):
    assert (
        noise_variance_at_most(torch.ones((2, coils, 1, 1), dtype=torch.complex64), torch.ones(1, 1, 1, 1))
        .isnan()
        .all()
    )


@pytest.mark.parametrize("shape", [(64, 53), (96, 91), (256, 256)])
def test_maps_of_quiet_scans_do_not_ask_who_says_so(shape):
    kspace = phantom_kspace(shape, 4, generator(3), real=False, head=random_head(generator(7)))
    mask = torch.zeros(shape)
    mask[:, ::4] = 1
    mask[:, shape[1] // 2 - 8 :][:, :16] = 1
    one, other = (
        with_sensitivity_maps(Acquisition(kspace[None] * mask, mask[None, None], None, None, level))[0].sensitivity_maps
        for level in (0.0, None)
    )
    assert one.any() and torch.equal(one, other)


def test_patches_fit_their_calibration_region():
    """None where there are fewer than 36; from a square of 8 on, or of 5 x 14."""
    found = {n: patch_side((n, n)) for n in range(25)}
    assert found == {n: 6 if n >= 14 else 4 if n >= 9 else 3 if n == 8 else None for n in range(25)}
    assert [patch_side((14, n)) for n in (4, 5, 8)] == [patch_side((n, 14)) for n in (4, 5, 8)] == [None, 3, 4]
    assert patch_side((13, 5)) is None and patch_side((320, 16)) == 6


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


def test_the_benchmark_compares_up_to_phase_and_does_without_sigpy(monkeypatch):
    from mri_n2n.benchmarks import coils as benchmark

    maps = np.exp(1j * np.arange(24.0)).reshape(2, 3, 4)
    inside = np.ones((3, 4), bool)
    turned = maps * np.exp(2j * np.arange(12.0)).reshape(3, 4)
    assert benchmark.disagreement(maps, turned, inside) < 1e-12
    turned[1, 2, 3] *= 1j
    assert benchmark.disagreement(maps, turned, inside) > 0.5
    inside[2, 3] = False
    assert benchmark.disagreement(maps, turned, inside) < 1e-12
    monkeypatch.setitem(sys.modules, "sigpy.mri.app", None)
    assert "sigpy is not installed" in benchmark.maps_section(benchmark.phantom_slices(1, 40), quick=True)
