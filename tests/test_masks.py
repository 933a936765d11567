"""Masks keep their promises as statistics: rates, per-location frequencies, symmetry; tolerances are binomial."""

import math

import numpy as np
import pytest
import torch

from mri_n2n.masks import MASKS, draw_mask, mirror, radius, roulette_probability

KINDS = sorted(MASKS)
LINES = [kind for kind in KINDS if kind.endswith("lines")]
POINTS = [kind for kind in KINDS if not kind.endswith("lines")]
DRAWS = 250


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(kind: str, shape: tuple[int, int], acceleration: float, hermitian: bool, count: int = DRAWS, **options):
    """Mean mask over `count` independent seeds, share of samples of each, and the stated probability."""
    total, shares, probability = torch.zeros(shape, dtype=torch.float64), [], None
    for seed in range(count):
        sampling = draw_mask(kind, shape, acceleration, generator(seed), hermitian=hermitian, **options)
        assert set(sampling.mask.unique().tolist()) <= {0.0, 1.0}
        assert probability is None or torch.equal(probability, sampling.probability), "probability depends on the draw"
        probability = sampling.probability
        total += sampling.mask
        shares.append(sampling.mask.mean().item())
    return total / count, np.array(shares), probability.double()


def reverse(mask: torch.Tensor) -> torch.Tensor:
    """The value at -k for every k (index i holds i - n // 2; the Nyquist line of even sizes is its own mirror)."""
    y, x = mask.shape
    result = torch.empty_like(mask)
    for i in range(y):
        for j in range(x):
            result[i, j] = mask[(2 * (y // 2) - i) % y, (2 * (x // 2) - j) % x]
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("shape, acceleration", [((16, 64), 4.0), ((13, 65), 6.0), ((16, 48), 10.0)])
def test_frequency_of_every_location_is_its_probability_and_the_rate_is_met(kind, hermitian, shape, acceleration):
    """Over n seeds every location is met within 5 binomial standard deviations of p, three counts more where p is small
    and the tail skewed; the mean share of samples lies within 5 standard errors of 1 / acceleration."""
    frequency, shares, p = draws(kind, shape, acceleration, hermitian)
    assert p.min() >= 0 and p.max() <= 1
    assert abs(p.mean().item() * acceleration - 1) < 1e-5
    assert abs(shares.mean() - 1 / acceleration) < 5 * shares.std(ddof=1) / math.sqrt(DRAWS) + 1e-6
    assert frequency[p == 1].eq(1).all() and frequency[p == 0].eq(0).all()
    excess = (frequency - p).abs() - 5 * (p * (1 - p) / DRAWS).sqrt() - 3 / DRAWS
    assert excess.max() <= 0, f"a location's frequency is {excess.max():.3f} beyond its tolerance"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceleration", [1.0, 1.5, 2.0, 4.0, 8.0, 12.0, 20.0])
@pytest.mark.parametrize("shape", [(128, 128), (127, 65), (64, 40), (3, 40)])
def test_rate_is_met_for_any_size_and_acceleration(kind, acceleration, shape):
    sampling = draw_mask(kind, shape, acceleration, generator())
    assert sampling.mask.shape == sampling.probability.shape == shape
    assert sampling.mask.dtype == sampling.probability.dtype == torch.float32
    assert sampling.mask.is_contiguous() and sampling.probability.is_contiguous()
    assert abs(sampling.probability.double().mean().item() * acceleration - 1) < 1e-4
    assert sampling.probability.min() > 0
    assert sampling.mask[sampling.probability == 1].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_location_sampled_for_certain_is_never_missed_and_the_centre_is_densest(kind):
    for acceleration in (6.0, 12.0, 20.0):
        p = draw_mask(kind, (64, 64), acceleration, generator()).probability
        assert p[32, 32] == 1
        assert p[32, 32] >= p[0, 0]


@pytest.mark.parametrize("acceleration", [4.0, 12.0])
def test_gaussian_points_have_a_gaussian_density_around_a_full_centre(acceleration):
    """log p falls as a parabola in r, from log 2 at DC were it not for the limit of 1, down to the floor."""
    shape = (128, 96)
    p, r = draw_mask("gaussian-points", shape, acceleration, generator()).probability.double(), radius(shape)
    between = (p < 1) & (p > 0.11 / acceleration)
    slope = (torch.log(p[between] / 2) / r[between] ** 2).numpy()
    assert between.sum() > 500 and np.allclose(slope, slope.mean(), rtol=1e-4)
    assert (p[r < math.sqrt(-math.log(2) / slope.mean()) - 1e-6] == 1).all()
    assert p.min().item() == pytest.approx(0.1 / acceleration)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(16, 40), (15, 41), (16, 41), (15, 40)])
def test_hermitian_masks_keep_k_and_minus_k_together(kind, shape):
    for seed in range(20):
        sampling = draw_mask(kind, shape, 5.0, generator(seed), hermitian=True)
        assert torch.equal(sampling.mask, reverse(sampling.mask))
        torch.testing.assert_close(sampling.probability, reverse(sampling.probability))


@pytest.mark.parametrize("kind", KINDS)
def test_hermitian_mask_of_real_image_gives_real_zero_filled_image(kind):
    """The promise behind the symmetry: masked and weighted k-space of a real image belongs to a real image."""
    image = np.random.default_rng(0).normal(size=(16, 24))
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    sampling = draw_mask(kind, (16, 24), 4.0, generator(3), hermitian=True)
    weighted = kspace * (sampling.mask / sampling.probability).numpy()
    back = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(weighted)))
    assert np.abs(back.imag).max() < 1e-6 * np.abs(back.real).max()


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (6, 7), (1, 8)])
def test_mirror_takes_the_first_of_each_pair_and_keeps_the_nyquist_line_its_own(shape):
    mask = torch.rand(shape, generator=generator()).round()
    result = mirror(mask)
    assert torch.equal(result, reverse(result))
    flat, other = mask.flatten(), reverse(torch.arange(mask.numel()).reshape(shape)).flatten()
    for index, partner in enumerate(other.tolist()):
        assert result.flatten()[index] == flat[min(index, partner)]
    assert torch.equal(mirror(result), result)


