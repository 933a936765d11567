"""How each method makes and judges its pairs, against closed forms: Monte Carlo over masks, divisions and noise, explicit
numbers, and scipy. Tolerances are multiples of the standard error."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import mri_n2n
from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import training_batches
from mri_n2n.checkpoint import load_network
from mri_n2n.correction import in_use
from mri_n2n.datasets import find_sources
from mri_n2n.errors import InputError, OptionError
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.losses import LOG_FLOOR, divergence_term, equivariance_error, loss_of, rotate, weighted_squared_error
from mri_n2n.masks import draw_mask
from mri_n2n.networks import Unrolled
from mri_n2n.noise import noise_variance_at_most
from mri_n2n.operators import adjoint, forward
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import (
    CORRECTIONS,
    NOISE_METHODS,
    OTHER_MASK_METHODS,
    PAIR_MAKERS,
    SPLITTING_METHODS,
    Measured,
    PairOptions,
    exchange,
    joined,
    keep_probability,
    split,
    union,
    with_center_gaps,
)
from mri_n2n.protocol import Protocol
from mri_n2n.training import train
from mri_n2n.validation import validate, validation_set

SHAPE = (9, 12)
# kind of mask, whether it is symmetric
POINTS = [("roulette", False), ("roulette", True), ("gaussian-points", False)]
LINES = [("random-lines", False), ("gaussian-lines", True), ("random-lines", True)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complex_normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator(seed))


def unit_maps(coils: int, shape=SHAPE, seed: int = 5) -> torch.Tensor:
    maps = complex_normal(1, coils, *shape, seed=seed)
    return maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()


def sample(
    kind: str, draw: torch.Generator, hermitian=False, *, coils=1, shape=SHAPE, full=None, noise=0.0, acceleration=2.5
):
    """An acquisition of `full` k-space (1, coils, y, x), of nothing where none is given, with its own mask and noise."""
    sampling = draw_mask(kind, shape, acceleration, draw, hermitian=hermitian)
    full = torch.zeros((1, coils, *shape), dtype=torch.complex64) if full is None else full
    if noise:
        full = full + noise**0.5 * torch.randn(full.shape, dtype=full.dtype, generator=draw)
    return Acquisition(full * sampling.mask, sampling.mask[None, None], sampling.probability[None, None], None, noise)


def design(kind: str, hermitian: bool) -> torch.Tensor:
    return sample(kind, generator(), hermitian).probability[0, 0].double()


def far_from(mean: torch.Tensor, expected: torch.Tensor, count: int) -> float:
    """Largest distance of the mean of `count` coins from its expectation, in standard errors."""
    assert torch.equal(mean[expected == 1], expected[expected == 1])
    error = (expected * (1 - expected) / count).sqrt().clamp_min(1e-9)
    return ((mean - expected).abs() / error).max().item()


def whole_lines(mask: torch.Tensor) -> bool:
    return bool((mask == mask[..., :1, :]).all())


def symmetric(mask: torch.Tensor) -> bool:
    return torch.equal(mirror_axes(mask, (-2, -1)), mask)


# --------------------------------------------------------------------------------------------------------- exchange


@pytest.mark.parametrize(("kind", "hermitian"), POINTS + LINES)
def test_exchanged_masks_keep_their_design(kind, hermitian):
    """Each has probability p; lines stay whole and symmetric masks symmetric."""
    count, draw, p = 700 if kind.endswith("lines") else 1500, generator(1), design(kind, hermitian)
    masks = torch.empty(2, count, *SHAPE, dtype=torch.float64)
    for i in range(count):
        both = exchange(sample(kind, draw, hermitian), sample(kind, draw, hermitian), draw)
        for mask, scan in zip(masks, both):
            mask[i] = scan.mask[0, 0]
            assert torch.equal(scan.probability[0, 0].double(), p)
            assert (kind, hermitian) not in LINES or whole_lines(scan.mask)
            assert not hermitian or symmetric(scan.mask)
    for mean in masks.mean(dim=1):
        assert far_from(mean, p, count) < 5
    if kind.endswith("lines"):
        return
    # Independent of one another, at each location and at different ones (k and -k of symmetric masks are one).
    some = (p < 1) & (p > 0.15)
    first, second = (mask[:, some] - p[some] for mask in masks)
    spread = (p[some] * (1 - p[some])).sqrt()
    correlation = first.T @ second / count / (spread[:, None] * spread)
    assert correlation.abs().max() < 6 / math.sqrt(count)


@pytest.mark.parametrize(("kind", "hermitian"), POINTS + LINES)
def test_exchanged_samples_move_with_their_mask(kind, hermitian):
    """Every location of every coil holds what one of the two acquisitions has there, the other one the rest; about half
    of them change places, none where every scan samples."""
    full, draw = complex_normal(1, 3, *SHAPE, seed=0), generator(2)
    before = [sample(kind, draw, hermitian, full=full, noise=0.1) for _ in range(2)]
    after = exchange(*before, draw)
    stayed = (after[0].mask == before[0].mask) & (after[0].kspace == before[0].kspace).all(dim=1, keepdim=True)
    crossed = (after[0].mask == before[1].mask) & (after[0].kspace == before[1].kspace).all(dim=1, keepdim=True)
    back = (after[1].mask == before[0].mask) & (after[1].kspace == before[0].kspace).all(dim=1, keepdim=True)
    assert (stayed | crossed).all() and torch.equal(crossed, back)
    always = before[0].probability == 1
    assert always.any() and not crossed[always].any() and stayed[always].all()
    either = (before[0].mask + before[1].mask > 0) & ~always
    assert 0.1 < crossed[either].float().mean() < 0.9


def test_only_acquisitions_of_one_design_exchange_samples():
    first, other = sample("roulette", generator()), sample("roulette", generator(1), acceleration=3.0)
    unknown = Acquisition(other.kspace, other.mask)
    quiet, louder, loud = (replace(first, noise_variance=torch.full((1, 1, 1, 1), v)) for v in (1e-3, 1.22e-3, 2e-3))
    exchange(louder, quiet, generator())  # the order does not matter
    told = replace(first, noise_variance=1e-3)
    wrong = [(first, other), (first, unknown), (unknown, first), (unknown, unknown)]
    wrong += [(quiet, loud), (loud, quiet), (quiet, replace(first, noise_variance=None))]
    for two in wrong:
        with pytest.raises(OptionError, match="one design"):
            exchange(*two, generator())
    for two in ((quiet, louder), (told, quiet)):  # variances are estimates
        exchange(*two, generator())


def test_expected_loss_with_exchange_is_the_error_of_the_full_kspace():
    full, prediction = complex_normal(1, 1, *SHAPE, seed=1), complex_normal(1, 1, *SHAPE, seed=2)
    draw, losses = generator(3), []
    for _ in range(400):
        measured = Measured(sample("roulette", draw, full=full), sample("roulette", draw, full=full))
        pair = PAIR_MAKERS["noise2noise"](measured, PairOptions(exchange=True), draw)
        losses.append(weighted_squared_error(prediction, pair).item())
    expected = (fft2c(prediction) - full).abs().square().mean().item()
    assert abs(np.mean(losses) - expected) < 5 * np.std(losses) / math.sqrt(len(losses))


# ------------------------------------------------------------------------------------------------------------- gaps


@pytest.mark.parametrize(("kind", "hermitian"), POINTS + LINES)
def test_center_gaps_are_where_scans_may_have_them(kind, hermitian):
    """Half of the samples beside the centre that not every scan has; all else stays, and lines stay whole."""
    full, draw = complex_normal(1, 3, *SHAPE, seed=0), generator(2)
    y, x = (n // 2 for n in SHAPE)
    had = lost = 0.0
    for _ in range(200):
        before = replace(sample(kind, draw, hermitian, full=full), sensitivity_maps=full)
        after = with_center_gaps(before, draw)
        gone = before.mask - after.mask
        assert (gone >= 0).all() and torch.equal(after.kspace, before.kspace * (1 - gone))
        assert not (gone * (before.probability == 1)).any()
        assert gone.sum() == gone[..., y - 1 : y + 2, x - 1 : x + 2].sum()
        assert not hermitian or symmetric(after.mask)
        assert (after.sensitivity_maps is None) == bool(gone.any())
        may = (before.mask * (before.probability < 1))[..., y - 1 : y + 2, x - 1 : x + 2]
        had, lost = had + may.sum().item(), lost + gone.sum().item()
    if kind == "roulette":
        pairs = had / (2 if hermitian else 1)
        assert pairs > 400 and abs(lost / had - 0.5) < 5 * 0.5 / math.sqrt(pairs)
    else:
        assert lost == 0


def test_center_gaps_leave_the_expected_loss_the_error_of_the_full_kspace():
    full, prediction = complex_normal(1, 1, *SHAPE, seed=1), complex_normal(1, 1, *SHAPE, seed=2)
    draw, losses, gaps = generator(3), [], 0
    for _ in range(400):
        measured = Measured(sample("roulette", draw, full=full), sample("roulette", draw, full=full))
        pair = PAIR_MAKERS["noise2noise"](measured, PairOptions(center_gaps=0.7), draw)
        gaps += bool((pair.input.mask != measured.first.mask).any())
        losses.append(weighted_squared_error(prediction, pair).item())
    expected = (fft2c(prediction) - full).abs().square().mean().item()
    assert abs(np.mean(losses) - expected) < 5 * np.std(losses) / math.sqrt(len(losses))
    assert abs(gaps / 400 - 0.7) < 0.1


# ---------------------------------------------------------------------------------------------------- single scans


def held_out_share(p: torch.Tensor, share: float) -> torch.Tensor:
    """1 - Pt: with which probability a sample is held out, as documented."""
    return 2 * (1 - share) * (1 - p) / (2 - p)


@pytest.mark.parametrize(("kind", "hermitian"), POINTS + LINES)
@pytest.mark.parametrize(("share", "twice"), [(0.5, True), (0.3, False)])
def test_division_has_the_probabilities_it_says(kind, hermitian, share, twice):
    """P Pt in the input, P (1 - Pt) held out, and 1 - K = P (1 - Pt) / (1 - P Pt) held out of what is not in the input;
    of two acquisitions taken as one, half of the share leaves an input of their own probability p."""
    count, draw, p = 500, generator(4), design(kind, hermitian)
    kept, held = torch.zeros(2, *SHAPE, dtype=torch.float64)
    total = 1 - (1 - p) ** 2 if twice else p
    one = p if twice else 1 - (1 - p).sqrt()
    for _ in range(count):
        scan = sample(kind, draw, hermitian)
        scan = union(scan, sample(kind, draw, hermitian)) if twice else scan
        inside, outside = split(scan, share, draw)
        kept += inside.mask[0, 0]
        held += outside.mask[0, 0]
        assert torch.equal(inside.mask + outside.mask, scan.mask) and not (inside.mask * outside.mask).any()
        assert (inside.mask[0, 0] == 1)[p == 1].all()  # what every scan samples stays
        if kind.endswith("lines"):
            assert whole_lines(inside.mask) and whole_lines(outside.mask)
        if hermitian:
            assert symmetric(inside.mask) and symmetric(outside.mask)
    out = held_out_share(one, share)
    torch.testing.assert_close(inside.probability[0, 0].double(), total * (1 - out), rtol=1e-4, atol=1e-5)
    rest = 1 - total * (1 - out)
    expected = torch.where(p == 1, 0.0, total * out / rest.clamp_min(1e-9))
    torch.testing.assert_close(outside.probability[0, 0].double(), expected, rtol=1e-3, atol=1e-5)
    assert far_from(kept / count, total * (1 - out), count) < 5 and far_from(held / count, total * out, count) < 5
    if share == 0.5 and twice:
        torch.testing.assert_close(total * (1 - out), p)
    some = p < 1
    error = (expected * (1 - expected) / (count - kept).clamp_min(1)).sqrt()
    assert ((held / (count - kept).clamp_min(1) - expected).abs() / error)[some].max() < 5


def test_division_keeps_the_samples_of_all_coils():
    scan = sample("roulette", generator(), full=complex_normal(1, 3, *SHAPE, seed=1), noise=0.2)
    inside, outside = split(scan, 0.5, generator(1))
    assert torch.equal(inside.kspace + outside.kspace, scan.kspace)
    assert torch.equal(inside.kspace, scan.kspace * inside.mask) and inside.noise_variance == 0.2
    with pytest.raises(ValueError, match="probability"):
        split(Acquisition(scan.kspace, scan.mask), 0.5, generator())


@pytest.mark.parametrize("lines", [False, True])
def test_division_where_all_scans_have_one_mask(lines):
    """P is 0 or 1: outside of the sampled rectangle about the centre a share stays, and all of the rest is a target."""
    shape, share, count = (15, 16), 0.6, 800
    mask = (
        (torch.rand((1, 1, 1 if lines else 15, 16), generator=generator(3)) < 0.4).float().expand(1, 1, *shape).clone()
    )
    mask[..., :, 5:11] = 1 if lines else mask[..., :, 5:11]
    mask[..., 4:11, 5:11] = 1
    mask[..., :, [4, 11]] = 0  # so that the rectangle is known
    mask[..., 3, 5:11] = mask[..., 11, 5:11] = 1 if lines else 0
    scan = Acquisition(complex_normal(1, 1, *shape, seed=1) * mask, mask, mask)
    centre = torch.zeros(shape, dtype=torch.bool)
    centre[(slice(None) if lines else slice(4, 11)), 5:11] = True
    kept, draw = torch.zeros(shape), generator(4)
    for _ in range(count):
        inside, outside = split(scan, share, draw)
        assert torch.equal(inside.mask + outside.mask, mask) and (not lines or whole_lines(inside.mask))
        kept += inside.mask[0, 0]
    kept /= count
    assert (kept[centre] == 1).all()
    outer = (mask[0, 0] > 0) & ~centre
    assert (kept[outer] - share).abs().max() < 5 * math.sqrt(share * (1 - share) / count)
    assert torch.equal(outside.probability[0, 0] > 0, outer)
    torch.testing.assert_close(outside.probability[0, 0][outer], torch.ones(int(outer.sum())))  # 1 - K


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("method", ["ssdu", "k-weighted-ssdu"])
def test_expected_loss_over_masks_and_divisions(method, coils):
    """Of a prediction that does not depend on them: the sum of |F S f - s|^2 (1 - P Pt) / pixels where weighted, and of
    |F S f - s|^2 P (1 - Pt) where not; the whole error where every scan samples."""
    maps = None if coils == 1 else unit_maps(coils)
    full, prediction = complex_normal(1, coils, *SHAPE, seed=1), complex_normal(1, 1, *SHAPE, seed=2)
    draw, losses = generator(5), []
    for _ in range(600):
        scan = union(*(sample("roulette", draw, full=full) for _ in range(2)))
        scan = Acquisition(scan.kspace, scan.mask, scan.probability, maps)
        pair = PAIR_MAKERS[method](Measured(scan), PairOptions(input_share=0.4), draw)
        losses.append(weighted_squared_error(prediction, pair).item())
    p = design("roulette", False)
    total, out = 1 - (1 - p) ** 2, held_out_share(p, 0.4)
    factor = (1 - total * (1 - out)) if method == "k-weighted-ssdu" else total * out
    error = (fft2c(prediction if maps is None else maps * prediction) - full).abs().square().sum(dim=1)[0]
    expected = (error * torch.where(p == 1, 1.0, factor)).sum().item() / math.prod(SHAPE)
    assert abs(np.mean(losses) - expected) < 5 * np.std(losses) / math.sqrt(len(losses))
    assert np.std(losses) / math.sqrt(len(losses)) < 0.05 * expected


def test_weights_of_the_division_and_their_cap():
    scan = sample("roulette", generator(), full=complex_normal(1, 2, *SHAPE, seed=1))
    for cap in (None, 2.0):
        pair = PAIR_MAKERS["k-weighted-ssdu"](Measured(scan), PairOptions(weight_cap=cap), generator(1))
        inside, outside = split(scan, 0.5, generator(1))
        where, certain = outside.mask > 0, (inside.probability == 1).float()  # what every input has counts once
        expected = 1 / outside.probability[where]
        torch.testing.assert_close(pair.weight[where], expected if cap is None else expected.clamp_max(cap))
        assert torch.equal(pair.weight[~where], certain[~where]) and torch.equal(pair.input.kspace, inside.kspace)
    assert (1 / outside.probability[where]).max() > 2
    plain = PAIR_MAKERS["ssdu"](Measured(scan), PairOptions(), generator(1))
    assert certain.any() and torch.equal(plain.weight, outside.mask + certain)
    assert torch.equal(plain.target, scan.kspace)


def test_two_acquisitions_as_one_scan():
    count, draw, p = 700, generator(6), design("roulette", False)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    full = complex_normal(1, 2, *SHAPE, seed=0)
    for _ in range(count):
        first, second = (sample("roulette", draw, full=full, noise=0.1) for _ in range(2))
        both = union(first, second)
        total += both.mask[0, 0]
    assert far_from(total / count, 1 - (1 - p) ** 2, count) < 5
    torch.testing.assert_close(both.probability[0, 0].double(), 1 - (1 - p) ** 2, rtol=1e-5, atol=1e-6)
    taken = torch.where(first.mask > 0, first.kspace, second.kspace)
    assert torch.equal(both.kspace, taken) and both.noise_variance == first.noise_variance


@pytest.mark.parametrize("variance", [0.3, torch.full((1, 1, 1, 1), 0.3)])
def test_robust_division_adds_noise_and_weighs_as_published(variance):
    """Noise of variance a^2 v, on the input's samples alone; ((1 + a^2) / a^2)^2 on them, 1 / (1 - K) on the held out."""
    a, shape = 0.7, (64, 65)
    scan = sample("roulette", generator(), shape=shape, full=complex_normal(1, 2, *shape, seed=1), noise=0.3)
    scan = Acquisition(scan.kspace, scan.mask, scan.probability, None, variance)
    pair = PAIR_MAKERS["robust-ssdu"](Measured(scan), PairOptions(extra_noise=a), generator(1))
    inside, outside = split(scan, 0.5, generator(1))
    assert torch.equal(pair.input.mask, inside.mask) and torch.equal(pair.target, scan.kspace)
    added = (pair.input.kspace - inside.kspace).abs().square()
    kept, held = (inside.mask > 0).expand_as(added), outside.mask > 0
    assert not added[~kept].any()
    assert added[kept].mean().item() == pytest.approx(a**2 * 0.3, rel=5 / math.sqrt(int(kept.sum())))
    assert float(pair.input.noise_variance) == pytest.approx((1 + a**2) * 0.3)
    torch.testing.assert_close(pair.weight[held], 1 / outside.probability[held])
    assert pair.weight[inside.mask > 0].unique().numpy() == pytest.approx(((1 + a**2) / a**2) ** 2)
    assert not pair.weight[scan.mask == 0].any()
    unknown = Acquisition(scan.kspace, scan.mask, scan.probability)
    with pytest.raises(ValueError, match="variance of the noise"):
        PAIR_MAKERS["robust-ssdu"](Measured(unknown), PairOptions(), generator())


