"""Analytic phantom k-space against numerical integration of finely sampled ellipses, and simulated acquisitions."""

import math

import numpy as np
import pytest
import torch

from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.phantom import PERIOD, Ellipse, ellipse_kspace, evaluate_series, phantom_kspace, random_head, random_series

FINE = 768  # points per field of view of the numerical integrals


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fine_grid() -> np.ndarray:
    """Midpoints of FINE cells over the field of view [-0.5, 0.5]."""
    return (np.arange(FINE) + 0.5) / FINE - 0.5


def rasterise(ellipses: list[Ellipse]) -> np.ndarray:
    """The object on the fine grid. An ellipse's own axes are (cos, -sin) and (sin, cos) in (y, x)."""
    y, x = fine_grid()[:, None], fine_grid()[None]
    image = np.zeros((FINE, FINE))
    for e in ellipses:
        u = math.cos(e.angle) * (y - e.center[0]) - math.sin(e.angle) * (x - e.center[1])
        v = math.sin(e.angle) * (y - e.center[0]) + math.cos(e.angle) * (x - e.center[1])
        image += e.intensity * ((u / e.axes[0]) ** 2 + (v / e.axes[1]) ** 2 <= 1)
    return image


def integrate(image: np.ndarray, ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Continuous Fourier transform by the midpoint rule, (ky, kx) cycles per field of view."""
    wave_y, wave_x = (np.exp(-2j * np.pi * np.outer(k, fine_grid())) for k in (ky, kx))
    return wave_y @ image @ wave_x.T / FINE**2


def reverse(kspace: torch.Tensor) -> torch.Tensor:
    """The sample at -k for every k; the Nyquist line of even sizes is its own mirror."""
    y, x = kspace.shape[-2:]
    rows = torch.tensor([(2 * (y // 2) - i) % y for i in range(y)])
    columns = torch.tensor([(2 * (x // 2) - i) % x for i in range(x)])
    return kspace[..., rows, :][..., columns]


ELLIPSES = [
    Ellipse((0.0, 0.0), (0.3, 0.3), 0.0, 1.0),
    Ellipse((0.07, -0.11), (0.31, 0.14), 0.6, 0.8),
    Ellipse((-0.2, 0.13), (0.05, 0.21), -1.1, -0.4),
]


@pytest.mark.parametrize("ellipse", ELLIPSES)
def test_ellipse_equals_numerical_integration(ellipse):
    ky, kx = (
        np.arange(-9, 10) + 0.5,
        np.arange(-8, 9) * 1.25,
    )  # half-integers too: coils and phase shift the frequencies
    exact = ellipse_kspace(ellipse, ky[:, None], kx[None])
    area = abs(ellipse.intensity) * math.pi * ellipse.axes[0] * ellipse.axes[1]
    assert np.abs(exact - integrate(rasterise([ellipse]), ky, kx)).max() < 2e-3 * area


@pytest.mark.parametrize("ellipse", ELLIPSES)
def test_ellipse_area_at_dc_and_parseval(ellipse):
    """The value at 0 is area * intensity; the squares of the Fourier series sum to the integral of the squared object."""
    area = math.pi * ellipse.axes[0] * ellipse.axes[1]
    assert ellipse_kspace(ellipse, np.zeros(1), np.zeros(1))[0] == pytest.approx(ellipse.intensity * area, rel=1e-12)
    near = ellipse_kspace(ellipse, np.array([1e-7]), np.array([-1e-7]))[0]
    assert abs(near - ellipse.intensity * area) < 1e-5 * area
    k = np.arange(-400, 401)
    energy = np.sum(np.abs(ellipse_kspace(ellipse, k[:, None], k[None])) ** 2)
    assert energy == pytest.approx(ellipse.intensity**2 * area, rel=1e-2)  # the tail beyond 400 is of the order 1 / 400


@pytest.mark.parametrize("shape", [(24, 20), (23, 25), (24, 25)])
@pytest.mark.parametrize("coils, real", [(1, True), (1, False), (4, False)])
def test_kspace_equals_multiplication_in_the_image_at_high_resolution(shape, coils, real):
    """Object times coil sensitivity times phase on the fine grid, integrated numerically: the definition of the signal."""
    kspace = phantom_kspace(shape, coils, generator(5), real=real).numpy()
    draw = generator(5)
    image, series = rasterise(random_head(draw)), random_series(coils, draw, real=real)
    wave = np.exp(2j * np.pi * np.outer([-1, 0, 1], fine_grid()) / PERIOD)
    ky, kx = (np.arange(n) - n // 2 for n in shape)
    expected = np.stack([integrate(image * (wave.T @ c @ wave), ky, kx) for c in series]) * math.sqrt(
        shape[0] * shape[1]
    )
    if real:  # a Nyquist sample of a real image stands for +k and -k: compared by its Hermitian symmetry below
        inner = (slice(None), slice(1 - shape[0] % 2, None), slice(1 - shape[1] % 2, None))
        kspace, expected = kspace[inner], expected[inner]
    assert kspace.shape == expected.shape
    assert np.abs(kspace - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.linalg.norm(kspace - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(32, 24), (31, 25), (32, 25), (31, 24)])
def test_real_phantom_has_hermitian_kspace_and_real_image(shape):
    for seed in range(3):
        kspace = phantom_kspace(shape, 1, generator(seed))
        assert kspace.shape == (1, *shape) and kspace.dtype == torch.complex64
        assert (kspace - reverse(kspace).conj()).abs().max() < 1e-6 * kspace.abs().max()
        image = ifft2c(kspace)
        assert image.imag.abs().max() < 1e-6 * image.real.abs().max()


def test_complex_phantom_is_not_hermitian():
    kspace = phantom_kspace((32, 24), 1, generator(), real=False)
    assert (kspace - reverse(kspace).conj()).abs().max() > 1e-2 * kspace.abs().max()


@pytest.mark.parametrize("shape", [(64, 64), (65, 63), (128, 96)])
def test_intensity_does_not_depend_on_the_matrix(shape):
    """Far from its edge the image of an ellipse shows the ellipse's intensity; outside it shows nothing."""
    head = [Ellipse((0.02, -0.03), (0.38, 0.36), 0.3, 0.7)]
    image = ifft2c(phantom_kspace(shape, head=head))[0].real
    y, x = shape[0] // 2, shape[1] // 2
    assert image[y - 6 : y + 7, x - 6 : x + 7].mean().item() == pytest.approx(0.7, rel=0.01)
    assert abs(image[:3, :3].mean().item()) < 0.02


def test_orientation_y_is_the_first_axis():
    image = ifft2c(phantom_kspace((64, 64), head=[Ellipse((0.25, 0.0), (0.05, 0.05), 0.0, 1.0)]))[0].real
    assert divmod(int(image.argmax()), 64)[0] == pytest.approx(32 + 16, abs=3)
    assert divmod(int(image.argmax()), 64)[1] == pytest.approx(32, abs=3)


def test_heads_lie_inside_the_field_of_view_and_differ():
    heads = [random_head(generator(seed)) for seed in range(8)]
    for head in heads:
        image = rasterise(head)
        assert image[0].max() == image[-1].max() == image[:, 0].max() == image[:, -1].max() == 0
        assert 0.5 < image.max() <= 1 and image.min() > -0.3  # overlapping dark structures may dip below zero
        assert 0.2 < (image != 0).mean() < 0.7
    assert len({tuple(head) for head in heads}) == 8


def test_series_is_the_stated_sum():
    series, shape = random_series(3, generator(), real=False), (6, 5)
    expected = np.zeros((3, *shape), dtype=complex)
    for i in range(6):
        for j in range(5):
            y, x = (i - 3) / 6, (j - 2) / 5
            for m in (-1, 0, 1):
                for n in (-1, 0, 1):
                    expected[:, i, j] += series[:, m + 1, n + 1] * np.exp(2j * np.pi * (m * y + n * x) / PERIOD)
    np.testing.assert_allclose(evaluate_series(series, shape), expected, atol=1e-12)


def test_series_without_coils_or_phase_is_one():
    np.testing.assert_allclose(evaluate_series(random_series(1, generator(), real=True), (7, 8)), 1, atol=1e-12)


def test_one_coil_turns_the_phase_and_nearly_keeps_the_magnitude():
    """The skew part is imaginary: the real part of the series is exactly one, so that the magnitude never falls below it."""
    turns = []
    for seed in range(20):
        value = evaluate_series(random_series(1, generator(seed), real=False), (32, 32))
        np.testing.assert_allclose(value.real, 1, atol=1e-12)
        turns.append(np.ptp(np.angle(value)))
    assert np.median(turns) > 0.3  # radians


@pytest.mark.parametrize("coils", [2, 4, 8])
def test_coils_are_bright_on_sides_of_their_own_and_cover_the_head(coils):
    magnitude = np.abs(evaluate_series(random_series(coils, generator(1), real=False), (32, 32)))
    y, x = ((np.arange(32) - 16) / 32)[:, None], ((np.arange(32) - 16) / 32)[None]
    centres = np.array([[(m * y).sum() / m.sum(), (m * x).sum() / m.sum()] for m in magnitude])
    around = np.sort(np.angle(centres @ np.array([1, 1j])))
    gaps = np.diff(np.append(around, around[0] + 2 * np.pi))
    assert gaps.max() < 2 * 2 * np.pi / coils and gaps.min() > 0.2 * 2 * np.pi / coils
    assert np.sqrt((magnitude**2).sum(axis=0)).min() > 0.3


def test_equal_seed_equal_phantom_and_no_global_randomness():
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    one, two = (phantom_kspace((16, 16), 2, generator(3), real=False) for _ in range(2))
    other = phantom_kspace((16, 16), 2, generator(4), real=False)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(phantom_kspace((16, 16)), phantom_kspace((16, 16)))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


def test_several_real_coils_are_refused():
    with pytest.raises(ValueError, match="real=False"):
        phantom_kspace((8, 8), 2)


# Simulated acquisitions of images.


@pytest.mark.parametrize("coils, phase", [(1, False), (1, True), (4, False), (4, True)])
def test_root_sum_of_squares_of_full_kspace_is_the_image(coils, phase):
    from mri_n2n.operators import root_sum_of_squares
    from mri_n2n.simulation import full_kspace

    images = torch.rand((3, 12, 15), generator=generator())
    kspace = full_kspace(images, coils=coils, phase=phase, generator=generator(1))
    assert kspace.shape == (3, coils, 12, 15) and kspace.dtype == torch.complex64
    torch.testing.assert_close(root_sum_of_squares(ifft2c(kspace)), images, atol=2e-6, rtol=0)
    hermitian = (kspace - reverse(kspace).conj()).abs().max() < 1e-5 * kspace.abs().max()
    assert hermitian == (coils == 1 and not phase)
    angle = (ifft2c(kspace) / images[:, None]).angle()  # the same phase and coils for all slices
    assert torch.polar(torch.ones_like(angle), angle - angle[:1]).sub(1).abs().max() < 1e-3


def test_noise_has_the_stated_variance_and_is_circular():
    """E|n|^2 = v per complex sample, half in each part, uncorrelated: 5 standard errors of 90000 samples."""
    from mri_n2n.masks import Sampling
    from mri_n2n.simulation import measure

    n, v, ones = 300, 0.37, torch.ones(300, 300)
    noise = measure(
        torch.zeros((1, 1, n, n), dtype=torch.complex64), Sampling(ones, ones), generator(), noise_variance=v
    )
    samples, tolerance = noise.kspace.flatten(), 5 / n
    assert noise.noise_variance == v
    assert samples.abs().square().mean().item() == pytest.approx(v, rel=tolerance)
    assert samples.real.square().mean().item() == pytest.approx(v / 2, rel=1.5 * tolerance)
    assert abs(samples.square().mean().item()) < tolerance * v and abs(samples.mean().item()) < tolerance * v**0.5
    assert abs((samples[1:] * samples[:-1].conj()).mean().item()) < tolerance * v


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_an_acquisition_keeps_what_it_measured_and_nothing_else(noise):
    from mri_n2n.simulation import acquire

    full = fft2c(torch.randn((2, 3, 16, 14), dtype=torch.complex64, generator=generator()))
    kept = full.clone()
    scan = acquire(full, "roulette", 4.0, generator(1), noise_variance=noise)
    assert torch.equal(full, kept)
    assert scan.mask.shape == scan.probability.shape == (1, 1, 16, 14)
    assert (scan.kspace * (1 - scan.mask)).abs().max() == 0
    difference = (scan.kspace - scan.mask * full).abs().max().item()
    assert (difference == 0) == (noise == 0)
    again = acquire(full, "roulette", 4.0, generator(1), noise_variance=noise)
    assert torch.equal(scan.kspace, again.kspace) and torch.equal(scan.mask, again.mask)


def test_seeds_depend_on_every_part_of_the_name_and_on_nothing_else():
    from mri_n2n.simulation import seeded

    state = torch.get_rng_state().clone()
    names = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1"), (0, "a", "1", ""), (0,)]
    seeds = [seeded(*name).initial_seed() for name in names]
    assert len(set(seeds)) == len(names)
    assert seeds == [seeded(*name).initial_seed() for name in names]
    assert seeded(0, "a", 1).initial_seed() == 7080213714065301081  # SHA-256 of "0\0a\0001", for ever
    assert torch.equal(state, torch.get_rng_state())


def test_smooth_phase_is_of_unit_magnitude_and_smooth():
    from mri_n2n.simulation import smooth_phase

    for seed in range(10):
        phase = smooth_phase((33, 40), generator(seed))
        torch.testing.assert_close(phase.abs(), torch.ones(33, 40))
        assert (phase[1:] * phase[:-1].conj()).angle().abs().max() < 0.6
