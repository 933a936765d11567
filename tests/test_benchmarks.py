"""The machinery behind docs/benchmarks.md: that what is compared exists, and one cell from training to table, small."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mri_n2n import cli, process
from mri_n2n.benchmarks import BENCHMARKS, ablation, budget, corruptions, listing, methods, noise2void, peers, run
from mri_n2n.benchmarks.common import Setting, peak_memory, steps_in, write_section
from mri_n2n.benchmarks.peers import anscombe, blurred_spectrum, bm3d_of, from_anscombe
from mri_n2n.benchmarks.subjects import PHANTOM_SLICES, phantom_folder, subjects_in
from mri_n2n.benchmarks.subjects import test_sources as find_test_sources
from mri_n2n.corruptions import BROWN_DEVIATION, corrupted_kspace
from mri_n2n.denoising.whiteness import measure_whiteness
from mri_n2n.errors import InputError, NotFoundError, UserError
from mri_n2n.formats import open_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.options import check_options
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import simulated_repetitions
from mri_n2n.training import new_network

SMALL = 32


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Phantom volumes under the names of the five subjects."""
    folder = tmp_path_factory.mktemp("volumes")
    for seed, subject in enumerate(("01", "03", "04", "09", "12")):
        images = [
            ifft2c(phantom_kspace((SMALL, SMALL), generator=torch.Generator().manual_seed(10 * seed + i)))[0].abs()
            for i in range(3)
        ]
        image = nibabel.Nifti1Image(torch.stack(images).numpy().T.astype(np.float32), np.eye(4))
        nibabel.save(image, folder / f"patient{subject}_study1_T1W.nii.gz")
    return folder


