"""Which weights are kept: paired differences, their rule, and trainings without a reference that go by it."""

import json
import math
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_train import SUBJECTS, equal, interrupt, options, volume

from mri_n2n.acquisition import Acquisition
from mri_n2n.checkpoint import load_network, load_tensors
from mri_n2n.cli import main
from mri_n2n.datasets import find_sources
from mri_n2n.errors import UserError
from mri_n2n.fourier import fft2c
from mri_n2n.masks import Sampling, draw_mask
from mri_n2n.options import check_options
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol
from mri_n2n.quality import draw_curve, in_words
from mri_n2n.selection import SLICES, Standing, after, difference, from_tensors, to_tensors
from mri_n2n.simulation import SimulationOptions, simulate_file
from mri_n2n.training import train
from mri_n2n.trust.held_out import held_out
from mri_n2n.validation import judges, validation_set

training = import_module("mri_n2n.training")  # the module: `mri_n2n.train` is the verb

SHAPE = (45, 52)
PIXELS = math.prod(SHAPE)


def draw(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(1000**i * one for i, one in enumerate(seed)))


def noise(shape, variance: float, generator: torch.Generator) -> torch.Tensor:
    return (variance / 2) ** 0.5 * torch.complex(*(torch.randn(shape, generator=generator) for _ in range(2)))


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K-space (3 slices, 1, y, x) of largest magnitude 1 in the image, and two images of it (3, 1, y, x), the second a little better."""
    full = torch.stack([phantom_kspace(SHAPE, generator=draw(i)).reshape(1, *SHAPE) for i in range(3)])
    full = full.to(torch.complex64)
    worse = full * (1 - 0.30 * (1 - draw_mask("roulette", SHAPE, 3.0, draw(8)).mask))
    better = full * (1 - 0.28 * (1 - draw_mask("roulette", SHAPE, 3.0, draw(8)).mask)) + noise(
        full.shape, 1e-5, draw(9)
    )
    inverse = lambda k: torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(k, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )  # noqa: E731
    peak = inverse(full).abs().max()
    return full / peak, inverse(worse) / peak, inverse(better) / peak


def repetitions(full, kind: str, variance: float, generator, count: int = 1, says: bool = True):
    """Of each slice `count` further acquisitions; slices share a mask."""
    if kind == "full":
        samplings = count * [Sampling(torch.ones(SHAPE), torch.ones(SHAPE))]
    else:
        samplings = [draw_mask(kind, SHAPE, 3.0, generator) for _ in range(count)]
    return [
        tuple(
            Acquisition(
                s.mask * (one[None] + noise((1, *one.shape), variance, generator)),
                s.mask[None, None],
                s.probability[None, None],
                noise_variance=variance if says else None,
            )
            for s in samplings
        )
        for one in full
    ]


def found_by(by, images):
    """(quality, errors) of images."""
    terms = {}
    for number, image in enumerate(images):
        for name, one in by.terms(number, image[None], None).items():
            terms[name] = terms[name] + one if name in terms else one
    return by.quality(terms), {name: one.error for name, one in terms.items()}


# ---- paired differences ----


@pytest.mark.parametrize(
    ("kind", "variance", "at_most"), [("roulette", 1e-4, 2.2), ("gaussian-lines", 1e-4, 2.2), ("full", 1e-3, 7)]
)
def test_a_difference_is_unbiased_and_its_standard_error_is_an_upper_bound(kind, variance, at_most):
    """Over 150 masks and noises: the mean within four standard errors of the truth; the standard error that is told not below the
    scatter (but for the chance of both), nor far above it; and far below what each estimate by itself has."""
    full, worse, better = scene()
    truth = sum((fft2c(a) - full).abs().double().square().sum() * s for a, s in ((better, 1), (worse, -1))).item()
    values, errors, alone = [], [], []
    for seed in range(150):
        by = held_out(["a"] * 3, repetitions(full, kind, variance, draw(seed, 4)))
        (quality, first), (_, second) = (found_by(by, images) for images in (worse, better))
        value, error = difference(second, first, by.designs)
        assert difference(first, second, by.designs) == pytest.approx((-value, error))
        values.append(value)
        errors.append(error)
        alone.append((quality["mse_high"] - quality["mse_low"]) / 4 * 3 * PIXELS)
    scatter = np.std(values)
    assert abs(np.mean(values) - truth) < 4 * scatter / 150**0.5
    assert 0.85 * scatter < np.mean(errors) < at_most * scatter
    assert truth < -5 * np.mean(errors) and np.mean(errors) < 0.6 * np.mean(alone)


def test_the_noise_level_has_no_part_in_a_difference():
    full, worse, better = scene()
    known = held_out(["a"] * 3, repetitions(full, "roulette", 1e-4, draw(1)))
    unknown = held_out(["a"] * 3, repetitions(full, "roulette", 1e-4, draw(1), says=False))
    assert known.noise == "as the scans say" and unknown.noise is None
    pairs = [[found_by(by, images)[1] for images in (worse, better)] for by in (known, unknown)]
    told = [difference(one[1], one[0], by.designs) for one, by in zip(pairs, (known, unknown))]
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_a_difference_of_slices_is_their_mean_with_its_standard_error():
    errors = [{SLICES: torch.tensor(values, dtype=torch.float64)} for values in ([-30.0, -31, -35], [-30.5, -31, -34])]
    assert difference(errors[1], errors[0], {}) == pytest.approx((0.5 / 3, np.std([-0.5, 0, 1], ddof=1) / 3**0.5))
    single = [{SLICES: torch.tensor([value], dtype=torch.float64)} for value in (2.0, 3.0)]
    assert difference(single[1], single[0], {}) == (1.0, 0.0)


# ---- the rule ----


def slices_of(mean: float, spread: float = 0.0) -> dict:
    """Errors of four slices whose differences from those of spread 0 have the standard error spread / sqrt(3)."""
    return {SLICES: mean + spread * torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)}


def followed(*errors: dict) -> list[Standing]:
    standings, standing = [], None
    for one in errors:
        standing = after(standing, one, {})
        standings.append(standing)
    return standings


def test_later_weights_are_kept_unless_they_are_worse_beyond_uncertainty():
    within, beyond = followed(slices_of(0), slices_of(0.5, 1.0)), followed(slices_of(0), slices_of(0.7, 1.0))
    assert [one.keep for one in within] == [True, True] and [one.keep for one in beyond] == [True, False]
    assert [one.keep for one in followed(slices_of(0), slices_of(0), slices_of(1e-9))] == [True, True, False]


def test_small_steps_down_do_not_add_up():
    """Each within uncertainty of the one before, and together far from the best."""
    keep = [one.keep for one in followed(*(slices_of(0.4 * i, (-1) ** i * 0.5) for i in range(5)))]
    assert keep == [True, True, False, False, False]


def test_patience_counts_from_the_last_improvement_beyond_uncertainty():
    standings = followed(slices_of(0), slices_of(-0.3, 1.0), slices_of(-0.2, 1.0), slices_of(-0.9, 1.0), slices_of(0))
    assert [one.since for one in standings] == [0, 1, 2, 0, 1]
    assert [one.exhausted(2) for one in standings] == [False, False, True, False, False]
    assert not any(one.exhausted(None) for one in standings)
    # Improvements too small to be seen from one to the next are seen once they are enough together.
    small = followed(*(slices_of(-0.25 * i, i % 2 * 1.0) for i in range(8)))
    assert max(one.since for one in small) < 4 and small[-1].since < 3


def test_a_standing_survives_a_checkpoint():
    one = followed(slices_of(0), slices_of(-0.3, 1.0))[-1]
    kept = to_tensors(one)
    again = from_tensors(*({SLICES: kept[f"{part}.{SLICES}"]} for part in ("best", "landmark")), one.since)
    assert after(again, slices_of(0.1), {}).since == after(one, slices_of(0.1), {}).since == 2
    assert from_tensors({}, {}, 0) is None and to_tensors(None) == {}


# ---- estimates ----


@pytest.mark.parametrize(("count", "says"), [(1, True), (2, True), (2, False), (1, False)])
def test_the_interval_of_a_validation_holds_the_truth(count, says):
    """Over 120 masks and noises, of a stated noise level or one from the difference of two; of neither it is of the error with its noise."""
    full, images, _ = scene()
    truth = ((fft2c(images) - full).abs().double().square().sum() / (3 * PIXELS)).item()
    psnr, held, values = -10 * math.log10(truth), 0, []
    for seed in range(120):
        by = held_out(["a"] * 3, repetitions(full, "roulette", 3e-5, draw(seed, 6), count, says))
        quality, _ = found_by(by, images)
        if count == 1 and not says:
            assert set(quality) == {"error_with_noise", "error_with_noise_low", "error_with_noise_high"}
            values.append(quality["error_with_noise"] - 3e-5)
        else:
            assert quality["psnr_low"] < quality["psnr"] < quality["psnr_high"]
            held += quality["psnr_low"] < psnr < quality["psnr_high"]
            values.append(quality["mse"])
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / 120**0.5
    assert held >= 0.88 * 120 or (count == 1 and not says)


def test_two_scans_have_noise_levels_of_their_own():
    full, images, _ = scene()
    several = repetitions(full[:1], "roulette", 1e-2, draw(1), 2, says=False)
    several += repetitions(full[1:], "roulette", 1e-4, draw(2), 2, says=False)
    by = held_out(["a", "b", "b"], several)
    told = [one[0].item() for one in by.variances]
    assert told[0] == pytest.approx(1e-2, rel=0.2) and told[1] == told[2] == pytest.approx(1e-4, rel=0.2)
    assert by.noise == "from the difference of two" and by.coverage == 1 and by.doubt > 0
    mixed = held_out(["a", "b", "b"], [several[0][:1], *several[1:]])  # of one scan nothing tells the noise
    assert (
        mixed.noise is None
        and "including its noise" in mixed.words
        and found_by(mixed, images)[0]["error_with_noise"] > 1e-3
    )


def test_words_and_curves_of_errors_that_cannot_be_told_from_zero(tmp_path):
    bounded = {"psnr": 31.234, "psnr_low": 30.0, "psnr_high": None}
    assert in_words(bounded) == "PSNR 31.23 dB (30 or more)"
    assert in_words({**bounded, "psnr": None}) == "PSNR at least 30 dB" and in_words({}) == ""
    assert in_words({"psnr": 31.234}) == "PSNR 31.23 dB"
    assert in_words({**bounded, "psnr_low": None}) == "PSNR beyond what can be told"
    draw_curve([{"step": 3, **bounded}, {"step": 5, **bounded, "psnr": None}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
    draw_curve([{"step": 3}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# ---- trainings ----


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Three subjects, each measured twice, and what nobody measured: the last one's full k-space without noise."""
    root = tmp_path_factory.mktemp("study")
    (root / "pairs").mkdir()
    for number, subject in enumerate(SUBJECTS):
        file = volume(root / f"{subject}_T1.nii.gz", (45, 52), slices=4, seed=10 * number)
        measured = SimulationOptions(acceleration=3, repetitions=2, noise=0.01, seed=number)
        simulate_file(file, root / "pairs" / f"{subject}_T1.h5", measured)
    simulate_file(file, root / "truth.h5", SimulationOptions(acceleration=1))
    return root


