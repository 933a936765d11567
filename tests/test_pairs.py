"""Pairs and losses keep their statistical promises: Monte Carlo over masks against closed forms; translation against numpy.

Tolerances are multiples of the standard error, from the closed-form variance or from the samples themselves.
"""

import math

import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Acquisition
from mri_n2n.losses import LOG_FLOOR, log_squared_error, weighted_squared_error
from mri_n2n.masks import MASKS, draw_mask
from mri_n2n.movement import flip, translate
from mri_n2n.pairs import PAIR_MAKERS, Measured, Pair, PairOptions

KINDS = sorted(MASKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complex_normal(*shape: int, seed: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=generator(seed))


def dft_matrix(n: int) -> torch.Tensor:
    index = np.arange(n) - n // 2
    return torch.from_numpy(np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n))


def transform(image: torch.Tensor) -> torch.Tensor:
    """The centred orthonormal DFT, by explicit matrices, in double precision."""
    y, x = image.shape[-2:]
    return dft_matrix(y) @ image.to(torch.complex128) @ dft_matrix(x).T


def inverse(kspace: torch.Tensor) -> torch.Tensor:
    y, x = kspace.shape[-2:]
    return dft_matrix(y).conj().T @ kspace.to(torch.complex128) @ dft_matrix(x).conj()


def sample(
    full: torch.Tensor, kind: str, seed: int, *, hermitian: bool = False, noise: float = 0.0, acceleration: float = 4.0
) -> Acquisition:
    """An acquisition of full k-space (batch, coils, y, x) with its own mask and, with `noise`, its own noise of that variance."""
    draw = generator(seed)
    sampling = draw_mask(kind, tuple(full.shape[-2:]), acceleration, draw, hermitian=hermitian)
    if noise:
        full = full + noise**0.5 * torch.randn(full.shape, dtype=full.dtype, generator=draw)
    return Acquisition(full * sampling.mask, sampling.mask[None, None], sampling.probability[None, None], None, noise)


def made(method: str, first: Acquisition, second: Acquisition | None = None, full: torch.Tensor | None = None) -> Pair:
    return PAIR_MAKERS[method](Measured(first, second, full), PairOptions(), generator())


def noise2noise(first: Acquisition, second: Acquisition) -> Pair:
    return made("noise2noise", first, second)


