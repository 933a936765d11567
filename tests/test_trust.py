"""Error without a reference: designs, estimates against Monte Carlo and closed forms, and the command."""

import json
import math
from dataclasses import replace
from functools import partial

import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

import mri_n2n
from mri_n2n.acquisition import Acquisition
from mri_n2n.cli import main
from mri_n2n.errors import InputError, NotFoundError, OptionError
from mri_n2n.formats import write_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.phantom import Ellipse, ellipse_kspace, phantom_kspace
from mri_n2n.protocol import one_slice
from mri_n2n.sources import Source
from mri_n2n.trust.agreement import agreement
from mri_n2n.trust.design import design_of
from mri_n2n.trust.error_estimate import Estimate, Level, Terms, estimate, level_of_two, terms_of
from mri_n2n.trust.pair_check import check_pairs
from mri_n2n.trust.population import population_of
from mri_n2n.trust.second_acquisition import Quality, judge

SHAPE = (60, 75)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape, variance: float, generator: torch.Generator) -> torch.Tensor:
    return (variance / 2) ** 0.5 * torch.complex(*(torch.randn(shape, generator=generator) for _ in range(2)))


def error_of_a_prediction(coils: int) -> torch.Tensor:
    """What lacks in k-space (coils, y, x) where samples were missing, as of a poor reconstruction."""
    full = phantom_kspace(SHAPE, generator=draw(1)).reshape(1, *SHAPE).to(torch.complex64)
    missing = 1 - draw_mask("roulette", SHAPE, 3.0, draw(2)).mask
    return missing * full / full.abs().max() * torch.linspace(1, 0.4, coils)[:, None, None]


@pytest.mark.parametrize(
    "kind, acceleration, hermitian, variance",
    [
        ("roulette", 6, False, 0.0),
        ("roulette", 6, True, 1e-5),
        ("gaussian-lines", 4, False, 1e-5),
        ("random-lines", 4, False, 0.0),
        ("two", 4, False, 1e-5),
    ],
)
def test_the_estimate_is_unbiased_and_its_interval_holds(kind, acceleration, hermitian, variance):
    """Over 300 masks and noises: the mean within four standard errors of the truth, which 95 % intervals contain in 90 to 99 %."""
    error, generator, found, held = error_of_a_prediction(3), draw(7), [], 0
    truth = error.abs().double().square().sum().item() / math.prod(SHAPE)
    for _ in range(300):
        several = [
            draw_mask("gaussian-lines" if kind == "two" else kind, SHAPE, acceleration, generator, hermitian=hermitian)
        ]
        several += [draw_mask("gaussian-lines", SHAPE, acceleration, generator)] * (kind == "two")
        seen = [one.mask * (error + noise(error.shape, variance, generator)) for one in several]
        level = Level(torch.tensor(variance))
        if kind == "two":
            level = level_of_two([(seen[0] - seen[1])[:, (several[0].mask * several[1].mask) > 0]])
        parts = [
            (terms_of(residual, one.mask, level.variance).times(1 / len(several)), design_of(one.mask, one.probability))
            for residual, one in zip(seen, several)
        ]
        one = estimate(parts, math.prod(SHAPE), level.doubt)
        found.append(one.value)
        held += one.low <= truth <= one.high
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / 300**0.5
    assert 0.90 <= held / 300 <= 0.99


def test_noise_alone_gives_the_interval_of_full_sampling():
    """Of a fully sampled acquisition nothing is left to chance but noise: variance v^2 + 2 v |d|^2 a sample."""
    error, v, full = torch.full((2, *SHAPE), 0.3 + 0j), 0.2, torch.ones(SHAPE)
    found = [
        estimate([(terms_of(error + noise(error.shape, v, draw(i)), full, v), design_of(full, full))], math.prod(SHAPE))
        for i in range(40)
    ]
    expected = 1.96 * (2 * (v**2 + 2 * v * 0.09) / math.prod(SHAPE)) ** 0.5
    assert np.mean([(one.high - one.low) / 2 for one in found]) == pytest.approx(expected, rel=0.06)
    assert np.mean([one.value for one in found]) == pytest.approx(0.18, rel=0.02)