def entries(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def measured(study: Path, **changes):
    return options("pairs", study, **{"steps": 6, "validate_every": 0.0, "learning_rate": 4e-3, **changes})


def true_psnr(study: Path, run: Path) -> float:
    """Of the saved weights, against the k-space that nobody measured, on the scale on which the scan was trained on."""
    (source,) = find_sources("pairs", study / "pairs").validation
    with h5py.File(study / "truth.h5") as file, h5py.File(study / "pairs" / "eve_T1_rep1.h5") as first:
        full = torch.from_numpy(file["kspace"][()]).reshape(4, 1, 45, 52)
        scale = source.load()[0].kspace.abs().max().item() / np.abs(first["kspace"][()]).max()
    network, _ = load_network(run / "weights.safetensors")
    items = validation_set([source], Protocol(acceleration=(3.0, 3.0)))
    error = [network(item.first)[0, 0] - ideal for item, ideal in zip(items, _images(scale * full))]
    return -10 * math.log10(torch.stack(error).abs().double().square().mean().item())


def _images(kspace: torch.Tensor) -> torch.Tensor:
    shifted = torch.fft.ifftshift(kspace[:, 0], dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=(-2, -1))


def test_a_training_without_references_shows_a_psnr_whose_interval_holds_the_truth(study, tmp_path, capfd):
    result = train(measured(study, quiet=False), tmp_path)
    assert "validation: error of 4 slices from further repetitions, noise as the scans say" in capfd.readouterr().err
    log = entries(tmp_path)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6] and all(
        entry["psnr_low"] < entry["psnr"] < entry["psnr_high"] and "validation_loss" not in entry for entry in log
    )
    (of_weights,) = [entry for entry in log if entry["step"] == result.kept_step]
    assert of_weights["kept"] and of_weights["psnr_low"] < true_psnr(study, tmp_path) < of_weights["psnr_high"]
    assert of_weights["psnr_high"] - of_weights["psnr_low"] < 4
    header = load_tensors(tmp_path / "weights.safetensors")[1]
    assert header["step"] == result.kept_step and not {"kept", "since"} & set(header)
    assert header["quality"] == {name: of_weights[name] for name in header["quality"]} == result.quality
    assert (tmp_path / "curve.png").exists() and main(["info", str(tmp_path)]) == 0
    assert f"validation       PSNR {result.psnr:.4g} dB (" in capfd.readouterr().out