def within(samples: list[float], expected: float, errors: float = 5.0) -> bool:
    return abs(np.mean(samples) - expected) <= errors * np.std(samples, ddof=1) / math.sqrt(len(samples)) + 1e-6 * abs(
        expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_mean_of_the_weighted_target_is_the_full_spectrum(kind):
    """E[M s / p] = s, with the variance |s|^2 (1 - p) / p per location: compared within 6 standard errors of 400 masks."""
    full, count = complex_normal(1, 2, 12, 32, seed=0), 400
    total = torch.zeros(full.shape, dtype=torch.complex128)
    for seed in range(count):
        pair = noise2noise(sample(full, kind, 10_000), sample(full, kind, seed))
        total += pair.weight * pair.target
    p = pair_probability(kind, (12, 32))
    error = (full * ((1 - p) / p / count).sqrt()).abs()
    off = ((total / count - full).abs() - 6 * error - 1e-5).max().item()
    assert off <= 0
    assert (p > 0).all()


def pair_probability(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    return draw_mask(kind, shape, 4.0, generator()).probability


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coils, noise", [(1, 0.0), (1, 0.3), (3, 0.0)])
def test_expected_weighted_loss_is_the_error_of_the_full_kspace(kind, coils, noise):
    """E[loss] = |F S f - s|^2 / pixels + coils * v: Monte Carlo over masks and noise against the closed form, 5 standard errors."""
    shape = (12, 30)
    image, prediction = complex_normal(1, 1, *shape, seed=1), complex_normal(1, 1, *shape, seed=2)
    maps = None if coils == 1 else complex_normal(1, coils, *shape, seed=3)
    full = transform(image if maps is None else maps * image)
    predicted = transform(prediction if maps is None else maps * prediction)
    expected = ((predicted - full).abs().square().sum() / (shape[0] * shape[1])).item() + coils * noise
    first = sample(full.to(torch.complex64), kind, 10_000)
    first = Acquisition(first.kspace, first.mask, first.probability, maps)
    losses = []
    for seed in range(200):
        pair = noise2noise(first, sample(full.to(torch.complex64), kind, seed, noise=noise))
        losses.append(weighted_squared_error(prediction, pair).item())
    assert within(losses, expected)
    assert np.std(losses) / math.sqrt(200) < 0.1 * expected  # the tolerance itself says something


@pytest.mark.parametrize("kind", ["roulette", "random-lines"])
def test_minimiser_ignores_what_the_input_acquisition_sampled(kind):
    """At the truth the loss is zero whatever the masks, and its gradient too: no noise, nothing to learn."""
    image = complex_normal(2, 1, 9, 16, seed=1)
    full = transform(image).to(torch.complex64)
    prediction = image.clone().requires_grad_()
    loss = weighted_squared_error(prediction, noise2noise(sample(full, kind, 1), sample(full, kind, 2)))
    loss.backward()
    assert loss.item() < 1e-10 and prediction.grad.abs().max() < 1e-5


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_gradient_of_the_weighted_loss(coils, shape):
    """2 / N sum_c S_c^* F^H w (F S_c f - s_c), with explicit DFT matrices (torch's convention for complex gradients)."""
    maps = None if coils == 1 else complex_normal(2, coils, *shape, seed=3)
    prediction = complex_normal(2, 1, *shape, seed=1).requires_grad_()
    target, weight = complex_normal(2, coils, *shape, seed=2), torch.rand((2, 1, *shape), generator=generator())
    pair = Pair(Acquisition(target, torch.ones(2, 1, *shape), None, maps), target, weight, "kspace")
    loss = weighted_squared_error(prediction, pair)
    loss.backward()
    sensitivity = torch.ones(1) if maps is None else maps
    residual = transform(sensitivity * prediction.detach()) - target
    count = 2 * shape[0] * shape[1]
    expected = 2 / count * (sensitivity.conj() * inverse(weight * residual)).sum(dim=1, keepdim=True)
    assert loss.item() == pytest.approx(((weight * residual.abs().square()).sum() / count).item(), rel=1e-5)
    torch.testing.assert_close(prediction.grad.to(torch.complex128), expected, atol=1e-6, rtol=1e-5)


def test_image_loss_is_the_mean_squared_error():
    target, prediction = complex_normal(3, 1, 6, 7, seed=1), complex_normal(3, 1, 6, 7, seed=2)
    acquisition = Acquisition(target, torch.ones(3, 1, 6, 7))
    pair = Pair(acquisition, target, torch.ones(()), "image")
    expected = np.mean(np.abs((prediction - target).numpy()) ** 2)
    assert weighted_squared_error(prediction, pair).item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_a_batch_is_the_mean_over_its_items():
    full = complex_normal(4, 1, 8, 12, seed=0)
    prediction = complex_normal(4, 1, 8, 12, seed=1)
    scans = [sample(full[i : i + 1], "roulette", i) for i in range(4)]
    each = [weighted_squared_error(prediction[i : i + 1], noise2noise(scans[i], scans[i])).item() for i in range(4)]
    batch = Acquisition(*(torch.cat([getattr(s, name) for s in scans]) for name in ("kspace", "mask", "probability")))
    assert weighted_squared_error(prediction, noise2noise(batch, batch)).item() == pytest.approx(
        np.mean(each), rel=1e-5
    )


def of_slices(pair: Pair) -> list[Pair]:
    """The slices of a pair, one each."""
    given, maps = pair.input, pair.input.sensitivity_maps
    return [
        Pair(
            Acquisition(
                given.kspace[i : i + 1], given.mask[i : i + 1], None, None if maps is None else maps[i : i + 1]
            ),
            pair.target[i : i + 1],
            pair.weight[i : i + 1],
        )
        for i in range(len(pair.target))
    ]


@pytest.mark.parametrize("coils", [1, 3])
def test_log_loss_is_the_mean_of_the_slices_logarithms(coils):
    """Against the squared errors of the single slices: value, and gradient = mean of grad e / (e + floor)."""
    shape = (7, 10)
    maps = None if coils == 1 else complex_normal(3, coils, *shape, seed=3)
    image = complex_normal(3, 1, *shape, seed=1)
    target = transform(image if maps is None else maps * image).to(torch.complex64)
    size = torch.tensor([1.0, 1e-2, 1e-6])[:, None, None, None]  # the last is far under the floor
    prediction = (image + size * complex_normal(3, 1, *shape, seed=2)).requires_grad_()
    weight = torch.rand((3, 1, *shape), generator=generator())
    pair = Pair(Acquisition(target, torch.ones(3, 1, *shape), None, maps), target, weight)
    loss = log_squared_error(prediction, pair)
    loss.backward()
    expected, gradients = [], []
    for number, single in enumerate(of_slices(pair)):
        one = prediction.detach()[number : number + 1].requires_grad_()
        error = weighted_squared_error(one, single)
        error.backward()
        energy = weighted_squared_error(torch.zeros_like(one), single).item()
        expected.append(math.log(error.item() / energy + LOG_FLOOR))
        gradients.append(one.grad / (error.item() + LOG_FLOOR * energy) / 3)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    torch.testing.assert_close(prediction.grad, torch.cat(gradients), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_log_loss_does_not_know_the_unit_of_intensity(scale):
    full, prediction = complex_normal(1, 1, 8, 12, seed=0), complex_normal(1, 1, 8, 12, seed=1)
    values, gradients = [], []
    for factor in (1, scale):
        image = (factor * prediction).requires_grad_()
        loss = log_squared_error(image, noise2noise(*(sample(factor * full, "roulette", i) for i in (1, 2))))
        loss.backward()
        values.append(loss.item())
        gradients.append(factor * image.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_an_empty_target_says_nothing_to_the_log_loss():
    prediction = complex_normal(2, 1, 8, 12, seed=1).requires_grad_()
    target = complex_normal(2, 1, 8, 12, seed=0) * torch.tensor([1.0, 0.0])[:, None, None, None]
    loss = log_squared_error(
        prediction, Pair(Acquisition(target, torch.ones(2, 1, 8, 12)), target, torch.ones(2, 1, 1, 1))
    )
    loss.backward()
    assert math.isfinite(loss.item()) and prediction.grad[0].any() and not prediction.grad[1].any()


@pytest.mark.parametrize(
    "kind, acceleration, noise, least, most",
    [
        ("roulette", 4.0, 0.0, 0.97, 1.03),
        ("roulette", 10.0, 0.0, 0.97, 1.03),
        ("gaussian-points", 12.0, 0.0, 0.97, 1.03),
        ("roulette", 4.0, 0.01, 0.97, 1.03),
        ("gaussian-lines", 4.0, 0.0, 0.75, 0.95),
        ("gaussian-lines", 12.0, 0.0, 0.5, 0.75),
    ],
)
def test_expected_log_loss_falls_as_the_log_of_the_true_error_does(kind, acceleration, noise, least, most):
    """Its slope where the error of the outer, rarely sampled part of k-space is taken back, over that of the full k-space's
    (with the energy of the noise): Monte Carlo over 400 second masks of a scan of 64x64, within 4 standard errors of the bounds.
    A few lines count the less the more error they meet."""
    full, error = (complex_normal(1, 1, 64, 64, seed=seed) for seed in (0, 1))
    distance = (torch.arange(64) - 32).abs() / 32
    outer = error * (distance > 0.6 if kind == "gaussian-lines" else torch.hypot(distance, distance[:, None]) > 0.7)
    prediction, step = (inverse(part).to(torch.complex64) for part in (full + 0.1 * error, 0.1 * outer))
    prediction.requires_grad_()
    first, slopes = sample(full, kind, 10_000, acceleration=acceleration), []
    for seed in range(400):
        second = sample(full, kind, seed, noise=noise, acceleration=acceleration)
        (gradient,) = torch.autograd.grad(log_squared_error(prediction, noise2noise(first, second)), prediction)
        slopes.append((gradient.conj() * step).real.sum().item())
    energy = 0.01 * error.abs().square().sum() + noise * 64 * 64
    ratios = np.array(slopes) / (0.02 * outer.abs().square().sum() / energy).item()
    error_of_mean = 4 * ratios.std() / 20
    assert least - error_of_mean <= ratios.mean() <= most + error_of_mean and error_of_mean < 0.2


@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("kind", ["roulette", "gaussian-points", "random-lines"])
def test_2018_target_is_unbiased(kind, hermitian):
    """The mean over masks of the target image of a real image is the image, per pixel within 6 standard errors."""
    image = torch.rand((1, 1, 10, 16), generator=generator())
    full, count = transform(image).to(torch.complex64), 500
    first = sample(full, kind, 10_000, hermitian=hermitian)
    pairs = [made("noise2noise-2018", first, sample(full, kind, seed, hermitian=hermitian)) for seed in range(count)]
    targets = torch.stack([pair.target for pair in pairs])
    assert pairs[0].domain == "image" and pairs[0].input is first and torch.all(pairs[0].weight == 1)
    assert (
        targets.is_complex() and (targets.imag.abs().max() < 1e-5) == hermitian
    )  # a real image needs a Hermitian mask
    error = targets.real.std(dim=0) / math.sqrt(count)
    assert ((targets.real.mean(dim=0) - image).abs() <= 6 * error + 1e-5).all()
    # and its total variance is the closed form sum |s|^2 (1 - p) / p (real part: all of it when the mask is Hermitian)
    if hermitian and kind != "random-lines":
        p = pair_probability(kind, (10, 16))
        expected = (full[0, 0].abs().square() * (1 - p) / p).sum().item()
        assert targets.real.var(dim=0).sum().item() == pytest.approx(expected, rel=0.15)


def test_pair_makers_say_what_they_say():
    full = complex_normal(2, 1, 8, 12, seed=0)
    first, second = sample(full, "roulette", 1), sample(full, "roulette", 2)
    pair = noise2noise(first, second)
    assert pair.domain == "kspace" and pair.input is first
    assert torch.equal(pair.target, second.kspace)
    assert torch.equal(pair.weight > 0, second.mask > 0) and pair.weight.isfinite().all()
    sampled = second.mask > 0
    torch.testing.assert_close(pair.weight[sampled], 1 / second.probability[sampled])
    reference = made("supervised", first, full=full)
    assert torch.equal(reference.target, full) and reference.domain == "kspace" and torch.all(reference.weight == 1)
    assert reference.input is first
    image = made("supervised-2018", first, full=full)
    torch.testing.assert_close(image.target.to(torch.complex128), inverse(full), atol=1e-6, rtol=0)
    assert image.domain == "image" and image.input is first


def test_target_says_nothing_where_the_second_mask_has_no_sample_and_probability_is_zero():
    full = complex_normal(1, 1, 4, 4, seed=0)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3] = 1
    pair = noise2noise(sample(full, "roulette", 1, acceleration=2.0), Acquisition(full * mask, mask, 0.5 * mask))
    assert torch.equal(pair.weight, 2 * mask)
    prediction = complex_normal(1, 1, 4, 4, seed=1).requires_grad_()
    weighted_squared_error(prediction, pair).backward()
    assert prediction.grad.isfinite().all()
    assert transform(prediction.grad)[..., 0].abs().max() < 1e-6  # an unsampled column gets no gradient


@pytest.mark.parametrize("method", ["noise2noise", "noise2noise-2018"])
def test_missing_probability_is_named(method):
    full = complex_normal(1, 1, 4, 4, seed=0)
    scan = Acquisition(full, torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="sampling probability"):
        made(method, scan, scan)


def test_acquisition_refuses_what_does_not_fit():
    kspace, mask = complex_normal(2, 1, 4, 5, seed=0), torch.ones(1, 1, 4, 5)
    Acquisition(kspace, mask)
    for bad in (kspace.real, kspace[0]):
        with pytest.raises(ValueError, match="kspace must be complex"):
            Acquisition(bad, mask)
    for shape in [(1, 1, 5, 4), (3, 1, 4, 5), (1, 2, 4, 5), (4, 5)]:
        with pytest.raises(ValueError, match="mask must have axes"):
            Acquisition(kspace, torch.ones(shape))
        with pytest.raises(ValueError, match="probability must have axes"):
            Acquisition(kspace, mask, torch.ones(shape))


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (8, 9)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (3, 5), (-4, 3), (8, -17)])
def test_translation_rolls_the_image(shape, shift):
    """The image of the shifted acquisition is numpy's roll of the image: at full sampling, and of the zero-filled one."""
    image = complex_normal(2, 1, *shape, seed=1)
    full = transform(image).to(torch.complex64)
    ones = torch.ones(1, 1, *shape)
    moved = translate(Acquisition(full, ones), shift)
    np.testing.assert_allclose(inverse(moved.kspace).numpy(), np.roll(image.numpy(), shift, axis=(-2, -1)), atol=1e-5)
    mask = (torch.rand((2, 1, *shape), generator=generator()) < 0.4).float()
    scan = Acquisition(full * mask, mask, 0.4 * ones, None, 0.1)
    moved = translate(scan, shift)
    zero_filled = np.roll(inverse(scan.kspace).numpy(), shift, axis=(-2, -1))
    np.testing.assert_allclose(inverse(moved.kspace).numpy(), zero_filled, atol=1e-5)
    torch.testing.assert_close(moved.kspace.abs(), scan.kspace.abs(), atol=1e-6, rtol=1e-6)  # samples stay as measured
    assert torch.equal(moved.kspace == 0, scan.kspace == 0)
    assert (
        torch.equal(moved.mask, scan.mask)
        and torch.equal(moved.probability, scan.probability)
        and moved.noise_variance == 0.1
    )
    torch.testing.assert_close(translate(moved, (-shift[0], -shift[1])).kspace, scan.kspace, atol=1e-5, rtol=1e-5)


def test_translation_keeps_a_real_image_real_at_even_sizes():
    """The ramp on the Nyquist line is +-1, not complex: a real image stays real."""
    full = transform(torch.rand((1, 1, 8, 10), generator=generator())).to(torch.complex64)
    for shift in [(1, 0), (0, 1), (3, -3)]:
        image = inverse(translate(Acquisition(full, torch.ones(1, 1, 8, 10)), shift).kspace)
        assert image.imag.abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (8, 9)])
