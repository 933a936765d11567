"""Training end to end on tiny data: every data set, resuming, seeds, pairs, and what is written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mri_n2n
from mri_n2n import validation
from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.checkpoint import build_network, find_weights, load_network, load_tensors, save_tensors
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.datasets import find_sources, phantom_sources
from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.options import TrainOptions
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol, simulated_repetitions
from mri_n2n.schedule import set_schedule
from mri_n2n.simulation import SimulationOptions, simulate_file
from mri_n2n.sources import Source
from mri_n2n.training import Stopped, default_batch_size, train
from mri_n2n.validation import validate, validation_set

training = import_module("mri_n2n.training")  # the module: `mri_n2n.train` is the verb

TINY = {"cascades": 1, "channels": 8, "levels": 2}
SUBJECTS = ("ann", "bob", "eve")  # the last one is for validation
MATRICES = {"ann": (24, 20), "bob": (20, 24), "eve": (24, 20)}


def head(y: int, x: int, seed: int) -> np.ndarray:
    """A positive brain-like image (y, x)."""
    return ifft2c(phantom_kspace((y, x), generator=torch.Generator().manual_seed(seed)))[0].abs().numpy()


def volume(path: Path, matrix: tuple[int, int], slices: int = 3, seed: int = 0) -> Path:
    """A NIfTI volume whose slices along axis 2 have `matrix` (y, x)."""
    images = np.stack([head(*matrix, seed + i) for i in range(slices)])
    nibabel.save(
        nibabel.Nifti1Image(np.ascontiguousarray(images.transpose(2, 1, 0)) * 900, np.diag([2, 2, 3, 1])), path
    )
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder for each data set that reads files: three subjects, three slices each."""
    root = tmp_path_factory.mktemp("data")
    for name in ("nifti", "fastmri", "pairs"):
        (root / name).mkdir()
    for number, subject in enumerate(SUBJECTS):
        file = volume(root / "nifti" / f"{subject}_T1.nii.gz", MATRICES[subject], seed=10 * number)
        repeated = SimulationOptions(acceleration=3, repetitions=2, noise=0.01, seed=number)
        simulate_file(file, root / "pairs" / f"{subject}_T1.h5", repeated)
        coils = np.array([[1.0, 0.3j]]).T[None, :, :, None] * np.ones((3, 2, 1, 1))
        images = np.stack([head(24, 20, 10 * number + i) for i in range(3)])[:, None] * coils
        with h5py.File(root / "fastmri" / f"{subject}_scan.h5", "w") as scan:
            scan["kspace"] = fft2c(torch.from_numpy(images.astype(np.complex64))).numpy() * 1e-5
            scan.attrs["patient_id"] = f"id of {subject}"
    return root


def options(dataset: str = "phantom", data: Path | None = None, **changes) -> TrainOptions:
    protocol = {name: changes.pop(name) for name in ("method", "pairs", "masks", "noise", "seed") if name in changes}
    chosen = {
        "dataset": dataset, "data": None if data is None or dataset == "phantom" else str(data / dataset),
        "matrix_size": 24 if dataset == "phantom" else None, "protocol": Protocol(acceleration=(3.0, 3.0), **protocol),
        "network_options": TINY, "steps": 3, "batch_size": 4, "learning_rate": 1e-3, "precision": "float32", "device": "cpu", "quiet": True,
    }  # fmt: skip
    return TrainOptions(**{**chosen, **changes})


def interrupt(monkeypatch, after: int, number: int = signal.SIGINT) -> None:
    """A real signal reaches this process while step `after` is being made."""
    step, done = training.training_step, 0

    def interrupted(*arguments):
        nonlocal done
        done += 1
        if done == after:
            os.kill(os.getpid(), number)
        return step(*arguments)

    monkeypatch.setattr(training, "training_step", interrupted)


def equal(first: Path, second: Path, name: str = "checkpoint.safetensors") -> bool:
    """Whether two runs hold the same numbers, bit for bit."""
    a, b = load_tensors(first / name)[0], load_tensors(second / name)[0]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------------ every data set


