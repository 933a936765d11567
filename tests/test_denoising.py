"""Noise2Void: the blind spot is blind, the test of the noise tells white from correlated, magnitudes lose their bias, and the
verb writes what it says."""

import json
from dataclasses import replace

import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.signal import lfilter
from scipy.stats import rice

import mri_n2n
from mri_n2n.acquisition import Acquisition
from mri_n2n.checkpoint import load_tensors
from mri_n2n.cli import main
from mri_n2n.denoising.blind_spot import BlindSpot, hide
from mri_n2n.denoising.cleaning import Plan, cautions, clean_by_itself, noise_map, training_for, variance_of
from mri_n2n.denoising.denoise import changed_inside, inside
from mri_n2n.denoising.networks import BODIES, BlindSpotUNet, Neighbours, build_body
from mri_n2n.denoising.own_pixels import with_own_pixels
from mri_n2n.denoising.rician import noise_of_moments, rician_mean, signal_of_mean, variance_of_mean
from mri_n2n.denoising.self_training import DenoiseOptions, clean, fit, patches
from mri_n2n.denoising.whiteness import caution_of, described, measure_whiteness
from mri_n2n.errors import InputError, OptionError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.networks import Denoiser
from mri_n2n.pairs import Measured, PairOptions, noise2void
from mri_n2n.simulation import acquire
from mri_n2n.volumes import load_phantom

