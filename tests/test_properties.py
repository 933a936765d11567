"""Promises for whatever shape comes: odd and even sizes, many coils, drawn by hypothesis and checked against numpy."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_n2n.acquisition import Acquisition, Geometry
from mri_n2n.checkpoint import build_network, save_tensors
from mri_n2n.coils import (
    calibration_region,
    combine,
    compression_matrix,
    noise_covariance,
    sensitivity_maps,
    whitening_matrix,
)
from mri_n2n.conversion import convert
from mri_n2n.formats import open_scan, write_scan
from mri_n2n.formats.sampling import acquired_range
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.inference import reconstruct_array
from mri_n2n.masks import MASKS, draw_mask
from mri_n2n.metrics import evaluate_arrays, nmse, psnr, ssim
from mri_n2n.operators import adjoint, data_consistency, forward, normal_operator, root_sum_of_squares
from mri_n2n.resample import crop_or_pad, resize_kspace

SIZES, COILS, SEEDS = st.integers(1, 40), st.integers(1, 32), st.integers(0, 2**31)
PRECISIONS = st.sampled_from([(torch.complex64, 2e-5), (torch.complex128, 1e-12)])
SHIFTS = st.tuples(st.integers(-50, 50), st.integers(-50, 50))


def examples(number: int):
    return settings(max_examples=number, deadline=None, derandomize=True)


def normal_numbers(*shape: int, seed: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_mask(batch: int, y: int, x: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand((batch, 1, y, x), generator=torch.Generator().manual_seed(seed + 1)) < 0.5).to(dtype)


def close(found, expected, tolerance: float) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= tolerance * max(np.abs(expected).max(initial=0), 1e-30)


# --------------------------------------------------------------------------------------------------------------- fourier


@examples(60)
@given(SIZES, SIZES, SEEDS, PRECISIONS, SHIFTS)
def test_fourier_is_unitary_its_own_inverse_and_obeys_the_shift_theorem(y, x, seed, precision, shift):
    dtype, tolerance = precision
    image = normal_numbers(2, y, x, seed=seed, dtype=dtype)
    kspace = fft2c(image)
    assert kspace.dtype == dtype
    close(ifft2c(kspace), image, tolerance)
    close(fft2c(ifft2c(image)), image, tolerance)
    assert kspace.norm().item() == pytest.approx(image.norm().item(), rel=tolerance)
    # The definition, sum over pixels counted from the centre, as matrices of numpy.
    ky, kx = np.arange(y) - y // 2, np.arange(x) - x // 2
    fy, fx = (np.exp(-2j * np.pi * np.outer(k, k) / len(k)) / np.sqrt(len(k)) for k in (ky, kx))
    close(kspace, fy @ image.numpy() @ fx.T, 5 * tolerance)
    moved = np.roll(image.numpy(), shift, axis=(-2, -1))
    phase = np.exp(-2j * np.pi * (shift[0] * ky[:, None] / y + shift[1] * kx / x))
    close(fft2c(torch.from_numpy(moved)), kspace.numpy() * phase, 5 * tolerance)
    close(fft2c(mirror_axes(image, (-2, -1))), mirror_axes(kspace, (-2, -1)), 5 * tolerance)


# ------------------------------------------------------------------------------------------------------------- operators


@examples(60)
@given(SIZES, SIZES, st.integers(1, 3), st.one_of(st.none(), COILS), SEEDS, PRECISIONS)
def test_operators_are_adjoint_and_their_product_is_hermitian_and_positive(y, x, batch, coils, seed, precision):
    dtype, tolerance = precision
    maps = None if coils is None else normal_numbers(batch, coils, y, x, seed=seed, dtype=dtype)
    mask = some_mask(batch, y, x, seed, torch.zeros((), dtype=dtype).real.dtype)
    a, b = (normal_numbers(batch, 1, y, x, seed=seed + n, dtype=dtype) for n in (2, 3))
    s = normal_numbers(batch, coils or 1, y, x, seed=seed + 4, dtype=dtype)
    inner = lambda one, two: torch.vdot(one.flatten(), two.flatten())  # noqa: E731
    size = forward(a, torch.ones_like(mask), maps).norm() * s.norm() + 1e-30
    assert abs(inner(forward(a, mask, maps), s) - inner(a, adjoint(s, mask, maps))) <= tolerance * size
    aa = inner(a, normal_operator(mask, maps)(a))
    ab, ba = inner(a, normal_operator(mask, maps)(b)), inner(b, normal_operator(mask, maps)(a))
    scale = (
        inner(a, normal_operator(torch.ones_like(mask), maps)(a)).abs()
        + inner(b, normal_operator(torch.ones_like(mask), maps)(b)).abs()
    )
    assert abs(ab - ba.conj()) <= tolerance * scale and abs(aa.imag) <= tolerance * scale
    assert abs(aa.real - forward(a, mask, maps).norm() ** 2) <= tolerance * scale and aa.real >= -tolerance * scale


@examples(50)
@given(SIZES, SIZES, SEEDS, PRECISIONS)
def test_hard_consistency_puts_the_samples_of_one_coil_back(y, x, seed, precision):
    dtype, tolerance = precision
    mask = some_mask(2, y, x, seed, torch.zeros((), dtype=dtype).real.dtype)
    image, kspace = (normal_numbers(2, 1, y, x, seed=seed + n, dtype=dtype) for n in (1, 2))
    result = fft2c(data_consistency(image, mask * kspace, mask))
    close(result, torch.where(mask > 0, kspace, fft2c(image)), 2 * tolerance)


@examples(25)
@given(st.integers(2, 16), st.integers(2, 16), st.integers(1, 8), SEEDS)
def test_consistency_of_coils_brings_no_image_further_from_its_samples(y, x, coils, seed):
    """An image is a minimiser of its own samples; any other comes closer to them, or stays."""
    maps = normal_numbers(1, coils, y, x, seed=seed, dtype=torch.complex128)
    mask = some_mask(1, y, x, seed, torch.float64)
    truth, image = (normal_numbers(1, 1, y, x, seed=seed + n, dtype=torch.complex128) for n in (1, 2))
    kspace = forward(truth, mask, maps)
    close(data_consistency(truth, kspace, mask, maps), truth, 1e-10)
    before, after = (
        (forward(one, mask, maps) - kspace).norm() for one in (image, data_consistency(image, kspace, mask, maps))
    )
    assert after <= before * (1 + 1e-9) + 1e-12


@examples(30)
@given(SIZES, SIZES, COILS, SEEDS, st.integers(-18, 18))
def test_root_sum_of_squares_at_any_scale(y, x, coils, seed, power):
    images = normal_numbers(2, coils, y, x, seed=seed) * 10.0**power
    expected = np.sqrt((np.abs(images.numpy().astype(np.complex128)) ** 2).sum(1))
    close(root_sum_of_squares(images), expected, 1e-6)


# ----------------------------------------------------------------------------------------------------------------- coils


@examples(40)
@given(COILS, SEEDS, st.integers(-6, 6))
def test_whitening_makes_any_covariance_white_and_keeps_its_mean(coils, seed, power):
    mixing = normal_numbers(coils, 2 * coils + 4, seed=seed) * 10.0**power
    covariance = mixing @ mixing.conj().T
    white = whitening_matrix(covariance).to(torch.complex128)
    variance = covariance.diagonal().real.mean().item()
    close(white @ covariance.to(torch.complex128) @ white.conj().T, variance * np.eye(coils), 2e-3)
    samples = normal_numbers(coils, 4 * coils, seed=seed)
    expected = np.cov(samples.numpy(), bias=True).reshape(coils, coils)
    close(noise_covariance(samples), expected, 1e-4)


@examples(30)
@given(st.integers(1, 3), COILS, st.integers(1, 12), st.integers(1, 12), SEEDS, st.data())
def test_compression_has_orthonormal_rows_and_keeps_what_numpys_svd_keeps(slices, coils, y, x, seed, data):
    kept = data.draw(st.integers(1, coils))
    kspace = normal_numbers(slices, coils, y, x, seed=seed) * torch.logspace(0, -3, coils)[:, None, None]
    matrix = compression_matrix(kspace, kept)
    assert matrix.shape == (kept, coils)
    close(matrix @ matrix.conj().T, np.eye(kept), 1e-4)
    values = np.linalg.svd(
        kspace.numpy().astype(np.complex128).transpose(1, 0, 2, 3).reshape(coils, -1), compute_uv=False
    )
    energy = combine(matrix, kspace).abs().double().square().sum().item()
    assert energy == pytest.approx((values[:kept] ** 2).sum(), rel=1e-3)


@examples(12)
@given(st.integers(8, 28), st.integers(8, 28), st.integers(1, 32), st.integers(1, 2), SEEDS)
def test_maps_have_norm_one_or_zero_and_a_first_coil_without_phase(y, x, coils, slices, seed):
    maps = sensitivity_maps(
        normal_numbers(slices, coils, y, x, seed=seed), (min(y, 12), min(x, 12)), kernel=4, crop=0.3
    )
    norm = maps.abs().square().sum(dim=1)
    assert torch.minimum(norm, (norm - 1).abs()).max() < 1e-4
    first = maps[:, 0]
    assert first.imag.abs().max() < 1e-5 and first.real.min() >= 0


@examples(80)
@given(st.integers(1, 14), st.integers(1, 14), st.floats(0.3, 1.0), SEEDS)
def test_calibration_region_is_the_largest_by_trying_all(y, x, share, seed):
    mask = (torch.rand((y, x), generator=torch.Generator().manual_seed(seed)) < share).float()
    mask[y // 2 - y // 4 : y // 2 + y // 4 + 1, x // 2 - x // 4 : x // 2 + x // 4 + 1] = 1
    full = lambda high, wide: mask[y // 2 - high // 2 :, x // 2 - wide // 2 :][:high, :wide].all()  # noqa: E731
    areas = [high * wide for high in range(1, y + 1) for wide in range(1, x + 1) if full(high, wide)]
    high, wide = calibration_region(mask)
    assert high * wide == max(areas, default=0)
    assert high * wide == 0 or full(high, wide)


# ----------------------------------------------------------------------------------------------------------------- masks


@examples(80)
@given(
    st.sampled_from(sorted(MASKS)), st.integers(8, 40), st.integers(8, 40), st.floats(1.0, 3.9), st.booleans(), SEEDS
)
def test_masks_and_their_probabilities(kind, y, x, acceleration, hermitian, seed):
    sampling = draw_mask(kind, (y, x), acceleration, torch.Generator().manual_seed(seed), hermitian=hermitian)
    mask, probability = sampling.mask, sampling.probability
    assert mask.shape == probability.shape == (y, x)
    assert ((mask == 0) | (mask == 1)).all() and ((probability >= 0) & (probability <= 1)).all()
    assert mask[probability == 1].all() and not mask[probability == 0].any() and mask[y // 2, x // 2] == 1
    if hermitian:
        assert torch.equal(mirror_axes(mask, (-2, -1)), mask)
    again = draw_mask(kind, (y, x), acceleration, torch.Generator().manual_seed(seed), hermitian=hermitian)
    assert torch.equal(again.mask, mask)
    if kind.endswith("lines"):
        assert torch.equal(mask, mask[:1].expand_as(mask))
    if kind in ("random-lines", "gaussian-lines"):  # one more or less on each side of DC, the mirrored one alike
        assert abs(mask[0].sum() - probability[0].sum()) <= (4 if hermitian else 2) + 1e-4


@pytest.mark.filterwarnings("error")
@examples(80)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_acquired_range_holds_every_sample(sampled):
    sampled = np.array(sampled)
    start, stop = acquired_range(sampled.astype(float))
    assert 0 <= start < stop <= len(sampled) and not sampled[:start].any() and not sampled[stop:].any()
    if sampled.all():
        assert (start, stop) == (0, len(sampled))
    mirrored = acquired_range(sampled[::-1].astype(float))
    assert mirrored == (len(sampled) - stop, len(sampled) - start)


# --------------------------------------------------------------------------------------------------------------- formats


@examples(24)
@given(
    st.sampled_from([".h5", ".mrd", ".cfl", ".npy"]),
    st.integers(1, 4),
    COILS,
    SIZES,
    SIZES,
    SEEDS,
    st.integers(-30, 30),
    st.booleans(),
)
def test_raw_formats_bring_samples_and_masks_back_bit_for_bit(suffix, slices, coils, y, x, seed, power, located):
    if suffix == ".cfl":
        y, x = y + 1, x + 1  # BART has no axes of length 1
    rng = np.random.default_rng(seed)
    lines = rng.random(x) < 0.5
    lines[x // 2] = True
    kspace = (normal_numbers(slices, coils, y, x, seed=seed) * 10.0**power).numpy() * lines
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) * [1, 2, 3, 50]
    geometry = Geometry(
        tuple(map(tuple, affine.tolist())), int(rng.integers(3)), int(rng.integers(6)), int(rng.integers(6)), "mm"
    )
    geometry = geometry if located and suffix in (".h5", ".mrd") else None
    with tempfile.TemporaryDirectory() as folder:
        source, target, back = Path(folder) / "a.h5", Path(folder) / f"b{suffix}", Path(folder) / "c.h5"
        write_scan(source, iter(kspace), kspace.shape, mask=lines, geometry=geometry, attributes={})
        convert(source, target, lossy=suffix in (".cfl", ".npy"))
        convert(target, back)
        for path in (target, back):
            scan = open_scan(path)
            acquisition = scan.read(0, slices)
            assert scan.shape == kspace.shape and scan.geometry == geometry
            np.testing.assert_array_equal(acquisition.kspace.numpy(), kspace)
            assert (acquisition.mask.numpy() == lines).all()


@examples(60)
@given(SIZES, SIZES, SIZES, SIZES, SEEDS)
def test_cropping_undoes_padding_about_the_centre(y, x, more_y, more_x, seed):
    image = normal_numbers(2, y, x, seed=seed)
    padded = crop_or_pad(image, y + more_y, x + more_x)
    assert padded.shape == (2, y + more_y, x + more_x) and padded[:, (y + more_y) // 2, (x + more_x) // 2].equal(
        image[:, y // 2, x // 2]
    )
    assert crop_or_pad(padded, y, x).equal(image) and (padded != 0).sum() == (image != 0).sum()
    assert crop_or_pad(image, max(1, y - more_y), x).shape == (2, max(1, y - more_y), x)


@examples(40)
@given(SIZES, SIZES, SEEDS)
def test_a_larger_matrix_shows_the_same_image_and_comes_back(n, more, seed):
    kspace = normal_numbers(1, n, n, seed=seed)
    larger = resize_kspace(kspace, n + more)
    assert larger.shape == (1, n + more, n + more)
    if n % 2:  # on even sizes the Nyquist edge stands for two frequencies
        close(resize_kspace(larger, n), kspace, 1e-5)
    constant = fft2c(torch.ones((1, n, n), dtype=torch.complex64))
    close(ifft2c(resize_kspace(constant, n + more)), np.ones((1, n + more, n + more)), 1e-5)


# --------------------------------------------------------------------------------------------------------------- metrics


@examples(40)
@given(st.integers(1, 4), st.integers(7, 40), st.integers(7, 40), SEEDS, st.floats(0, 1))
def test_metrics_are_those_of_fastmri(slices, y, x, seed, noise):
    from fastmri import evaluate

    rng = np.random.default_rng(seed)
    reference = rng.random((slices, y, x)).astype(np.float32)
    image = np.abs(reference + noise * rng.standard_normal(reference.shape)).astype(np.float32)
    with np.errstate(divide="ignore"):
        ours = evaluate_arrays(reference, image).volume
        assert ours.nmse == pytest.approx(float(evaluate.nmse(reference, image)), rel=1e-6)
        assert ours.psnr == pytest.approx(float(evaluate.psnr(reference, image)), rel=1e-6)
        assert ours.ssim == pytest.approx(float(evaluate.ssim(reference, image)[0]), rel=1e-5)
        assert (ours.nmse, ours.psnr) == (nmse(reference, image), psnr(reference, image))
        assert ours.ssim == pytest.approx(ssim(reference, image), rel=1e-6)
    assert nmse(reference, image) == pytest.approx(
        ((image - reference) ** 2).sum() / (reference**2).sum(), rel=1e-4, abs=1e-12
    )


# ---------------------------------------------------------------------------------------------------------------- network


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small network that does something: its last layers, zero at first, are drawn. Hard consistency keeps what is measured."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    options = {"cascades": 2, "channels": 3, "levels": 2, "consistency": "hard"}
    network = build_network("unrolled", options)
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in network.state_dict().items()
    }
    save_tensors(path, tensors, {"network": "unrolled", "network_options": options, "training": {"protocol": {}}})
    return path


@pytest.mark.filterwarnings("ignore:calibration region")
@examples(25)
@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(4, 40),
    st.integers(4, 40),
    SEEDS,
    st.floats(-12, 12),
    st.floats(0, 6.28),
)
def test_an_image_scales_as_its_kspace_does(weights, slices, coils, y, x, seed, power, angle):
    """By any complex constant, for any shape; and what is measured stays measured."""
    kspace = normal_numbers(slices, coils, y, x, seed=seed)
    mask = some_mask(1, y, x, seed)
    mask[..., y // 2, x // 2] = 1
    kspace = (kspace * mask).numpy()
    constant = np.complex64(10.0**power * np.exp(1j * angle))
    image = reconstruct_array(kspace, mask=mask[0, 0].numpy(), weights=weights, device="cpu")
    assert image.shape == (slices, y, x) and image.dtype == np.complex64
    close(
        reconstruct_array(constant * kspace, mask=mask[0, 0].numpy(), weights=weights, device="cpu"),
        constant * image,
        2e-3,
    )
    if coils == 1:
        close(mask[0].numpy() * fft2c(torch.from_numpy(image)).numpy(), kspace[:, 0], 1e-4)
    one = reconstruct_array(kspace[:1], mask=mask[0, 0].numpy(), weights=weights, device="cpu")
    close(one[0], image[0], 1e-3)  # a slice does not know its neighbours


def test_acquisitions_of_any_shape_are_checked():
    with pytest.raises(ValueError, match="mask must have axes"):
        Acquisition(normal_numbers(2, 3, 5, 4, seed=0), torch.ones(2, 1, 4, 5))