def test_slices_that_share_a_mask_are_one_draw():
    """Twice the same slice is no more certain than once."""
    error = error_of_a_prediction(1)
    sampling = draw_mask("roulette", SHAPE, 6.0, draw(3))
    design = design_of(sampling.mask, sampling.probability)
    one = terms_of(error, sampling.mask, 0.0)
    once, twice = estimate([(one, design)], 100), estimate([(one + one, design)], 200)
    apart = estimate([(one, design), (one, design)], 200)
    assert twice.value == pytest.approx(once.value) and twice.high - twice.low == pytest.approx(once.high - once.low)
    assert (apart.high - apart.low) == pytest.approx((once.high - once.low) / 2**0.5, rel=0.05)


def test_designs_know_what_was_drawn_together():
    lines = draw_mask("gaussian-lines", SHAPE, 4.0, draw())
    design = design_of(lines.mask, lines.probability)
    assert len(design.probability) == SHAPE[1] and design.group is not None and (design.unit == design.unit[:1]).all()
    turned = design_of(lines.mask.mT.contiguous(), lines.probability.mT.contiguous())
    assert len(turned.probability) == SHAPE[1] and (turned.unit == turned.unit[:, :1]).all()
    points = draw_mask("roulette", SHAPE, 6.0, draw())
    assert len(design_of(points.mask, points.probability).probability) == math.prod(SHAPE)
    pairs = draw_mask("roulette", SHAPE, 6.0, draw(), hermitian=True)
    assert len(design_of(pairs.mask, pairs.probability).probability) == math.prod(SHAPE) // 2 + 1, (
        "two are their own mirror images"
    )
    totals = design.totals(torch.ones(SHAPE))
    assert totals.tolist() == [SHAPE[0]] * SHAPE[1]


@pytest.mark.parametrize("seed", range(5))
def test_lines_at_equal_distances_have_no_interval(seed):
    comb = draw_mask("equispaced-lines", (64, 128), 4.0, draw(seed))
    assert design_of(comb.mask, comb.probability).equidistant
    small = draw_mask("equispaced-lines", (64, 64), 4.0, draw(seed), hermitian=True)
    assert design_of(small.mask, small.probability).equidistant, "mirrored lines count once"
    lines = draw_mask("random-lines", (64, 128), 4.0, draw(seed))
    random = design_of(lines.mask, lines.probability)
    assert not random.equidistant and random.group is not None


def test_an_error_of_nothing_is_nothing():
    full = torch.ones(SHAPE)
    nothing = Terms(torch.zeros(SHAPE), torch.zeros(SHAPE))
    one = estimate([(nothing, design_of(full, full))], 10)
    assert (one.value, one.low, one.high) == (0, 0, 0)


def test_a_noise_level_from_two_acquisitions():
    """Its mean is the variance of each coil, its doubt that of the sum over coils."""
    variance, found = torch.tensor([0.3, 0.1])[:, None], []
    for seed in range(300):
        pair = [
            torch.cat([noise((1, 400), v.item(), draw(1000 * part + 2 * seed + i)) for i, v in enumerate(variance)])
            for part in range(2)
        ]
        found.append(level_of_two([pair[0] - pair[1]]))
    assert torch.stack([one.variance[:, 0, 0] for one in found]).mean(dim=0).tolist() == pytest.approx(
        [0.3, 0.1], rel=0.02
    )
    scatter = np.var([one.variance.sum().item() for one in found])
    assert np.mean([one.doubt for one in found]) == pytest.approx(scatter, rel=0.3)
    assert level_of_two([torch.zeros(2, 20)]) is None and Level(variance).doubt == 0