def without_noise_level(study: Path, folder: Path) -> Path:
    (folder / "pairs").mkdir()
    for path in (study / "pairs").iterdir():
        (folder / "pairs" / path.name).write_bytes(path.read_bytes())
        with h5py.File(folder / "pairs" / path.name, "r+") as file:
            del file.attrs["noise_variance"]
    return folder


def test_an_unknown_noise_level_makes_no_psnr(study, tmp_path, capfd):
    result = train(measured(without_noise_level(study, tmp_path), quiet=False), tmp_path / "run")
    assert "including its noise, whose level is not known" in capfd.readouterr().err
    for entry in entries(tmp_path / "run"):
        assert entry["error_with_noise_low"] < entry["error_with_noise"] < entry["error_with_noise_high"]
        assert not any("psnr" in name for name in entry)
    assert result.psnr is None and in_words(result.quality).startswith("squared error including noise")
    assert (tmp_path / "run" / "curve.png").exists()


def test_lines_at_equal_distances_leave_the_squared_error(tmp_path):
    """From one draw no interval can be told: training goes on without."""
    (tmp_path / "pairs").mkdir()
    for number, subject in enumerate(SUBJECTS):
        file = volume(tmp_path / f"{subject}_T1.nii.gz", (32, 128), slices=1, seed=10 * number)
        comb = SimulationOptions(mask="equispaced-lines", acceleration=4, repetitions=2, noise=0.01, seed=number)
        simulate_file(file, tmp_path / "pairs" / f"{subject}_T1.h5", comb)
    with pytest.warns(UserWarning, match="without an estimate of the error: .* equal distances"):
        train(measured(tmp_path, steps=1), tmp_path / "run")
    assert {"validation_loss"} == set(entries(tmp_path / "run")[0]) - {"step", "epoch", "seconds", "loss", "kept"}


