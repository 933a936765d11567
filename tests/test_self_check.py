"""A scan that checks its own reconstruction: folds, the error that they tell, error bars, and what speaks against an image."""

import json
import math
from dataclasses import replace
from functools import partial

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Acquisition
from mri_n2n.checkpoint import load_network
from mri_n2n.cli import main
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.errors import InputError
from mri_n2n.formats import write_scan
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.masks import draw_mask
from mri_n2n.options import TrainOptions
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol
from mri_n2n.simulation import SimulationOptions, measure, simulate_file
from mri_n2n.sources import Source
from mri_n2n.training import new_network
from mri_n2n.training_statistics import familiarity_of
from mri_n2n.trust.doubts import doubts_of, hollow
from mri_n2n.trust.error_bars import band_edges, conformal_quantile, error_bars, scores_of
from mri_n2n.trust.familiarity import Statistics, known_of, learned, unlike
from mri_n2n.trust.folds import FOLDS, divide
from mri_n2n.trust.self_check import check_itself

SHAPE = (60, 75)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape, variance: float, generator: torch.Generator) -> torch.Tensor:
    return (variance / 2) ** 0.5 * torch.complex(*(torch.randn(shape, generator=generator) for _ in range(2)))


def full_kspace(slices: int = 1) -> torch.Tensor:
    full = torch.stack([phantom_kspace(SHAPE, generator=draw(i)).reshape(1, *SHAPE) for i in range(slices)])
    return (full / full.abs().max()).to(torch.complex64)


# ---- folds ----


@pytest.mark.parametrize("with_maps", [False, True])
@pytest.mark.parametrize(
    "kind, hermitian", [("roulette", False), ("roulette", True), ("gaussian-lines", False), ("gaussian-points", True)]
)
def test_folds_divide_what_was_drawn(kind, hermitian, with_maps):
    """Each sample outside of what is kept is in one fold, folds are alike in number, lines and mirrored pairs are whole."""
    one = draw_mask(kind, (96, 131), 3.0, draw(1), hermitian=hermitian)
    divided = divide(one.mask, one.probability, with_maps=with_maps, draw=draw())
    held = divided.fold >= 0
    assert not (held & (one.mask == 0)).any() and not (held & (one.probability == 1)).any()
    if with_maps:
        kspace = noise((1, 2, 96, 131), 1.0, draw(2)) * one.mask
        scans = [Acquisition(k, (k != 0)[:, :1].float(), noise_variance=0.0) for k in (kspace, kspace * ~held)]
        maps = [with_sensitivity_maps(scan)[0] for scan in scans]
        torch.testing.assert_close(*(one.sensitivity_maps for one in maps), msg="maps are found from what is held out")
    assert divided.fold.max() == FOLDS - 1
    counts = [len(divided.design.unit[divided.fold == k].unique()) for k in range(FOLDS)]
    assert max(counts) - min(counts) <= 1 and sum(counts) == divided.draws
    if kind.endswith("lines"):
        assert torch.equal(divided.fold, divided.fold[:1].expand(96, 131))
    if hermitian:
        assert torch.equal(divided.fold, mirror_axes(divided.fold, (-2, -1)))
    assert not (divided.spoken_for & (one.mask > 0)).any()
    if not with_maps:
        assert torch.equal(held | divided.spoken_for, (one.probability < 0.9) & (one.probability > 0))


def test_a_mask_of_few_lines_has_no_folds():
    few = draw_mask("random-lines", (64, 64), 12.0, draw())
    assert divide(few.mask, few.probability, with_maps=False, draw=draw()) is None


# ---- the error ----


def wrong_image(full: torch.Tensor) -> torch.Tensor:
    """An image with an error at every location, more in the centre; in k-space."""
    return 0.1 * full * torch.exp(2j * torch.pi * torch.rand(full.shape, generator=draw(5)))