SIZES = {2: (33, 47), 3: (9, 21, 23)}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(shape, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / 2**0.5


# ---- the blind spot ----


@pytest.mark.parametrize("rule", ["uniform", "median"])
@pytest.mark.parametrize("span", [0, 4])
@pytest.mark.parametrize(
    "network, dimensions",
    [(body, 2) for body in BODIES] + [("n2v2", 3), ("n2v", 3)],
)
def test_no_prediction_sees_its_own_pixel(rule, span, network, dimensions):
    """The gradient of every predicted pixel with respect to its own noisy value is exactly zero."""
    size = SIZES[dimensions]
    images = torch.randn(1, 2, *size, generator=draw()).requires_grad_()
    spot = BlindSpot(share=0.02, window=9, rule=rule, span=(0,) * (dimensions - 1) + (span,) if span else ())
    hidden, predicted = hide(images, spot, draw(1))
    torch.manual_seed(0)
    body = (
        build_body(network, 2, 4)
        if dimensions == 2
        else BlindSpotUNet(2, 4, 2, dimensions, artefact_free=network == "n2v2")
    ).eval()
    for parameter in body.parameters():  # last layers start at zero, which would see nothing
        torch.nn.init.normal_(parameter, std=0.2)
    output = body(hidden)
    places = predicted[0, 0].nonzero()
    assert len(places) > 5
    for place in places[:6]:
        for channel in (0, 1):
            [gradient] = torch.autograd.grad(output[(0, channel, *place)], images, retain_graph=True)
            seen = gradient.movedim(1, 0)[:, 0]
            assert (seen[(slice(None), *place)] == 0).all()
            y = tuple(place[:-1].tolist())
            along = slice(max(0, int(place[-1]) - span), int(place[-1]) + span + 1)
            assert (seen[(slice(None), *y, along)] == 0).all(), "nor those whose noise is correlated with its own"
            assert gradient.abs().sum() > 0, "it sees the others"


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("span", [0, 2, 4])
def test_neighbours_see_no_pixel_at_its_own_place(dimensions, span):
    """What stands in for the finest skip is blind by itself, with nothing hidden, also at edges and corners."""
    size = {2: (9, 11), 3: (5, 6, 7)}[dimensions]
    spans = (0,) * (dimensions - 1) + (span,)
    image = torch.randn(1, 2, *size, generator=draw(), dtype=torch.float32).requires_grad_()
    torch.manual_seed(0)
    neighbours = Neighbours(2, 3, dimensions, spans if span else ())
    torch.nn.init.normal_(neighbours.last.weight)
    output = neighbours(image, torch.randn(1, 3, *size, generator=draw(1)))
    for place in [(0,) * dimensions, (1,) * dimensions, tuple(n - 1 for n in size), tuple(n // 2 for n in size)]:
        [gradient] = torch.autograd.grad(output[(0, 0, *place)], image, retain_graph=True)
        seen = gradient[0].abs().amax(dim=0)
        along = slice(max(0, place[-1] - span), place[-1] + span + 1)
        assert (seen[(*place[:-1], along)] == 0).all()
        above = tuple(n + (1 if n == 0 else -1) for n in place[:-1])
        assert seen[(*above, place[-1])] > 0


def test_neighbours_start_as_the_mean_of_those_that_are_there():
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    mean = Neighbours(1, 2, 2, ())(image, torch.zeros(1, 2, 4, 5))[0, 0]
    assert mean[0, 0].item() == pytest.approx((1 + 5 + 6) / 3) and mean[1, 1].item() == pytest.approx(6)
    along_x = Neighbours(1, 2, 2, (0, 1))(image, torch.zeros(1, 2, 4, 5))[0, 0]
    assert along_x[0, 0].item() == pytest.approx((5 + 6) / 2), "not of the pixels beside it"


def test_hidden_pixels_are_replaced_by_visible_ones_alone():
    """Of an image that counts its pixels, each replacement is the value of a pixel of its window that is not hidden."""
    y, x = 40, 50
    images = torch.arange(y * x, dtype=torch.float32).reshape(1, 1, y, x)
    hidden, predicted = hide(images, BlindSpot(share=0.05, window=5, rule="uniform"), draw())
    changed = (hidden != images)[0, 0]
    assert torch.equal(changed, predicted[0, 0].bool())
    for place in changed.nonzero():
        source = int(hidden[0, 0][tuple(place)])
        assert not changed[source // x, source % x]
        assert abs(source // x - place[0]) <= 2 and abs(source % x - place[1]) <= 2


def test_the_median_rule_is_the_median_of_the_window_without_hidden_pixels():
    images = torch.randn(1, 1, 30, 30, generator=draw())
    hidden, predicted = hide(images, BlindSpot(share=0.01, window=3, rule="median"), draw())
    for y, x in predicted[0, 0].nonzero().tolist():
        around = [
            images[0, 0, i, j].item()
            for i in range(max(0, y - 1), min(30, y + 2))
            for j in range(max(0, x - 1), min(30, x + 2))
            if not predicted[0, 0, i, j]
        ]
        assert min(around) <= hidden[0, 0, y, x] <= max(around)
        below = sum(value <= hidden[0, 0, y, x] for value in around)
        assert below in (len(around) // 2, len(around) // 2 + 1, (len(around) + 1) // 2)


@pytest.mark.parametrize("share", [0.00198, 0.02])
@pytest.mark.parametrize("size", [(64, 64), (61, 47)])
def test_every_pixel_is_hidden_with_the_same_probability(share, size):
    total, draws, generator = torch.zeros(size), 3000, draw()
    for _ in range(draws):
        total += hide(torch.zeros(1, 1, *size), BlindSpot(share=share, window=3), generator)[1][0, 0]
    side = round(share**-0.5)
    expected = 1 / side**2
    assert abs(total.mean() / draws / expected - 1) < 5 * (expected * draws * total.numel()) ** -0.5 + 0.02
    # Edges as often as the middle: five standard errors of a Poisson count.
    edge = torch.cat((total[0], total[-1], total[:, 0], total[:, -1])).mean() / draws
    assert abs(edge - expected) < 5 * (expected / draws / (2 * sum(size))) ** 0.5


def test_struct_hides_a_cross_and_predicts_its_centre():
    images = torch.randn(1, 1, 41, 41, generator=draw())
    hidden, predicted = hide(images, BlindSpot(share=0.0007, window=11, span=(0, 3)), draw(3))
    changed = (hidden != images)[0, 0]
    for y, x in predicted[0, 0].nonzero().tolist():
        assert changed[y, max(0, x - 3) : x + 4].all()
    assert changed.sum() > 3 * predicted.sum()


def test_a_window_that_shows_nothing_is_refused():
    with pytest.raises(OptionError, match="shows no other pixel"):
        hide(torch.zeros(1, 1, 32, 32), BlindSpot(share=0.25, window=3, span=(0, 31)), draw())
    with pytest.raises(OptionError, match="one number for each"):
        hide(torch.zeros(1, 1, 32, 32), BlindSpot(span=(1, 2, 3)), draw())


@pytest.mark.parametrize("coils", [1, 3])
def test_the_pair_of_a_scan_is_blind_too(coils):
    """Through k-space and sensitivity maps; to rounding, which a Fourier transform leaves."""
    full = load_phantom("a", 1, 64, coils)
    scan = acquire(full, "roulette", 1.0, draw(), noise_variance=0.01)
    from mri_n2n.coils import with_sensitivity_maps

    scan = with_sensitivity_maps(scan)[0] if coils > 1 else scan
    pair = noise2void(Measured(scan), PairOptions(), draw())
    from mri_n2n.operators import adjoint

    seen = adjoint(pair.input.kspace, pair.input.mask)
    hidden = pair.weight > 0
    assert hidden.sum() >= 4
    assert torch.allclose(seen[~hidden], pair.target[~hidden], atol=1e-5)
    assert ((seen - pair.target)[hidden].abs() > 1e-4).all()
    with pytest.raises(OptionError, match="fully sampled"):
        noise2void(Measured(acquire(full, "roulette", 4.0, draw())), PairOptions(), draw())


@pytest.mark.parametrize("body", ["n2v", "n2v2"])
def test_a_denoiser_does_not_see_the_pixels_it_is_asked_for(body):
    """The gradient of what `Denoiser` predicts with respect to the scan's own pixel there, through k-space: zero but for rounding."""
    image = (torch.randn(1, 1, 33, 40, generator=draw()) + 2).to(torch.complex64).requires_grad_()
    scan = Acquisition(fft2c(image), torch.ones(1, 1, 33, 40))
    pair = noise2void(Measured(scan), PairOptions(), draw(2))
    torch.manual_seed(0)
    network = Denoiser(body, 4).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    output = network(pair.input)
    places = (pair.weight[0, 0] > 0).nonzero()
    for y, x in places[:6].tolist():
        [gradient] = torch.autograd.grad(output[0, 0, y, x].real, image, retain_graph=True)
        assert gradient[0, 0, y, x].abs() < 1e-5 * gradient.abs().max() and gradient.abs().max() > 0


@pytest.mark.parametrize("body", BODIES)
def test_a_denoiser_is_equivariant_and_keeps_real_images_real(body):
    full = load_phantom("a", 2, 33, None)
    scan = acquire(full, "roulette", 1.0, draw(), hermitian=True)
    network = Denoiser(body, 4).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = network(scan)
    assert image.imag.abs().max() <= 1e-6 * image.abs().max(), "but for the rounding of the scale"
    from dataclasses import replace

    factor = 300 * np.exp(0.7j)
    turned = network(replace(scan, kspace=scan.kspace * factor))
    assert torch.allclose(turned, image * factor, rtol=1e-3, atol=1e-3 * abs(factor) * image.abs().max().item())


# ---- is the noise white? ----


def signal(shape) -> np.ndarray:
    image = load_phantom("head", shape[0], shape[1], None)
    return ifft2c(image)[:, 0].real.clamp_min(0).numpy()[..., : shape[2]]


@pytest.mark.parametrize("kind", ["complex", "magnitude", "real"])
@pytest.mark.parametrize(
    "widths, verdict", [((0, 0, 0), "white"), ((0, 0, 1), "line"), ((0, 1, 0), "line"), ((0, 1, 1), "other")]
)
def test_the_verdict_on_noise(kind, widths, verdict):
    shape = (6, 129, 120)
    noise = ndimage.gaussian_filter(white(shape), widths)
    noise *= 0.06 / np.mean(np.abs(noise) ** 2) ** 0.5
    images = {"complex": signal(shape) + noise, "magnitude": np.abs(signal(shape) + noise)}
    images["real"] = signal(shape) + noise.real
    found = measure_whiteness(images[kind])
    assert found.verdict() == verdict and found.where == "background"
    assert [bool(reach) for reach in found.reach] == [bool(width) for width in widths]
    expected = 0.06 / 2**0.5 if kind == "real" else 0.06
    assert found.deviation == pytest.approx(expected, rel=0.03 if verdict == "white" else 0.08)


def test_noise_is_judged_along_the_axes_that_a_network_sees():
    noise = ndimage.gaussian_filter(white((8, 96, 96)), (1, 0, 0))
    found = measure_whiteness(signal((8, 96, 96)) + 0.1 * noise / noise.std())
    assert (found.verdict(2), found.verdict(3), found.along(3)) == ("white", "line", ["z"])
    assert caution_of(found) is None


def band_limited(shape, rows: slice, columns: slice) -> np.ndarray:
    """White noise of the k-space samples in a rectangle, of variance 1."""
    kspace = np.zeros(shape, complex)
    kspace[:, rows, columns] = white(shape)[:, rows, columns]
    noise = ifft2c(torch.from_numpy(kspace)).numpy()
    return noise / np.mean(np.abs(noise) ** 2) ** 0.5


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize(
    "rows, columns, along",
    [
        (slice(13, 115), slice(13, 115), ["y", "x"]),  # zero-padded by a quarter
        (slice(0, 128), slice(64, 128), ["x"]),  # half of k-space: correlated, but not its real part at odd lags
    ],
)
def test_padded_and_partial_kspace_is_not_white(magnitude, rows, columns, along):
    images = signal((8, 128, 128)) + 0.06 * band_limited((8, 128, 128), rows, columns)
    assert measure_whiteness(np.abs(images) if magnitude else images).along() == along


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_noise_that_forgets_slowly_reaches_far(decay):
    noise = lfilter([1], [1, -decay], white((8, 128, 160)), axis=2)[..., 32:]
    found = measure_whiteness(signal((8, 128, 128)) + 0.06 * noise / noise.std())
    lags = np.flatnonzero(decay ** np.arange(1, 9) > 0.1)
    assert found.along() == ["x"] and abs(found.reach[2] - (lags.max() + 1)) <= 1
    assert (caution_of(found) is not None) == (decay == 0.9), "which reaches as far as is looked"


@pytest.mark.parametrize("energy", [0.12, 0.24, 1.0])
def test_dark_tissue_does_not_look_like_correlated_noise(energy):
    """A quarter bright, the rest of constant signal, of `energy` times that of the noise."""
    images = white((6, 128, 128)) + energy**0.5
    images[:, :, 96:] += 10
    for kind in (images, np.abs(images)):
        found = measure_whiteness(kind)
        assert found.verdict() == "white" and found.deviation == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("level", [0.05, 0.15, 0.4])
def test_the_level_of_magnitudes_however_noisy(level):
    images = np.abs(signal((6, 128, 128)) + level * white((6, 128, 128)))
    found = measure_whiteness(images)
    assert found.verdict() == "white" and found.deviation == pytest.approx(level, rel=0.04)


def test_without_background_the_high_passed_image_is_looked_at():
    shape = (4, 128, 128)
    smooth = 1 + 0.3 * np.sin(np.linspace(0, 3, 128))[None, :, None] * np.ones(shape)
    found = measure_whiteness(smooth + 0.02 * white(shape).real * 2**0.5)
    assert (found.verdict(), found.where) == ("white", "high-pass residual")
    noise = ndimage.gaussian_filter1d(white(shape).real, 1, axis=2)
    found = measure_whiteness(smooth + 0.02 * noise / noise.std())
    assert found.reach[1] == 0 and found.reach[2] > 0 and found.verdict() == "line"


def test_a_masked_background_is_no_noise():
    shape = (3, 96, 96)
    images = np.zeros(shape)
    images[:, 20:80, 20:80] = 1 + 0.03 * white((3, 60, 60)).real
    found = measure_whiteness(images)
    assert (found.verdict(), found.where) == ("white", "high-pass residual")
    assert found.deviation == pytest.approx(0.03, rel=0.05), "magnitudes, which show one of two parts"
    through_a_transform = ifft2c(fft2c(torch.from_numpy(images.astype(np.complex64)))).numpy()
    through_a_transform[images == 0] *= 1j  # signed rounding, as a volume's that was read as a scan
    again = measure_whiteness(through_a_transform)
    assert (again.verdict(), again.where) == ("white", "high-pass residual")
    assert measure_whiteness(np.zeros(shape)).verdict() == "unknown"


def test_masked_images_have_no_level_of_correlated_noise():
    """What is left of the background may be tissue; unmasked the level is that of the noise."""
    noise = ndimage.gaussian_filter(white((3, 96, 96)).real, (0, 1.5, 1.5)) + 1j * ndimage.gaussian_filter(
        white((3, 96, 96), 1).real, (0, 1.5, 1.5)
    )
    images = np.abs(noise)
    images[:, 30:60, 30:60] += 20 * images.mean()
    found = measure_whiteness(images)
    assert any(found.reach) and found.deviation == pytest.approx(np.mean(np.abs(noise) ** 2) ** 0.5, rel=0.2)
    images[:, :40] = 0
    found = measure_whiteness(images)
    assert any(found.reach) and found.deviation is None


def test_a_masked_volume_of_white_noise_is_told_its_level():
    """In what the high-pass leaves; but where slices look alike, that is their detail, and there is none. Networks of slices are not told."""
    noise, images = white((3, 96, 96)), np.zeros((3, 96, 96))
    smooth = 10 + np.cos(np.linspace(0, 9, 96))[:, None] * np.sin(np.linspace(0, 7, 96))
    images[:, 20:90, 8:90] = np.abs(smooth + noise)[:, 20:90, 8:90]
    found = measure_whiteness(images)
    assert found.where == "high-pass residual" and found.verdict() == "white"
    assert found.deviation == pytest.approx(1.0, rel=0.1)
    assert "along z" not in described(replace(found, reach=(1, 0, 0)), 2) and "along z" in described(
        replace(found, reach=(1, 0, 0))
    )


def test_the_method_follows_the_noise():
    plain = measure_whiteness(white((3, 96, 96)))
    assert training_for(Plan(), plain)[1] == "n2v2"
    noise = ndimage.gaussian_filter1d(white((3, 96, 96)).real, 1, axis=1)
    training, method = training_for(Plan(), measure_whiteness(noise))
    assert method == "structn2v" and training.spot.span[0] >= 2 and training.spot.span[1] == 0
    with pytest.raises(OptionError, match="not correlated"):
        training_for(Plan(method="structn2v"), plain)


# ---- magnitudes ----


@pytest.mark.parametrize("amplitude", [0.0, 0.3, 1.0, 4.0, 19.5, 300.0])
def test_the_mean_of_magnitudes_and_back(amplitude):
    """Against scipy's Rice distribution, whose parts each have half the variance."""
    deviation = 1.7
    part = deviation / 2**0.5
    mean = rice.mean(amplitude / part, scale=part) if amplitude < 50 else amplitude + deviation**2 / (4 * amplitude)
    assert rician_mean(np.array([amplitude]), deviation**2)[0] == pytest.approx(mean, rel=1e-5)
    assert signal_of_mean(np.array([mean]), deviation**2)[0] == pytest.approx(amplitude, rel=2e-4, abs=1e-3)


@pytest.mark.parametrize("amplitude", [0.0, 1.0, 3.0, 30.0])
def test_noise_of_magnitudes_from_their_moments(amplitude):
    m = np.abs(amplitude + 1.5 * white(400_000))
    assert noise_of_moments(m.mean(), m.var()) == pytest.approx(1.5**2, rel=0.03)
    assert signal_of_mean(np.array([0.1]), 1.0)[0] == 0
    assert signal_of_mean(np.array([0.1, -0.2]), 0.0).tolist() == [0.1, 0.0]


@pytest.mark.parametrize("amplitude", [0.0, 1.0, 4.0, 20.0])
def test_the_variance_of_magnitudes_of_a_mean(amplitude):
    deviation = 1.7
    part = deviation / 2**0.5
    mean, variance = rice.stats(amplitude / part, scale=part)
    assert variance_of_mean(np.array([mean]), deviation**2)[0] == pytest.approx(float(variance), rel=2e-3)
    assert variance_of_mean(np.array([0.0]), deviation**2)[0] == pytest.approx((1 - np.pi / 4) * deviation**2)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("error, variance", [(0.02, 1.0), (0.1, 1.0), (0.3, 1.0), (1.0, 0.3), (2.0, 2.0)])
def test_own_pixels_reach_the_error_of_the_posterior(channels, error, variance):
    """Of a Gaussian prior of variance e and a measurement of variance v: e v / (e + v), less than either; to what a local mean of 50
    pixels does not know of e, 0.015 v of one channel."""
    prediction = torch.randn(4, channels, 129, 120, generator=draw())
    truth = prediction + error**0.5 * torch.randn(prediction.shape, generator=draw(1))
    noisy = truth + variance**0.5 * torch.randn(prediction.shape, generator=draw(2))
    restored, weight = with_own_pixels(noisy, prediction, variance)
    least = error * variance / (error + variance)
    assert 0.98 * least < (restored - truth).square().mean() < 1.05 * least + 0.015 * variance
    assert weight.mean().item() == pytest.approx(error / (error + variance), abs=0.05)


def test_own_pixels_where_nothing_is_to_be_weighed():
    noisy, prediction = torch.randn(2, 1, 40, 40, generator=draw()), torch.zeros(2, 1, 40, 40)
    assert torch.equal(with_own_pixels(noisy, prediction, 100.0)[0], prediction), "they say nothing where all is noise"
    assert torch.allclose(with_own_pixels(noisy, prediction, 1e-9)[0], noisy, atol=1e-5), "they say all where none is"
    assert torch.equal(with_own_pixels(noisy, noisy, 1.0)[0], noisy)
    outlier = torch.zeros(1, 1, 40, 40)
    outlier[..., 20, 20] = 9.0
    assert with_own_pixels(outlier, 0 * outlier, 1.0)[0][0, 0, 20, 20] == 0, "an outlier does not speak for itself"


def test_own_pixels_know_where_the_noise_changes():
    """Perfect predictions of magnitudes: nothing is kept in the background, beside tissue of more than twice the variance as far off."""
    variance = torch.full((4, 1, 120, 120), 0.215)
    variance[..., 60:] = 0.5
    noisy = variance.sqrt() * torch.randn(4, 1, 120, 120, generator=draw())
    kept = with_own_pixels(noisy, torch.zeros_like(noisy), variance)[0].square().mean(dim=(0, 1, 2)) / variance[0, 0, 0]
    assert kept[56:60].mean() < 0.03 and kept[20:40].mean() < 0.03


@pytest.mark.parametrize("kind, expected", [("complex", 0.5), ("real", 1.0), ("magnitude", 0.5)])
def test_the_variance_of_what_a_network_sees(kind, expected):
    """Of the parts of complex noise half, of strong magnitudes half of the complex noise they are of, of real noise all."""
    predicted = torch.full((1, 1, 8, 8), 50.0)
    assert torch.as_tensor(variance_of(predicted, kind, 2.0)).mean().item() == pytest.approx(4 * expected, rel=1e-3)


@pytest.mark.parametrize("dimensions, size", [(2, (2, 33, 47)), (3, (7, 21, 23))])
def test_in_use_the_neighbours_are_blind_at_the_edges_too(dimensions, size):
    """An untrained network gives the mean of the neighbours, whatever the pixel itself is, in tiles and mirrored."""
    network = BlindSpotUNet(1, 4, 2, dimensions).eval()
    images = torch.randn(size[0], 1, *size[1:], generator=draw())
    for place in [(0, 0, 0), (-1, -1, -1), (0, -1, 3), (-1, 5, 6)]:
        changed = images.clone()
        changed[place[0], 0, place[1], place[2]] += 10
        before, after = (clean(network, one, dimensions, torch.device("cpu")) for one in (images, changed))
        assert torch.equal(before[place[0], 0, place[1], place[2]], after[place[0], 0, place[1], place[2]])
        assert not torch.equal(before, after)


@pytest.mark.filterwarnings("ignore")
def test_a_quiet_background_is_said():
    """Noise ten times weaker where it is measured than in the object: the pixels come back, and a caution says so."""
    shape = (4, 96, 96)
    truth = signal(shape)
    level = np.where(truth > 0.02, 0.08, 0.008)
    plan = Plan(training=DenoiseOptions(channels=4, steps=60))
    for noise_level, said in ((level, True), (np.full(shape, 0.08), False)):
        noisy = torch.from_numpy((truth + noise_level * white(shape)).astype(np.complex64))
        cleaned = clean_by_itself(noisy, plan, torch.device("cpu"), "it", quiet=True)
        assert any("the noisy pixels themselves" in caution for caution in cautions(plan, cleaned)) == said
        assert (cleaned.own.share > 0.5) == said


# ---- training on one scan ----


@pytest.mark.parametrize("dimensions, steps", [(2, 120), (3, 50)])
def test_a_scan_cleans_itself(dimensions, steps):
    """Complex, of odd size, as much noise as signal: a few seconds of training take most of it away."""
    truth = torch.from_numpy(signal((4, 49, 45))).float()[:, None].expand(-1, 2, -1, -1)
    truth = truth / truth.std()
    noisy = truth + torch.randn(truth.shape, generator=draw())
    spot = BlindSpot(share=0.04, window=5)
    options = DenoiseOptions(spot, dimensions, channels=8, steps=steps, batch_size=2, learning_rate=3e-3)
    fitted = fit(noisy, options, torch.device("cpu"))
    cleaned = clean(fitted.network, noisy, dimensions, torch.device("cpu"))
    assert (cleaned - truth).square().mean() < 0.4 * (noisy - truth).square().mean()
    assert fitted.steps == steps


def test_equal_seeds_give_equal_networks():
    images = torch.randn(2, 1, 40, 40, generator=draw())
    networks = [fit(images, DenoiseOptions(channels=4, steps=3), torch.device("cpu")).network for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in networks)))


def test_tiles_agree_with_the_whole(monkeypatch):
    from mri_n2n.denoising import self_training

    torch.manual_seed(0)
    network = BlindSpotUNet(1, 4, 2, 3).eval()
    images = torch.randn(6, 1, 134, 21, generator=draw())
    whole = clean(network, images, 3, torch.device("cpu"))
    monkeypatch.setitem(self_training.TILE, 3, (8, 32, 16))
    assert torch.allclose(clean(network, images, 3, torch.device("cpu")), whole, atol=1e-5)


def test_patches_hide_and_keep():
    images = torch.randn(5, 2, 150, 140, generator=draw())
    hidden, target, predicted = next(patches(images, DenoiseOptions(batch_size=4, steps=1)))
    assert hidden.shape == target.shape == (4, 2, 128, 128)
    assert torch.equal((hidden != target).any(dim=1, keepdim=True), predicted.bool())
    hidden, *_ = next(patches(images, DenoiseOptions(dimensions=3, batch_size=4, steps=1)))
    assert hidden.shape == (4, 2, 5, 64, 64)


# ---- the verb ----


@pytest.fixture(scope="module")
def noisy_volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    truth = signal((5, 64, 56))
    noise = 0.1 * white(truth.shape)
    affine = np.diag([1.5, -1.2, 3.0, 1.0])
    affine[:3, 3] = (7, -5, 11)

    def save(name, array):
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), folder / f"{name}.nii.gz")

    save("truth", truth.astype(np.float32))
    save("complex", (truth + noise).astype(np.complex64))
    save("magnitude", np.abs(700 * (truth + noise)).astype(np.float32))
    save("real", (truth + noise).real.astype(np.float32))
    save("imag", (truth + noise).imag.astype(np.float32))
    return folder, truth, affine


def test_denoise_writes_geometry_and_all_files(noisy_volumes, tmp_path, capsys):
    folder, truth, affine = noisy_volumes
    command = ["denoise", str(folder / "complex.nii.gz"), "-o", str(tmp_path), "--steps", "3", "--share", "0.02"]
    assert main([*command, "--noise-map", "--residual"]) == 0
    names = {"complex.h5", "complex.nii.gz", "complex.png", "complex.json"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"complex.noise.nii.gz", "complex.residual.nii.gz"}
    for name in ("complex", "complex.noise", "complex.residual"):
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        assert np.allclose(image.affine, affine) and image.shape == truth.shape[::-1]
    sidecar = json.loads((tmp_path / "complex.json").read_text())
    assert sidecar["denoise"]["noise"]["verdict"] == "white" and sidecar["denoise"]["method"] == "n2v2"
    assert sidecar["denoise"]["noise"]["deviation"] == pytest.approx(0.1, rel=0.1)
    assert sidecar["note"] == "research use only" and "complex.noise.nii.gz" in sidecar["output_sha256"]
    noisy = np.abs(nibabel.load(folder / "complex.nii.gz").get_fdata(dtype=np.complex64))
    residual, after = (nibabel.load(tmp_path / f"complex{name}.nii.gz").get_fdata() for name in (".residual", ""))
    assert np.allclose(residual, noisy - after, atol=1e-5)
    capsys.readouterr()
    assert main([*command, "--residual"]) == 4
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--residual", "--noise-map", "--force"]) == 0


def test_two_files_make_one_complex_image(noisy_volumes, tmp_path):
    folder, *_ = noisy_volumes
    options = {"plan": Plan(training=DenoiseOptions(steps=2)), "force": True}
    both = mri_n2n.denoise(folder / "real.nii.gz", tmp_path, imaginary=folder / "imag.nii.gz", **options)
    assert both["denoise"]["rician_floor"] == "none: not magnitudes"
    one = mri_n2n.denoise(folder / "complex.nii.gz", tmp_path, **options)
    assert one["denoise"]["noise"]["deviation"] == pytest.approx(both["denoise"]["noise"]["deviation"], rel=1e-4)


def test_magnitudes_are_told_about_their_floor_and_corrected(noisy_volumes, tmp_path):
    folder, truth, _ = noisy_volumes
    plan = Plan(training=DenoiseOptions(steps=200, channels=8))
    with pytest.warns(UserWarning, match="Rician floor"):
        left = mri_n2n.denoise(folder / "magnitude.nii.gz", tmp_path / "a", plan=plan)
    assert left["denoise"]["rician_floor"] == "left"
    from dataclasses import replace

    known = mri_n2n.denoise(folder / "magnitude.nii.gz", tmp_path / "b", plan=replace(plan, noise=70.0))
    assert known["denoise"]["rician_floor"] == "lowered, by --noise"
    assert not any("Rician floor" in one for one in known["warnings"])
    background = truth < 0.01
    floor = lambda name: nibabel.load(tmp_path / name / "magnitude.nii.gz").get_fdata().transpose(2, 1, 0)[background]  # noqa: E731
    assert floor("a").mean() == pytest.approx(70 * np.pi**0.5 / 2, rel=0.1), "the mean of noise alone"
    assert floor("b").mean() < 0.45 * floor("a").mean()


def test_correlated_noise_is_warned_of(tmp_path):
    noise = white((4, 96, 96))
    noise = ndimage.gaussian_filter(noise.real, (0, 1, 1)) + 1j * ndimage.gaussian_filter(noise.imag, (0, 1, 1))
    images = (signal((4, 96, 96)) + 0.3 * noise).astype(np.complex64)
    with pytest.warns(UserWarning, match="correlated along y and x.*noise2noise"):
        cleaned = mri_n2n.denoise(images, plan=Plan(training=DenoiseOptions(steps=2)))
    assert cleaned.shape == images.shape and cleaned.dtype == np.complex64


def test_arrays_keep_their_shape_and_type():
    images = np.abs(signal((2, 48, 40)) + 0.1 * white((2, 48, 40)))[0]
    with pytest.warns(UserWarning, match="Rician"):
        cleaned = mri_n2n.denoise(images, plan=Plan(training=DenoiseOptions(steps=2)))
    assert cleaned.shape == (48, 40) and np.isrealobj(cleaned) and (cleaned >= 0).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 4, 5, 6)), np.full((8, 8), np.nan), np.zeros((16, 16)), np.zeros((0, 4, 4))]
)
def test_arrays_that_are_no_images_are_refused(bad):
    with pytest.raises(InputError):
        mri_n2n.denoise(bad, plan=Plan(training=DenoiseOptions(steps=2)))