def ruined(monkeypatch, after_step: int) -> None:
    """From a step on the learning rate is absurd."""
    schedule = training.set_schedule

    def absurd(optimizer, chosen, progress):
        schedule(optimizer, chosen, progress)
        optimizer.param_groups[0]["lr"] = 0.3 if progress * chosen.steps >= after_step else chosen.learning_rate

    monkeypatch.setattr(training, "set_schedule", absurd)


@pytest.mark.parametrize("dataset", ["pairs", "nifti"])
def test_a_training_that_is_ruined_keeps_the_weights_from_before(dataset, study, tmp_path, monkeypatch):
    """Without a reference and with one; what is kept is what a training has that ends there."""
    data = study
    if dataset == "nifti":
        data = tmp_path
        (data / "nifti").mkdir()
        for subject in SUBJECTS:
            volume(data / "nifti" / f"{subject}_T1.nii.gz", (24, 20), slices=3)
    chosen = replace(measured(data, average=0.0, steps=8), dataset=dataset, data=str(data / dataset))
    ruined(monkeypatch, 4)
    result = train(chosen, tmp_path / "run")
    log = entries(tmp_path / "run")
    assert result.kept_step <= 4 and not any(entry["kept"] for entry in log[4:])
    assert log[-1]["psnr"] < log[3]["psnr"] - 1 and result.psnr == log[result.kept_step - 1]["psnr"]
    weights, checkpoint = (
        load_tensors(tmp_path / "run" / f"{name}.safetensors")[0] for name in ("weights", "checkpoint")
    )
    assert not all(torch.equal(value, checkpoint[f"average.{name}"]) for name, value in weights.items())
    train(replace(chosen, steps=result.kept_step), tmp_path / "short")
    assert equal(tmp_path / "run", tmp_path / "short", "weights.safetensors")


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_run_makes_the_same_choices(stop, study, tmp_path, monkeypatch):
    """Interrupted before, when and after the weights that are kept were taken; and it stops at the same step, for the same reason."""
    chosen = measured(study, average=0.0, steps=12, patience=4)
    ruined(monkeypatch, 4)
    whole = train(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, stop, signal.SIGTERM)
        assert not train(chosen, tmp_path / "parts").finished
    parts = train(chosen, tmp_path / "parts", resume=True)
    assert whole.finished and whole.stopped == parts.stopped == "patience" and whole.steps == parts.steps < 12
    for name in ("checkpoint.safetensors", "weights.safetensors"):
        assert equal(tmp_path / "whole", tmp_path / "parts", name)
    without_time = [
        [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries(tmp_path / run)]
        for run in ("whole", "parts")
    ]
    assert without_time[0] == without_time[1] and parts.quality == whole.quality


