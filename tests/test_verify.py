"""`verify`: a result is made again and compared; what was touched, exchanged or lost is named, and nothing is left behind."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

import mri_n2n
from mri_n2n.checkpoint import build_network, save_tensors
from mri_n2n.cli import main
from mri_n2n.denoising.cleaning import Plan
from mri_n2n.denoising.denoise import denoise_file
from mri_n2n.denoising.self_training import DenoiseOptions
from mri_n2n.errors import VerificationError
from mri_n2n.files import sha256_of
from mri_n2n.fourier import ifft2c
from mri_n2n.phantom import phantom_kspace
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.simulation import SimulationOptions, simulate_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def weights_file(path: Path, seed: int) -> Path:
    options = {"cascades": 1, "channels": 8, "levels": 2}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        state = build_network("unrolled", options).state_dict()
    save_tensors(path, state, {"network": "unrolled", "network_options": options})
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """Scans of 3 slices of 26 x 21, two weights files, and a result of each kind in a folder of its name."""
    folder = tmp_path_factory.mktemp("desk")
    scans = folder / "scans"
    scans.mkdir()
    draw = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    images = np.stack([ifft2c(phantom_kspace((26, 21), generator=draw(i)))[0].abs().numpy() for i in range(3)])
    noise = np.random.default_rng(0).standard_normal((2, *images.shape)) * 0.05
    noisy = images + noise[0] + 1j * noise[1]
    for name, array in {"volume": 700 * images, "mag": abs(noisy), "phase": np.angle(noisy)}.items():
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0).astype(np.float32), np.eye(4)), scans / f"{name}.nii")
    kinds = {
        "single": SimulationOptions(acceleration=4),
        "coils": SimulationOptions(acceleration=3, coils=3, noise=0.01),
        "full": SimulationOptions(acceleration=1, noise=0.05, phase=True),
    }
    for name, options in kinds.items():
        simulate_file(scans / "volume.nii", scans / f"{name}.h5", options)
    # BART: two repetitions (AVG is dimension 14) with other noise, of which the second is taken.
    kspace = phantom_kspace((26, 21), generator=draw(3)).reshape(26, 21).numpy()
    both = [kspace * (1 + 0.2 * np.random.default_rng(i).standard_normal(kspace.shape)) for i in (1, 2)]
    np.stack(both, axis=-1).astype(np.complex64).ravel(order="F").tofile(scans / "bart.cfl")
    (scans / "bart.hdr").write_text(f"# Dimensions\n26 21 {'1 ' * 12}2 1\n")
    weights = weights_file(folder / "a.safetensors", 1)
    weights_file(folder / "b.safetensors", 2)

    def result(name: str, scan: str, **options) -> None:
        reconstruct_files([scans / scan], folder / name, quiet=True, device="cpu", **options)

    result("network", "single.h5", weights=weights, flips=True)
    result("bundled", "single.h5")
    result("coils", "coils.h5", weights=weights)
    result("tv", "coils.h5", baseline="tv")
    result("given", "single.h5", baseline="wavelet", regularisation=0.01)
    result("repetition", "bart.cfl", baseline="zero-filled", repetition=1)
    steps = DenoiseOptions(channels=4, steps=4, seed=5)
    denoise_file(scans / "full.h5", folder / "denoise", Plan(training=steps), quiet=True, device="cpu")
    more = Plan(training=steps, noise_map=True, residual=True, noise=0.05)
    denoise_file(scans / "mag.nii", folder / "parts", more, phase=scans / "phase.nii", quiet=True, device="cpu")
    clock = Plan(training=DenoiseOptions(channels=4, minutes=0.03))
    denoise_file(scans / "full.h5", folder / "clock", clock, quiet=True, device="cpu")
    return folder


RESULTS = {
    "network": "single",
    "bundled": "single",
    "coils": "coils",
    "tv": "coils",
    "given": "single",
    "repetition": "bart",
    "denoise": "full",
    "parts": "mag",
    "clock": "full",
}
SCANS = {"bart": "bart.cfl", "mag": "mag.nii"}


def asked(desk: Path, result: str, image: str = ".h5", folder: Path | None = None) -> list[str]:
    name = RESULTS[result]
    weights = ["--weights", str(desk / "a.safetensors")] if result in ("network", "coils") else []
    where = (folder or desk / result) / f"{name}{image}"
    return ["verify", str(where), "--scan", str(desk / "scans" / SCANS.get(name, f"{name}.h5")), *weights, "--quiet"]


def copied(desk: Path, result: str, to: Path) -> Path:
    to.mkdir()
    for file in (desk / result).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edited(folder: Path, name: str, change) -> Path:
    """The sidecar, changed in place, the hashes of all outputs as they are now: as by one who would have it believed."""
    path = folder / f"{name}.json"
    said = json.loads(path.read_text())
    change(said)
    for file in said.get("output_sha256", {}):
        if (folder / file).is_file():
            said["output_sha256"][file] = sha256_of(folder / file)
    path.write_text(json.dumps(said))
    return path


def refused(words: list[str], code: int, capsys, says: str) -> None:
    """One line, this code, nothing on stdout."""
    capsys.readouterr()
    assert main(words) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("mri-n2n: error: "), said
    assert says in said.err, said.err


# ------------------------------------------------------------------------------------------------------ made again


@pytest.mark.parametrize("image", [".h5", ".nii.gz", ".json"])
def test_the_image_may_be_given_by_any_of_its_files(image, desk, capsys):
    assert main(asked(desk, "given", image)) == 0
    assert "identical" in capsys.readouterr().out


@pytest.mark.parametrize("result", RESULTS)
def test_every_kind_of_result_is_made_again_bit_for_bit(result, desk, capsys, tmp_path, monkeypatch):
    """And nothing is written: neither beside the result nor beside the scan, and the temporary directory is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = tree(desk)
    assert main([*asked(desk, result), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["verified"], told["largest_difference"]) == ("identical", True, 0)
    assert told["contradicted"] == told["changed"] == [] and told["note"] == "research use only"
    assert told["trained"] == (result in ("denoise", "parts", "clock"))
    files = {name.partition(":")[0] for name in told["differences"]}
    wanted = {".h5", ".nii.gz"} | ({".noise.nii.gz", ".residual.nii.gz"} if result == "parts" else set())
    assert files == {RESULTS[result] + suffix for suffix in wanted}
    assert tree(desk) == before and list(tmp_path.iterdir()) == []


def test_a_training_by_the_clock_is_repeated_by_its_pace(desk):
    """Other paces of as many steps give another network: it is the pace that makes it the same."""
    said = json.loads((desk / "clock" / "full.json").read_text())
    pace = said["redo"]["options"]["training"]["pace"]
    assert len(pace) == 100 and sum(pace) == said["denoise"]["steps"] > 3


def test_another_pace_is_another_image(desk, tmp_path, capsys):
    folder = copied(desk, "clock", tmp_path / "r")

    def hurried(said: dict) -> None:
        training = said["redo"]["options"]["training"]
        training["pace"] = [sum(training["pace"])] + [0] * 99

    edited(folder, "full", hurried)
    assert main(asked(desk, "clock", folder=folder)) == 7
    out = capsys.readouterr().out
    assert "different" in out and "trained on the scan again" in out


def test_the_sidecar_names_every_file_of_the_scan(desk):
    for result, names in {"repetition": ["bart.cfl", "bart.hdr"], "parts": ["mag.nii", "phase.nii"]}.items():
        said = json.loads((desk / result / f"{RESULTS[result]}.json").read_text())
        assert said["redo"]["files"] == [{"name": n, "sha256": sha256_of(desk / "scans" / n)} for n in names]
        assert said["input"]["sha256"] == said["redo"]["files"][0]["sha256"]
    assert str(desk) not in (desk / "parts" / "mag.json").read_text()


def test_the_verb_in_python(desk):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        found = mri_n2n.verify(desk / "given" / "single.nii.gz", scan=str(desk / "scans" / "single.h5"))
        assert torch.get_num_threads() == threads + 1, "as they were before"
    finally:
        torch.set_num_threads(threads)
    assert found.verdict == "identical" and found.changed == () and found.verified
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.verdict = "different"
    with pytest.raises(VerificationError, match="not the weights"):
        mri_n2n.verify(
            desk / "network" / "single.h5", scan=desk / "scans" / "single.h5", weights=desk / "b.safetensors"
        )


# ------------------------------------------------------------------------------------------------------ touched


def test_a_touched_byte_a_removed_file_and_a_touched_nifti_are_named(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    data = bytearray((folder / "single.h5").read_bytes())
    data[-1] ^= 1
    (folder / "single.h5").write_bytes(data)
    (folder / "single.nii.gz").unlink()
    refused(asked(desk, "given", ".json", folder), 7, capsys, "missing: single.nii.gz; changed since it was written")
    refused(asked(desk, "given", folder=folder), 7, capsys, "(other SHA-256): single.h5")


def of_nifti(path: Path, change) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    voxels = np.frombuffer(data, np.float32, offset=352).copy()
    change(voxels)
    data[352:] = voxels.tobytes()
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.mark.parametrize("share, verdict", [(1e-5, "equal to rounding"), (1e-3, "different")])
def test_a_voxel_that_was_changed_is_found_behind_a_hash_that_fits(share, verdict, desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")

    def change(voxels: np.ndarray) -> None:
        voxels[100] += share * voxels.max()

    of_nifti(folder / "single.nii.gz", change)
    edited(folder, "single", lambda said: None)
    assert main([*asked(desk, "given", folder=folder), "--json"]) == (0 if verdict == "equal to rounding" else 7)
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == verdict and told["differences"]["single.nii.gz"] == pytest.approx(share, rel=0.02)
    assert told["differences"]["single.h5: image"] == 0


def test_one_bit_is_not_identical(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    with h5py.File(folder / "single.h5", "r+") as file:
        image = file["image"][()]
        image[1, 2, 3] = np.nextafter(image[1, 2, 3].real, np.float32(np.inf)) + 1j * image[1, 2, 3].imag
        file["image"][...] = image
    edited(folder, "single", lambda said: None)
    assert main(asked(desk, "given", folder=folder)) == 0
    assert "equal to rounding" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda said: said["warnings"].append("all is well"), "warnings"),
        (lambda said: said["input"].update(simulated=False), "input.simulated"),
        (lambda said: said.update(measured_share=1.0), "measured_share"),
        (lambda said: said["input"].update(sha256="0" * 64), "input.sha256"),
        (lambda said: said["baseline"].update(name="tv"), "baseline"),
        (lambda said: said["options"].update(precision="float64"), "options"),
        (lambda said: said["input"].update(name="other.h5"), "input.name"),
        (lambda said: said["input"].update(patient="a healthy one"), "input.patient"),
        (lambda said: said.update(approved="by all"), "approved"),
    ],
)
def test_a_sidecar_that_says_otherwise_is_contradicted(change, says, desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    edited(folder, "single", change)
    assert main(asked(desk, "given", folder=folder)) == 7
    out = capsys.readouterr().out
    assert "single: contradicted: " in out and "bit for bit" in out and f"made again: {says}." in out
    assert main([*asked(desk, "given", folder=folder), "--json"]) == 7
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "contradicted" and told["contradicted"] == [says] and not told["verified"]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda said: said["weights"].update(method="supervised"), "weights.method"),
        (lambda said: said["weights"].update(name="better.safetensors"), "weights.name"),
        (lambda said: said["weights"].update(trained_on="everyone"), "weights.trained_on"),
    ],
)
def test_what_the_weights_are_is_not_taken_from_the_sidecar(change, says, desk, tmp_path, capsys):
    folder = copied(desk, "bundled", tmp_path / "r")
    edited(folder, "single", change)
    assert main(asked(desk, "bundled", folder=folder)) == 7
    assert f"made again: {says}." in capsys.readouterr().out