def test_a_body_of_scans_trains_and_cleans(tmp_path, capsys):
    """`train --method noise2void` on single raw scans of several coils, then `denoise --weights`."""
    volume = tmp_path / "v.nii.gz"
    nibabel.save(nibabel.Nifti1Image(signal((2, 64, 64)).transpose(2, 1, 0), np.eye(4)), volume)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "abc":
        options = mri_n2n.SimulationOptions(acceleration=1.0, coils=2, noise=0.05, seed=ord(name))
        mri_n2n.simulate(volume, scans / f"{name}.h5", options)
    run = tmp_path / "run"
    train = ["train", "--dataset", "scans", "--data", str(scans), "-o", str(run), "--steps", "2", "--quiet"]
    assert main([*train, "--network", "unrolled"]) == 2
    assert "noise2void" in capsys.readouterr().err, "auto says what fits"
    assert main([*train, "--channels", "4"]) == 0
    header = load_tensors(run / "weights.safetensors")[1]
    assert (header["network"], header["network_options"]["body"]) == ("denoiser", "n2v2"), "and takes its network"
    assert main(["reconstruct", str(volume), "-o", str(tmp_path / "no")]) == 3
    assert "denoise cleans such volumes" in capsys.readouterr().err
    scan, out = str(scans / "a.h5"), str(tmp_path / "out")
    assert main(["denoise", scan, "--weights", str(run), "-o", out, "--noise-map", "--residual"]) == 0
    assert (tmp_path / "out" / "a.residual.nii.gz").exists()
    sidecar = json.loads((tmp_path / "out" / "a.json").read_text())
    assert sidecar["weights"]["network"] == "denoiser" and sidecar["coils"] == 2
    assert sidecar["denoise"]["noise"]["verdict"] == "white" and "method" not in sidecar["denoise"]
    assert main(["denoise", scan, "--axis", "1", "-o", str(tmp_path / "no")]) == 2
    assert sidecar["denoise"]["own_pixels"]["level"] == pytest.approx(sidecar["denoise"]["noise"]["deviation"])
    assert main([*train, "-o", str(tmp_path / "again"), "--channels", "4", "--init", str(run)]) == 0
    assert main([*train, "-o", str(tmp_path / "no"), "--cascades", "2"]) == 2
    assert "--cascades say nothing of --network denoiser" in capsys.readouterr().err
    assert main(["info", str(run)]) == 0 and "denoise --weights" in capsys.readouterr().out
    assert main(["reconstruct", scan, "--weights", str(run), "-o", str(tmp_path / "no")]) == 2
    assert "denoise --weights" in capsys.readouterr().err
    assert main(["denoise", scan, "-o", str(tmp_path / "itself"), "--steps", "2", "--quiet"]) == 0