@pytest.mark.parametrize("dataset", ["phantom", "nifti", "fastmri", "pairs"])
def test_a_few_steps_on_every_data_set(dataset, data, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "VALIDATION_SLICES", 4)
    result = train(options(dataset, data), tmp_path / "run")
    assert result.steps == 3 and result.finished and np.isfinite(result.loss) and result.loss > 0
    files = {"weights.safetensors", "checkpoint.safetensors", "log.jsonl", "example.png", "curve.png", "run.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files

    (line,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert (
        line["step"] == 3 and line["loss"] == result.loss and np.isfinite(line["psnr"]) and result.psnr == line["psnr"]
    )
    assert ("psnr_low" in line) == (dataset == "pairs")  # a study of repetitions has no reference

    network, header = load_network(find_weights(tmp_path / "run"))
    assert (
        header["step"] == 3 and TINY.items() <= header["network_options"].items() and header["precision"] == "float32"
    )
    assert network.unets[0].last.weight.any()  # which starts at zero
    if dataset != "phantom":
        assert (header["train_volumes"], header["train_slices"], header["validation_volumes"]) == (2, 6, 1)


def test_coils_are_combined_by_maps_of_the_input_alone(data):
    """Pairs of several coils: the input's maps come from its own samples, the target keeps all of its own."""
    sources = find_sources("pairs", data / "pairs", validation_subjects=("none",)).train
    several = replace(sources[0], load=lambda: tuple(_coils(a) for a in sources[0].load()))
    protocol = Protocol(translation=0.0, flips=False)
    measured = {(a.kspace[i] + 0).numpy().tobytes() for a in several.load() for i in range(3)}
    ((pair,),) = (next(training_batches([several], protocol, 3)),)
    assert pair.input.kspace.shape[1] == pair.target.shape[1] == 2
    assert {(side[i] + 0).numpy().tobytes() for side in (pair.input.kspace, pair.target) for i in range(3)} == measured
    for i in range(3):
        alone = Acquisition(pair.input.kspace[i : i + 1], pair.input.mask[i : i + 1])
        expected = with_sensitivity_maps(alone)[0].sensitivity_maps
        torch.testing.assert_close(pair.input.sensitivity_maps[i : i + 1], expected)
    apart = next(training_batches([several], replace(protocol, combined=False), 3))[0]
    assert apart.input.kspace.shape[1] == 1 and apart.input.sensitivity_maps is None


def _coils(acquisition: Acquisition) -> Acquisition:
    """The same k-space seen by a second coil too."""
    return replace(acquisition, kspace=torch.cat((acquisition.kspace, 0.5j * acquisition.kspace), dim=1))


def test_phantoms_with_coils_and_noise(tmp_path):
    result = train(options(coils=2, noise=(0.02, 0.02), network_options={**TINY, "consistency": "soft"}), tmp_path)
    assert result.finished and np.isfinite(result.loss)


@pytest.mark.parametrize("method", ["noise2noise-2018", "supervised-2018"])
def test_the_2018_recipe(method, data, tmp_path):
    recipe = options(
        "nifti", data, matrix_size=24, method=method, pairs="redrawn", network="unet",
        network_options={"channels": 12},
    )  # fmt: skip
    result = train(recipe, tmp_path)
    assert result.finished and np.isfinite(result.loss) and np.isfinite(result.psnr)
    assert load_network(tmp_path / "weights.safetensors")[1]["training"]["protocol"]["method"] == method


@pytest.mark.parametrize("recipe", [False, True])
def test_the_batch_size_fits_the_device_and_is_recorded(recipe, data, tmp_path):
    given = {
        "network": "unet",
        "network_options": {"channels": 12},
        "matrix_size": 24,
        "method": "noise2noise-2018",
        "pairs": "redrawn",
    }
    train(options("nifti", data, steps=1, batch_size=None, **(given if recipe else {})), tmp_path)
    assert load_tensors(tmp_path / "weights.safetensors")[1]["training"]["batch_size"] == (16 if recipe else 2)
    assert default_batch_size(recipe, torch.device("cuda")) == (16 if recipe else 8)


def test_training_without_references_improves_the_image(tmp_path, monkeypatch):
    """From fixed pairs of undersampled scans alone, judged by references that training never saw."""
    monkeypatch.setattr(validation, "VALIDATION_SLICES", 4)
    chosen = options(steps=60, batch_size=8, learning_rate=4e-3)
    before = build_network("unrolled", TINY)  # as it starts: the zero-filled image
    held_out = validation_set(phantom_sources(24).validation, chosen.protocol)
    zero_filled = validate(before, held_out, torch.device("cpu"), "float32", tmp_path / "before.png").quality["psnr"]
    assert train(chosen, tmp_path / "run").psnr > zero_filled + 1.0


def test_one_subject_only_trains_without_validation(data, tmp_path):
    with pytest.warns(UserWarning, match="one subject"):
        result = train(replace(options(), dataset="nifti", data=str(data / "nifti" / "ann_T1.nii.gz")), tmp_path)
    assert result.psnr is None and result.finished and not (tmp_path / "example.png").exists()


def test_a_split_by_folders_stays_when_all_of_its_validation_is_excluded(data, tmp_path):
    for folder, subject in (("train", "ann"), ("train", "bob"), ("validation", "eve")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "nifti" / f"{subject}_T1.nii.gz", tmp_path / "data" / folder)
    split = find_sources("nifti", tmp_path / "data", excluded_subjects=("eve",))
    assert [source.subject for source in split.train] == ["ann", "bob"] and split.validation == []


def test_excluded_subjects_are_in_neither_part(data, tmp_path):
    train(options("nifti", data, excluded_subjects=("bob",)), tmp_path)
    header = load_tensors(tmp_path / "weights.safetensors")[1]
    assert (header["train_volumes"], header["validation_volumes"]) == (1, 1)


# ------------------------------------------------------------------------------------------------- resuming and seeds


def test_only_a_second_ctrl_c_leaves_at_once():
    """A launcher may pass on a signal that the system has sent as well."""
    stopped = Stopped()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        stopped(number, None)
        assert stopped
    with pytest.raises(KeyboardInterrupt):
        stopped(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("dataset", "stop", "number"),
    [("nifti", 3, signal.SIGINT), ("pairs", 2, signal.SIGTERM), ("phantom", 5, signal.SIGINT)],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dataset, stop, number, data, tmp_path, monkeypatch):
    """nifti has 6 training slices, so batches of 4 and 2: step 3 is in the middle of the second epoch."""
    chosen = options(dataset, data, steps=7, noise=(0.02, 0.02), pairs="redrawn" if dataset == "phantom" else "fixed")
    monkeypatch.setattr(validation, "VALIDATION_SLICES", 2)
    train(chosen, tmp_path / "whole")
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt(patch, after=stop, number=number)
        stopped = train(chosen, tmp_path / "parts")
    assert not stopped.finished and stopped.steps == stop
    assert signal.getsignal(number) is handler  # put back
    assert not equal(tmp_path / "whole", tmp_path / "parts")
    resumed = train(chosen, tmp_path / "parts", resume=True)
    assert resumed.finished and resumed.steps == 7 and resumed.seconds > stopped.seconds
    assert equal(tmp_path / "whole", tmp_path / "parts")
    assert equal(tmp_path / "whole", tmp_path / "parts", "weights.safetensors")
    weights, checkpoint = (load_tensors(tmp_path / "parts" / f"{n}.safetensors")[0] for n in ("weights", "checkpoint"))
    assert all(torch.equal(value, checkpoint[f"average.{name}"]) for name, value in weights.items())
    assert not all(torch.equal(value, checkpoint[f"network.{name}"]) for name, value in weights.items())
    last = [json.loads((tmp_path / run / "log.jsonl").read_text().splitlines()[-1]) for run in ("whole", "parts")]
    assert all(last[0][key] == last[1][key] for key in last[0] if key != "seconds")


def test_ctrl_c_at_the_command_line_saves_and_resumes(tmp_path):
    """The signal comes whenever it comes; what is resumed is the same run."""
    command = [
        sys.executable,
        "-m",
        "mri_n2n",
        "train",
        "--dataset",
        "phantom",
        "--matrix-size",
        "24",
        "--acceleration",
        "3",
    ]
    command += [
        "--cascades",
        "1",
        "--channels",
        "8",
        "--batch-size",
        "4",
        "--steps",
        "80",
        "--learning-rate",
        "1e-3",
        "--precision",
        "float32",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "-o", tmp_path / "run"], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "log.jsonl").exists():  # made when the loop begins
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    chosen, line = said.splitlines()
    assert chosen == "method: noise2noise (every slice is acquired twice, by simulation)"
    tensors, header = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert f"saved at step {header['step']}" in line and "--resume" in line and header["step"] < 80

    network_options = {"channels": 8, "cascades": 1}
    chosen = options(steps=80, network_options=network_options)
    assert train(chosen, tmp_path / "run", resume=True).steps == 80
    train(chosen, tmp_path / "whole")
    assert equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("method", ["noise2noise", "robust-ssdu", "robust-multi-operator"])
def test_a_resumed_run_of_a_method_is_the_uninterrupted_one(method, data, tmp_path, monkeypatch):
    """With all that a method draws besides masks: exchange, divisions, further noise, probes, other masks."""
    chosen = options(
        "nifti", data, method=method, steps=4, noise=(0.0, 0.05), average=0.9, validation_subjects=("none",)
    )
    pair = replace(chosen.protocol.pair, exchange=method == "noise2noise")
    chosen = replace(chosen, protocol=replace(chosen.protocol, pair=pair, coils=(1, 2)))
    train(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        assert not train(chosen, tmp_path / "parts").finished
    assert train(chosen, tmp_path / "parts", resume=True).finished
    for name in ("checkpoint.safetensors", "weights.safetensors"):
        assert equal(tmp_path / "whole", tmp_path / "parts", name)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_saved_weights_are_the_moving_average(decay, data, tmp_path, monkeypatch):
    """a_n = w_n + d_n (a_{n-1} - w_n), d_n = min(decay, (1 + n) / (10 + n)) for n steps before, a_0 the first weights."""
    step, seen = training.training_step, []

    def followed(network, *arguments):
        loss = step(network, *arguments)
        seen.append({name: value.clone().double() for name, value in network.state_dict().items()})
        return loss

    monkeypatch.setattr(training, "training_step", followed)
    train(options("nifti", data, steps=5, average=decay), tmp_path)
    expected = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: value + d * (expected[name] - value) for name, value in weights.items()}
    saved = load_tensors(tmp_path / "weights.safetensors")[0]
    for name, value in saved.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-7, rtol=1e-5)
    if decay == 0:
        assert all(torch.equal(value.double(), seen[-1][name]) for name, value in saved.items())