@pytest.mark.parametrize("coils, variance", [(1, 0.0), (1, 1e-6), (3, 1e-6)])
@pytest.mark.parametrize("kind, acceleration", [("roulette", 4.0), ("gaussian-lines", 3.0)])
def test_the_error_of_what_was_not_sampled_is_told(kind, acceleration, coils, variance):
    """Of an image that is what it is whatever is left out, over 150 masks: no extrapolation, the mean within four standard
    errors of the truth where there are no samples, which 95 % intervals hold in 88 to 100 %."""
    maps = torch.linspace(1, 0.5, coils)[:, None, None].to(torch.complex64) * torch.ones(SHAPE)
    maps = (maps / maps.abs().square().sum(dim=0).sqrt())[None]
    image = ifft2c(full_kspace())
    full = fft2c(maps * image)
    error = wrong_image(full_kspace())
    given = image + ifft2c(error)
    off, truths, inside = [], [], 0
    for seed in range(150):
        sampling = draw_mask(kind, SHAPE, acceleration, draw(seed))
        scan = measure(full, sampling, draw(1000 + seed), noise_variance=variance)
        scan = replace(scan, sensitivity_maps=maps if coils > 1 else None)
        checked = check_itself(lambda *_: scan, lambda _: given, 1, 1, estimates=True, bars=False).error  # noqa: B023
        divided = divide(sampling.mask, sampling.probability, with_maps=coils > 1, draw=draw())
        truth = (error[0, 0].abs().double().square() * divided.spoken_for).sum().item() / math.prod(SHAPE)
        assert checked.extrapolated == pytest.approx(1.0, abs=1e-9)
        off, truths = [*off, checked.mse.value - truth], [*truths, truth]
        inside += checked.mse.low <= truth <= checked.mse.high
        assert checked.spoken_for == pytest.approx(divided.spoken_for.double().mean().item())
        assert checked.measured + checked.spoken_for + checked.silent == pytest.approx(1)
    assert abs(np.mean(off)) < 4 * np.std(off) / 150**0.5 < 0.2 * np.mean(truths)
    assert 0.88 <= inside / 150 <= 1


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind, acceleration", [("random-lines", 3.0), ("gaussian-lines", 3.0), ("roulette", 4.0)])
def test_without_a_stored_probability_it_is_told_roughly(kind, acceleration, turned):
    """Lines along either axis, over 60 masks: the mean within 30 % of the truth, which intervals hold in 80 % or more."""
    full = full_kspace()
    error = wrong_image(full)
    estimates, truths, inside = [], [], 0
    for seed in range(60):
        mask = draw_mask(kind, SHAPE[::-1] if turned else SHAPE, acceleration, draw(seed)).mask
        mask = mask.mT.contiguous() if turned else mask
        scan = Acquisition(full * mask, mask[None, None], None, None, 0.0)
        found = check_itself(lambda *_: scan, lambda _: ifft2c(full + error), 1, 1, estimates=True, bars=False).error  # noqa: B023
        if found is None:
            continue
        spoken_for = divide(mask, None, with_maps=False, draw=draw()).spoken_for
        truth = (error[0, 0].abs().double().square() * spoken_for).sum().item() / math.prod(SHAPE)
        estimates, truths = [*estimates, found.mse.value], [*truths, truth]
        inside += found.mse.low <= truth <= found.mse.high
        assert found.assumed
    assert len(truths) > 40 and 0.7 < np.mean(estimates) / np.mean(truths) < 1.3
    assert inside / len(truths) >= 0.8


@pytest.mark.parametrize("stored", [False, True])
def test_what_was_never_acquired_is_not_spoken_for_and_lines_stay_whole(stored):
    """Rows that are missing (an asymmetric echo) and zero-padded columns."""
    one = draw_mask("gaussian-lines", (96, 131), 3.0, draw(1))
    mask, box = torch.zeros(96, 131), ((20, 96), (10, 121))
    mask[20:, 10:121] = one.mask[20:, 10:121]
    divided = divide(mask, one.probability if stored else None, with_maps=False, draw=draw(), acquired=box)
    held = divided.fold >= 0
    assert not divided.spoken_for[:20].any() and not divided.spoken_for[:, :10].any() and held.any()
    assert torch.equal(divided.fold[20:], divided.fold[20:21].expand(76, 131))
    assert divided.draws == held[50].sum()
    everything = torch.zeros(96, 131)
    everything[20:, 10:121] = 1
    assert divide(everything, None, with_maps=False, draw=draw(), acquired=box) is None