@pytest.mark.parametrize(
    "widths, says, span", [((0, 0), "white noise", ()), ((0, 0.8), "structN2V", (0, 3)), ((1, 1), "along y and x", ())]
)
def test_training_on_a_body_looks_at_its_noise_first(tmp_path, capfd, recwarn, widths, says, span):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        noise = ndimage.gaussian_filter(white((3, 96, 96), number), (0, *widths))
        images = signal((3, 96, 96)) + 0.2 * noise / noise.std()
        kspace = fft2c(torch.from_numpy(images.astype(np.complex64))).numpy()[:, None]
        np.save(folder / f"{number}.npy", kspace)
    run = tmp_path / "run"
    command = f"train --dataset scans --data {folder} -o {run} --method noise2void --steps 1 --channels 2"
    assert main([*command.split(), "--validation-subjects", "none"]) == 0
    assert says in capfd.readouterr().err
    assert any("Better: a second repetition" in str(one.message) for one in recwarn) == (widths == (1, 1))
    training = json.loads((run / "run.json").read_text())
    assert training["protocol"]["pair"]["blind_spot"]["span"] == list(span)
    assert load_tensors(run / "weights.safetensors")[1]["network_options"]["span"] == list(span)
    assert main([*command.split(), "--validation-subjects", "none", "--resume"]) == 0
    if widths == (0, 0):  # its weights, on noise that they were not trained on
        noise = ndimage.gaussian_filter(white((3, 96, 96)), (0, 0, 0.8))
        kspace = fft2c(torch.from_numpy((signal((3, 96, 96)) + 0.2 * noise / noise.std()).astype(np.complex64)))
        np.save(tmp_path / "line.npy", kspace.numpy()[:, None])
        assert main(["denoise", str(tmp_path / "line.npy"), "--weights", str(run), "-o", str(tmp_path / "o")]) == 0
        assert any("farther than the weights hide" in str(one.message) for one in recwarn)