@pytest.mark.parametrize("kind", LINES)
def test_lines_run_along_y_as_in_fastmri(kind):
    sampling = draw_mask(kind, (12, 64), 4.0, generator())
    for value in (sampling.mask, sampling.probability):
        assert torch.equal(value, value[:1].expand_as(value))
    assert 0 < sampling.mask[0].sum() < 64


@pytest.mark.parametrize("kind", POINTS)
def test_points_vary_along_both_axes(kind):
    mask = draw_mask(kind, (64, 64), 4.0, generator()).mask
    assert (mask != mask[:1]).any() and (mask != mask[:, :1]).any()


@pytest.mark.parametrize(
    "x, acceleration, center_fraction", [(368, 4, 0.08), (320, 8, 0.04), (128, 4, 0.08), (372, 8, 0.04)]
)
def test_random_lines_have_fastmris_probability_and_centre(x, acceleration, center_fraction):
    """fastMRI's RandomMaskFunc is the reference: same centre lines, same probability outside, over many draws."""
    from fastmri.data.subsample import RandomMaskFunc

    peer = RandomMaskFunc([center_fraction], [acceleration])
    lines = torch.stack([peer((1, x, 2), seed=seed)[0].flatten() for seed in range(300)]).double().mean(dim=0)
    p = (
        draw_mask("random-lines", (2, x), acceleration, generator(), center_fraction=center_fraction)
        .probability[0]
        .double()
    )
    assert torch.equal(lines == 1, p == 1)
    assert (lines - p)[p < 1].mean().abs() < 5 * math.sqrt(p.min().item() / (300 * x))


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("x", [128, 129, 320])
def test_default_centre_is_fastmris_032_over_the_acceleration(kind, x):
    p = draw_mask(kind, (2, x), 4.0, generator()).probability[0]
    assert (p == 1).sum() >= round(0.08 * x)
    assert p[x // 2 - round(0.08 * x) // 2 :][: round(0.08 * x)].eq(1).all()


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("x, acceleration", [(120, 10.0), (128, 10.0), (124, 4.0), (64, 7.0)])
def test_largest_centre_fraction_still_gives_a_valid_mask_or_a_clear_error(kind, x, acceleration):
    """1 / acceleration is allowed by the docstring: probabilities stay in [0, 1] and agree with the mask."""
    try:
        sampling = draw_mask(kind, (4, x), acceleration, generator(), center_fraction=1 / acceleration)
    except ValueError:
        return
    assert sampling.probability.min() >= 0 and sampling.probability.max() <= 1
    assert sampling.mask[sampling.probability == 0].sum() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x, acceleration", [(20, 12.0), (64, 50.0)])
def test_fewer_than_one_line_beyond_the_centre_is_no_error(kind, x, acceleration):
    """Where the rate leaves a fraction of a line, it is drawn in that fraction of the masks."""
    _, shares, p = draws(kind, (x, x), acceleration, False, count=60)
    assert abs(p.mean().item() * acceleration - 1) < 1e-4
    assert abs(shares.mean() - 1 / acceleration) < 5 * shares.std(ddof=1) / math.sqrt(60) + 1e-6


@pytest.mark.parametrize("kind", ["random-lines", "gaussian-lines"])
@pytest.mark.parametrize("x", [40, 65, 128])
def test_the_number_of_lines_is_met_to_one_on_each_side_of_dc(kind, x):
    """Independent draws would give anything from 5x to 14x where 8x of 128 lines is asked for."""
    wanted = x / 5.0
    for seed in range(50):
        for hermitian, off in ((False, 2), (True, 3)):  # of mirrored pairs one makes two lines
            lines = draw_mask(kind, (8, x), 5.0, generator(seed), hermitian=hermitian).mask[0].sum().item()
            assert abs(lines - wanted) < off


def test_equispaced_lines_are_equally_spaced_outside_the_centre():
    for seed in range(20):
        mask = draw_mask("equispaced-lines", (2, 200), 5.0, generator(seed), center_fraction=0.04).mask[0]
        lines = np.flatnonzero(mask[:90].numpy())
        assert np.ptp(np.diff(lines)) <= 1


def test_roulette_is_the_2018_papers():
    """p(r) = p_edge ** r is 1 at DC, p_edge at the half-width of each axis; 0.025 keeps 10.4 % of 255 x 255."""
    for size in (255, 256):
        p = roulette_probability((size, size))
        middle = size // 2
        assert p[middle, middle] == 1
        assert p[middle, 0].item() == pytest.approx(0.025, rel=1e-9)
        assert p[0, middle].item() == pytest.approx(0.025, rel=1e-9)
        assert p[0, 0].item() == pytest.approx(0.025 ** math.sqrt(2), rel=1e-9)
        assert p[middle, middle // 2].item() == pytest.approx(0.025 ** ((middle - middle // 2) / middle), rel=1e-9)
    assert roulette_probability((255, 255)).mean().item() == pytest.approx(0.104, abs=1e-3)


def test_roulette_has_one_decay_rate_whatever_the_acceleration():
    """-log p is proportional to the radius: the same law as the paper's, with another p_edge."""
    shape = (64, 48)
    p = draw_mask("roulette", shape, 8.0, generator()).probability.double()
    r = radius(shape)
    slope = -p.log()[r > 0] / r[r > 0]
    assert (slope.max() - slope.min()) / slope.mean() < 1e-5


def test_radius_is_one_at_the_edge_of_each_axis():
    r = radius((8, 9))
    assert r[4, 4] == 0 and r[0, 4] == 1
    assert r[4, 0] == pytest.approx(1) and r[4, 8] == pytest.approx(1)
    assert r[0, 0] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seed_equal_mask_and_no_global_randomness(kind):
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    one = draw_mask(kind, (40, 48), 4.0, generator(7), hermitian=True)
    two = draw_mask(kind, (40, 48), 4.0, generator(7), hermitian=True)
    other = [draw_mask(kind, (40, 48), 4.0, generator(seed), hermitian=True).mask for seed in range(8, 14)]
    assert torch.equal(one.mask, two.mask) and torch.equal(one.probability, two.probability)
    assert any(not torch.equal(one.mask, mask) for mask in other)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("kind", POINTS)
def test_two_draws_of_one_generator_are_independent(kind):
    """Noise2Noise needs independent masks: the share of locations in both is the sum of p^2."""
    draw, both = generator(), []
    for _ in range(200):
        one, two = (draw_mask(kind, (32, 32), 5.0, draw) for _ in range(2))
        both.append((one.mask * two.mask).mean().item())
    expected = one.probability.double().square().mean().item()
    assert abs(np.mean(both) - expected) < 5 * np.std(both) / math.sqrt(len(both))


def test_changing_a_result_leaves_later_draws_alone():
    first = draw_mask("roulette", (32, 32), 5.0, generator()).probability
    kept = first.clone()
    first.zero_()
    assert torch.equal(draw_mask("roulette", (32, 32), 5.0, generator()).probability, kept)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (1, 9)])
def test_full_sampling_can_be_had_on_any_matrix(kind, shape):
    for hermitian in (False, True):
        sampling = draw_mask(kind, shape, 1.0, generator(), hermitian=hermitian)
        assert torch.equal(sampling.mask, torch.ones(shape)) and torch.equal(sampling.probability, torch.ones(shape))


@pytest.mark.parametrize("acceleration", [0.5, 0.0, -3.0, float("nan"), float("inf"), 64.0])
def test_impossible_acceleration_is_refused(acceleration):
    with pytest.raises(ValueError, match="acceleration .* cannot be met on a 64x64"):
        draw_mask("random-lines", (64, 64), acceleration, generator())


def test_unknown_kind_and_centre_fraction_are_refused():
    with pytest.raises(ValueError, match="unknown mask 'spiral'; choose one of .*roulette"):
        draw_mask("spiral", (64, 64), 4.0, generator())
    with pytest.raises(ValueError, match="center_fraction"):
        draw_mask("random-lines", (64, 64), 4.0, generator(), center_fraction=0.3)