def test_what_robust_division_learns_is_after_its_correction_the_best_estimate():
    """Signal of variance 1, noise v: of f(s) = F^H c s, c on the input's samples, the loss has its minimum at
    (1 + v) / (1 + (1 + a^2) v), and ((1 + a^2) f(st) - st) / a^2 is the least mean squared error estimate of the signal,
    1 / (1 + (1 + a^2) v) of st: a line on which f itself, trained on noisy samples, does not lie."""
    a, v, shape = 0.8, 0.6, (150, 151)
    scan = sample("gaussian-points", generator(), shape=shape, full=complex_normal(1, 1, *shape, seed=1), noise=v)
    pair = PAIR_MAKERS["robust-ssdu"](Measured(scan), PairOptions(extra_noise=a), generator(1))
    losses = [weighted_squared_error(c * ifft2c(pair.input.kspace), pair).item() for c in (0.0, 1.0, 2.0)]
    curvature = (losses[0] - 2 * losses[1] + losses[2]) / 2
    best = -(losses[1] - losses[0] - curvature) / (2 * curvature)
    tolerance = 5 / math.sqrt(pair.input.mask.sum().item())
    assert best == pytest.approx((1 + v) / (1 + (1 + a**2) * v), abs=tolerance)
    corrected = ((1 + a**2) * best - 1) / a**2
    assert corrected == pytest.approx(1 / (1 + (1 + a**2) * v), abs=tolerance * (1 + a**2) / a**2)
    assert best - corrected > 3 * tolerance