# ---- do two acquisitions agree? ----


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize(
    "gain, phase, shift",
    [(1.0, 0.0, (0.0, 0.0)), (1.07, 0.0, (0.0, 0.0)), (0.95, 0.4, (0.3, -0.7)), (1.0, -3.0, (5.25, -9.5))],
)
def test_gain_phase_and_shift_are_found(coils, gain, phase, shift):
    """Of noisy k-space of odd and even size, to four of the standard errors that are told, and these are as they scatter."""
    full = phantom_kspace(SHAPE, generator=draw(1)).reshape(1, *SHAPE).to(torch.complex64)
    full = full / full.abs().max() * torch.linspace(1, 0.5, coils)[:, None, None]
    ky, kx = (((torch.arange(n) - n // 2) / n) for n in SHAPE)
    ramp = torch.exp(-2j * torch.pi * (ky[:, None] * shift[0] + kx[None, :] * shift[1]))
    found, told = [], []
    for seed in range(40):
        mask = draw_mask("gaussian-points", SHAPE, 3.0, draw(seed)).mask
        moved = gain * np.exp(1j * phase) * ramp * full + noise(full.shape, 1e-5, draw(seed + 100))
        one = agreement(full, (mask * moved).to(torch.complex64), mask)
        assert one.told and bool(one.differences) == (gain != 1 or phase != 0 or shift != (0.0, 0.0))
        found.append((one.gain, math.remainder(one.phase - phase, 2 * math.pi), *one.shift, one.turn))
        told.append(one.errors)
    wanted, errors = np.array([gain, 0.0, *shift, 0.0]), np.mean(told, axis=0)
    assert (np.abs(np.mean(found, axis=0) - wanted) < 4 * errors / 40**0.5 + 1e-6).all()
    assert np.std(found, axis=0) == pytest.approx(errors, rel=0.4)


@pytest.mark.parametrize("degrees", [-3.0, 1.5])
def test_a_turn_is_found(degrees):
    """Of ellipses in closed form, turned from y towards x, to a tenth of it and with its sign; and it is named. Without one, it is not."""
    middle = [Ellipse((0.02, -0.05), (0.4, 0.3), 0.3, 1.0), Ellipse((-0.1, 0.1), (0.05, 0.15), 0.0, 0.5)]
    ky, kx = np.meshgrid(np.arange(64) - 32.0, np.arange(64) - 32.0, indexing="ij")
    first, second = (
        torch.from_numpy(sum(ellipse_kspace(turned(one, by), ky, kx) for one in middle))[None] for by in (0.0, degrees)
    )
    mask = draw_mask("gaussian-points", (64, 64), 3.0, draw(0)).mask
    of = lambda one, seed: (mask * (one + noise(one.shape, 1e-8, draw(seed)))).to(torch.complex64)  # noqa: E731
    found = agreement(of(first, 1), of(second, 2), mask)
    assert found.turn == pytest.approx(degrees, rel=0.1) and any("turn" in words for words in found.differences)
    assert not agreement(of(first, 1), of(first, 2), mask).differences


def turned(one: Ellipse, degrees: float) -> Ellipse:
    """About the middle, from y towards x."""
    (y, x), angle = one.center, math.radians(degrees)
    center = (y * math.cos(angle) - x * math.sin(angle), y * math.sin(angle) + x * math.cos(angle))
    return replace(one, center=center, angle=one.angle - angle)


def test_too_few_common_samples_say_nothing():
    full = torch.ones(1, *SHAPE, dtype=torch.complex64)
    few = torch.zeros(SHAPE)
    few[30, 35:40] = 1
    assert not agreement(full, full, few).told and not agreement(0 * full, 0 * full, torch.ones(SHAPE)).told
    assert agreement(full, full, few).differences == []


# ---- training pairs ----


def moved(kspace: torch.Tensor, gain: float, phase: float, shift: tuple[float, float]) -> torch.Tensor:
    ky, kx = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in kspace.shape[-2:])
    angle = phase - 2 * torch.pi * (ky[:, None] * shift[0] + kx[None, :] * shift[1])
    return (gain * kspace * torch.polar(torch.ones_like(angle), angle)).to(kspace.dtype)


def repetitions(change=None, seed: int = 0) -> list[Acquisition]:
    """Two undersampled acquisitions of three slices, of the second of which slice 1 is changed."""
    full = torch.stack([phantom_kspace(SHAPE, generator=draw(i)).reshape(1, *SHAPE) for i in range(3)]).to(
        torch.complex64
    )
    full = full / full.abs().max()
    both = []
    for part in range(2):
        sampling = draw_mask("gaussian-points", SHAPE, 3.0, draw(10 * seed + part))
        kspace = full + noise(full.shape, 1e-7, draw(10 * seed + part + 5))
        if part and change:
            kspace[1] = moved(kspace[1], *change)
        both.append(Acquisition(kspace * sampling.mask, sampling.mask[None, None], sampling.probability[None, None]))
    return both


def test_a_spike_does_not_hide_the_other_slices():
    """Which lie far below it, as empty slices do."""

    def load() -> list[Acquisition]:
        both = repetitions((1.5, 0.0, (0.0, 0.0)), 7)
        both[0].kspace[2, 0, 3, 4] = 100.0
        return both

    check = check_pairs([Source("a", "a", 3, load), Source("b", "b", 3, partial(repetitions, None, 8))])
    assert [source.name for source in check.sources] == ["b"] and "gain of 1.5" in check.left_out[0]


def test_pairs_are_corrected_or_left_out_before_training():
    changes = {
        "good": None, "gain": (1.1, 0.0, (0.0, 0.0)), "all": (0.9, 0.5, (0.7, -1.2)), "loud": (1.5, 0.0, (0.0, 0.0)),
        "far": (1.0, 0.0, (4.0, 0.0)),
    }  # fmt: skip
    sources = [
        Source(name, name, 3, partial(repetitions, change, i)) for i, (name, change) in enumerate(changes.items())
    ]
    check = check_pairs(sources)
    assert [source.name for source in check.sources] == ["good", "gain", "all"]
    assert (check.checked, check.corrected, check.untold) == (15, 2, 0)
    assert (
        len(check.left_out) == 2 and "gain of 1.5" in check.left_out[0] and "4.00 pixels along y" in check.left_out[1]
    )
    assert "15 pairs of slices checked, 2 corrected; left out: loud (repetition 2, slice 1" in check.summary
    for number, source in enumerate(check.sources):
        found, wanted = source.load(), repetitions(None, number)
        for one, other in zip(found, wanted):
            assert torch.equal(one.mask, other.mask)
            assert (one.kspace - other.kspace).abs().max() < 5e-3 * other.kspace.abs().max()


@pytest.mark.parametrize("degrees", [0.0, 2.0])
def test_a_turned_repetition_is_left_out(degrees):
    """Which samples that stay where they are cannot follow; the same without the turn is kept, as it is."""
    images = torch.stack([phantom_kspace(SHAPE, generator=draw(i)).reshape(1, *SHAPE) for i in range(3)])
    images = ifft2c(images.to(torch.complex64)).real.numpy()

    def scan(by: float, seed: int) -> Acquisition:
        image = ndimage.rotate(images, by, axes=(-2, -1), reshape=False) if by else images
        sampling = draw_mask("gaussian-points", SHAPE, 3.0, draw(seed))
        full = fft2c(torch.from_numpy(image) + 0j).to(torch.complex64)
        full = full + noise(full.shape, 1e-6 * full.abs().max().item() ** 2, draw(seed + 5))
        return Acquisition(full * sampling.mask, sampling.mask[None, None], sampling.probability[None, None])

    check = check_pairs([Source("turned", "turned", 3, lambda: [scan(0.0, 1), scan(degrees, 2)])])
    assert (check.sources == []) == bool(degrees) and check.corrected == 0
    assert not degrees or "a turn by about" in check.left_out[0]


def test_an_empty_slice_says_nothing_of_where_the_object_is():
    """Noise alone in the first slice of both; of a slice that is empty in one of them alone something is wrong."""

    def scans(both: bool) -> list[Acquisition]:
        made = repetitions()
        for number, one in enumerate(made):
            if both or number:
                one.kspace[0] = one.mask[0] * noise(one.kspace[0].shape, 1e-5, draw(number))
        return made

    check = check_pairs([Source("empty", "empty", 3, lambda: scans(True))])
    assert (len(check.sources), check.corrected, check.untold) == (1, 0, 1)
    assert check_pairs([Source("gone", "gone", 3, lambda: scans(False))]).sources == []


def test_a_corrected_gain_is_taken_out_of_the_noise_level_too():
    told = [replace(one, noise_variance=0.02) for one in repetitions((1.1, 0.0, (0.0, 0.0)))]
    (source,) = check_pairs([Source("gain", "gain", 3, lambda: told)]).sources
    first, second = source.load()
    assert first.noise_variance == 0.02
    assert second.noise_variance.flatten().tolist() == pytest.approx([0.02, 0.02 / 1.1**2, 0.02], rel=1e-3)
    assert one_slice(second, 1, None).noise_variance.item() == pytest.approx(0.02 / 1.1**2, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_training_says_which_pairs_it_leaves_out(tmp_path, capfd):
    for name, shift in (("ann", 0.0), ("bob", 6.0), ("eve", 0.5)):
        for number, one in enumerate(repetitions(), start=1):
            kspace = moved(one.kspace, 1.0, 0.0, (0.0, shift if number == 2 else 0.0))
            planes = {"mask": one.mask[0, 0].numpy(), "probability": one.probability[0, 0].numpy()}
            write_scan(tmp_path / f"{name}_rep{number}.h5", iter(kspace.numpy()), tuple(kspace.shape), **planes)
    command = f"train --dataset pairs --data {tmp_path} -o {tmp_path / 'run'} --steps 1 --channels 4 --validation-subjects none"
    assert main(command.split()) == 0
    said = capfd.readouterr().err
    assert "9 pairs of slices checked, 3 corrected; left out: bob" in said


# ---- files ----


@pytest.fixture(scope="module", params=[1, 3], ids=["one coil", "3 coils"])
def study(tmp_path_factory, request):
    """A volume measured four times, three times undersampled with noise and once wholly, and the first one reconstructed."""
    folder = tmp_path_factory.mktemp("study")
    images = [ifft2c(phantom_kspace((72, 64), generator=draw(i)))[0].abs().numpy() for i in range(3)]
    nibabel.save(
        nibabel.Nifti1Image(np.stack(images, axis=-1).transpose(1, 0, 2) * 700, np.eye(4)), folder / "v.nii.gz"
    )
    options = mri_n2n.SimulationOptions(mask="gaussian-points", acceleration=3.0, noise=0.02, coils=request.param)
    mri_n2n.simulate(folder / "v.nii.gz", folder / "s.h5", replace(options, repetitions=3))
    mri_n2n.simulate(folder / "v.nii.gz", folder / "truth.h5", replace(options, acceleration=1.0, noise=0.0))
    for number, name in enumerate(("first", "second", "third"), start=1):
        (folder / f"s_rep{number}.h5").rename(folder / f"{name}.h5")
    mri_n2n.reconstruct(folder / "first.h5", folder / "o", baseline="sense" if request.param > 1 else "zero-filled")
    return folder


def test_a_full_second_acquisition_gives_the_error_itself(study):
    judged = judge(study / "o" / "first.h5", study / "truth.h5")
    with h5py.File(study / "o" / "first.h5") as result, h5py.File(study / "truth.h5") as truth:
        image = result["image"][()]
        maps = result["sensitivity_maps"][()] if "sensitivity_maps" in result else np.ones((len(image), 1, 1, 1))
        coils = ifft2c(torch.from_numpy(truth["kspace"][()]).reshape(len(image), -1, *image.shape[1:])).numpy()
    error = np.square(np.abs(maps * image[:, None] - coils)).sum(axis=1)
    assert judged.volume.mse.value == pytest.approx(error.mean(), rel=1e-4)
    assert judged.volume.mse.low == pytest.approx(judged.volume.mse.high, rel=1e-9), "nothing is left to chance"
    assert [one.mse.value for one in judged.slices] == pytest.approx(error.mean(axis=(1, 2)).tolist(), rel=1e-4)
    peak = np.abs(image).max()
    assert judged.peak == pytest.approx(peak) and judged.coverage == 1
    assert judged.volume.psnr.value == pytest.approx(10 * np.log10(peak**2 / error.mean()), abs=1e-3)


@pytest.mark.parametrize("second, third", [("second", None), ("third", None), ("second", "third")])
def test_an_undersampled_second_acquisition_estimates_it(study, second, third):
    """The interval, wider by half as 1 in 20 misses, contains the truth."""
    truth = judge(study / "o" / "first.h5", study / "truth.h5").volume.mse.value
    found = judge(study / "o" / "first.h5", study / f"{second}.h5", third and study / f"{third}.h5").volume
    assert abs(found.mse.value - truth) < 0.75 * (found.mse.high - found.mse.low)
    assert found.mse.high - found.mse.low < 1.5 * truth
    assert found.psnr.low < found.psnr.value < found.psnr.high


def test_the_command_says_it_in_words_and_json(study, capsys):
    command = ["evaluate", str(study / "o" / "first.h5"), "--second-acquisition", str(study / "second.h5")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "without a reference" in text and "Simulated" in text and "slice 2" in text
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["third_acquisition"] is None and told["noise_deviation"] > 0
    assert main([*command, "--axis", "0"]) == 2 and "--axis" in capsys.readouterr().err
    assert told["image"] == "complex" and told["interval"] == "scan" and len(told["per_slice"]) == 3
    for name in ("mse", "psnr", "nmse"):
        assert told[name]["low"] < told[name]["value"] < told[name]["high"]
    assert main(["evaluate", "a", "--reference", "b", "--third-acquisition", "c"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "a"])


def test_the_verb_in_python_is_the_command(study):
    """The same dataclasses as of the functions behind it; what does not go together is refused."""
    result, second, third = (study / name for name in ("o/first.h5", "second.h5", "third.h5"))
    assert mri_n2n.evaluate(str(result), second_acquisition=str(second)) == judge(result, second)
    found = mri_n2n.evaluate(result, second_acquisition=second, third_acquisition=third)
    assert found == judge(result, second, third) and found.third == "third.h5"
    image = h5py.File(result)["reconstruction"][()]
    for options, says in (
        ({"reference": second, "second_acquisition": second}, "either a reference or a second"),
        ({}, "either a reference or a second"),
        ({"reference": result, "third_acquisition": third}, "goes with"),
        ({"second_acquisition": second, "axis": 0}, "axis"),
        ({"second_acquisition": image}, "judges files"),
    ):
        with pytest.raises(OptionError, match=says):
            mri_n2n.evaluate(result, **options)
    with pytest.raises(OptionError, match="judges files"):
        mri_n2n.evaluate(image, second_acquisition=second)
    with pytest.raises(NotFoundError):
        mri_n2n.evaluate(result.parent, second_acquisition=second)


def test_directories_have_an_interval_over_scans(study, tmp_path, capsys):
    """Partners by name, without _rep1 and _rep2; the mean of what each scan says, and the bootstrap's spread of it."""
    results, seconds = tmp_path / "results", tmp_path / "seconds"
    results.mkdir()
    seconds.mkdir()
    for name in ("ann", "bob"):
        (results / f"{name}_rep1.h5").write_bytes((study / "o" / "first.h5").read_bytes())
        source = study / ("second.h5" if name == "ann" else "third.h5")
        (seconds / f"{name}_rep2.h5").write_bytes(source.read_bytes())
    (results / "eve.h5").write_bytes((study / "o" / "first.h5").read_bytes())
    command = ["evaluate", str(results), "--second-acquisition", str(seconds)]
    assert len(mri_n2n.evaluate(results, second_acquisition=seconds).scans) == 2
    assert main(command) == 0
    assert "eve.h5" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    values = [scan["mse"]["value"] for scan in told["scans"]]
    assert told["interval"] == "population" and told["mse"]["value"] == pytest.approx(np.mean(values))
    assert told["mse"]["low"] == pytest.approx(min(values)) and told["mse"]["high"] == pytest.approx(max(values))
    assert main(["evaluate", str(results), "--second-acquisition", str(study / "second.h5")]) == 5
    (seconds / "ann_rep3.h5").write_bytes(b"")
    assert main(command) == 3 and "one name" in capsys.readouterr().err


def test_the_bootstrap_of_the_mean_covers_it():
    """Of 20 normal scans in about 93 % of the studies."""
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        values = random.normal(5, 1, 20)
        scans = [Quality(*(3 * (Estimate(value, value, value),))) for value in values]
        one = population_of(scans).psnr
        held += one.low <= 5 <= one.high
    assert 0.87 <= held / 200 <= 0.98 and population_of(scans[:1]) is None


def edited(path, source, change):
    """A copy of a scan, changed in place."""
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_what_breaks_the_estimate_is_refused(study, tmp_path):
    result = study / "o" / "first.h5"
    without = edited(tmp_path / "p.h5", study / "second.h5", lambda file: file.__delitem__("probability"))
    with pytest.raises(InputError, match="probability"):
        judge(result, without)
    quiet = edited(tmp_path / "n.h5", study / "second.h5", lambda file: file.attrs.__delitem__("noise_variance"))
    with pytest.raises(InputError, match="third-acquisition"):
        judge(result, quiet)
    assert judge(result, quiet, study / "third.h5").noise.startswith("from the difference")
    for both in (
        ("second", "first"),
        ("first", "second"),
    ):  # one that has a part in the image, behind one that has none
        with pytest.raises(InputError, match="closer|made of its samples"):
            judge(result, *(study / f"{name}.h5" for name in both))
    away = edited(
        tmp_path / "away.h5", study / "second.h5", lambda f: f.attrs.__setitem__("affine", np.diag([1, 1, 1, 1]) + 9.0)
    )
    with pytest.raises(InputError, match="different places"):
        judge(result, away)
    other = edited(
        tmp_path / "other.h5", study / "third.h5", lambda f: f["kspace"].__setitem__(..., f["kspace"][()][[1, 2, 0]])
    )
    with pytest.raises(InputError, match="more than noise|differ in slice"):
        judge(result, study / "second.h5", other)
    with pytest.raises(InputError, match="very same samples"):
        judge(result, quiet, study / "second.h5")
    loud = edited(tmp_path / "l.h5", study / "second.h5", lambda f: f.attrs.__setitem__("noise_variance", 1e9))
    with pytest.raises(InputError, match="closer"):
        judge(result, loud)
    with pytest.raises(InputError, match="no result"):
        judge(study / "second.h5", study / "first.h5")
    volume = tmp_path / "w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((64, 70, 3), np.float32), np.eye(4)), volume)
    mri_n2n.simulate(volume, tmp_path / "w.h5", mri_n2n.SimulationOptions(acceleration=2.0))
    with pytest.raises(InputError, match="was made of"):
        judge(result, tmp_path / "w.h5")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda k, y, x: 1.1 * k, "gain of 1.1"),
        (lambda k, y, x: np.exp(0.3j) * k, "phase of 0.30"),
        (lambda k, y, x: k * np.exp(-2j * np.pi * 0.5 * x), r"0\.(49|50|51) along x"),
        (lambda k, y, x: k * np.exp(2j * np.pi * 1.5 * y), r"-1\.(49|50|51) pixels along y"),
    ],
)
def test_another_gain_phase_or_place_is_refused(study, tmp_path, change, says):
    def changed(file):
        kspace = file["kspace"][()]
        y, x = (((np.arange(n) - n // 2) / n) for n in kspace.shape[-2:])
        file["kspace"][...] = change(kspace, y[:, None], x[None, :])

    other = edited(tmp_path / "other.h5", study / "second.h5", changed)
    with pytest.raises(InputError, match=says):
        judge(study / "o" / "first.h5", other)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
@pytest.mark.parametrize("third", [None, "third"])
def test_the_estimate_has_the_units_of_the_scans(study, tmp_path, scale, third):
    """Whose squares float32 does not hold."""

    def changed(file):
        for name in ("kspace", "image", "reconstruction"):
            if name in file:
                file[name][...] = file[name][()] * scale
        if "noise_variance" in file.attrs:
            file.attrs["noise_variance"] = file.attrs["noise_variance"] * scale**2

    places = {"first": study / "o" / "first.h5", **({} if third is None else {third: study / "third.h5"})}
    places["second"] = study / "second.h5"
    scaled = {name: edited(tmp_path / f"{name}.h5", path, changed) for name, path in places.items()}
    found = judge(scaled["first"], scaled["second"], scaled.get(third)).volume.nmse
    expected = judge(places["first"], places["second"], places.get(third)).volume.nmse
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-4
    )


def test_an_image_without_intensity_is_not_judged(study, tmp_path):
    def changed(file):
        file["image"][...] = 0

    with pytest.raises(InputError, match="zero everywhere"):
        judge(edited(tmp_path / "first.h5", study / "o" / "first.h5", changed), study / "second.h5")


def test_the_samples_of_the_image_itself_are_refused(tmp_path):
    """Hard data consistency has them in it: the estimate would be zero."""
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((40, 33, 2)).astype(np.float32), np.eye(4)),
        tmp_path / "v.nii.gz",
    )
    mri_n2n.simulate(tmp_path / "v.nii.gz", tmp_path / "s.h5", mri_n2n.SimulationOptions(acceleration=3.0))
    mri_n2n.reconstruct(tmp_path / "s.h5", tmp_path / "o", baseline="zero-filled")
    with pytest.raises(InputError, match="says nothing"):
        judge(tmp_path / "o" / "s.h5", tmp_path / "s.h5")