def test_patience_without_validations_is_refused(study):
    with pytest.raises(UserError, match="leave out --validation-subjects none"):
        check_options(measured(study, patience=2, validation_subjects=("none",)))


def test_patience_ends_a_training_and_says_so(study, tmp_path, monkeypatch, capfd):
    chosen = measured(study, average=0.0, steps=12, patience=2, quiet=False)
    ruined(monkeypatch, 4)
    result = train(chosen, tmp_path)
    assert result.finished and result.stopped == "patience" and result.steps < 12 and result.kept_step <= 4
    line = (
        f"stopped: no improvement beyond uncertainty in 2 validations; the weights are those of step {result.kept_step}"
    )
    assert line in capfd.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["stopped"] == "patience"
    assert ["stopped" in entry for entry in entries(tmp_path)] == [False] * (result.steps - 1) + [True]
    again = train(chosen, tmp_path, resume=True)  # which has ended
    assert (again.steps, again.kept_step, again.stopped) == (result.steps, result.kept_step, "patience")
    assert json.loads((tmp_path / "run.json").read_text())["stopped"] == "patience"
    longer = train(replace(chosen, patience=None, quiet=True), tmp_path, resume=True)
    assert longer.steps == 12 and longer.stopped is None and longer.kept_step == result.kept_step
    assert "stopped" not in json.loads((tmp_path / "run.json").read_text())


def test_patience_of_the_command_line(study, tmp_path, capsys):
    command = ["train", "--dataset", "pairs", "--data", str(study / "pairs"), "--steps", "1", "--channels", "4"]
    assert main([*command, "--quiet", "--patience", "0", "-o", str(tmp_path / "none")]) == UserError.exit_code
    assert "--patience must be at least 1; got 0" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert main([*command, "--cascades", "1", "--quiet", "--patience", "3", "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "1 steps" in said and "validation: PSNR" in said and " dB (" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["patience"] == 3


def test_a_run_of_an_earlier_version_goes_on(study, tmp_path):
    """Its checkpoint knows nothing of weights that are kept."""
    from mri_n2n.checkpoint import save_tensors

    train(measured(study, steps=2), tmp_path)
    tensors, header = load_tensors(tmp_path / "checkpoint.safetensors")
    earlier = {name: value for name, value in tensors.items() if not name.startswith(("kept.", "standing."))}
    del header["kept"], header["since"], header["training"]["patience"]
    save_tensors(tmp_path / "checkpoint.safetensors", earlier, header)
    again = train(measured(study, steps=2), tmp_path, resume=True)
    assert (again.kept_step, again.steps, again.quality) == (2, 2, header["quality"])
    assert train(measured(study, steps=4), tmp_path, resume=True).steps == 4


def test_single_scans_have_no_estimate(study):
    (source,) = find_sources("pairs", study / "pairs").validation
    alone = replace(source, load=lambda: source.load()[:1])
    assert judges(validation_set([alone], Protocol(acceleration=(3.0, 3.0)))) is None
    assert judges([]) is None