def test_equal_seeds_make_equal_weights(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)  # what else the process draws does not matter
        train(options("nifti", data, steps=2, seed=seed, noise=(0.02, 0.02)), tmp_path / name)
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_a_run_that_goes_on_keeps_its_batch_size_where_the_default_is_another(data, tmp_path, monkeypatch):
    chosen = options("nifti", data, steps=1, batch_size=None)
    train(chosen, tmp_path / "run")
    monkeypatch.setattr(training, "default_batch_size", lambda *_: 7)  # as on another device
    train(replace(chosen, steps=2), tmp_path / "run", resume=True)
    assert load_tensors(tmp_path / "run" / "weights.safetensors")[1]["training"]["batch_size"] == 2


def test_a_run_is_not_overwritten_and_resumes_with_the_same_options_only(data, tmp_path):
    chosen, run = options("nifti", data, steps=2), tmp_path / "run"
    with pytest.raises(NotFoundError, match="run"):
        train(chosen, run, resume=True)
    assert not run.exists()
    train(chosen, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(OutputError, match="--resume"):
        train(chosen, run)
    changes = {
        "batch_size": 2,
        "learning_rate": 5e-3,
        "seed": 5,
        "network_options": {**TINY, "channels": 12},
        "noise": (0.1, 0.1),
    }
    for name, value in changes.items():
        with pytest.raises(InputError, match=rf"other options \({name}\)"):
            train(options("nifti", data, **{"steps": 2, name: value}), run, resume=True)
    with pytest.raises(InputError, match="did not begin with --init"):
        train(replace(chosen, init=str(run)), run, resume=True)
    tensors, header = load_tensors(run / "checkpoint.safetensors")
    header["training"]["protocol"]["vanished"] = 1.0  # an option of an earlier version
    save_tensors(run / "checkpoint.safetensors", tensors, header)
    with pytest.raises(InputError, match=r"other options \(vanished\)"):
        train(chosen, run, resume=True)
    (run / "checkpoint.safetensors").write_bytes(before["checkpoint.safetensors"])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert (
        train(replace(chosen, steps=3, validate_every=1.0), run, resume=True).steps == 3
    )  # a larger budget is the same run


def test_a_finished_run_resumed_says_what_it_reached(data, tmp_path, capsys):
    first = train(options("nifti", data, steps=2), tmp_path)
    again = train(options("nifti", data, steps=2, quiet=False), tmp_path, resume=True)
    assert capsys.readouterr().err.count(f"{tmp_path} is at its end: 2 steps") == 1
    assert again.finished and (again.psnr, again.loss, again.steps) == (first.psnr, first.loss, 2)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_resumed_log_forgets_what_its_checkpoint_does_not_know(data, tmp_path):
    train(options("nifti", data, steps=2), tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 9, "loss": 1.0}) + "\n")
    train(options("nifti", data, steps=3), tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 3]