@pytest.mark.parametrize("power", [0.5, 3.0])
def test_what_lacks_no_sample_is_extrapolated_to(power):
    """An image whose squared error is a power of the number of samples that it was made of."""
    full = full_kspace(2)
    sampling = draw_mask("roulette", SHAPE, 4.0, draw(3))
    scan = measure(full, sampling, draw(4), noise_variance=0.0)
    error = wrong_image(full)
    rare = sampling.probability < 0.9

    def images_of(acquisition: Acquisition) -> torch.Tensor:
        share = ((acquisition.mask[0, 0] * rare).sum() / (sampling.mask * rare).sum()).item()
        return ifft2c(full + share ** (-power / 2) * error)[: len(acquisition.kspace)]

    read = lambda start, stop: scan.slices(torch.arange(start, stop))  # noqa: E731
    checked = check_itself(read, images_of, 2, 2, estimates=True, bars=False).error
    assert checked.extrapolated == pytest.approx(0.9**power, rel=0.02)
    whole = check_itself(read, lambda _: ifft2c(full + error), 2, 2, estimates=True, bars=False).error
    assert checked.mse.value == pytest.approx(whole.mse.value, rel=0.02)
    assert sum(one.value for one in checked.slices) / 2 == pytest.approx(checked.mse.value)
    assert checked.mse.low < checked.mse.value < checked.mse.high


def test_a_network_that_divides_by_the_probability_is_told_that_of_the_rest():
    full, given = full_kspace(), []
    sampling = draw_mask("roulette", SHAPE, 4.0, draw(3))
    scan = measure(full, sampling, draw(4), noise_variance=0.0)

    def images_of(acquisition: Acquisition) -> torch.Tensor:
        rare = divide(sampling.mask, sampling.probability, with_maps=False, draw=draw()).open
        given.append(((acquisition.mask[0, 0] * rare).sum() / (acquisition.probability[0, 0] * rare).sum()).item())
        return ifft2c(full)

    check_itself(lambda *_: scan, images_of, 1, 1, estimates=True, bars=False)
    whole = (sampling.mask * (sampling.probability < 0.9)).sum() / (
        sampling.probability * (sampling.probability < 0.9)
    ).sum()
    assert given == pytest.approx([whole.item()] * 15, rel=0.01)


def test_where_nothing_can_be_said_it_is_said():
    full = full_kspace()
    image = ifft2c(full)
    for kind, acceleration, words in (
        ("equispaced-lines", 3.0, "equal distances"),
        ("random-lines", 12.0, "fewer than"),
    ):
        scan = measure(full, draw_mask(kind, SHAPE, acceleration, draw(1)), draw(2), noise_variance=0.0)
        checked = check_itself(lambda *_: scan, lambda _: image, 1, 1, estimates=True, bars=False)  # noqa: B023
        assert checked.error is None and words in checked.silence[0]
    unknown = replace(scan, probability=None, noise_variance=None, mask=torch.ones_like(scan.mask))
    assert check_itself(lambda *_: unknown, lambda _: image, 1, 1, estimates=True, bars=False).error is None


# ---- error bars ----


def test_the_quantile_of_scores_covers_a_further_one():
    """The closed form: of n scores the k-th smallest is above a further one with probability k / (n + 1)."""
    assert conformal_quantile(torch.arange(1.0, 20.0)) == 18.0 and math.isinf(conformal_quantile(torch.ones(8)))
    generator = draw(1)
    held = [
        float(
            torch.rand((), generator=generator).square()
            <= conformal_quantile(torch.rand(39, generator=generator).square())
        )
        for _ in range(4000)
    ]
    assert np.mean(held) == pytest.approx(36 / 40, abs=4 * (0.09 / 4000) ** 0.5)