@pytest.mark.parametrize("axes", [(), (-1,), (-2,), (-2, -1)])
def test_flip_mirrors_the_image_about_its_centre_pixel(shape, axes):
    image = complex_normal(2, 1, *shape, seed=1)
    mask = (torch.rand((2, 1, *shape), generator=generator()) < 0.4).float()
    scan = Acquisition(transform(image).to(torch.complex64) * mask, mask, 0.1 + mask / 2, None, 0.1)
    flipped = flip(scan, axes)
    wanted = inverse(scan.kspace).numpy()
    for axis in axes:  # pixel i goes to 2 (n // 2) - i: a reversal, and one step on where n is even
        wanted = np.roll(np.flip(wanted, axis), 1 - wanted.shape[axis] % 2, axis)
    np.testing.assert_allclose(inverse(flipped.kspace).numpy(), wanted, atol=1e-5)
    samples = [a.kspace[0].abs().flatten().sort().values for a in (scan, flipped)]
    assert torch.equal(*samples)  # as they were measured
    assert torch.equal(flipped.mask > 0, flipped.kspace != 0)
    assert torch.equal(flipped.probability, 0.1 + flipped.mask / 2) and flipped.noise_variance == 0.1
    assert torch.equal(flip(flipped, axes).kspace, scan.kspace)