def test_data_that_changed_are_another_run(data, tmp_path):
    train(options("nifti", data, steps=1), tmp_path / "run")
    folder = tmp_path / "fewer"
    folder.mkdir()
    for subject in SUBJECTS[:2]:
        shutil.copy(data / "nifti" / f"{subject}_T1.nii.gz", folder)
    again = replace(options("nifti", data, steps=2), data=str(folder))
    with pytest.raises(InputError, match="train_volumes 2 then, 1 now"):
        train(again, tmp_path / "run", resume=True)
    shutil.copy(data / "nifti" / f"{SUBJECTS[2]}_T1.nii.gz", folder / "zoe_T1.nii.gz")  # as many, of another name
    with pytest.raises(InputError, match="other names or slices"):
        train(again, tmp_path / "run", resume=True)


def test_a_resumed_run_no_longer_needs_the_weights_it_began_with(data, tmp_path):
    train(options("nifti", data, steps=1), tmp_path / "first")
    started = options("nifti", data, steps=1, init=str(tmp_path / "first"))
    train(started, tmp_path / "second")
    before = load_tensors(tmp_path / "second" / "weights.safetensors")[1]["init_sha256"]
    shutil.rmtree(tmp_path / "first")
    train(replace(started, steps=2), tmp_path / "second", resume=True)
    assert before and load_tensors(tmp_path / "second" / "weights.safetensors")[1]["init_sha256"] == before


def test_a_full_disk_ends_in_one_line(data, tmp_path):
    """Files may grow to 20 kB: the checkpoint does not fit."""
    run = tmp_path / "run"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mri_n2n.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        "train",
        "--dataset",
        "nifti",
        "--data",
        data / "nifti",
        "--steps",
        "1",
        "--channels",
        "8",
        "--quiet",
        "-o",
        run,
    ]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
    assert ended.returncode == 4 and ended.stderr.count("\n") == 1 and "File too large" in ended.stderr, ended.stderr
    assert not run.exists()