def test_zero_padded_kspace_is_denoised_on_the_pixels_that_were_acquired(tmp_path):
    """Its own pixels are correlated; the acquired part says white, and outside nothing is changed or invented."""
    truth, box = signal((2, 96, 80)), (slice(None), None, slice(16, 80), slice(8, 72))
    kspace = fft2c(torch.from_numpy((truth + 0.3 * white(truth.shape)).astype(np.complex64))).numpy()
    padded = np.zeros((2, 1, 96, 80), np.complex64)
    padded[:, :, 16:80, 8:72] = kspace[box]
    np.save(tmp_path / "padded.npy", padded)
    training = DenoiseOptions(channels=8, steps=150)
    sidecar = mri_n2n.denoise(tmp_path / "padded.npy", tmp_path / "o", plan=Plan(training=training))
    assert sidecar["denoise"]["noise"]["verdict"] == "white"
    with h5py.File(tmp_path / "o" / "padded.h5") as file:
        found = fft2c(torch.from_numpy(file["image"][()])).numpy()
    outside = np.ones((96, 80), bool)
    outside[16:80, 8:72] = False
    assert np.abs(found[:, outside]).max() < 1e-4 * np.abs(found).max()
    wanted = np.zeros_like(padded)
    wanted[:, :, 16:80, 8:72] = fft2c(torch.from_numpy(truth.astype(np.complex64))).numpy()[box]
    before, after = (np.linalg.norm(one - wanted[:, 0]) for one in (padded[:, 0], found))
    assert after < 0.7 * before