# ----------------------------------------------------------------------------------------------- equivariant imaging


def scipy_turn(image: np.ndarray, angle: float) -> np.ndarray:
    """Turned about pixel n // 2, bilinear, zero from outside."""
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([n // 2 for n in image.shape])
    turn = lambda part: ndimage.affine_transform(  # noqa: E731
        part.astype(np.float64), matrix, centre - matrix @ centre, order=1, mode="grid-constant"
    )
    return turn(image.real) + 1j * turn(image.imag)


@pytest.mark.parametrize("shape", [(9, 11), (8, 11), (12, 8), (7, 7)])
def test_rotation_is_scipys(shape):
    images, angles = complex_normal(4, 1, *shape, seed=1), torch.tensor([0.0, 0.4, -1.3, 3.0])
    for image, angle, turned in zip(images, angles, rotate(images, angles)):
        np.testing.assert_allclose(turned[0].numpy(), scipy_turn(image[0].numpy(), angle.item()), atol=1e-4)
    if shape[0] % 2 and shape[1] % 2:  # where scipy's own centre, (n - 1) / 2, is the same pixel
        own = ndimage.rotate(
            images[1, 0].real.numpy(), math.degrees(-0.4), reshape=False, order=1, mode="grid-constant"
        )
        other = ndimage.rotate(
            images[1, 0].real.numpy(), math.degrees(0.4), reshape=False, order=1, mode="grid-constant"
        )
        found = rotate(images[1:2], angles[1:2])[0, 0].real.numpy()
        assert min(np.abs(found - own).max(), np.abs(found - other).max()) < 1e-4


@pytest.mark.parametrize("size", [7, 9])
def test_quarter_turns_are_exact_on_odd_sizes(size):
    image = complex_normal(1, 1, size, size, seed=2)
    for quarter in range(1, 4):
        turned = rotate(image, torch.tensor([quarter * math.pi / 2]))
        directions = [(turned - image.rot90(sign * quarter, (-2, -1))).abs().max() for sign in (1, -1)]
        assert min(directions) < 1e-5
    assert torch.equal(rotate(image, torch.zeros(1)), image)
    for shape in [(8, 11), (6, 6)]:  # the centre pixel stays where it is, on even sizes too
        point = torch.zeros((1, 1, *shape), dtype=torch.complex64)
        point[..., shape[0] // 2, shape[1] // 2] = 1j
        assert abs(rotate(point, torch.tensor([1.1]))[0, 0, shape[0] // 2, shape[1] // 2] - 1j) < 1e-5


def test_gradient_passes_through_the_rotation():
    """Of |T x|^2 / 2 it is T^T T x, whose product with x is |T x|^2."""
    image = complex_normal(2, 1, 8, 9, seed=3).requires_grad_()
    turned = rotate(image, torch.tensor([0.3, 2.0]))
    energy = turned.abs().square().sum() / 2
    energy.backward()
    assert (image.grad.conj() * image).real.sum().item() == pytest.approx(2 * energy.item(), rel=1e-4)
    assert image.grad.abs().amax(dim=(1, 2, 3)).min() > 0.1


class Linear(nn.Module):
    """c A^H s."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def puts_samples_back(self, scan: Acquisition) -> bool:
        return False

    def forward(self, scan: Acquisition) -> torch.Tensor:
        return self.factor * adjoint(scan.kspace, scan.mask, scan.sensitivity_maps)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_no_gradient_goes_through_the_image_that_is_measured_again(noise):
    """The gradient is that of |f(A T x) - T x|^2 with T x a constant, and of the measurement's term where there is one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Unrolled(2, 8, 2)
    for unet in network.unets:
        unet.last.weight.data.normal_(0, 0.05, generator=generator(5))
    scan = sample(
        "gaussian-points", generator(1), shape=(16, 18), full=complex_normal(1, 1, 16, 18, seed=2), noise=noise
    )
    assert network.puts_samples_back(scan) == (noise == 0)
    pair = PAIR_MAKERS["equivariant"](Measured(scan), PairOptions(), generator(3))
    loss_of(network, pair).backward()
    found = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad(set_to_none=True)
    prediction = network(scan)
    turned = rotate(prediction.detach(), pair.again.angle)
    again = forward(turned, pair.again.mask) + pair.again.mask * pair.again.noise
    second = network(Acquisition(again, pair.again.mask, None, None, scan.noise_variance))
    wrong = forward(prediction, scan.mask) - scan.kspace
    assert (wrong.abs().max() < 1e-4) == (noise == 0)
    ((second - turned).abs().square().sum() / (16 * 18) + wrong.abs().square().sum() / (16 * 18)).backward()
    expected = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) and any(gradient.any() for gradient in expected)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("method", ["equivariant", "multi-operator"])
def test_equivariance_loss_of_the_zero_filled_image(method, coils):
    """|A x - s|^2 + |T x - A^H (A T x + M n)|^2 of x = A^H s, per pixel, with numpy's rotation and transforms; the
    second acquisition has the other mask where one is given, and no rotation then."""
    shape, draw = (9, 12), generator(1)
    maps = unit_maps(coils) if coils > 1 else None
    scans = []
    for seed in range(2):
        scan = sample("roulette", draw, full=complex_normal(1, coils, *shape, seed=seed), noise=0.1)
        scans.append(Acquisition(scan.kspace, scan.mask, scan.probability, maps, 0.1))
    others = [sample("random-lines", draw).mask for _ in scans]
    pair = joined([PAIR_MAKERS[method](Measured(s, other_mask=o), PairOptions(), draw) for s, o in zip(scans, others)])
    expected, fourier = (
        0.0,
        lambda image: np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho"), (-2, -1)),
    )
    inverse = lambda k: np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k, (-2, -1)), norm="ortho"), (-2, -1))  # noqa: E731
    for i, (scan, other) in enumerate(zip(scans, others)):
        s = np.ones((1, *shape)) if maps is None else maps[0].numpy()
        kspace, mask = scan.kspace[0].numpy(), scan.mask[0, 0].numpy()
        x = (s.conj() * inverse(kspace)).sum(axis=0)
        angle = pair.again.angle[i].item()
        if method == "multi-operator":
            assert angle == 0 and torch.equal(pair.again.mask[i : i + 1], other)
            second_mask = other[0, 0].numpy()
        else:
            assert torch.equal(pair.again.mask[i : i + 1], scan.mask)
            second_mask = mask
        turned = scipy_turn(x, angle)
        again = second_mask * (fourier(s * turned) + pair.again.noise[i].numpy())
        back = (s.conj() * inverse(again)).sum(axis=0)
        fit = mask * fourier(s * x) - kspace
        expected += (np.abs(fit) ** 2).sum() + (np.abs(back - turned) ** 2).sum()
    assert loss_of(Linear(), pair).item() == pytest.approx(expected / (2 * math.prod(shape)), rel=1e-4)
    noise = pair.again.noise.abs().square().mean().item()
    assert noise == pytest.approx(0.1, rel=5 / math.sqrt(pair.again.noise.numel()))


def test_angles_are_drawn_over_the_full_turn():
    scan = sample("roulette", generator())
    draw = generator(1)
    angles = [PAIR_MAKERS["equivariant"](Measured(scan), PairOptions(), draw).again.angle.item() for _ in range(400)]
    assert min(angles) >= 0 and max(angles) < 2 * math.pi + 1e-5
    counts = np.histogram(angles, bins=4, range=(0, 2 * math.pi))[0]
    assert np.abs(counts - 100).max() < 5 * math.sqrt(75)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("factor", [0.6, 1.2])
def test_robust_loss_estimates_the_error_without_knowing_the_truth(factor, coils):
    """SURE: the expectation over the noise of the measurement's part of the loss is |A f(s) - A x|^2 + v per sample, for
    f(s) = c A^H s; Monte Carlo over noise and probe, 5 standard errors of the difference."""
    v, slices = 0.4, 40
    maps = unit_maps(coils) if coils > 1 else None
    image, mask = complex_normal(1, 1, *SHAPE, seed=1), sample("roulette", generator(2)).mask
    clean, network, draw, off, without = forward(image, mask, maps), Linear(factor), generator(3), [], []
    for _ in range(30):
        pairs = []
        for _ in range(slices):
            noise = v**0.5 * torch.randn(clean.shape, dtype=clean.dtype, generator=draw)
            scan = Acquisition(clean + mask * noise, mask, None, maps, v)
            pairs.append(PAIR_MAKERS["robust-equivariant"](Measured(scan), PairOptions(), draw))
        pair = joined(pairs)
        prediction = network(pair.input)
        plain = weighted_squared_error(prediction, pair)
        estimate = plain + divergence_term(network, prediction, pair)
        truth = (forward(prediction, mask, pair.input.sensitivity_maps) - clean).abs().square().sum()
        truth = truth / (slices * math.prod(SHAPE))
        constant = v * coils * mask.mean()
        off.append((estimate - truth - constant).item())
        without.append((plain - truth - constant).item())
    error = np.std(off, ddof=1) / math.sqrt(len(off))
    assert abs(np.mean(off)) < 5 * error and error < 0.02 * v
    assert abs(np.mean(without)) > 20 * error  # the term is what makes it so


def test_robust_loss_has_its_parts_and_no_noise_no_term():
    draw = generator(1)
    for variance in (0.0, 0.3):
        scan = sample("roulette", draw, full=complex_normal(1, 1, *SHAPE, seed=1), noise=variance)
        pair = joined([PAIR_MAKERS["robust-equivariant"](Measured(scan), PairOptions(), draw)])
        network = Linear(0.7)
        prediction = network(pair.input)
        terms = [weighted_squared_error(prediction, pair), equivariance_error(network, prediction, pair)]
        divergence = divergence_term(network, prediction, pair)
        torch.testing.assert_close(loss_of(network, pair), sum(terms) + divergence)
        assert (divergence.item() == 0) == (variance == 0)


@pytest.mark.parametrize("method", sorted(PAIR_MAKERS))
def test_what_a_method_needs_is_named(method):
    scan = sample("roulette", generator(), full=complex_normal(1, 1, *SHAPE, seed=1))
    bare = Acquisition(scan.kspace, scan.mask)  # neither probability nor noise, one acquisition, no other mask
    if method == "equivariant":
        assert PAIR_MAKERS[method](Measured(bare), PairOptions(), generator()).again.probe is None
        return
    named = (
        "probability" if method in SPLITTING_METHODS else "different masks" if method in OTHER_MASK_METHODS
        else "variance of the noise" if method in NOISE_METHODS
        else "fully sampled" if method == "noise2void"
        else "second acquisition" if "noise2noise" in method else "full k-space"
    )  # fmt: skip
    with pytest.raises(ValueError, match=named):
        PAIR_MAKERS[method](Measured(bare), PairOptions(), generator())


def test_keep_probability_is_one_where_every_scan_samples():
    scan = sample("gaussian-points", generator())
    keep = keep_probability(scan, 0.5)
    assert torch.equal(keep == 1, scan.probability == 1) and keep.min() >= 0.5 - 1e-6


# ---------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("shape", [(96, 95), (81, 64)])
def test_level_of_the_noise_is_right_for_noise_alone_and_an_upper_bound_with_signal(shape):
    """Per slice, of several coils, with a mask: the relative standard error of the median is 1 / (log 2 sqrt(samples))."""
    variance = torch.tensor([1e-6, 1.0, 300.0]).reshape(3, 1, 1, 1)
    noise = variance.sqrt() * complex_normal(3, 4, *shape, seed=1)
    mask = (torch.rand((1, 1, *shape), generator=generator(2)) < 0.7).float()
    ky, kx = np.meshgrid(*(np.abs(np.arange(n) - n // 2) / (n // 2) for n in shape), indexing="ij")
    far = torch.from_numpy(np.hypot(ky, kx) > 0.9)
    samples = 4 * int((mask[0, 0] * far).sum())
    found = noise_variance_at_most(noise * mask, mask)
    assert found.shape == (3, 1, 1, 1)
    assert (found / variance - 1).abs().max() < 5 / (math.log(2) * math.sqrt(samples))
    signal = 0.7 * variance.sqrt() * complex_normal(3, 4, *shape, seed=3)
    assert (noise_variance_at_most((noise + signal) * mask, mask) > 1.2 * variance).all()
    inner = torch.where(far, 0.0, 1e6) * complex_normal(3, 4, *shape, seed=4)  # signal inside says nothing
    torch.testing.assert_close(noise_variance_at_most((noise + inner) * mask, mask), found)


def test_level_of_the_noise_is_not_said_of_few_samples():
    kspace, mask = complex_normal(2, 2, 40, 40, seed=1), torch.zeros(2, 1, 40, 40)
    mask[..., 10:30, 10:30] = 1
    mask[0, 0, 0, :15] = 1  # one too few
    mask[1, 0, 0, :16] = 1
    found = noise_variance_at_most(kspace * mask, mask)
    assert found[0].isnan() and found[1].isfinite()
    padded = kspace.clone()  # zeros that a mask of all ones calls measured were never acquired
    padded[..., :2, :] = padded[..., -2:, :] = padded[..., :2] = padded[..., -2:] = 0
    full = torch.ones(1, 1, 40, 40)
    rest = noise_variance_at_most(padded, full)
    assert (rest - 1).abs().max() < 0.2
    assert noise_variance_at_most(0 * kspace, full).isnan().all()


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_correction_in_use(correction, coils):
    """((1 + a^2) f(s~) - s~) / a^2 on the samples, for one coil; in float32, each slice by itself, noise known or not."""
    maps = None if coils == 1 else unit_maps(coils)
    scan = sample("gaussian-points", generator(1), full=complex_normal(3, coils, *SHAPE, seed=2), noise=0.04)
    scan = replace(scan, sensitivity_maps=None if maps is None else maps.expand(3, -1, -1, -1))
    options = PairOptions(extra_noise=1.5, correction=correction)
    network = in_use(Linear(0.7), "robust-ssdu", options)
    assert in_use(network, "noise2noise", options) is network
    image = network(scan)
    assert image.dtype == torch.complex64
    for index in range(3):
        alone = network(scan.slices(torch.tensor([index])))
        torch.testing.assert_close(alone, image[index : index + 1], rtol=1e-4, atol=1e-5)
    assert network(replace(scan, noise_variance=None)).dtype == torch.complex64
    a2 = 1.5**2
    seen = network.noisier(scan).kspace if correction == "noisier" else scan.kspace
    added = (seen - scan.kspace)[(scan.mask > 0).expand_as(seen)].abs().square()
    expected = a2 * 0.04 if correction == "noisier" else 0.0
    assert added.mean().item() == pytest.approx(expected, rel=6 / math.sqrt(len(added) / 3), abs=1e-12)
    if coils == 1:
        wanted = 0.7 * seen if correction == "none" else ((1 + a2) * 0.7 * seen - seen) / a2
        torch.testing.assert_close(scan.mask * fft2c(image), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(OptionError, match="sideways"):
        in_use(Linear(), "robust-ssdu", PairOptions(correction="sideways"))


def test_robust_ssdu_is_trained_and_used_in_float32(tmp_path):
    protocol = Protocol(method="robust-ssdu", noise=(0.05, 0.05), acceleration=(3.0, 3.0))
    small = {"cascades": 1, "channels": 4, "levels": 1}
    options = TrainOptions(
        "phantom", matrix_size=32, protocol=protocol, network_options=small, steps=2, precision="float32", quiet=True
    )
    found = train(options, tmp_path / "run")
    # What validation scored is the network as it is used, corrected.
    network, _ = load_network(tmp_path / "run" / "weights.safetensors")
    items = validation_set(find_sources("phantom", matrix_size=32).validation, protocol)
    psnr = [
        validate(one, items, torch.device("cpu"), "float32", tmp_path / "example.png").quality["psnr"]
        for one in (in_use(network, "robust-ssdu", protocol.pair), network)
    ]
    assert found.psnr == pytest.approx(psnr[0], abs=1e-4) and abs(psnr[0] - psnr[1]) > 0.01
    kspace = complex_normal(1, 1, 32, 32, seed=3)[0, 0] * (torch.rand(32, 32, generator=generator(1)) < 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = mri_n2n.reconstruct(kspace.numpy(), weights=tmp_path / "run")
    assert image.dtype == np.complex64 and np.isfinite(image).all()


def test_a_network_without_data_consistency_learns_the_centre_from_single_scans():
    """The samples of every input are in the loss: without them nothing tells such a network what the centre of k-space is."""
    scan = sample("gaussian-lines", generator(), full=complex_normal(1, 1, *SHAPE, seed=1))
    for method in ("ssdu", "k-weighted-ssdu"):
        pair = PAIR_MAKERS[method](Measured(scan), PairOptions(), generator(1))
        image = torch.zeros(1, 1, *SHAPE, dtype=torch.complex64, requires_grad=True)
        weighted_squared_error(image, pair).backward()
        centre = fft2c(image.grad)[..., SHAPE[0] // 2, SHAPE[1] // 2]
        torch.testing.assert_close(centre, -2 * scan.kspace[..., SHAPE[0] // 2, SHAPE[1] // 2] / math.prod(SHAPE))


@pytest.mark.parametrize("method", ["noise2noise", "k-weighted-ssdu", "supervised"])
def test_training_takes_the_logarithm_of_each_slices_error(method, tmp_path):
    """The first step's loss of a batch of two, before anything is learned (networks begin as the zero-filled image), against
    the squared errors; the run goes on with this loss alone."""
    options = TrainOptions(
        dataset="phantom",
        protocol=Protocol(method=method, masks=("gaussian-points",), acceleration=(4.0, 4.0), loss="log-l2"),
        network_options={"cascades": 1, "channels": 4},
        matrix_size=24,
        batch_size=2,
        steps=1,
    )
    train(options, tmp_path / "log")
    log = json.loads((tmp_path / "log" / "log.jsonl").read_text())["loss"]
    [pair] = next(training_batches(find_sources("phantom", matrix_size=24).train, options.protocol, 2))
    filled = fft2c(adjoint(pair.input.kspace, pair.input.mask, None))
    error, energy = ((pair.weight * v.abs().square()).sum(dim=(1, 2, 3)) for v in (filled - pair.target, pair.target))
    assert log == pytest.approx((error / energy + LOG_FLOOR).log().mean().item(), rel=1e-5)
    with pytest.raises(InputError, match="loss"):
        train(replace(options, protocol=replace(options.protocol, loss=None)), tmp_path / "log", resume=True)
    assert mri_n2n.info(tmp_path / "log" / "weights.safetensors")["loss"] == "log-l2"