@pytest.mark.parametrize(("move", "how"), [(translate, (2, -3)), (flip, (-1,)), (flip, (-2, -1))])
@pytest.mark.parametrize("shape", [(8, 6), (7, 9)])
def test_coils_move_with_the_object(move, how, shape):
    """The maps of the moved acquisition times the moved image are the moved coil images."""
    image, maps = complex_normal(1, 1, *shape, seed=1), complex_normal(1, 3, *shape, seed=2)
    full = transform(maps * image).to(torch.complex64)
    scan = Acquisition(full, torch.ones(1, 1, *shape), None, maps.to(torch.complex64))
    alone = move(Acquisition(transform(image).to(torch.complex64), torch.ones(1, 1, *shape)), how)
    moved = move(scan, how)
    expected = moved.sensitivity_maps * inverse(alone.kspace)
    torch.testing.assert_close(inverse(moved.kspace), expected, atol=1e-5, rtol=1e-5)


def test_loss_follows_the_shift_of_pair_and_prediction():
    """Training on shifted pairs is training on shifted images: the loss of the rolled prediction is the same."""
    full, prediction = complex_normal(1, 1, 9, 8, seed=0), complex_normal(1, 1, 9, 8, seed=1)
    first, second = sample(full, "roulette", 1), sample(full, "roulette", 2)
    before = weighted_squared_error(prediction, noise2noise(first, second))
    after = weighted_squared_error(
        prediction.roll((2, -3), (-2, -1)), noise2noise(translate(first, (2, -3)), translate(second, (2, -3)))
    )
    torch.testing.assert_close(before, after, rtol=1e-5, atol=0)