def test_partial_kspace_is_denoised_as_an_image_without_waves():
    """Its centre lies aside: a smooth image stays one, with its intensities, and comes back unchanged."""
    image = torch.from_numpy(signal((1, 128, 96)).astype(np.complex64)) + 0.5
    box = ((48, 128), (0, 96))
    small = inside(image, box)
    assert small.shape == (1, 80, 96)
    assert small.real.mean() == pytest.approx(image.real.mean().item(), rel=0.02)
    assert small.imag.abs().max() < 0.5 * small.real.max()
    assert torch.allclose(changed_inside(image, box, small), image, atol=1e-5)
    noise = torch.from_numpy(white((1, 128, 96)).astype(np.complex64))
    padded = changed_inside(torch.zeros_like(noise), box, inside(noise, box))
    assert inside(noise, box).abs().square().mean() == pytest.approx(padded.abs().square().mean().item(), rel=1e-4)


def test_signed_volumes_keep_their_sign(tmp_path):
    truth = signal((3, 64, 64)) - 0.5
    nibabel.save(nibabel.Nifti1Image(truth.transpose(2, 1, 0).astype(np.float32), np.eye(4)), tmp_path / "v.nii.gz")
    plan = Plan(training=DenoiseOptions(channels=4, steps=30), residual=True)
    sidecar = mri_n2n.denoise(tmp_path / "v.nii.gz", tmp_path / "o", plan=plan)
    image, residual = (nibabel.load(tmp_path / "o" / f"v{name}.nii.gz").get_fdata() for name in ("", ".residual"))
    assert sidecar["denoise"]["images"] == "real" and image.min() < -0.3
    assert np.allclose(image + residual, truth.transpose(2, 1, 0), atol=1e-5)
    slightly = np.where(truth < -0.49, -0.01, truth + 0.5)  # what an interpolation of magnitudes leaves
    with pytest.warns(UserWarning, match="Rician floor"):
        assert (mri_n2n.denoise(slightly, steps=1) >= 0).all()


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_one_value_everywhere_is_refused(tmp_path, capsys, value):
    nibabel.save(nibabel.Nifti1Image(np.full((40, 33, 2), value, np.float32), np.eye(4)), tmp_path / "v.nii.gz")
    assert main(["denoise", str(tmp_path / "v.nii.gz"), "-o", str(tmp_path / "o"), "--steps", "1"]) == 3
    assert "same value everywhere" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_one_file_as_both_parts_is_refused(noisy_volumes, tmp_path, capsys):
    folder, *_ = noisy_volumes
    path = str(folder / "complex.nii.gz")
    assert main(["denoise", path, "--imaginary-volume", path, "-o", str(tmp_path / "o")]) == 2
    assert "both parts" in capsys.readouterr().err