def test_every_benchmark_is_listed_with_its_question():
    assert [line.split()[0] for line in listing().splitlines()] == list(BENCHMARKS)
    modules = {path.stem for path in Path(methods.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "common", "subjects", "peers"} == set(BENCHMARKS)


def test_whom_the_benchmarks_test_and_choose_on(volumes, tmp_path):
    """Of open_ms as published; of other data the last subjects by name; nobody from data of two."""
    assert subjects_in(volumes) == ("patient04", "patient12")
    phantoms = phantom_folder(tmp_path / "phantoms", SMALL)
    assert subjects_in(phantoms) == ("phantom5", "phantom4")
    [test] = find_test_sources(phantoms, SMALL)
    assert test.subject == "phantom5" and test.load().shape == (PHANTOM_SLICES, 1, SMALL, SMALL)
    written = {path: path.stat().st_mtime_ns for path in phantoms.iterdir()}
    phantom_folder(tmp_path / "phantoms", SMALL)
    assert written == {path: path.stat().st_mtime_ns for path in phantoms.iterdir()}
    for path in sorted(phantoms.iterdir())[:3]:
        path.unlink()
    with pytest.raises(NotFoundError, match="volumes of phantom4, phantom5; at least three subjects"):
        subjects_in(phantoms)
    options = methods.options_of(volumes, methods.CELLS["roulette"], {"method": "noise2noise"}, 1)
    assert (options.excluded_subjects, options.validation_subjects) == (("patient04",), ("patient12",))


@pytest.mark.parametrize("name", methods.CELLS)
def test_what_a_cell_compares_is_in_it(name, volumes):
    cell = methods.CELLS[name]
    there = {*cell.methods, *cell.baselines, methods.BEST, *([methods.ONE_PASS] if methods.N2N in cell.methods else [])}
    assert {label for first, second, _ in cell.wanted for label in (first, second)} <= there
    for changes in cell.methods.values():
        check_options(methods.options_of(volumes, cell, changes, 1))


@pytest.mark.parametrize("label", ablation.VARIANTS)
def test_variants_of_the_ablation_can_be_trained(label, volumes):
    options = ablation.variant_options(volumes, label, 1, seed=1)
    assert options.protocol.seed == 1
    check_options(options)
    with torch.device("meta"):
        network = new_network(options, torch.device("meta"), "float32")
    assert network.checkpointing == (label == "activations computed again")


def test_parts_of_a_benchmark_are_written_one_by_one_and_in_their_order(tmp_path):
    document, order = tmp_path / "benchmarks.md", ("a", "b", "c")
    document.write_text("# Benchmarks\n\nHead.\n")
    write_section(document, "other", "## Other\n\n", "first")
    for part, text in (("c", "3"), ("a", "1"), ("c", "4")):
        write_section(document, "many", "## Many\n\n", f"### {part}\n\n{text}", part, order)
    write_section(document, "other", "## Other\n\n", "second")
    lines = [line for line in document.read_text().splitlines() if line and not line.startswith("<!--")]
    assert lines == ["# Benchmarks", "Head.", "## Other", "second", "## Many", "### a", "1", "### c", "4"]


def test_a_part_that_is_not_there_is_named(tmp_path):
    for name, part, said in (("methods", "lins", "its parts are roulette, "), ("raw", "all", "it has no parts")):
        with pytest.raises(UserError, match=f"no part '{part}'; {said}"):
            run(name, Setting(None, tmp_path), [part])
    with pytest.raises(UserError, match="--minutes must be above zero"):
        run("coils", Setting(None, tmp_path, minutes=0.0))
    with pytest.raises(UserError, match="--minutes is of methods, .*, not of coils"):
        run("coils", Setting(None, tmp_path, minutes=5.0))


def test_benchmarks_are_listed_and_checked_before_the_first_begins(tmp_path, capsys):
    assert cli.main(["benchmark", "--list"]) == cli.main(["benchmark"]) == 0
    assert capsys.readouterr().out == 2 * f"{listing()}\n"
    for words, said in (
        (["speed", "speeed"], "unknown benchmark 'speeed'"),
        (["methods", "coils", "--minutes", "5"], "not of coils"),
        (["methods", "ablation", "--part", "lines"], "--part is of one benchmark; got methods, ablation"),
    ):
        assert cli.main(["benchmark", *words, "-o", str(tmp_path / "runs")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_psnr_per_slice_is_of_clamped_magnitudes():
    reference = np.zeros((3, 4, 5))
    images = np.stack([np.full((4, 5), value) for value in (0.1, 2.0, 0.0)])
    np.testing.assert_allclose(psnr_per_slice(reference, images), [20.0, 0.0, 120.0], atol=1e-9)


def test_peak_memory_is_that_of_the_command(volumes):
    """Not of the process that starts it, which holds more; and a command that fails says why."""
    script = """
import sys
import numpy
from mri_n2n.benchmarks.common import peak_memory
held = numpy.ones(2**28)
print(peak_memory(["info", sys.argv[1]]))
"""
    scan = next(volumes.iterdir())
    done = subprocess.run([sys.executable, "-c", script, str(scan)], check=True, capture_output=True, text=True)
    assert 50 < float(done.stdout) < 1500  # the parent held 2048 MiB more
    with pytest.raises(InputError, match="info failed: mri-n2n: error: .*none.h5"):
        peak_memory(["info", "none.h5"])


def test_steps_in_a_time():
    assert (steps_in(2.0, 0.5, False), steps_in(2.0, 0.49, False), steps_in(2.0, 100.0, False)) == (240, 240, 10)
    assert steps_in(2.0, 0.5, True) == 4


@pytest.mark.filterwarnings("ignore")
def test_a_cell_from_training_to_table(volumes, tmp_path, monkeypatch, capsys):
    cell = methods.CELLS["roulette"]
    cell = replace(
        cell,
        methods={label: cell.methods[label] for label in (methods.N2N, "2018 recipe")},
        baselines=("zero-filled", "tv"),
        wanted=((methods.N2N, "2018 recipe", -100.0), (methods.ONE_PASS, methods.BEST, 100.0)),
    )
    monkeypatch.setattr(methods, "CELLS", {"roulette": cell})
    monkeypatch.setattr(methods, "MATRIX", SMALL)
    command = [
        "benchmark",
        "methods",
        "--part",
        "roulette",
        "--data",
        str(volumes),
        "-o",
        str(tmp_path / "runs"),
        "--quick",
    ]
    command += ["--docs", str(tmp_path / "docs"), "--minutes", "3"]
    monkeypatch.setattr(process, "tune_process", lambda: None)  # which would last for the whole test run
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    document = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "<!-- methods: roulette -->\n### roulette\n" in document and "--part roulette --data DIR" in document
    assert all(line in document for line in text.splitlines())
    monkeypatch.setattr(methods, "peak_memory", lambda command: pytest.fail(f"again: {command}"))
    assert cli.main(command) == 0
    tables = [[line for line in said.splitlines() if line.startswith("|")] for said in (text, capsys.readouterr().out)]
    assert tables[0] == tables[1]
    monkeypatch.setattr(methods, "code_hash", lambda: "other")  # other code makes the images again
    with pytest.raises(pytest.fail.Exception, match="again"):
        run("methods", Setting(volumes, tmp_path / "runs", quick=True), ["roulette"])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {methods.N2N, methods.ONE_PASS, "2018 recipe", "zero-filled", "tv"} <= set(rows)
    assert "wanted: at least -100.00, met" in text and "wanted: at least +100.00, MISSED" in text
    assert "nan" not in rows["tv"] and (tmp_path / "docs" / "images" / "methods-roulette.png").stat().st_size > 1000
    assert "Not open_ms" not in text
    for folder in ("runs", "docs"):
        assert [path.name for path in (tmp_path / folder).glob("*.json")] == ["methods-roulette-quick.json"]


@pytest.mark.parametrize("name", methods.CELLS)
def test_what_is_tested_is_acquired_as_what_is_trained_on(name, volumes, tmp_path):
    """The slices of a test file have one mask, of the sampling probability of the training inputs, and noise of their own."""
    cell = methods.CELLS[name]
    protocol = methods.options_of(volumes, cell, {"method": "noise2noise"}, 1).protocol
    [path] = methods.write_tests(volumes, cell, tmp_path, quick=False)
    scan = open_scan(path)
    found = scan.read(0, scan.shape[0])
    [source] = [s for s in find_test_sources(volumes, methods.MATRIX)]
    of_training = [simulated_repetitions(source.load()[:1], 0, f"train {i}", protocol).first for i in range(3)]
    assert found.mask.shape[0] == 1 and found.kspace.shape[1] == of_training[0].kspace.shape[1]
    assert all(torch.equal(found.probability, one.probability) for one in of_training) or protocol.one_mask
    assert not protocol.one_mask or torch.equal(found.mask, of_training[0].mask)
    assert found.noise_variance == pytest.approx(of_training[0].noise_variance)
    full = torch.cat(
        [simulated_repetitions(one[None], 0, f"test {source.name}", protocol).full for one in source.load()[::2]]
    )
    noise = (found.kspace - full * found.mask)[:, :, found.mask[0, 0] > 0]
    assert noise.abs().square().mean().item() == pytest.approx(found.noise_variance, rel=0.1, abs=1e-12)
    if found.noise_variance:
        assert (noise[0] - noise[1]).abs().square().mean().item() == pytest.approx(2 * found.noise_variance, rel=0.1)


# ---- what others have ----


def power_of(noise: np.ndarray) -> np.ndarray:
    """Mean |FFT|^2 (y, x) of real and imaginary parts of noise (draws, y, x)."""
    parts = np.concatenate([noise.real, noise.imag])
    return np.mean(np.abs(np.fft.fft2(parts)) ** 2, axis=0)


@pytest.mark.parametrize("kind", ["white", "brown", "correlated"])
def test_power_spectra_are_those_of_the_noise(kind):
    """What BM3D is told is the mean |FFT|^2 of what the benchmarks add."""
    shape, draws = (24, 32), 600
    if kind == "brown":
        generator = torch.Generator().manual_seed(0)
        nothing = torch.zeros(1, 1, *shape, dtype=torch.complex64)
        noise = [ifft2c(corrupted_kspace(nothing, "brown", (1.5, 1.5), generator))[0, 0] for _ in range(draws)]
        noise, deviation, spectrum = torch.stack(noise), BROWN_DEVIATION, blurred_spectrum(shape, (1.5, 1.5))
    else:
        noise, deviation = noise2void.noise_of(f"{kind}-25", (draws, *shape), 1), 25 / 255
        spectrum = noise2void.spectrum_of(f"{kind}-25", shape)
        spectrum = np.ones(shape) if spectrum is None else spectrum
    expected = spectrum.size * deviation**2 / 2 * spectrum
    assert spectrum.mean() == pytest.approx(1)
    np.testing.assert_allclose(power_of(noise.numpy()), expected, rtol=0.25, atol=1e-3 * expected.max())


def test_bm3d_takes_a_flat_spectrum_for_white_noise_and_that_of_correlated_noise():
    pytest.importorskip("bm3d")
    generator, shape = np.random.default_rng(0), (64, 64)
    y, x = np.mgrid[:64, :64] - 32
    image = 0.7 * (np.hypot(y, x) < 24) - 0.3 * (np.hypot(y - 6, x + 4) < 9)
    white = generator.standard_normal(shape)
    noisy = image + 0.1 * white
    np.testing.assert_allclose(bm3d_of(0.1)(noisy), bm3d_of(0.1, np.ones(shape))(noisy), atol=1e-6)
    spectrum = blurred_spectrum(shape, (0.0, 1.0))
    noisy = image + 0.1 * np.fft.ifft2(np.sqrt(spectrum) * np.fft.fft2(white)).real
    error = lambda found: np.mean((found - image) ** 2)  # noqa: E731
    assert error(bm3d_of(0.1, spectrum)(noisy)) < 0.3 * error(bm3d_of(0.1)(noisy)) < 0.3 * error(noisy)


@pytest.mark.parametrize("mean", [0.0, 0.5, 2.0, 5.0, 20.0, 100.0])
def test_the_inverse_of_anscombes_transform_gives_the_mean_of_counts(mean):
    """The sum over all counts, by their probabilities; the plain inverse would be off by a quarter."""
    counts = np.arange(400)
    probability = np.exp(counts * np.log(max(mean, 1e-300)) - mean - np.cumsum(np.log(np.maximum(counts, 1))))
    stable = (probability * anscombe(counts)).sum()
    assert from_anscombe(stable) == pytest.approx(mean, abs=0.03)
    if mean >= 5:
        assert (probability * (anscombe(counts) - stable) ** 2).sum() == pytest.approx(1, abs=0.1), "nearly 1"
        assert (stable / 2) ** 2 - 3 / 8 < mean - 0.2
    assert from_anscombe(np.array([-1.0, 0.0])).tolist() == [0.0, 0.0]


# ---- noise2void ----


def test_scores_inside_the_object_leave_the_background_out():
    truth, images = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    truth[0, :2], images[0, :2], images[0, 2:] = 0.5, 0.6, 1.0
    np.testing.assert_allclose(noise2void.psnr_inside(truth, images), [20.0])  # of the slice that shows something


def test_images_are_made_again_with_other_options(tmp_path):
    make = lambda value: lambda: (torch.full((1, 2, 2), value), 7)  # noqa: E731
    for of, value, expected in (({"a": (1,)}, 1.0, 1.0), ({"a": (1,)}, 2.0, 1.0), ({"a": (2,)}, 3.0, 3.0)):
        images, steps, made = noise2void.kept(tmp_path, "N2V, one", of, make(value))
        assert images.unique().item() == expected and steps == 7 and made["code"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part, best", [("white-25", "N2V2"), ("correlated-25", "structN2V")])
def test_noise2void_from_noise_to_table(part, best, volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(noise2void, "MATRIX", SMALL)
    for module in (noise2void, peers):
        monkeypatch.setattr(module, "installed", lambda package: None)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    setting = Setting(volumes, tmp_path / "runs", tmp_path / "docs", quick=True)
    whole, measured = noise2void.truth_of, measure_whiteness(noise2void.noise_of(part, (4, 128, 128), 1).numpy())
    monkeypatch.setattr(noise2void, "truth_of", lambda source, every: whole(source, 1))
    monkeypatch.setattr(noise2void, "measure_whiteness", lambda images: measured)  # these are too small to tell
    text = noise2void.run(setting, part)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
    assert {"noisy", best, f"{best}, network alone, one pass", noise2void.NOISE2NOISE, "supervised"} <= set(rows)
    assert f"- {best} is " in text and "everywhere); wanted: at least +3.00 inside" in text
    assert (tmp_path / "docs" / "images" / f"noise2void-{part}.png").stat().st_size > 1000
    [source] = find_test_sources(volumes, SMALL)
    truth = whole(source, 1)
    assert torch.allclose(truth.abs(), ifft2c(source.load())[:, 0].abs(), atol=1e-6)
    bright = truth.abs() > 0.3
    assert truth.imag[bright].abs().mean() > 0.05, "it has a phase"
    monkeypatch.setattr(noise2void, "by_itself", lambda *_: pytest.fail("again"))
    assert noise2void.run(setting, part).split("|", 1)[1] == text.split("|", 1)[1]


# ---- corruptions and the budget ----


@pytest.mark.parametrize("part", [*corruptions.ROWS, "networks"])
def test_trainings_on_corruptions_can_be_had(part, volumes):
    each = corruptions.trainings(volumes, part)
    for options in each.values():
        check_options(options)
    said = {str(options) for options in each.values()}
    assert len(said) == len(each), "no two are the same"
    if part in corruptions.ROWS:
        row = corruptions.ROWS[part]
        assert {*row.wrong, *row.beside} < set(each)
        clean, noisy = (each[label] for label in (corruptions.CLEAN, corruptions.NOISY))
        same = replace(noisy.protocol, method="supervised", loss=clean.protocol.loss)
        assert replace(noisy, protocol=same) == clean, "they differ in targets, and what follows from these"


def test_everyone_in_a_part_takes_as_many_steps(volumes, tmp_path, monkeypatch):
    """But where networks are compared; and white and brown noise, which are drawn into one picture, all take the same."""
    asked = []

    def seconds(options, folder, quick):
        asked.append(folder.name)
        return {label: 0.1 * (i + 1) for i, label in enumerate(options)}

    monkeypatch.setattr(corruptions, "kept_step_seconds", seconds)
    setting = Setting(volumes, tmp_path, minutes=1.0)
    steps = lambda part: [o.steps for o in corruptions.in_steps(setting, volumes, part).values()]  # noqa: E731
    assert steps("impulse") == [240] * 4  # of 0.1 to 0.4 s
    assert steps("networks") == [600, 300, 200, 150]
    assert {tuple(steps(part)) for part in corruptions.SAME_NOISE} == {(170, 170)}
    assert asked[-3:] == ["corruptions-same-noise"] * 3


def test_steps_until_a_curve_stays_near_its_end():
    steps = [10, 20, 30, 40, 50]
    assert corruptions.steps_to_end(steps, [20.0, 29.8, 29.0, 30.0, 30.0]) == 35
    assert corruptions.steps_to_end(steps, [31.0, 30.0, 30.2, 30.1, 30.0]) == 15
    assert corruptions.steps_to_end(steps, [20.0, 21.0, 22.0, 25.0, 30.0]) == 49
    assert corruptions.steps_to_end(steps, [30.0] * 5) == 10


@pytest.mark.filterwarnings("ignore")
def test_white_and_brown_trainings_are_shared(volumes, tmp_path, monkeypatch):
    for module in (corruptions, methods):
        monkeypatch.setattr(module, "MATRIX", SMALL)
    monkeypatch.setattr(peers, "installed", lambda package: None)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    setting = Setting(volumes, tmp_path / "runs", tmp_path / "docs", quick=True)
    text = run("corruptions", setting, ["convergence"])
    assert "brown noise of 3 pixels takes 4 steps, white noise 4; wanted: more, MISSED" in text
    assert (tmp_path / "docs" / "images" / "corruptions-convergence.png").stat().st_size > 1000
    runs = sorted((tmp_path / "runs" / "corruptions-runs-quick").iterdir())
    assert len([one for one in runs if one.is_dir()]) == 6
    for part in corruptions.SAME_NOISE:
        assert "Corrupted targets are " in run("corruptions", setting, [part])
    assert sorted((tmp_path / "runs" / "corruptions-runs-quick").iterdir()) == runs, "nothing was trained again"


def test_the_budget_asks_for_its_slices(volumes, tmp_path):
    with pytest.raises(NotFoundError, match="case 3 takes 320 slices to train on, and .* has 9 of them"):
        run("budget", Setting(volumes, tmp_path, quick=True))


def test_cases_of_the_budget_are_the_same_measurements(volumes):
    images = torch.zeros(3, 1, SMALL, SMALL, dtype=torch.complex64)
    measured = budget.measurements(images, 4)
    assert measured.abs().square().mean().item() == pytest.approx(budget.DEVIATION**2, rel=0.05)
    options = replace(corruptions.trainings(volumes, "gaussian-fixed")[corruptions.NOISY], batch_size=2)
    power = {}
    for averaged in (False, True):
        batches = budget.batches_of(measured, budget.Case(3, 4, averaged), options, 0)
        pairs = [next(batches)[0] for _ in range(20)]
        targets = torch.stack([pair.target.abs().square().mean() for pair in pairs])
        inputs = torch.stack([pair.input.kspace.abs().square().mean() for pair in pairs])
        assert inputs.mean().item() == pytest.approx(budget.DEVIATION**2, rel=0.1)
        power[averaged] = targets.mean().item()
    assert power[True] == pytest.approx(power[False] / 3, rel=0.1), "the mean of the other three"


def test_differences_of_the_budget_are_paired_and_judged_by_every_seed():
    before = np.array([[30.0, 20.0], [31.0, 21.0], [32.0, 22.0]])
    found = {"case 1: a": before, "case 2: b": before + [[0.3], [0.2], [0.1]]}
    said = budget.against(found, "case 2: b", "case 1: a")
    assert "case 2 is +0.20 dB from case 1" in said and "seeds +0.10 to +0.30" in said and said.endswith("met.")
    found["case 2: b"] = before + [[0.3], [0.2], [-0.1]]
    assert budget.against(found, "case 2: b", "case 1: a").endswith("MISSED.")