@pytest.mark.parametrize("coils", [1, 3])
def test_error_bars_cover_samples_and_have_the_scale_of_the_errors(coils):
    """Images of folds that scatter about a mean by noise of one size, samples that lie off by another: bars are their quotient."""
    spread, off = 0.1, 0.7
    sampling = draw_mask("roulette", SHAPE, 3.0, draw(1))
    fold = divide(sampling.mask, sampling.probability, with_maps=False, draw=draw()).fold
    edges = band_edges(fold >= 0)
    assert len(edges) >= 2
    maps = None if coils == 1 else torch.full((coils, *SHAPE), coils**-0.5, dtype=torch.complex64)
    slices = []
    for seed in range(6):
        images = noise((FOLDS, 1, *SHAPE), spread**2, draw(seed))
        residual = noise((coils, *SHAPE), off**2, draw(seed + 50)) * (fold >= 0)
        slices.append(scores_of(images, maps, residual, fold, sampling.mask == 0, edges))
    bars = error_bars([*slices, None], SHAPE, edges)
    assert 0.87 < bars.coverage < 0.93 and bars.tested > 1000
    # |e|^2 is gamma distributed, so is u^2 known: (FOLDS - 1) / FOLDS of the scatter's variance.
    from scipy.stats import gamma

    wanted = off * gamma.ppf(0.9, coils) ** 0.5 / (spread * ((FOLDS - 1) / FOLDS) ** 0.5)
    assert list(bars.factors) == pytest.approx([wanted] * len(bars.factors), rel=0.1)
    level = off * gamma.ppf(0.9, coils) ** 0.5
    assert bars.radius[:6].square().mean().sqrt().item() == pytest.approx(level, rel=0.1)
    assert bars.radius.shape == (7, *SHAPE) and not bars.radius[6].any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_error_bars_have_the_units_of_the_image(scale):
    """Whose squares float32 does not hold."""
    sampling = draw_mask("roulette", SHAPE, 3.0, draw(1))
    fold = divide(sampling.mask, sampling.probability, with_maps=False, draw=draw()).fold
    images, residual = noise((FOLDS, 1, *SHAPE), 1.0, draw(2)), noise((1, *SHAPE), 1.0, draw(3)) * (fold >= 0)
    edges = band_edges(fold >= 0)
    one, other = (
        error_bars([scores_of(images * s, None, residual * s, fold, sampling.mask == 0, edges)], SHAPE, edges).radius
        for s in (1.0, scale)
    )
    torch.testing.assert_close(other.double() / scale, one.double(), rtol=1e-4, atol=0)


# ---- what speaks against an image ----


def doubts(kspace: torch.Tensor, mask: torch.Tensor, image: torch.Tensor | None = None):
    scan = Acquisition(kspace, mask[None, None].expand(1, 1, *mask.shape))
    return doubts_of(scan, ifft2c(kspace) if image is None else image)


@pytest.mark.parametrize("acceleration", [1.0, 4.0])
def test_spikes_are_counted(acceleration):
    shape = (128, 99)
    full = phantom_kspace(shape, generator=draw(1)).reshape(1, 1, *shape) + noise((1, 1, *shape), 1e-4, draw(3))
    mask = draw_mask("roulette", shape, acceleration, draw(2)).mask
    assert doubts(full * mask, mask).spikes == 0
    at = (mask * (torch.rand(shape, generator=draw(4)) < 0.01)).nonzero()
    at = [(y, x) for y, x in at.tolist() if math.hypot(y - 64, x - 49) > 17]
    spiked = full.clone()
    for y, x in at:
        spiked[0, 0, y, x] = 0.3 * full.abs().max()
    found = doubts(spiked * mask, mask)
    assert len(at) > 10 and 0.9 * len(at) <= found.spikes <= len(at) and "spikes" in found.words[0]


def test_rounding_where_nothing_was_acquired_is_no_spike():
    full = phantom_kspace((128, 128), generator=draw(1)).reshape(1, 1, 128, 128).clone()
    full[..., :20, :] = 0
    assert doubts(fft2c(ifft2c(full)), torch.ones(128, 128)).spikes == 0