def test_images_that_noise2void_cannot_learn_from_are_refused():
    plan = Plan(training=DenoiseOptions(steps=1))
    with pytest.raises(InputError, match="too few"):
        mri_n2n.denoise(np.arange(63.0).reshape(7, 9), plan=plan)
    with pytest.raises(OptionError, match="one slice"):
        mri_n2n.denoise(np.arange(81.0).reshape(9, 9), plan=Plan(training=DenoiseOptions(dimensions=3, steps=1)))


def test_a_level_that_magnitudes_cannot_have_is_refused_and_a_doubtful_one_said():
    images = np.abs(signal((4, 96, 96)) + 0.05 * white((4, 96, 96)))
    with pytest.raises(OptionError, match="root mean square"):
        mri_n2n.denoise(images, noise=5.0, steps=1)
    with pytest.warns(UserWarning, match="--noise 0.2 is not what was measured, 0.05"):
        mri_n2n.denoise(images, noise=0.2, steps=1)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_an_image_without_background_is_not_called_correlated_without_a_doubt(share):
    """A crop inside the head, whose own detail can look like noise."""
    inside = signal((4, 192, 192))[:, 64:128, 64:128] + 0.2
    inside = inside + share * white(inside.shape)
    found = measure_whiteness(inside)
    caution = caution_of(found)
    assert found.where == "high-pass residual" and (found.verdict() == "white" or "fine detail" in caution)