# Batches: what training iterates over.


def phantom_sources(count: int = 3, slices: int = 3, shape: tuple[int, int] = (16, 18)):
    from mri_n2n.phantom import phantom_kspace
    from mri_n2n.sources import Source

    volume = lambda number: torch.stack([phantom_kspace(shape, 1, generator(10 * number + i)) for i in range(slices)])  # noqa: E731
    return [Source(f"phantom-{i}", f"subject-{i}", slices, lambda i=i: volume(i)) for i in range(count)]


def test_hermitian_kspace_is_recognised():
    from mri_n2n.protocol import is_hermitian

    for shape in [(8, 10), (7, 9), (64, 64)]:
        full = transform(torch.rand((1, 1, *shape), generator=generator())).to(torch.complex64)
        assert is_hermitian(full) and is_hermitian(0 * full)
        assert is_hermitian(translate(Acquisition(full, torch.ones(1, 1, *shape)), (3, -1)).kspace)
        assert not is_hermitian(full * 1j) and not is_hermitian(full + 1e-3 * complex_normal(1, 1, *shape, seed=3))


def test_recipe_rounds_its_images_to_256_grey_levels():
    from mri_n2n.fourier import fft2c, ifft2c
    from mri_n2n.simulation import eight_bit

    images = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    rounded = ifft2c(eight_bit(fft2c(images.to(torch.complex64))))
    assert rounded.imag.abs().max() < 1e-6
    assert torch.allclose(rounded.real, torch.round(images.clamp(0, 1) * 255) / 255, atol=1e-6)


