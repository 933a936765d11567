"""From a scan to image files: what is written, that it is right, and that nothing is lost or half-written."""

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from test_raw_formats import XML

import mri_n2n
from mri_n2n.batches import Protocol
from mri_n2n.checkpoint import BUNDLED, build_network, save_tensors
from mri_n2n.errors import InputError, NotFoundError, OptionError, OutputError, PartialError
from mri_n2n.files import sha256_of
from mri_n2n.formats import open_scan, read_reference, read_result, write_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import load_for_use
from mri_n2n.masks import draw_mask
from mri_n2n.metrics import psnr
from mri_n2n.options import TrainOptions
from mri_n2n.outputs import Target
from mri_n2n.phantom import phantom_kspace
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.reconstructors import network_reconstructor
from mri_n2n.simulation import SimulationOptions, simulate_file, smooth_phase
from mri_n2n.training import train

reconstruction = import_module("mri_n2n.reconstruction")  # the module: `mri_n2n.reconstruct` is the verb
inference = import_module("mri_n2n.inference")

OUTPUTS = ("scan.h5", "scan.json", "scan.nii.gz", "scan.png")
# Oblique, with three voxel sizes: an exchange of axes cannot go unseen.
AFFINE = np.array([[0.9, 0.1, 0.0, -20], [-0.1, 1.1, 0.3, 5], [0.0, -0.2, 2.5, 7], [0, 0, 0, 1]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(y: int, x: int, seed: int = 0) -> np.ndarray:
    return ifft2c(phantom_kspace((y, x), generator=generator(seed)))[0].abs().numpy()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps: small weights, but trained ones."""
    path = tmp_path_factory.mktemp("run")
    tiny = {"cascades": 2, "channels": 8, "levels": 2}
    train(
        TrainOptions("phantom", matrix_size=24, protocol=Protocol(acceleration=(3.0, 3.0)), network_options=tiny, steps=2,
                     batch_size=4, learning_rate=0.02, precision="float32", device="cpu", quiet=True),
        path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, Path]:
    """Simulated scans of one volume of 20 x 26 x 3 voxels, slices along axis 2; `line` has a mask of lines."""
    folder = tmp_path_factory.mktemp("scans")
    images = np.stack([head(26, 20, i) for i in range(3)]).transpose(2, 1, 0)
    image = nibabel.Nifti1Image((700 * images).astype(np.float32), AFFINE)
    image.set_qform(None, 0)
    image.set_sform(AFFINE, 3)
    nibabel.save(image, folder / "volume.nii.gz")
    kinds = {
        "single": SimulationOptions(acceleration=4), "coils": SimulationOptions(acceleration=4, coils=3, noise=0.01),
        "line": SimulationOptions(acceleration=3, mask="random-lines", phase=True),
        "axis0": SimulationOptions(acceleration=3, axis=0, phase=True), "axis1": SimulationOptions(acceleration=3, axis=1),
    }  # fmt: skip
    found = {}
    for name, options in kinds.items():
        (folder / name).mkdir()
        (found[name],) = simulate_file(folder / "volume.nii.gz", folder / name / "scan.h5", options)
    return found


def kspace_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(slices, coils, y, x) as stored and the stored mask."""
    with h5py.File(path) as file:
        kspace = file["kspace"][()]
        return (kspace if kspace.ndim == 4 else kspace[:, None]), file["mask"][()]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, directories and hidden files included."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def copy(path: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(path.read_bytes())
    return to


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("name", ["single", "coils", "line"])
def test_the_four_files_are_complete(name, scans, run, tmp_path):
    (sidecar,) = reconstruct_files([scans[name]], tmp_path / "new" / "results", weights=run, quiet=True)
    results = tmp_path / "new" / "results"
    assert tuple(tree(results)) == OUTPUTS
    kspace, mask = kspace_of(scans[name])
    slices, coils, y, x = kspace.shape
    with h5py.File(results / "scan.h5") as file:
        image, magnitude = file["image"][()], file["reconstruction"][()]
        maps = file["sensitivity_maps"][()] if coils > 1 else None
        assert set(file) == {"image", "reconstruction", *(["sensitivity_maps"] if coils > 1 else [])}
        assert file.attrs["note"] == "research use only" and bool(file.attrs["simulated"])
    assert magnitude.dtype == np.float32 and magnitude.shape == (slices, y, x)
    assert image.dtype == np.complex64 and image.shape == (slices, y, x)
    np.testing.assert_allclose(magnitude, np.abs(image), rtol=1e-5, atol=1e-4)
    if coils > 1:
        energy = np.square(np.abs(maps)).sum(axis=1)
        assert maps.shape == (slices, coils, y, x) and ((np.abs(energy - 1) < 1e-4) | (energy == 0)).all()
    # On the input's scale, and not just the zero-filled image.
    zero_filled = np.sqrt((np.abs(ifft2c(torch.from_numpy(kspace)).numpy()) ** 2).sum(axis=1))
    assert 0.5 < magnitude.max() / zero_filled.max() < 2 and not np.allclose(magnitude, zero_filled, rtol=1e-3)

    with Image.open(results / "scan.png") as picture:
        picture.verify()
    assert json.loads((results / "scan.json").read_text()) == sidecar
    assert sidecar["measured_share"] == pytest.approx(mask.mean(), abs=1e-5)
    assert (sidecar["slices"], sidecar["coils"], sidecar["matrix"]) == (slices, coils, [y, x])
    assert sidecar["mask_source"] == "stored" and sidecar["input"]["simulated"] is True and sidecar["seconds"] >= 0
    assert sidecar["note"] == "research use only" and sidecar["weights"]["bundled"] is False
    assert sidecar["input"]["sha256"] == sha256_of(scans[name])
    assert sidecar["weights"]["sha256"] == sha256_of(run / "weights.safetensors")
    assert sidecar["output_sha256"] == {n: sha256_of(results / n) for n in ("scan.h5", "scan.nii.gz")}
    assert ("sensitivity maps" in sidecar["combination"]) == (coils > 1)


def test_what_weights_were_not_made_for_is_said(scans, run, tmp_path):
    """In the sidecar and as a warning: line masks with the bundled weights, accelerations far from the trained ones."""
    with pytest.warns(UserWarning, match="scan.h5: line mask"):
        (sidecar,) = reconstruct_files([scans["line"]], tmp_path / "line", quiet=True)
    said = [
        said.split(";")[0] for said in sidecar["warnings"] if not said.startswith("unlike")
    ]  # a phantom of 26 x 20 is
    assert said == ["sampled 2.9x", "line mask: the bundled weights leave ghosts that can look like structures"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beside = "3 slices have no sample on either side of the centre of k-space"  # which is so here
        warnings.filterwarnings("ignore", message=f".*(unlike what the weights|{beside})")
        (sidecar,) = reconstruct_files([scans["single"]], tmp_path / "points", quiet=True)
        assert all(one.startswith(("unlike", beside)) for one in sidecar["warnings"])
    (wide,) = simulate_file(
        scans["line"].parent.parent / "volume.nii.gz", tmp_path / "wide.h5", SimulationOptions(acceleration=1.5)
    )
    with pytest.warns(UserWarning, match=r"sampled 1\.5x; the weights were trained for 4x to 12x"):
        reconstruct_files([wide], tmp_path / "wide", quiet=True)


def test_arrays_are_warned_of_too_and_masks_of_simulate_fit(scans):
    kspace, mask = kspace_of(scans["line"])
    with pytest.warns(UserWarning, match="line mask"):
        image = mri_n2n.reconstruct(kspace[:, 0], mask=mask)
    images = np.stack([head(26, 20, i) for i in range(3)])
    (scan,) = mri_n2n.simulate(images, options=SimulationOptions(acceleration=4))
    for wanted in (scan.kspace, scan.kspace[:, 0]):
        image = mri_n2n.reconstruct(wanted, mask=scan.mask)
        np.testing.assert_array_equal(image, mri_n2n.reconstruct(wanted, mask=scan.mask[0, 0]))
        assert image.shape == (3, 26, 20)
    each = scan.mask.expand(3, 1, 26, 20)
    np.testing.assert_array_equal(mri_n2n.reconstruct(scan.kspace, mask=each).squeeze(), image)


def test_a_mask_that_calls_zeros_measured_is_pointed_out(scans, run, tmp_path):
    path = copy(scans["single"], tmp_path / "in" / "scan.h5")
    with h5py.File(path, "r+") as file:
        file["mask"][...] = 1
    with pytest.warns(UserWarning, match=r"7\d% of the samples that its mask calls measured are exactly zero"):
        reconstruct_files([path], tmp_path / "out", weights=run, quiet=True)


def test_a_time_limit_leaves_nothing_hidden(tmp_path):
    """SIGTERM, as a batch system sends it, cleans up as Ctrl-C does."""
    kspace = torch.randn((40, 96, 96), dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).numpy()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace * (np.arange(96) % 4 == 0)
    command = [sys.executable, "-m", "mri_n2n", "reconstruct", str(tmp_path / "scan.h5"), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list((tmp_path / "out").glob(".*.partial")):
            time.sleep(0.01)
        process.terminate()
        said = process.communicate()[1]
    assert process.returncode == 130 and "interrupted" in said and said.count("\n") == 1, said
    assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]


def test_fastmris_oversampling_is_removed_as_its_header_says(scans, run, tmp_path):
    """An oversampled readout of 26 of which the header's image has 14, and 18 of 20 columns: the central crop."""
    header = XML.format(x=26, y=20, rx=14, fx=260.0, frx=140.0, fy=200.0, last=19, center=10, trajectory="cartesian")
    header = header.replace("<x>14</x><y>20</y>", "<x>14</x><y>18</y>")
    path = copy(scans["coils"], tmp_path / "scan.h5")
    reconstruct_files([path], tmp_path / "whole", weights=run, quiet=True)
    with h5py.File(path, "r+") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = header
        del file["reconstruction_rss"]
    (sidecar,) = reconstruct_files([path], tmp_path / "cropped", weights=run, quiet=True)
    assert sidecar["image_matrix"] == [14, 18] and sidecar["matrix"] == [26, 20]
    with h5py.File(tmp_path / "whole" / "scan.h5") as whole, h5py.File(tmp_path / "cropped" / "scan.h5") as cropped:
        for name in ("reconstruction", "image", "sensitivity_maps"):
            np.testing.assert_array_equal(cropped[name], whole[name][..., 6:20, 1:19])


def test_nothing_is_claimed_of_kspace_that_was_never_acquired(scans, run, tmp_path):
    """Zero-padded columns on one side and rows on both: the image has no such frequencies, and the sidecar says so."""
    kspace, _ = kspace_of(scans["single"])
    kspace[..., :5], kspace[..., :5, :], kspace[..., -6:, :] = 0, 0, 0
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace[:, 0]
    with pytest.warns(UserWarning, match="rows 5 to 19 of 26 and columns 5 to 19 of 20 only"):
        (sidecar,) = reconstruct_files([tmp_path / "scan.h5"], tmp_path / "out", weights=run, quiet=True)
    assert sidecar["acquired"] == {"y": [5, 20], "x": [5, 20]}
    with h5py.File(tmp_path / "out" / "scan.h5") as file:
        found = fft2c(torch.from_numpy(file["image"][()])).numpy()
    largest = np.abs(found).max()
    outside = np.ones(found.shape[1:], bool)
    outside[5:20, 5:] = False
    assert np.abs(found[:, outside]).max() < 1e-5 * largest
    unmeasured = ~outside & (kspace[:, 0] == 0)
    assert np.abs(found[unmeasured]).max() > 1e-3 * largest  # undersampled k-space is reconstructed


@pytest.mark.parametrize(("name", "axis"), [("axis0", 0), ("axis1", 1), ("single", 2)])
def test_nifti_and_hdf5_agree_voxel_by_voxel(name, axis, scans, run, tmp_path):
    reconstruct_files([scans[name]], tmp_path, weights=run, quiet=True)
    magnitude = read_result(tmp_path / "scan.h5")[0]
    image = nibabel.load(tmp_path / "scan.nii.gz")
    assert image.get_data_dtype() == np.float32 and image.shape == (20, 26, 3)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert int(image.header["sform_code"]) == 3 and int(image.header["qform_code"]) == 0
    # The rule of the format: slices along `axis`; of the other axes the higher is y, the lower x.
    voxels = image.get_fdata(dtype=np.float32)
    low, high = (a for a in range(3) if a != axis)
    for place in np.ndindex(voxels.shape):
        assert voxels[place] == magnitude[place[axis], place[high], place[low]]
    # And it shows the volume that was simulated, each voxel where it was.
    original = nibabel.load(scans[name].parent.parent / "volume.nii.gz").get_fdata()
    assert np.corrcoef(original.ravel(), voxels.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("name", ["single", "line"])
def test_measured_samples_are_in_the_image_as_measured(name, scans, run, tmp_path):
    reconstruct_files([scans[name]], tmp_path, weights=run, quiet=True)
    kspace, mask = kspace_of(scans[name])
    with h5py.File(tmp_path / "scan.h5") as file:
        found = fft2c(torch.from_numpy(file["image"][()].reshape(kspace.shape))).numpy()
    at = np.broadcast_to(mask > 0, kspace.shape)
    assert at.mean() > 0.1 and np.abs(found[~at]).max() > 1e-3 * np.abs(found).max()
    np.testing.assert_allclose(found[at], kspace[at], rtol=0, atol=2e-6 * np.abs(kspace).max())


def test_slices_are_streamed_with_the_same_result(scans, run, tmp_path, monkeypatch):
    reconstruct_files([scans["coils"]], tmp_path / "a", weights=run, quiet=True)
    monkeypatch.setattr(reconstruction, "PIXELS_AT_ONCE", 1)
    reconstruct_files([scans["coils"]], tmp_path / "b", weights=run, quiet=True)
    a, b = (read_result(tmp_path / name / "scan.h5")[0] for name in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * a.max())


def test_slices_with_masks_of_their_own_do_not_depend_on_the_batch(run, tmp_path, monkeypatch):
    """One of them with too small a centre, one empty."""
    kspace = torch.stack([phantom_kspace((26, 20), 3, generator(seed), real=False) for seed in range(4)])
    mask = torch.ones((4, 26, 20))
    mask[1, :, :9], mask[1, :, 12:], mask[2], mask[3, :5] = 0, 0, 0, 0
    write_scan(tmp_path / "scan.h5", (kspace * mask[:, None]).numpy(), (4, 3, 26, 20), mask=mask.numpy())
    (together,) = reconstruct_files([tmp_path / "scan.h5"], tmp_path / "a", weights=run, quiet=True)
    monkeypatch.setattr(reconstruction, "PIXELS_AT_ONCE", 1)
    (alone,) = reconstruct_files([tmp_path / "scan.h5"], tmp_path / "b", weights=run, quiet=True)
    assert together["warnings"] == alone["warnings"] and any("ESPIRiT" in said for said in alone["warnings"])
    with h5py.File(tmp_path / "a" / "scan.h5") as a, h5py.File(tmp_path / "b" / "scan.h5") as b:
        for name in ("sensitivity_maps", "image"):
            assert not a[name][2].any()
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5 * np.abs(a[name]).max())


def test_maps_are_computed_where_the_network_is(scans, run, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def stop(acquisition):
        raise Reached(acquisition.kspace.device.type, acquisition.mask.device.type)

    loaded = replace(load_for_use(run, "cpu"), device=torch.device("meta"))  # it holds no numbers, but says where it is
    monkeypatch.setattr(reconstruction, "with_sensitivity_maps", stop)
    with pytest.raises(Reached, match="'meta', 'meta'"):
        target = Target(tmp_path, "scan", tmp_path)
        reconstruction.reconstruct_file(
            open_scan(scans["coils"]), target, network_reconstructor(loaded, flips=False), {}, quiet=True
        )
    monkeypatch.setattr(inference, "with_sensitivity_maps", stop)
    monkeypatch.setattr(inference, "load_for_use", lambda *_: loaded)
    with pytest.raises(Reached, match="'meta', 'meta'"):
        mri_n2n.reconstruct(kspace_of(scans["coils"])[0])


def of_unknown_noise(scan: Path, folder: Path) -> Path:
    """A copy that does not say how much noise it has."""
    path = copy(scan, folder / "scan.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["noise_variance"]
    return path


def test_a_scan_without_geometry_or_mask(scans, run, tmp_path):
    kspace, mask = kspace_of(scans["single"])
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["kspace"] = kspace[:, 0]
    (sidecar,) = reconstruct_files([tmp_path / "bare.h5"], tmp_path / "out", weights=run, quiet=True)
    assert sidecar["mask_source"] == "zeros" and sidecar["measured_share"] == pytest.approx(mask.mean(), abs=1e-5)
    assert "unknown" in sidecar["geometry"] and sidecar["input"]["simulated"] is None
    image = nibabel.load(tmp_path / "out" / "bare.nii.gz")
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0
    reconstruct_files([of_unknown_noise(scans["single"], tmp_path)], tmp_path / "with", weights=run, quiet=True)
    np.testing.assert_array_equal(
        read_result(tmp_path / "out" / "bare.h5")[0], read_result(tmp_path / "with" / "scan.h5")[0]
    )


def test_nothing_written_says_who_or_where(scans, run, tmp_path):
    path = copy(scans["single"], tmp_path / "private place" / "scan.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["patient_id"] = "Jane Doe 19700101"
        file.attrs["patient_name"] = "Doe^Jane"
    reconstruct_files([path], tmp_path / "out", weights=run, quiet=True)
    for name, content in tree(tmp_path / "out").items():
        for secret in (str(tmp_path), str(run), "private place", "Doe"):
            assert secret.encode() not in content, f"{secret} in {name}"


# ------------------------------------------------------------------------------------- nothing is lost or half-written


def test_results_are_replaced_only_when_told(scans, run, tmp_path):
    reconstruct_files([scans["single"]], tmp_path, weights=run, quiet=True)
    for name in OUTPUTS:
        (tmp_path / name).write_text("kept")
        for other in set(OUTPUTS) - {name}:
            (tmp_path / other).unlink(missing_ok=True)
        with pytest.raises(OutputError, match=f"{name}.*--force"):
            reconstruct_files([scans["single"]], tmp_path, weights=run, quiet=True)
        assert tree(tmp_path) == {name: b"kept"}
    reconstruct_files([scans["single"]], tmp_path, weights=run, force=True, quiet=True)
    assert tuple(tree(tmp_path)) == OUTPUTS and b"kept" not in tree(tmp_path).values()


@pytest.mark.parametrize("how", ["direct", "directory link", "input link", "output link", "hard link", "relative"])
def test_the_input_is_never_replaced(how, scans, run, tmp_path, monkeypatch):
    path = copy(scans["single"], tmp_path / "data" / "scan.h5")
    output = path.parent
    match how:
        case "directory link":
            output = tmp_path / "link"
            output.symlink_to(path.parent)
        case "input link":
            (tmp_path / "other").mkdir()
            path = tmp_path / "other" / "scan.h5"
            path.symlink_to(tmp_path / "data" / "scan.h5")
        case "output link":
            output = tmp_path / "results"
            output.mkdir()
            (output / "scan.h5").symlink_to(path)
        case "hard link":
            output = tmp_path / "results"
            output.mkdir()
            os.link(path, output / "scan.h5")
        case "relative":
            monkeypatch.chdir(path.parent)
            path, output = Path("scan.h5"), Path(".")
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(OutputError, match="input"):
            reconstruct_files([path], output, weights=run, force=force, quiet=True)
    assert tree(tmp_path) == before


def test_no_input_is_replaced_by_the_result_of_another(scans, run, tmp_path):
    """b.h5's result would land on the file that a.h5 is a link to."""
    target = copy(scans["single"], tmp_path / "out" / "b.h5")
    (tmp_path / "a.h5").symlink_to(target)
    copy(scans["line"], tmp_path / "b.h5")
    before = target.read_bytes()
    with pytest.raises(OutputError):
        reconstruct_files([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out", weights=run, force=True, quiet=True)
    assert target.read_bytes() == before


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_nothing_half_written(existing, scans, run, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "PIXELS_AT_ONCE", 1)  # slice by slice: two are done when the third fails
    path, output = copy(scans["single"], tmp_path / "scan.h5"), tmp_path / "out"
    if existing:
        reconstruct_files([path], output, weights=run, quiet=True)
    with h5py.File(path, "r+") as file:
        file["kspace"][2] = np.nan
    before = tree(tmp_path)
    with pytest.raises(InputError, match="scan.h5.*NaN"):
        reconstruct_files([path], output, weights=run, force=existing, quiet=True)
    assert tree(tmp_path) == before and output.exists() == existing


def test_directories_made_for_a_failure_go_and_leftovers_of_the_dead_too(scans, run, tmp_path):
    from mri_n2n.files import _prefix

    bad = copy(scans["single"], tmp_path / "scan.h5")
    with h5py.File(bad, "r+") as file:
        file["kspace"][0] = np.nan
    with pytest.raises(InputError):
        reconstruct_files([bad], tmp_path / "a" / "b" / "c", weights=run, quiet=True)
    assert not (tmp_path / "a").exists()

    output = tmp_path / "out"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = output / f"{_prefix(output / 'scan')}{dead.stdout.strip()}-0123abcd.partial"
    other = output / f"{_prefix(output / 'scan')}{os.getpid()}-0123abcd.partial"  # at work: this process is alive
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "scan.h5").write_text("half")
    reconstruct_files([scans["single"]], output, weights=run, quiet=True)
    assert not left.exists() and other.exists()


def test_of_several_scans_the_good_ones_are_whole(scans, run, tmp_path):
    good, bad = copy(scans["single"], tmp_path / "a.h5"), copy(scans["single"], tmp_path / "b.h5")
    with h5py.File(bad, "r+") as file:
        file["kspace"][1] = np.inf
    with pytest.raises(PartialError, match="1 of 2 scans failed: b.h5") as failed:
        reconstruct_files([bad, good], tmp_path / "out", weights=run, quiet=True)
    assert [sidecar["output"] for sidecar in failed.value.done] == ["a"]
    assert set(tree(tmp_path / "out")) == {name.replace("scan", "a") for name in OUTPUTS}


def test_a_directory_stands_for_its_scans_and_can_be_gone_on_with(scans, run, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("single", "line"):
        copy(scans[name], folder / f"{name}.h5")
    reconstruct_files([folder / "line.h5"], out, weights=run, quiet=True)
    before = (out / "line.json").stat().st_mtime_ns
    copy(out / "line.h5", folder / "result.h5")  # no raw scan
    (folder / "notes.txt").write_text("notes")
    (folder / "damaged.h5").write_bytes(b"not HDF5")
    with pytest.raises(PartialError, match="1 of 2 scans failed: damaged.h5"):
        reconstruct_files([folder], out, weights=run, skip_existing=True, quiet=True)
    assert {path.name for path in out.glob("*.json")} == {"line.json", "single.json"}
    assert (out / "line.json").stat().st_mtime_ns == before
    (folder / "damaged.h5").unlink()
    assert reconstruct_files([folder], out, weights=run, skip_existing=True, quiet=True) == []
    with pytest.raises(NotFoundError, match="no raw scan"):
        reconstruct_files([run], out, weights=run, quiet=True)
    with pytest.raises(OptionError, match="give one of them"):
        reconstruct_files([folder], out, weights=run, skip_existing=True, force=True, quiet=True)


def test_two_processes_share_the_scans(scans, run, tmp_path):
    """As torchrun starts them, with its environment."""
    for number in range(3):
        copy(scans["single"], tmp_path / "in" / f"{number}.h5")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "mri_n2n",
    ]
    command += ["reconstruct", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"0", "1", "2"}
    found = [json.loads((tmp_path / "out" / f"{number}.json").read_text())["output"] for number in range(3)]
    assert found == ["0", "1", "2"] and done.stdout.count('"output": ') == 3  # each by one process


@pytest.mark.parametrize("skip_existing", [True, False])
def test_a_late_process_finds_its_own_share(skip_existing, scans, run, tmp_path, monkeypatch):
    """One that begins when the other is done: what is there already does not change who does what."""
    for number in range(4):
        copy(scans["single"], tmp_path / "in" / f"{number}.h5")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        done = reconstruct_files(
            [tmp_path / "in"], tmp_path / "out", weights=run, skip_existing=skip_existing, quiet=True
        )
        assert [sidecar["output"] for sidecar in done] == [["0", "2"], ["1", "3"]][int(rank)]


def test_a_directory_in_the_way_leaves_nothing_half_written(scans, run, tmp_path):
    (tmp_path / "scan.png").mkdir()
    with pytest.raises(OutputError):
        reconstruct_files([scans["single"]], tmp_path, weights=run, force=True, quiet=True)
    assert tree(tmp_path) == {"scan.png": None}


def test_a_place_that_cannot_be_written(scans, run, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError):
        reconstruct_files([scans["single"]], tmp_path / "file", weights=run, quiet=True)
    assert tree(tmp_path) == {"file": b"a file"}


def test_two_inputs_of_one_name_are_refused(scans, run, tmp_path):
    other = copy(scans["single"], tmp_path / "scan.hdf5")
    for pair in ([scans["single"], scans["coils"]], [scans["single"], scans["single"]], [scans["single"], other]):
        with pytest.raises(OutputError, match="scan.h5"):
            reconstruct_files(pair, tmp_path / "out", weights=run, quiet=True)
    assert not (tmp_path / "out").exists()


def test_missing_scan_and_missing_weights(scans, run, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere.h5"):
        reconstruct_files([tmp_path / "nowhere.h5"], tmp_path / "out", weights=run, quiet=True)
    with pytest.raises(NotFoundError, match="weights"):
        reconstruct_files([scans["single"]], tmp_path / "out", weights=tmp_path / "no run", quiet=True)
    assert tree(tmp_path) == {}


# --------------------------------------------------------------------------------------------------- arrays as well


@pytest.mark.parametrize("name", ["single", "coils"])
def test_arrays_and_files_agree(name, scans, run, tmp_path):
    path = of_unknown_noise(scans[name], tmp_path / "unknown")  # of which arrays say nothing
    mri_n2n.reconstruct(str(path), str(tmp_path), weights=str(run))
    with h5py.File(tmp_path / "scan.h5") as file:
        expected = file["image"][()]
    kspace, mask = kspace_of(scans[name])
    kspace = kspace if name == "coils" else kspace[:, 0]
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(expected).max()}
    for given in (mask, np.broadcast_to(mask, (3, 26, 20)), None, torch.from_numpy(mask) > 0):
        image = mri_n2n.reconstruct(kspace, mask=given, weights=run)
        assert image.dtype == np.complex64 and image.shape == (3, 26, 20)
        np.testing.assert_allclose(image, expected, **tolerance)
    if name == "single":
        np.testing.assert_allclose(mri_n2n.reconstruct(kspace[1], mask=mask, weights=run), expected[1], **tolerance)
        np.testing.assert_allclose(mri_n2n.reconstruct(torch.from_numpy(kspace), weights=run), expected, **tolerance)


def test_arrays_of_other_types_and_line_masks(scans, run):
    kspace, mask = (part[0] for part in kspace_of(scans["line"]))
    assert (mask.ndim == 1) and mask.shape == (20,)
    expected = mri_n2n.reconstruct(kspace[0], mask=mask, weights=run)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(expected).max()}
    for other in (kspace[0].astype(np.complex128), kspace[0].astype(">c8"), np.asfortranarray(kspace[0])):
        np.testing.assert_allclose(mri_n2n.reconstruct(other, mask=mask, weights=run), expected, **tolerance)
    # A full acquisition may be given with a mask: what the mask leaves out is not looked at.
    filled = np.where(mask > 0, kspace[0], 123.0).astype(np.complex64)
    np.testing.assert_allclose(mri_n2n.reconstruct(filled, mask=mask, weights=run), expected, **tolerance)


@pytest.mark.parametrize(
    ("kspace", "mask"),
    [
        (np.ones((8, 9)), None), (np.ones(8, complex), None), (np.ones((1, 1, 1, 8, 9), complex), None),
        (np.zeros((8, 9), complex), None), (np.full((8, 9), np.nan + 0j), None), (np.full((8, 9), 1e300 + 0j), None),
        (np.ones((8, 9), complex), np.ones(8)), (np.ones((8, 9), complex), np.ones((9, 8))), (np.ones((8, 9), complex), np.ones((2, 8, 9))),
        (np.ones((8, 9), complex), np.full(9, 0.5)), (np.ones((8, 9), complex), np.full(9, np.nan)), (np.ones((8, 9), complex), np.zeros(9)),
        (np.ones((0, 8, 9), complex), None),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(kspace, mask, run):
    with pytest.raises(InputError) as caught:
        mri_n2n.reconstruct(kspace, mask=mask, weights=run)
    assert "\n" not in str(caught.value)


def test_a_file_needs_a_place_to_write(scans, run):
    with pytest.raises(OutputError, match="directory"):
        mri_n2n.reconstruct(scans["single"], weights=run)


@pytest.mark.parametrize("scale", [1e-6, 1e6, -3.0, 2j])
def test_scaled_scans_give_scaled_images(scale, scans, run):
    kspace, mask = kspace_of(scans["coils"])
    image, scaled = (mri_n2n.reconstruct(factor * kspace, mask=mask, weights=run) for factor in (1.0, scale))
    np.testing.assert_allclose(scaled / scale, image, rtol=0, atol=1e-4 * np.abs(image).max())


def test_weights_of_the_2018_recipe_use_the_stored_probability(scans, tmp_path):
    torch.manual_seed(0)
    network = build_network("unet", {"channels": 12})
    save_tensors(
        tmp_path / "unet.safetensors", network.state_dict(), {"network": "unet", "network_options": {"channels": 12}}
    )
    kspace, mask = kspace_of(scans["single"])
    images = {}
    for name, scale in (("plain", 1.0), ("large", 1e5)):
        path = copy(scans["single"], tmp_path / f"{name}.h5")
        with h5py.File(path, "r+") as file:
            file["kspace"][...] = scale * kspace[:, 0]
        reconstruct_files([path], tmp_path / "out", weights=tmp_path / "unet.safetensors", quiet=True)
        images[name] = read_result(tmp_path / "out" / f"{name}.h5")[0] / scale
    np.testing.assert_allclose(images["plain"], images["large"], atol=1e-4 * images["plain"].max())
    with h5py.File(tmp_path / "large.h5", "r+") as file:
        del file["probability"]
    with pytest.raises(InputError, match="large.h5.*probability"):
        reconstruct_files([tmp_path / "large.h5"], tmp_path / "none", weights=tmp_path / "unet.safetensors", quiet=True)
    with pytest.raises(InputError, match="probability"):
        mri_n2n.reconstruct(kspace, mask=mask, weights=tmp_path / "unet.safetensors")
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------- the bundled weights


def gain(
    full: torch.Tensor, kind: str, acceleration: float, seed: int, hermitian: bool = False
) -> tuple[float, np.ndarray]:
    """dB won over the zero-filled image of full k-space (y, x), and the reconstruction: without noise its samples are as
    measured, and without being told so it is no worse than the zero-filled image."""
    mask = draw_mask(kind, tuple(full.shape), acceleration, generator(seed), hermitian=hermitian).mask
    image = mri_n2n.reconstruct((full * mask).numpy(), mask=mask.numpy(), noise_variance=0.0)
    assert image.shape == tuple(full.shape) and np.isfinite(image).all()
    sampled = fft2c(torch.from_numpy(image))[mask > 0]
    torch.testing.assert_close(sampled, full[mask > 0], rtol=0, atol=1e-5 * full.abs().max().item())
    reference, zero_filled = ifft2c(full).abs().numpy(), ifft2c(full * mask).abs().numpy()
    before = psnr(reference[None], zero_filled[None])
    untold = mri_n2n.reconstruct((full * mask).numpy(), mask=mask.numpy())
    assert psnr(reference[None], np.abs(untold)[None]) > before
    return psnr(reference[None], np.abs(image)[None]) - before, image


def test_bundled_weights_gain_two_decibels_on_a_head_they_never_saw():
    assert gain(phantom_kspace((128, 128), generator=generator(5))[0], "roulette", 8.0, 0, hermitian=True)[0] > 2.0


@pytest.mark.parametrize("shape", [(24, 20), (23, 20)])
def test_the_mean_over_mirror_images_mirrors_with_the_scan(shape, run):
    """A mirrored scan gives the mirrored image; the network alone does not promise that. Samples stay as measured."""
    from mri_n2n.acquisition import Acquisition
    from mri_n2n.checkpoint import load_network
    from mri_n2n.fourier import mirror_axes
    from mri_n2n.inference import reconstruct_acquisition
    from mri_n2n.movement import flip

    network, _ = load_network(run / "weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    mask = draw_mask("gaussian-points", shape, 3.0, generator).mask[None, None]
    scan = Acquisition(
        mask * torch.randn((2, 3, *shape), dtype=torch.complex64, generator=generator), mask, None, None, 0.0
    )
    averaged = reconstruct_acquisition(network, scan, flips=True)
    for axes in ((-1,), (-2,), (-2, -1)):
        mirrored = reconstruct_acquisition(network, flip(scan, axes), flips=True)
        torch.testing.assert_close(mirror_axes(mirrored, axes), averaged, rtol=1e-3, atol=1e-4)
    alone = reconstruct_acquisition(network, scan)
    assert (alone - averaged).abs().max() > 1e-3
    torch.testing.assert_close(mask * fft2c(averaged), scan.kspace, rtol=1e-3, atol=1e-4)


def test_flips_follow_the_weights_and_are_on_record(scans, tmp_path, capsys):
    from mri_n2n.cli import main

    for trained in (True, False):
        weights = tmp_path / f"{trained}.safetensors"
        header = {
            "network": "unrolled",
            "network_options": {"cascades": 1, "channels": 8},
            "training": {"protocol": {"flips": trained}},
        }
        save_tensors(weights, build_network("unrolled", header["network_options"]).state_dict(), header)
        for option, wanted in (([], trained), (["--no-flips"], False)):
            command = ["reconstruct", scans["single"], "-o", tmp_path / "out", "--weights", weights, "--force", *option]
            assert main([str(word) for word in command]) == 0
            assert (
                json.loads((tmp_path / "out" / f"{scans['single'].stem}.json").read_text())["options"]["flips"]
                is wanted
            )


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e20, 1e-30])
def test_empty_slices_and_coils_stay_empty_and_any_unit_is_kept(scale, scans, run, tmp_path):
    """Of a scan in the scanner's own unit: a dead coil adds nothing, an empty slice is zero."""
    path = copy(scans["coils"], tmp_path / "scan.h5")
    with h5py.File(path, "r+") as file:
        file["kspace"][...] = file["kspace"][()] * scale
        file["kspace"][1] = 0
        file["kspace"][:, 2] = 0
        file.attrs["noise_variance"] = 0.0
    (sidecar,) = reconstruct_files([path], tmp_path / "out", weights=run, quiet=True)
    with h5py.File(tmp_path / "out" / "scan.h5") as file:
        image, maps = file["image"][()] / scale, file["sensitivity_maps"][()]
        np.testing.assert_allclose(np.abs(image), file["reconstruction"][()] / scale, rtol=1e-5)
    assert not image[1].any() and maps.shape[1] == 2 and np.isfinite(maps).all()
    assert "coil 2 (counted from 0) has neither signal nor noise: left out" in sidecar["warnings"]
    alone = copy(path, tmp_path / "alone.h5")  # without the dead coil, in another unit
    with h5py.File(scans["coils"]) as scan, h5py.File(alone, "r+") as file:
        kspace = scan["kspace"][:, :2]
        kspace[1] = 0
        del file["kspace"]
        file["kspace"] = kspace
    reconstruct_files([alone], tmp_path / "out", weights=run, quiet=True)
    with h5py.File(tmp_path / "out" / "alone.h5") as file:
        np.testing.assert_allclose(image, file["image"], rtol=1e-3, atol=2e-3 * np.abs(image).max())


@pytest.mark.parametrize("kind", ["random-lines", "equispaced-lines", "gaussian-lines", "gaussian-points"])
def test_bundled_weights_on_every_mask(kind):
    assert gain(phantom_kspace((96, 96), generator=generator(6))[0], kind, 4.0, 0)[0] > 0.5


@pytest.mark.parametrize("acceleration", [4.0, 12.0])
def test_bundled_weights_on_odd_sizes_and_complex_scans(acceleration):
    full = phantom_kspace((65, 90), generator=generator(7))[0]
    assert gain(full, "roulette", acceleration, 1, hermitian=True)[0] > 0.5
    turned = fft2c(ifft2c(full) * smooth_phase((65, 90), generator(8)))
    decibels, image = gain(turned, "roulette", acceleration, 1)
    assert decibels > 0.5 and np.abs(image.imag).max() > 0.1 * np.abs(image).max()


def test_bundled_weights_scale_with_the_scan():
    full = phantom_kspace((65, 90), generator=generator(9))[0].numpy()
    mask = draw_mask("roulette", (65, 90), 6.0, generator(0)).mask.numpy()
    image = mri_n2n.reconstruct(full, mask=mask)
    for scale in (1e-6, 1.0, 1e6, -3.0):
        scaled = mri_n2n.reconstruct((scale * full).astype(np.complex64), mask=mask)
        np.testing.assert_allclose(scaled / scale, image, rtol=0, atol=2e-4 * np.abs(image).max())


def test_bundled_weights_are_small_and_say_how_they_were_trained(tmp_path):
    assert BUNDLED.stat().st_size <= 8e6 and (BUNDLED.parent / "README.md").is_file()
    facts = mri_n2n.info(BUNDLED)
    assert facts["method"] == "noise2noise" and facts["network"] == "unrolled"
    assert b"/home" not in BUNDLED.read_bytes()[:100_000] and b"/root" not in BUNDLED.read_bytes()[:100_000]


def test_a_scan_is_reconstructed_without_naming_weights(tmp_path):
    full = torch.stack([phantom_kspace((64, 64), generator=generator(i)) for i in range(2)])
    sampling = draw_mask("roulette", (64, 64), 6.0, generator(0), hermitian=True)
    write_scan(
        tmp_path / "scan.h5", (one.numpy() * sampling.mask.numpy() for one in full), (2, 1, 64, 64), mask=sampling.mask.numpy(),
        reference=ifft2c(full)[:, 0].abs().numpy(),
    )  # fmt: skip
    (sidecar,) = mri_n2n.reconstruct(tmp_path / "scan.h5", tmp_path / "results")
    assert sidecar["weights"]["bundled"] is True
    reference, found = read_reference(tmp_path / "scan.h5"), read_result(tmp_path / "results" / "scan.h5")[0]
    zero_filled = ifft2c(open_scan(tmp_path / "scan.h5").read(0, 2).kspace)[:, 0].abs().numpy()
    assert psnr(reference, found) > psnr(reference, zero_filled) + 1.0


def test_lines_along_either_axis_are_reconstructed_alike(run):
    """Networks are trained on lines along y; a scan that has them along x, as M4Raw's, is turned and turned back."""
    full = phantom_kspace((30, 24), 3, generator(4), real=False)[None]
    mask = draw_mask("random-lines", (30, 24), 3, generator(1)).mask
    image = mri_n2n.reconstruct((full * mask).numpy(), mask=mask.numpy(), weights=run)
    turned = mri_n2n.reconstruct((full * mask).mT.numpy(), mask=mask.T.numpy(), weights=run)
    assert np.abs(turned.swapaxes(-1, -2) - image).max() < 1e-4 * np.abs(image).max()


def test_zero_padding_is_no_acceleration(scans, run, tmp_path):
    """A full scan with empty edges: told that it was not acquired there, and that it is full, not that it is undersampled, or in lines."""
    kspace = fft2c(torch.from_numpy(head(64, 64)).to(torch.complex64))[None].repeat(3, 1, 1)
    kspace = kspace + 1e-3 * torch.randn(kspace.shape, dtype=torch.complex64, generator=generator())
    kspace[..., :12] = kspace[..., -12:] = 0
    with h5py.File(tmp_path / "padded.h5", "w") as file:
        file["kspace"] = kspace.numpy()
    for weights in (run, None):
        with pytest.warns(UserWarning, match="zero padding"):
            [sidecar] = reconstruct_files([tmp_path / "padded.h5"], tmp_path / "out", weights=weights, force=True)
        said = [one for one in sidecar["warnings"] if not one.startswith("unlike")]  # as a phantom is
        assert [one.startswith("sampled in full; the weights") for one in said] == [False, True]
        assert sidecar["measured_share"] == pytest.approx(40 / 64)


def test_empty_slices_are_no_acceleration(run, tmp_path):
    """Slices with masks of their own, half of them empty."""
    kspace = phantom_kspace((24, 24), generator=generator(1))[None].repeat(4, 1, 1, 1)
    mask = torch.stack([draw_mask("roulette", (24, 24), 3, generator(seed)).mask for seed in range(4)])
    mask[:2] = 0
    mask[2:, 11:14, 11:14] = 1
    write_scan(tmp_path / "scan.h5", (kspace * mask[:, None])[:, 0].numpy()[:, None], (4, 1, 24, 24), mask=mask.numpy())
    (sidecar,) = reconstruct_files([tmp_path / "scan.h5"], tmp_path / "out", weights=run, quiet=True)
    assert sidecar["measured_share"] == pytest.approx(mask[2:].mean().item(), abs=2e-6) and not sidecar["warnings"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mri_n2n.reconstruct((kspace * mask[:, None]).numpy(), mask=mask.numpy(), weights=run)


def test_what_a_killed_process_left_incomplete_is_done_again(scans, run, tmp_path):
    for name in ("a", "b"):
        copy(scans["single"], tmp_path / "in" / f"{name}.h5")
    out = tmp_path / "out"
    reconstruct_files([tmp_path / "in"], out, weights=run, quiet=True)
    (out / "b.json").unlink()
    kept = (out / "a.h5").stat().st_mtime_ns
    (sidecar,) = reconstruct_files([tmp_path / "in"], out, weights=run, skip_existing=True, quiet=True)
    assert sidecar["output"] == "b" and read_result(out / "b.h5")[0].any()
    assert (out / "a.h5").stat().st_mtime_ns == kept
    (out / "b.json").unlink()
    copy(scans["single"], out / "b.h5")  # a raw scan of that name is no result
    before = sha256_of(out / "b.h5")
    with pytest.raises(OutputError, match="b.h5 exists"):
        reconstruct_files([tmp_path / "in"], out, weights=run, skip_existing=True, quiet=True)
    assert sha256_of(out / "b.h5") == before


def test_the_slower_of_two_processes_keeps_what_the_other_wrote(scans, run, tmp_path, monkeypatch):
    """Both began before either was done; without --force the later one ends with an error and replaces nothing."""
    whole = reconstruction.write_beside

    def slow(*arguments):
        (tmp_path / "out" / "single.json").write_text("the other's")
        return whole(*arguments)

    copy(scans["single"], tmp_path / "single.h5")
    monkeypatch.setattr(reconstruction, "write_beside", slow)
    with pytest.raises(OutputError, match="single.json exists"):
        reconstruct_files([tmp_path / "single.h5"], tmp_path / "out", weights=run, quiet=True)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("single.json", "the other's")]


def test_the_code_of_a_directory_does_not_depend_on_what_is_done_already(scans, run, tmp_path):
    copy(scans["single"], tmp_path / "in" / "a.h5")
    (tmp_path / "in" / "bad.h5").write_bytes(b"no scan")
    for skip_existing in (False, True):
        with pytest.raises(PartialError, match="bad.h5"):
            reconstruct_files([tmp_path / "in"], tmp_path / "out", weights=run, skip_existing=skip_existing, quiet=True)