def test_a_version_that_is_not_that_of_the_image_excuses_nothing(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    edited(folder, "single", lambda said: said["software"].update({"mri-n2n": "0.0.1"}))
    refused(
        asked(desk, "given", folder=folder), 7, capsys, "says that it is of mri-n2n 0.0.1, and single.h5 that it is of"
    )


@pytest.mark.parametrize(
    "result, change, says",
    [
        ("given", lambda said: said["baseline"].update(most_iterations=1), "baseline"),
        ("given", lambda said: said["options"].update(device="cuda"), "options"),
        ("tv", lambda said: said["baseline"]["sweep"].clear(), "baseline"),
        ("denoise", lambda said: said["denoise"].update(own_pixels={"level": 1.0}), "denoise"),
        ("given", lambda said: said["options"].update(alarm="none, approved"), "options"),
    ],
)
def test_on_the_recorded_machine_nothing_is_left_to_rounding(result, change, says, desk, tmp_path, capsys):
    folder = copied(desk, result, tmp_path / "r")
    edited(folder, RESULTS[result], change)
    assert main(asked(desk, result, folder=folder)) == 7
    assert f"made again: {says}." in capsys.readouterr().out


def test_other_options_make_another_image(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    edited(folder, "single", lambda said: said["redo"]["options"].update(regularisation=0.02))
    assert main(asked(desk, "given", folder=folder)) == 7
    assert "different" in capsys.readouterr().out


def test_another_geometry_or_an_array_too_many_is_different(desk, tmp_path, capsys):
    for number, change in enumerate(
        (lambda file: file.attrs.update(slice_axis=0), lambda file: file.create_dataset("more", data=[1.0]))
    ):
        folder = copied(desk, "given", tmp_path / str(number))
        with h5py.File(folder / "single.h5", "r+") as file:
            change(file)
        edited(folder, "single", lambda said: None)
        assert main([*asked(desk, "given", folder=folder), "--json"]) == 7
        assert json.loads(capsys.readouterr().out)["largest_difference"] is None
        assert main(asked(desk, "given", folder=folder)) == 7
        assert "other arrays, shapes" in capsys.readouterr().out


def test_another_machine_is_said_in_words(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")

    def elsewhere(said: dict) -> None:
        said["redo"]["machine"] |= {"threads": 4096, "device": "cuda", "gpu": "GPU 1"}
        said["software"] |= {"torch": "1.0", "mri-n2n": "0.0.1"}
        said["warnings"] = ["as an earlier version said it"]

    with h5py.File(folder / "single.h5", "r+") as file:
        file.attrs["software"] = "mri-n2n 0.0.1"
    edited(folder, "single", elsewhere)
    assert main(asked(desk, "given", folder=folder)) == 0
    out = capsys.readouterr().out
    threads = torch.get_num_threads()
    for words in ("torch 1.0 then", f"threads 4096 then, {threads} now", "something else of warnings"):
        assert words in out
    if not torch.cuda.is_available():
        assert "device cuda then, cpu now" in out


# ------------------------------------------------------------------------------------------------------ scan and weights


def test_the_scan_is_looked_for_beside_the_result_and_here(desk, tmp_path, capsys, monkeypatch):
    """The result has the name of the scan, and is not taken for it."""
    monkeypatch.chdir(tmp_path)
    folder = copied(desk, "given", tmp_path / "r")
    words = ["verify", "r/single.h5"]
    refused(words, 5, capsys, "give --scan SCAN")
    (tmp_path / "single.h5").write_bytes((desk / "scans" / "coils.h5").read_bytes())
    refused(words, 7, capsys, "single.h5 is not the single.h5 that single was made of")
    (tmp_path / "single.h5").write_bytes((desk / "scans" / "single.h5").read_bytes())
    assert main(words) == 0
    monkeypatch.chdir(folder)
    refused(["verify", "single.nii.gz"], 5, capsys, "give --scan SCAN")
    refused(["verify", "single.h5", "--scan", "nothing.h5"], 5, capsys, "no file nothing.h5")
    refused(["verify", "single.h5", "--scan", str(desk)], 3, capsys, "is a directory")


def test_the_other_files_of_a_scan_count_too(desk, tmp_path, capsys):
    for name in ("bart.cfl", "bart.hdr", "mag.nii", "phase.nii"):
        (tmp_path / name).write_bytes((desk / "scans" / name).read_bytes())
    bart = ["verify", str(desk / "repetition" / "bart.h5"), "--scan", str(tmp_path / "bart.hdr")]
    assert main(bart) == 0
    (tmp_path / "bart.hdr").write_text((tmp_path / "bart.hdr").read_text() + "# by me\n")
    refused(bart, 7, capsys, "bart.hdr is not the bart.hdr")
    (tmp_path / "bart.hdr").unlink()
    refused(bart, 5, capsys, "bart.hdr")
    parts = ["verify", str(desk / "parts" / "mag.h5"), "--scan", str(tmp_path / "mag.nii")]
    (tmp_path / "phase.nii").write_bytes((tmp_path / "mag.nii").read_bytes())
    refused(parts, 7, capsys, "phase.nii is not the phase.nii")
    (tmp_path / "phase.nii").unlink()
    refused(parts, 5, capsys, "give it beside mag.nii")


def test_weights_are_those_on_record_or_named(desk, tmp_path, capsys, monkeypatch):
    words = asked(desk, "network")[:4]
    refused(words, 5, capsys, "made with the weights a.safetensors")
    refused([*words, "--weights", str(desk / "b.safetensors")], 7, capsys, "b.safetensors are not the weights")
    refused([*words, "--weights", str(desk / "c.safetensors")], 5, capsys, "c.safetensors")
    refused([*asked(desk, "given"), "--weights", str(desk / "a.safetensors")], 2, capsys, "without weights")
    # Bundled ones are found; those of another version are not taken in their place.
    scan = tmp_path / "line.h5"
    simulate_file(desk / "scans" / "volume.nii", scan, SimulationOptions(acceleration=3, mask="random-lines"))
    for module in ("checkpoint", "inference"):
        monkeypatch.setattr(f"mri_n2n.{module}.BUNDLED", desk / "a.safetensors")
    reconstruct_files([scan], tmp_path / "r", quiet=True)
    words = ["verify", str(tmp_path / "r" / "line.h5"), "--scan", str(scan)]
    assert main(words) == 0 and "identical" in capsys.readouterr().out
    monkeypatch.setattr("mri_n2n.checkpoint.BUNDLED", desk / "b.safetensors")
    refused(words, 5, capsys, "others than this one's")
    assert "line mask: the bundled" in (tmp_path / "r" / "line.json").read_text()
    assert main([*words, "--weights", str(desk / "a.safetensors")]) == 0, "a file brings no caution of the bundled ones"


# ------------------------------------------------------------------------------------------------------ bad sidecars


def without(*keys: str):
    def change(said: dict) -> None:
        for key in keys[:-1]:
            said = said[key]
        del said[keys[-1]]

    return change


def having(value, *keys: str):
    def change(said: dict) -> None:
        for key in keys[:-1]:
            said = said[key]
        said[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, says",
    [
        (without("redo"), "lacks redo, needed to make the image again; it was written by mri-n2n"),
        (without("redo", "options", "repetition"), "lacks redo.options.repetition"),
        (without("output_sha256", "full.nii.gz"), "has no SHA-256 of full.nii.gz"),
        (having("0" * 63, "output_sha256", "full.h5"), "output_sha256 cannot be"),
        (having("0" * 64, "output_sha256", "../full.h5"), "output_sha256 cannot be"),
        (having("/etc/scan.h5", "redo", "files", 0, "name"), "redo.files.name cannot be '/etc/scan.h5'"),
        (having("launch", "redo", "command"), "redo.command cannot be"),
        (having("yes", "redo", "options", "residual"), "redo.options.residual cannot be 'yes'"),
        (having("dicom", "redo", "options", "format"), "redo.options.format cannot be"),
        (having(True, "redo", "options", "repetition"), "redo.options.repetition cannot be"),
        (having(0, "redo", "options", "training", "batch_size"), "batch_size cannot be 0"),
        (having(9.0, "redo", "options", "training", "spot", "share"), "share cannot be 9.0"),
        (having(4, "redo", "options", "training", "spot", "window"), "options that cannot be: --window"),
        (having(None, "redo", "options", "training", "steps"), "options that cannot be: give one of"),
        (having(1, "redo", "options", "magic"), "redo.options.magic, which this version does not know"),
        (having([], "redo", "machine"), "redo.machine cannot be"),
        (having(3, "software"), "software cannot be 3"),
        (having("x" * 9, "weights"), "weights cannot be"),
    ],
)
def test_a_damaged_edited_or_earlier_sidecar_is_one_line(change, says, desk, tmp_path, capsys):
    folder = copied(desk, "denoise", tmp_path / "r")
    path = folder / "full.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    refused(asked(desk, "denoise", folder=folder), 3, capsys, says)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, None])
def test_what_is_no_sidecar(data, desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    path = folder / "single.json"
    path.write_bytes(path.read_bytes()[:-40] if data is None else data)
    refused(asked(desk, "given", folder=folder), 3, capsys, "single.json is no")


def test_what_is_no_result(desk, tmp_path, capsys):
    folder = copied(desk, "given", tmp_path / "r")
    refused(["verify", str(folder / "single.png")], 3, capsys, "expected NAME.h5")
    refused(
        ["verify", str(desk / "scans" / "single.h5")], 5, capsys, "single.json, the record of how single.h5 was made"
    )
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("single", "other"))
    refused(asked(desk, "given", folder=folder)[:1] + [str(folder / "other.h5")], 3, capsys, "says nothing of other.h5")


def test_a_kill_while_it_runs_leaves_nothing(desk, tmp_path):
    """SIGTERM, as a batch system sends it, within a training that would take hours."""
    folder, room = copied(desk, "denoise", tmp_path / "r"), tmp_path / "tmp"
    room.mkdir()
    edited(folder, "full", lambda said: said["redo"]["options"]["training"].update(steps=10**8))
    before = tree(tmp_path)
    command = [sys.executable, "-m", "mri_n2n", *asked(desk, "denoise", folder=folder)]
    environment = os.environ | {"TMPDIR": str(room)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        started = time.monotonic()
        while process.poll() is None and not list(room.iterdir()) and time.monotonic() - started < 120:
            time.sleep(0.02)
        time.sleep(0.5)  # into the training
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in said and said.count("\n") == 1, said
    assert tree(tmp_path) == before and list(room.iterdir()) == []