@pytest.mark.parametrize("shape", [(24, 21), (1, 8), (3, 2), (1, 1)])
def test_masks_without_the_slowest_samples_are_seen(shape):
    """The centre, or both of its neighbours along an axis; one of two is enough, and of an empty slice nothing is said."""
    y, x = (n // 2 for n in shape)
    assert not hollow(torch.ones(shape)) and not hollow(torch.zeros(shape))
    without = lambda *places: torch.ones(shape).index_put(tuple(torch.tensor(places).T), torch.tensor(0.0))  # noqa: E731
    if max(shape) > 1:
        assert hollow(without((y, x)))
    for axis, n in enumerate(shape):
        beside = [tuple(at + (step if axis == i else 0) for i, at in enumerate((y, x))) for step in (-1, 1)]
        beside = [place for place in beside if place[axis] in range(n)]
        if beside:
            assert hollow(without(*beside)) and (len(beside) == 1 or not hollow(without(beside[0])))
    wide, full = torch.ones(24, 21), phantom_kspace((24, 21), generator=draw(1))
    wide[[11, 13], 10] = 0
    found = doubts(full[None].expand(1, 1, 24, 21) * wide, wide)
    assert found.hollow == 1 and "1 slice has no sample on either side of the centre" in found.words[0]


def test_ghosts_are_seen_where_lines_at_equal_distances_put_them():
    """In zero-filled images, not in what they are of; along either axis."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32))
    image = (image.abs() * (torch.arange(128) % 128 < 50)).to(torch.complex64)[None, None]
    full, comb = fft2c(image), torch.zeros(128, 128)
    comb[:, ::4] = 1
    for turn in (lambda x: x, lambda x: x.mT.contiguous()):
        mask = turn(comb)
        assert doubts(turn(full) * mask, mask).ghosted == 1
        assert doubts(turn(full) * mask, mask, turn(image)).ghosted == 0
    points = draw_mask("roulette", (128, 128), 4.0, draw()).mask
    assert doubts(full * points, points).ghosted == 0, "points have no such shifts"


def test_the_share_of_energy_that_was_measured():
    mask = draw_mask("gaussian-points", SHAPE, 4.0, draw()).mask
    full = full_kspace()
    wanted = (mask * full.abs().square()).sum() / full.abs().square().sum()
    assert doubts(full * mask, mask, ifft2c(full)).measured_share == pytest.approx(wanted.item(), rel=1e-5)
    assert doubts(full * mask, mask).measured_share == pytest.approx(1)


# ---- is a scan like those of the training? ----


def some_statistics(where: float, generator: torch.Generator) -> list[Statistics]:
    """Three slices of a scan about a place of its own."""
    own = where + torch.randn(7, generator=generator, dtype=torch.float64)
    return [
        Statistics(
            own + 0.2 * torch.randn(7, generator=generator, dtype=torch.float64),
            torch.randn(5, generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]


def test_scans_are_as_far_as_their_share_says_and_strange_ones_farther():
    """Of scans like the training's at most a share a has a share of a or less; of others nearly all have the least."""
    generator, shares, strange = draw(1), [], []
    for _ in range(30):
        names = [f"s{i}" for i in range(40)]
        kept = learned([some_statistics(0, generator) for _ in names], names, names)
        known = known_of({"familiarity": json.loads(json.dumps(kept))})["image"]
        mean = lambda scan: torch.stack([one.image for one in scan]).mean(dim=0)  # noqa: E731
        shares += [unlike(known, mean(some_statistics(0, generator))).share for _ in range(20)]
        strange += [unlike(known, mean(some_statistics(9, generator))).share for _ in range(5)]
    assert np.mean(np.array(shares) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert max(strange) == pytest.approx(1 / 41)


def test_what_cannot_be_told_says_nothing_and_one_volume_tells_nothing():
    generator = draw(2)
    scans = [some_statistics(0, generator) for _ in range(12)]
    assert learned(scans, ["one"] * 12, ["v"] * 12) is None
    assert learned(scans[:9], ["one"] * 9, list("abcdefghi")) is None
    kept = learned(scans, ["one"] * 12, list("abcdefghijkl"))
    known = known_of({"familiarity": kept})["acquisition"]
    centre = unlike(known, torch.full((5,), math.nan, dtype=torch.float64))
    assert centre.distance == pytest.approx(torch.linalg.vector_norm(known.scans, dim=1).min().item())
    assert known_of({}) is None
    untold = known_of({"familiarity": {k: {n: x for n, x in v.items() if n != "subjects"} for k, v in kept.items()}})
    assert untold["image"].subjects is None
    for broken in (
        {},
        {"image": kept["image"]},
        {**kept, "image": {**kept["image"], "centre": [0.0]}},
        "x",
        {k: v | {"subjects": "many"} for k, v in kept.items()},
        {k: v | {"subjects": math.inf} for k, v in kept.items()},
    ):
        with pytest.raises(InputError, match="no sense"):
            known_of({"familiarity": broken})


@pytest.mark.parametrize("coils", [(), (3,)])
def test_statistics_of_training_scans(coils):
    """Measured by simulation, some slices each; with another acceleration the acquisition's alone is far."""
    protocol = Protocol(method="noise2noise", acceleration=(3.0, 3.5), coils=coils)
    volume = lambda seed: torch.stack([phantom_kspace((64, 64), generator=draw(10 * seed + i)) for i in range(4)])  # noqa: E731
    sources = [Source(f"v{i}", f"subject{i}", 4, partial(volume, i)) for i in range(5)]
    options = TrainOptions("phantom", network_options={"cascades": 1, "channels": 4, "levels": 2})
    network = new_network(replace(options, network="unrolled"), torch.device("cpu"), "float32").eval()
    kept = familiarity_of(network, sources, protocol, torch.device("cpu"), 10)
    known = known_of({"familiarity": kept})
    assert len(known["image"].distances) == 10
    for acceleration, least, most in ((3.2, 0.0, 0.3), (12.0, 1.0, 1.0)):
        other = replace(protocol, acceleration=(acceleration, acceleration), seed=1)
        found = known_of({"familiarity": familiarity_of(network, sources, other, torch.device("cpu"), 10)})
        means = (
            found["acquisition"].scans @ torch.linalg.inv(found["acquisition"].transform) + found["acquisition"].centre
        )
        far = known["acquisition"].distances.max()
        assert least <= np.mean([unlike(known["acquisition"], one).distance > far for one in means]) <= most


# ---- the command ----


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Scans of a volume of 96 x 90 x 2, and the volume."""
    folder = tmp_path_factory.mktemp("study")
    images = np.stack([ifft2c(phantom_kspace((90, 96), generator=draw(i)))[0].abs().numpy() for i in range(2)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(700 * images.transpose(1, 0, 2), np.eye(4)), folder / "v.nii.gz")
    for name, options in {
        "points": SimulationOptions(acceleration=4, noise=0.005),
        "coils": SimulationOptions(acceleration=3, coils=3),
        "comb": SimulationOptions(acceleration=3, mask="equispaced-lines"),
    }.items():
        simulate_file(folder / "v.nii.gz", folder / f"{name}.h5", options)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["points", "coils"])
def test_reconstruct_checks_itself(study, tmp_path, capsys, name):
    command = [
        "reconstruct",
        str(study / f"{name}.h5"),
        "-o",
        str(tmp_path),
        "--no-flips",
        "--self-check",
        "--uncertainty",
    ]
    assert main([*command, "--quiet"]) == 0
    said = capsys.readouterr().out
    sidecar = json.loads((tmp_path / f"{name}.json").read_text())
    check, bars = sidecar["self_check"], sidecar["uncertainty"]
    assert (
        f"leaves a PSNR of {check['psnr']['value']:.2f} dB (" in said
        and "were the rest exact" in said
        and "of the image's energy measured" in said
    )
    assert 0.5 < sidecar["measured_energy_share"] <= 1
    with h5py.File(tmp_path / f"{name}.h5") as file, h5py.File(study / f"{name}.h5") as scan:
        image, maps = file["image"][()], file["sensitivity_maps"][()] if name == "coils" else None
        mask = scan["mask"][()].reshape(-1, 90, 96)[0] > 0
    full = fft2c(torch.from_numpy(nibabel.load(study / "v.nii.gz").get_fdata().transpose(2, 1, 0).astype(np.complex64)))
    if maps is None:
        wrong = (fft2c(torch.from_numpy(image)) - full).abs().square().numpy() * ~mask
        truth = wrong.sum() / image.size
        assert check["mse"]["low"] / 1.15 <= truth <= 1.15 * check["mse"]["high"]
    assert len(check["per_slice"]) == 2 and check["noise"] == "removed" and check["probability"] == "stored"
    assert bars["tested_samples"] > 50 and 0.75 < bars["coverage"] <= 1
    written = nibabel.load(tmp_path / f"{name}.uncertainty.nii.gz")
    assert written.shape == (96, 90, 2) and np.isfinite(written.get_fdata()).all() and written.get_fdata().min() >= 0
    assert f"{name}.uncertainty.nii.gz" in sidecar["output_sha256"]


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_checked_is_said_and_counts_when_strict(study, tmp_path, capsys):
    command = [
        "reconstruct",
        str(study / "comb.h5"),
        "-o",
        str(tmp_path),
        "--baseline",
        "zero-filled",
        "--self-check",
        "--quiet",
    ]
    assert main([*command, "--strict"]) == 8
    assert "says nothing (lines at equal distances" in capsys.readouterr().out
    sidecar = json.loads((tmp_path / "comb.json").read_text())
    assert "psnr" not in sidecar["self_check"] and any("ghosts" in one for one in sidecar["warnings"])
    assert main([*command, "--uncertainty"]) == 2 and "zero-filled does not" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_clipped_samples_are_said(study, tmp_path):
    with h5py.File(study / "points.h5") as scan:
        kspace = scan["kspace"][()].reshape(2, 1, 90, 96)
    limit = 0.2 * np.abs(kspace).max()
    cut = np.clip(kspace.real, -limit, limit) + 1j * np.clip(kspace.imag, -limit, limit)
    write_scan(
        tmp_path / "cut.h5", iter(cut.astype(np.complex64)), cut.shape, mask=(kspace[0, 0] != 0).astype(np.float32)
    )
    command = ["reconstruct", "-o", str(tmp_path / "out"), "--baseline", "zero-filled", "--quiet"]
    assert main([*command, str(tmp_path / "cut.h5")]) == 0
    assert any("clipped" in one for one in json.loads((tmp_path / "out" / "cut.json").read_text())["warnings"])


def test_weights_say_what_a_scan_is_unlike(study, tmp_path):
    """Statistics in the header of the bundled weights, replaced by those of nothing like it."""
    from mri_n2n.checkpoint import BUNDLED, load_tensors, save_tensors

    tensors, header = load_tensors(BUNDLED)
    names, generator = [f"s{i}" for i in range(60)], draw(3)
    header["familiarity"] = learned([some_statistics(500, generator) for _ in names], names, names)
    save_tensors(tmp_path / "w.safetensors", tensors, header)
    assert load_network(tmp_path / "w.safetensors")
    command = ["reconstruct", str(study / "points.h5"), "-o", str(tmp_path), "--no-flips", "--quiet", "--weights"]
    with pytest.warns(UserWarning, match="unlike what the weights were trained on by its grey values"):
        assert main([*command, str(tmp_path / "w.safetensors"), "--strict"]) == 8
    found = json.loads((tmp_path / "points.json").read_text())["familiarity"]["image"]
    assert found["alarm"] and found["share_as_far"] == pytest.approx(1 / 61, abs=1e-4) and found["subjects"] == 60


def test_error_bars_that_cannot_be_had_are_told(tmp_path):
    """Of full k-space nothing can be held out: no file, a line that says so, and no word of a self-check that nobody asked for."""
    kspace = phantom_kspace((40, 36), generator=draw(4)).reshape(1, 1, 40, 36).numpy().astype("complex64")
    write_scan(tmp_path / "full.h5", iter(kspace), kspace.shape, mask=np.ones((40, 36), np.float32))
    command = ["reconstruct", str(tmp_path / "full.h5"), "-o", str(tmp_path / "out"), "--no-flips", "--quiet"]
    with pytest.warns(UserWarning, match="no error bars are written: everything"):
        assert main([*command, "--uncertainty"]) == 0
    sidecar = json.loads((tmp_path / "out" / "full.json").read_text())
    assert not {"self_check", "uncertainty"} & set(sidecar) and any(
        "no error bars" in one for one in sidecar["warnings"]
    )
    assert not (tmp_path / "out" / "full.uncertainty.nii.gz").exists()