def test_training_leaves_the_callers_random_numbers_alone(data, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(options("nifti", data, steps=1), tmp_path)
    assert torch.equal(torch.rand(3), wanted)


def test_weights_alone_are_not_overwritten_either(data, tmp_path):
    """A run whose checkpoint was deleted to save space is a run still."""
    train(options("nifti", data, steps=1), tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    kept = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(OutputError):
        train(options("nifti", data, steps=1, seed=3), tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == kept


@pytest.mark.parametrize("name", ["log.jsonl", "example.png", "curve.png", "run.json"])
def test_files_of_these_names_are_not_overwritten(name, data, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        train(options("nifti", data, steps=1), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_damaged_log_is_named(data, tmp_path):
    train(options("nifti", data, steps=1), tmp_path)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write("garbage\n")
    with pytest.raises(InputError, match="log.jsonl is damaged"):
        train(options("nifti", data, steps=2), tmp_path, resume=True)


# ------------------------------------------------------------------------------------------------ pairs, epoch by epoch


def one_slice_source(name: str = "scan", matrix: tuple[int, int] = (24, 24), slices: int = 1) -> Source:
    full = torch.stack([phantom_kspace(matrix, generator=torch.Generator().manual_seed(i)) for i in range(slices)])
    return Source(name, name, slices, lambda: full)


def epochs(protocol: Protocol, count: int = 12, **source):
    """(input mask, weight of the target, magnitude of the input's samples) of one slice in each epoch."""
    for (pair,) in islice(training_batches([one_slice_source(**source)], protocol, 1), count):
        yield pair.input.mask[0, 0], pair.weight.expand(pair.target.shape)[0, 0], pair.input.kspace[0, 0].abs()


def test_fixed_pairs_are_the_same_two_acquisitions_for_ever_with_roles_swapped():
    protocol = Protocol(acceleration=(4.0, 4.0), noise=(0.05, 0.05), flips=False)
    seen: dict[bytes, list] = {}
    for mask, weight, samples in epochs(protocol):
        seen.setdefault(mask.numpy().tobytes(), []).append((weight > 0, samples))
    assert len(seen) == 2  # two masks, each the input now and then: the roles swap
    (first, of_first), (second, of_second) = seen.items()
    for mine, other in ((of_first, second), (of_second, first)):
        for target, samples in mine:
            assert target.float().numpy().tobytes() == other  # the target is the other acquisition
            torch.testing.assert_close(samples, mine[0][1], rtol=1e-4, atol=1e-5)  # the same noise as ever


def test_default_training_mirrors_and_the_recipe_rounds():
    """Of one slice: four orientations of its input over the epochs; images of 256 grey levels as clean targets."""
    protocol = Protocol(acceleration=(2.0, 2.0), translation=0.0)
    seen = {abs(samples).numpy().round(4).tobytes() for _, _, samples in epochs(protocol, 40, matrix=(24, 22))}
    alone = {
        abs(samples).numpy().round(4).tobytes()
        for _, _, samples in epochs(replace(protocol, flips=False), 40, matrix=(24, 22))
    }
    assert len(alone) == 2 and len(seen) == 4  # two acquisitions; conjugate-symmetric: y and x flips of one are equal
    recipe = replace(protocol, method="supervised-2018", flips=False)
    for chosen, rounded in ((recipe, True), (replace(recipe, method="supervised"), False)):
        [(pair,)] = islice(training_batches([one_slice_source()], chosen, 1), 1)
        image = 255 * (pair.target if pair.domain == "image" else ifft2c(pair.target)).real
        assert ((image - image.round()).abs().max() < 1e-2) == rounded


def test_redrawn_pairs_are_new_in_every_epoch():
    masks = [mask.numpy().tobytes() for mask, _, _ in epochs(Protocol(acceleration=(4.0, 4.0), pairs="redrawn"))]
    assert len(set(masks)) == len(masks)


def test_clean_targets_see_the_same_inputs():
    chosen = Protocol(acceleration=(4.0, 4.0))
    noisy, clean = (list(epochs(replace(chosen, method=method))) for method in ("noise2noise", "supervised"))
    for (mask, _, samples), (mask_too, weight, samples_too) in zip(noisy, clean):
        assert torch.equal(mask, mask_too) and torch.equal(samples, samples_too) and bool((weight == 1).all())


def test_seed_and_name_and_slice_draw_masks_of_their_own():
    def mask(seed: int = 0, name: str = "scan", index: int = 0) -> bytes:
        source = one_slice_source(name, slices=2)
        only = Source(name, name, 1, lambda: source.load())
        chosen = Protocol(acceleration=(4.0, 4.0), seed=seed)
        full = only.load()[index : index + 1]
        return simulated_repetitions(full, index, name, chosen).first.mask.numpy().tobytes()

    assert mask() == mask()
    assert len({mask(), mask(seed=1), mask(name="other"), mask(index=1)}) == 4


def test_a_batch_of_mixed_matrix_sizes_and_uneven_epochs():
    sources = [one_slice_source("a", (24, 20), 3), one_slice_source("b", (20, 24), 2)]
    assert steps_per_epoch(sources, 4) == 2
    batches = list(islice(training_batches(sources, Protocol(acceleration=(3.0, 3.0)), 4), 4))
    for epoch in (batches[:2], batches[2:]):
        sizes = [tuple(pair.input.kspace.shape) for batch in epoch for pair in batch]
        assert sum(batch for batch, _, y, x in sizes if (y, x) == (24, 20)) == 3
        assert sum(batch for batch, _, y, x in sizes if (y, x) == (20, 24)) == 2
        assert [sum(pair.input.kspace.shape[0] for pair in batch) for batch in epoch] == [4, 1]
    network = build_network("unrolled", TINY)
    adam = torch.optim.Adam(network.parameters())
    mixed = next(batch for batch in batches if len(batch) == 2)
    parts = [training.training_step(network, adam, [pair], torch.device("cpu"), "float32") for pair in mixed]
    assert all(np.isfinite(part) for part in parts)


def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_slices():
    sources = [one_slice_source("a", (24, 20), 3), one_slice_source("b", (20, 24), 1)]
    (batch,) = islice(training_batches(sources, Protocol(acceleration=(3.0, 3.0)), 4), 1)
    network, cpu = build_network("unrolled", TINY), torch.device("cpu")
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    alone = {
        pair.input.kspace.shape[0]: training.training_step(network, still, [pair], cpu, "float32") for pair in batch
    }
    assert training.training_step(network, still, batch, cpu, "float32") == pytest.approx(
        (3 * alone[3] + alone[1]) / 4, rel=1e-5
    )


def test_batches_start_anywhere():
    """What makes resuming exact: batch n is the same whether the batches before it were made or not."""
    sources, protocol = (
        [one_slice_source("a", slices=3), one_slice_source("b", slices=2)],
        Protocol(acceleration=(3.0, 3.0), noise=(0.1, 0.1)),
    )
    whole = list(islice(training_batches(sources, protocol, 2), 7))
    for start in (1, 3, 5):
        for batch, expected in zip(training_batches(sources, protocol, 2, start), whole[start:]):
            assert len(batch) == len(expected)
            assert all(
                torch.equal(a.input.kspace, b.input.kspace) and torch.equal(a.target, b.target)
                for a, b in zip(batch, expected)
            )


def test_validation_masks_are_fixed_per_file():
    sources = [one_slice_source("a", slices=3), one_slice_source("b", slices=2)]
    chosen = Protocol(acceleration=(3.0, 3.0), noise=(0.02, 0.02))
    once, again = (validation_set(sources, chosen) for _ in range(2))
    assert len(once) == 5
    for a, b in zip(once, again):
        assert torch.equal(a.first.kspace, b.first.kspace) and torch.equal(a.reference, b.reference)
    masks = [item.first.mask for item in once]
    assert all(torch.equal(mask, masks[0]) for mask in masks[:3]) and not torch.equal(masks[0], masks[3])


# ---------------------------------------------------------------------------------------------------- options and data


@pytest.mark.parametrize(
    "budget",
    [{"steps": None}, {"steps": 1, "epochs": 1}, {"steps": 0}, {"steps": -1}, {"steps": None, "minutes": float("nan")},
     {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}],
)  # fmt: skip
def test_budgets_and_rates_that_make_no_sense(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "training_step", lambda *_: pytest.fail("it trains"))  # some would never end
    with pytest.raises(UserError):
        train(options(**budget), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_acceleration_that_cannot_be_met_is_named(tmp_path):
    chosen = options()
    with pytest.raises(UserError, match="acceleration"):
        train(replace(chosen, protocol=replace(chosen.protocol, acceleration=(500.0, 500.0))), tmp_path / "run")


def test_epochs_and_minutes_are_budgets_too(data, tmp_path):
    by_epochs = train(options("nifti", data, steps=None, epochs=2), tmp_path / "a")
    assert by_epochs.steps == 4  # 6 slices in batches of 4
    by_minutes = train(options("nifti", data, steps=None, minutes=0.001), tmp_path / "b")
    assert by_minutes.finished and by_minutes.steps >= 1


def test_learning_rates():
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])

    def at(progress: float, **changes) -> tuple[float, float]:
        set_schedule(adam, options(learning_rate=1e-3, **changes), progress)
        return adam.param_groups[0]["lr"], adam.param_groups[0]["betas"][0]

    assert at(0.03)[0] == pytest.approx(1e-3, rel=0.01) and at(0.999)[0] < 1e-7 and 0 < at(0)[0] < 1e-4
    # 300 epochs: ten up, thirty down, in which beta1 falls from 0.9 to 0.5
    recipe = {"method": "noise2noise-2018"}
    assert at(0, **recipe) == (0, 0.9)
    assert at(10 / 300, **recipe) == pytest.approx((1e-3, 0.9)) and at(270 / 300, **recipe) == pytest.approx(
        (1e-3, 0.9)
    )
    assert at(1, **recipe) == pytest.approx((0, 0.5)) and at(285 / 300, **recipe)[1] == pytest.approx(0.7)


@pytest.mark.parametrize("dataset", ["nifti", "fastmri", "pairs"])
def test_data_that_are_not_finite_are_named(dataset, data, tmp_path):
    """And the run, which has nothing to keep, leaves nothing behind."""
    (tmp_path / dataset).mkdir()
    for path in (data / dataset).iterdir():
        (tmp_path / dataset / path.name).write_bytes(path.read_bytes())
    if dataset == "nifti":
        damaged = tmp_path / dataset / "ann_T1.nii.gz"
        image = nibabel.load(damaged)
        values = image.get_fdata()
        values[3, 4, 1] = np.nan
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), image.affine), damaged)
    else:
        damaged = next(iter(sorted((tmp_path / dataset).iterdir())))
        with h5py.File(damaged, "r+") as file:
            file["kspace"][1] = np.nan
    with pytest.raises(InputError, match=f"{damaged.name}.*(NaN|finite)"):
        train(options(dataset, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


# ------------------------------------------------------------------------------------------------- weights on the disk


def test_the_header_says_how_and_nothing_of_whom_and_where(data, tmp_path):
    chosen = options(
        "fastmri", data, steps=2, masks=("roulette", "random-lines"), noise=(0.01, 0.01), validation_subjects=None
    )
    train(chosen, tmp_path)
    path = tmp_path / "weights.safetensors"
    header = load_tensors(path)[1]
    for secret in (str(data), *(f'"{subject}' for subject in SUBJECTS), "id of"):
        assert secret.encode() not in path.read_bytes(), secret
    assert header["step"] == 2 and header["seconds"] > 0 and header["note"] == "research use only"
    assert header["network"] == "unrolled" and header["torch"] == torch.__version__ and header["version"]
    assert header["training"]["dataset"] == "fastmri" and header["training"]["batch_size"] == 4
    protocol = header["training"]["protocol"]
    assert (
        protocol["masks"] == ["roulette", "random-lines"]
        and protocol["pairs"] == "fixed"
        and protocol["noise"] == [0.01, 0.01]
    )
    assert header["parameters"] == sum(p.numel() for p in load_network(path)[0].parameters())


def test_named_subjects_are_not_in_the_weights(data, tmp_path):
    chosen = options("nifti", data, steps=1, validation_subjects=("eve",), excluded_subjects=("bob",))
    train(chosen, tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    assert not any(f'"{subject}"'.encode() in path.read_bytes() for subject in SUBJECTS)
    again = replace(chosen, steps=2, validation_subjects=None, init=str(path))  # starts there, on other subjects
    train(again, tmp_path / "second")
    secrets = (*(f'"{subject}' for subject in SUBJECTS), str(tmp_path))
    assert not any(text.encode() in (tmp_path / "second" / path.name).read_bytes() for text in secrets)


def test_training_starts_from_other_weights(data, tmp_path):
    train(options("nifti", data, steps=2), tmp_path / "first")
    train(options("nifti", data, steps=1, learning_rate=1e-12, init=str(tmp_path / "first")), tmp_path / "second")
    first, second = (load_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("first", "second"))
    assert all(torch.allclose(first[name], second[name], atol=1e-9) for name in first)
    tensors, header = load_tensors(tmp_path / "first" / "weights.safetensors")
    for number, wrong in enumerate(
        (dict(list(tensors.items())[1:]), tensors | {"unets.9.first.weight": torch.ones(1)})
    ):
        save_tensors(tmp_path / f"wrong-{number}.safetensors", wrong, header)
        with pytest.raises(InputError, match="does not hold the tensors"):
            train(
                options("nifti", data, steps=1, init=str(tmp_path / f"wrong-{number}.safetensors")), tmp_path / "third"
            )
    for other in ({"channels": 16}, {"consistency": "hard"}, {"consistency": "hard", "cascades": 2}):
        with pytest.raises(InputError, match="unrolled"):
            other = options("nifti", data, network_options={**TINY, **other}, init=str(tmp_path / "first"))
            train(other, tmp_path / "third")
    for other in ("fastmri-varnet", "fastmri-unet"):
        sizes = {"channels": 4, "levels": 2} | ({"cascades": 2} if other == "fastmri-varnet" else {})
        with pytest.raises(InputError, match="unrolled"):
            other = options("nifti", data, network=other, network_options=sizes, init=str(tmp_path / "first"))
            train(other, tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("before, after", [("hard", "hard"), ("soft", "soft"), ("hard", "soft")])
@pytest.mark.parametrize("unet", ["doubling", "flat"])
def test_a_grown_network_starts_as_the_one_it_grew_from(unet, before, after, data, tmp_path):
    """Added cascades are the identity at first, and the noise level is not looked at, so without noise the images are the
    same; fewer cascades, and hard consistency after soft, are refused."""
    small = {**TINY, "consistency": before, "unet": unet}
    train(options("nifti", data, steps=2, noise=(0.05, 0.05), network_options=small), tmp_path / "small")
    larger = {**small, "cascades": TINY["cascades"] + 2, "consistency": after}
    grown = options("nifti", data, network_options=larger, learning_rate=1e-12, init=str(tmp_path / "small"), steps=1)
    train(grown, tmp_path / "grown")
    full = phantom_kspace((21, 24), generator=torch.Generator().manual_seed(5))
    kspace = (full * draw_mask("roulette", (21, 24), 3.0, torch.Generator().manual_seed(6)).mask).numpy()[0]
    images = [mri_n2n.reconstruct(kspace, weights=tmp_path / name, noise_variance=0) for name in ("small", "grown")]
    np.testing.assert_allclose(*images, atol=1e-6)
    assert np.abs(images[0] - ifft2c(torch.from_numpy(kspace)).numpy()).max() > 1e-4
    if before == "soft":  # the old cascade keeps what it learned of its error, the added ones begin as new
        learned, new = (
            load_tensors(tmp_path / name / "weights.safetensors")[0]["error"] for name in ("small", "grown")
        )
        fresh = build_network("unrolled", larger).error[1:]
        assert not torch.equal(learned, fresh[:1]) and torch.allclose(new, torch.cat((learned, fresh)), atol=1e-6)
    wrongs = [(small, "grown"), ({**larger, "memory": 2}, "small")]
    wrongs += [({**larger, "consistency": "hard"}, "grown")] if after == "soft" else []
    for wrong, start in wrongs:
        with pytest.raises(InputError, match="unrolled"):
            chosen = options("nifti", data, steps=1, network_options=wrong, init=str(tmp_path / start))
            train(chosen, tmp_path / "third")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    """SIGKILL at moments spread over many writes: the file is always whole, and never older than one known to be there."""
    script = textwrap.dedent("""
        import os, random, signal, sys, time
        from pathlib import Path
        import torch
        from mri_n2n.checkpoint import load_tensors, save_tensors
        torch.set_num_threads(1)  # a forked child has none of its parent's threads, and would wait for them
        path = Path(sys.argv[1]) / "checkpoint.safetensors"
        draw, parent = random.Random(0), os.getpid()
        save_tensors(path, {"a": torch.zeros(1_000_000)}, {"step": 0})
        for trial in range(6):
            floor = load_tensors(path)[1]["step"]
            child = os.fork()
            if child == 0:
                step = floor
                while os.getppid() == parent:  # none outlives a failed test
                    step += 1
                    save_tensors(path, {"a": torch.full((1_000_000,), float(step))}, {"step": step})
                os._exit(0)
            while load_tensors(path)[1]["step"] == floor:  # however slow the machine: something is written
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            tensors, header = load_tensors(path)
            assert header["step"] > floor and bool((tensors["a"] == header["step"]).all()), (floor, header)
        save_tensors(path, tensors, header)
        print(*(file.name for file in path.parent.iterdir()))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checkpoint.safetensors"]  # what the kills left was removed by the next write


class Harmful:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def damage(kind: str, good: Path, path: Path) -> None:
    content = good.read_bytes()
    tensors, header = load_tensors(good)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no weights at all\n" * 50)
        case "truncated":
            path.write_bytes(content[:-100])
        case "header cut":
            path.write_bytes(content[:60])
        case "pickled":
            path.write_bytes(pickle.dumps({"state_dict": Harmful(path.with_name("harm"))}))
        case "torch.save":
            torch.save({"state_dict": tensors, "extra": Harmful(path.with_name("harm"))}, path)
        case "foreign":
            save_file(tensors, path)
        case "foreign format":
            save_file(tensors, path, metadata={"format": "pt"})
        case "header no JSON":
            save_file(tensors, path, metadata={"format": "mri-n2n weights 1", "header": "{"})
        case "no network":
            save_tensors(path, tensors, {"note": "nothing"})
        case "unknown network":
            save_tensors(path, tensors, {**header, "network": "transformer"})
        case "network no name":
            save_tensors(path, tensors, {**header, "network": ["unrolled"]})
        case "wrong options":
            save_tensors(path, tensors, {**header, "network_options": {"breadth": 3}})
        case "impossible options":
            save_tensors(path, tensors, {**header, "network_options": {**TINY, "channels": -8}})
        case "enormous options":
            save_tensors(path, tensors, {**header, "network_options": {**TINY, "channels": 10**6}})
        case "other tensors":
            save_tensors(path, {**tensors, "extra": torch.zeros(3)}, header)
        case "other shapes":
            save_tensors(path, {name: value.flatten() for name, value in tensors.items()}, header)


@pytest.fixture(scope="module")
def good_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "weights.safetensors"
    save_tensors(path, build_network("unrolled", TINY).state_dict(), {"network": "unrolled", "network_options": TINY})
    assert load_network(path)
    return path


DAMAGE = [
    "empty", "text", "truncated", "header cut", "pickled", "torch.save", "foreign", "foreign format", "header no JSON", "no network",
    "unknown network", "network no name", "wrong options", "impossible options", "enormous options", "other tensors", "other shapes",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_are_refused_in_one_line(kind, good_weights, tmp_path):
    path = tmp_path / "bad.safetensors"
    damage(kind, good_weights, path)
    with pytest.raises(InputError) as caught:
        load_network(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert not (tmp_path / "harm").exists()


def test_missing_weights_are_not_found(tmp_path):
    for path in (tmp_path / "none.safetensors", find_weights(tmp_path)):
        with pytest.raises(NotFoundError, match=path.name):
            load_network(path)


def test_the_tests_use_what_they_say(data):
    split = find_sources("nifti", data / "nifti")
    assert [source.subject for source in split.train] == ["ann", "bob"] and [
        source.subject for source in split.validation
    ] == ["eve"]
    assert tuple(split.train[0].load().shape) == (3, 1, 24, 20) and tuple(split.train[1].load().shape) == (3, 1, 20, 24)


def test_subjects_to_exclude_must_exist_and_leave_some(data, tmp_path):
    for names in (("nobody",), SUBJECTS):
        with pytest.raises(UserError):
            train(options("nifti", data, excluded_subjects=names), tmp_path / "run")
        assert not (tmp_path / "run").exists()