def test_the_noise_map_is_a_standard_deviation():
    removed = 0.7 + 0.2 * white((2, 96, 96))
    for values, expected in ((removed, 0.2), (removed.real, 0.2 / 2**0.5)):
        assert np.median(noise_map(values)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    "options, code, says",
    [
        (["--steps", "0"], 2, "--minutes and --steps"),
        (["--minutes", "nan"], 2, "--minutes and --steps"),
        (["--share", "0.9"], 2, "--share"),
        (["--window", "4"], 2, "--window"),
        (["--noise", "-1"], 2, "--noise"),
        (["--seed", "-1"], 2, "--seed"),
        (["--method", "structn2v", "--steps", "1"], 2, "not correlated"),
        (["--weights", "nowhere"], 5, "nowhere"),
        (["--weights", "nowhere", "--share", "0.1"], 2, "--weights"),
        (["--noise", "0"], 2, "--noise"),
        (["--noise", "1e9", "--steps", "1"], 2, "root mean square"),
        (["--repetition", "0"], 2, "--repetition"),
        (["--weights", "nowhere", "--dimensions", "3"], 2, "--weights"),
        (["--weights", "nowhere", "--steps", "3"], 2, "--weights"),
    ],
)
def test_bad_options_end_in_one_line(noisy_volumes, tmp_path, capsys, options, code, says):
    folder, *_ = noisy_volumes
    assert main(["denoise", str(folder / "complex.nii.gz"), "-o", str(tmp_path / "o"), "--quiet", *options]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
    assert not (tmp_path / "o").exists()


def test_undersampled_scans_and_results_are_refused(tmp_path, capsys):
    volume = tmp_path / "v.nii.gz"
    nibabel.save(nibabel.Nifti1Image(signal((2, 64, 64)).transpose(2, 1, 0), np.eye(4)), volume)
    mri_n2n.simulate(volume, tmp_path / "s.h5", mri_n2n.SimulationOptions(acceleration=4.0))
    assert main(["denoise", str(tmp_path / "s.h5"), "-o", str(tmp_path / "o")]) == 3
    assert "reconstruct" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "s.h5"), "-o", str(tmp_path / "r"), "--baseline", "zero-filled"]) == 0
    assert main(["denoise", str(tmp_path / "r" / "s.h5"), "-o", str(tmp_path / "o")]) == 3
    assert "reconstruction" in capsys.readouterr().err
    assert main(["denoise", str(tmp_path / "none.nii.gz"), "-o", str(tmp_path / "o")]) == 5