def test_fixed_pairs_stay_the_same_and_redrawn_ones_do_not():
    from mri_n2n.protocol import Protocol, simulated_repetitions

    full = phantom_sources()[0].load()[:1]
    protocol = Protocol(noise=(0.1, 0.1), acceleration=(4.0, 4.0))
    one, two = (simulated_repetitions(full, 0, "a", protocol) for _ in range(2))
    scans = one.first, one.second
    for left, right in zip(scans, (two.first, two.second)):
        assert torch.equal(left.kspace, right.kspace) and torch.equal(left.mask, right.mask)
    assert not torch.equal(scans[0].mask, scans[1].mask) and torch.equal(one.full, full)
    both = (scans[0].mask * scans[1].mask) > 0  # common samples carry independent noise
    noise = [(scan.kspace - full)[both] for scan in scans]
    assert (noise[0] - noise[1]).abs().min() > 0
    assert scans[0].noise_variance == scans[1].noise_variance == pytest.approx(0.1**2)  # noise is a standard deviation
    variance = torch.cat([(scan.kspace - full)[scan.mask > 0] for scan in scans]).abs().square().mean().item()
    assert variance == pytest.approx(0.1**2, rel=5 / math.sqrt((scans[0].mask + scans[1].mask).sum().item()))
    draw = generator()
    redrawn = [simulated_repetitions(full, 0, "a", protocol, draw) for _ in range(2)]
    assert not torch.equal(redrawn[0].first.mask, redrawn[1].first.mask)
    for name, index, other in [
        ("b", 0, protocol),
        ("a", 1, protocol),
        ("a", 0, Protocol(noise=(0.1, 0.1), acceleration=(4.0, 4.0), seed=1)),
    ]:
        assert not torch.equal(simulated_repetitions(full, index, name, other).first.mask, scans[0].mask)


