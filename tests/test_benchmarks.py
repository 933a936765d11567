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
from mri_n2n.benchmarks import BENCHMARKS, ablation, listing, methods, run
from mri_n2n.benchmarks.common import Setting, peak_memory, steps_in, write_section
from mri_n2n.benchmarks.subjects import PHANTOM_SLICES, phantom_folder, subjects_in
from mri_n2n.benchmarks.subjects import test_sources as find_test_sources
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
    modules = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "common", "subjects"}
    assert modules == set(BENCHMARKS)


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
    options = ablation.variant_options(volumes, label, 1)
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
    for name, part, said in (("methods", "lins", "its parts are roulette, "), ("step", "all", "it has no parts")):
        with pytest.raises(UserError, match=f"no part '{part}'; {said}"):
            run(name, Setting(None, tmp_path), [part])
    with pytest.raises(UserError, match="--minutes must be above zero"):
        run("step", Setting(None, tmp_path, minutes=0.0))
    with pytest.raises(UserError, match="--minutes is of methods, .*, not of step"):
        run("step", Setting(None, tmp_path, minutes=5.0))


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