def test_two_fixed_acquisitions_are_all_that_training_ever_sees_of_a_slice():
    """Over many epochs of fixed pairs the sampled locations of a slice are those of two masks; redrawn pairs show more."""
    from itertools import islice

    from mri_n2n.batches import training_batches
    from mri_n2n.protocol import Protocol

    sources, seen = phantom_sources(count=1, slices=1), {}
    for pairs in ("fixed", "redrawn"):
        union = torch.zeros(16, 18)
        roles = set()
        for (pair,) in islice(
            training_batches(sources, Protocol(pairs=pairs, flips=False, acceleration=(4.0, 4.0)), 1), 12
        ):
            union += pair.input.mask[0, 0] + (pair.weight[0, 0] > 0)
            roles.add(tuple(pair.input.mask.flatten().tolist()))
        seen[pairs] = (union > 0).float().mean().item(), len(roles)
    assert seen["fixed"][1] == 2  # roles are swapped at random
    assert seen["fixed"][0] < 0.5 < seen["redrawn"][0]


@pytest.mark.parametrize("method", sorted(PAIR_MAKERS))
@pytest.mark.parametrize("pairs", ["fixed", "redrawn"])
def test_batches_resume_where_they_stopped_and_touch_no_global_randomness(method, pairs):
    from itertools import islice

    from mri_n2n.batches import steps_per_epoch, training_batches
    from mri_n2n.protocol import Protocol

    sources, state = phantom_sources(count=5, slices=2), torch.get_rng_state().clone()
    phase = 0.0 if method.endswith("2018") else 0.5
    acceleration = (1.0, 1.0) if method == "noise2void" else (3.0, 5.0)
    protocol = Protocol(method, pairs=pairs, acceleration=acceleration, noise=(0.0, 0.05), phase=phase)
    assert steps_per_epoch(sources, 4) == 3
    whole = list(islice(training_batches(sources, protocol, 4), 7))
    for first in (1, 2, 3, 5):
        for left, right in zip(whole[first:], training_batches(sources, protocol, 4, first)):
            for a, b in zip(left, right, strict=True):
                assert (
                    torch.equal(a.input.kspace, b.input.kspace)
                    and torch.equal(a.target, b.target)
                    and torch.equal(a.weight, b.weight)
                )
                if a.again is not None:
                    assert all(
                        x is y is None or torch.equal(x, y)
                        for x, y in zip(vars(a.again).values(), vars(b.again).values())
                    )
    assert [sum(pair.input.kspace.shape[0] for pair in batch) for batch in whole[:3]] == [4, 4, 2]
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_of_a_batch_belong_together():
    """Input and target of every example show the same object, equally shifted: common samples agree without noise."""
    from mri_n2n.batches import training_batches
    from mri_n2n.protocol import Protocol

    for pair in next(training_batches(phantom_sources(), Protocol(acceleration=(3.0, 3.0)), 9)):
        common = (pair.input.mask > 0) & (pair.weight > 0)
        assert common.any()
        torch.testing.assert_close(pair.input.kspace[common], pair.target[common])


def test_slices_of_different_matrix_size_share_a_batch():
    from mri_n2n.batches import training_batches
    from mri_n2n.protocol import Protocol

    sources = phantom_sources(count=1) + [s for s in phantom_sources(count=2, shape=(15, 20))[1:]]
    batch = next(training_batches(sources, Protocol(acceleration=(3.0, 3.0)), 6))
    assert sorted(tuple(pair.target.shape) for pair in batch) == [(3, 1, 15, 20), (3, 1, 16, 18)]
