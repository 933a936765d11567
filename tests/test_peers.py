"""Files that nobody here wrote, and what others make of ours: BART, ISMRMRD's tools and package, fastMRI's loader."""

import shutil
import subprocess
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.conversion import convert
from mri_n2n.formats import cfl, open_scan, write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.simulation import SimulationOptions, simulate_file

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="needs bart")
needs_tools = pytest.mark.skipif(shutil.which("ismrmrd_generate_cartesian_shepp_logan") is None, reason="needs ismrmrd-tools")  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)


def read_cfl(path: Path) -> np.ndarray:
    sizes = [int(word) for word in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(sizes, order="F")


def image_of(path: Path, **options) -> np.ndarray:
    """Root-sum-of-squares (slices, y, x) of everything in a scan."""
    scan = open_scan(path, **options)
    return root_sum_of_squares(ifft2c(scan.read(0, scan.shape[0]).kspace)).numpy()


# ------------------------------------------------------------------------------------------------------------------ BART


@needs_bart
@pytest.mark.parametrize(("coils", "size"), [(1, 64), (8, 64), (3, 45)])
def test_barts_phantom_is_the_image_that_bart_makes_of_it(coils, size, tmp_path):
    run(tmp_path, "bart", "phantom", "-k", "-x", str(size), *(["-s", str(coils)] if coils > 1 else []), "scan")
    run(tmp_path, "bart", "fft", "-i", "-u", "3", "scan", "images")
    run(tmp_path, "bart", "rss", "8", "images", "rss")
    scan = open_scan(tmp_path / "scan.cfl")
    assert scan.shape == (1, coils, size, size) and scan.geometry is None and scan.read(0, 1).mask.all()
    theirs = read_cfl(tmp_path / "rss.cfl").reshape(size, size)
    ours = image_of(tmp_path / "scan.hdr")[0]
    np.testing.assert_allclose(ours, np.abs(theirs), atol=1e-5 * np.abs(theirs).max())
    assert ours.max() > 10 * np.median(ours)  # there is something to be seen


@needs_bart
def test_a_mask_of_barts_is_found(tmp_path):
    """Poisson-disc points of BART's own, multiplied in by BART."""
    run(tmp_path, "bart", "phantom", "-k", "-x", "64", "-s", "4", "full")
    run(tmp_path, "bart", "poisson", "-Y", "64", "-Z", "64", "-y", "1.5", "-z", "1.5", "-C", "12", "points")
    run(tmp_path, "bart", "transpose", "0", "2", "points", "turned")  # from PHS1, PHS2 to our READ, PHS1
    run(tmp_path, "bart", "transpose", "0", "1", "turned", "mask")
    run(tmp_path, "bart", "fmac", "full", "mask", "scan")
    acquisition = open_scan(tmp_path / "scan.cfl").read(0, 1)
    mask = np.abs(read_cfl(tmp_path / "mask.cfl").reshape(64, 64))
    assert 0.05 < mask.mean() < 0.9
    np.testing.assert_array_equal(acquisition.mask[0, 0].numpy(), mask)


@needs_bart
@pytest.mark.parametrize("shape", [(1, 1, 8, 9), (3, 4, 7, 12)])
def test_bart_reads_what_convert_writes(shape, tmp_path):
    kspace = noise(*shape)
    write_scan(tmp_path / "a.h5", iter(kspace), shape, mask=np.ones(shape[-1]), attributes={})
    convert(tmp_path / "a.h5", tmp_path / "b.cfl", lossy=True)
    run(tmp_path, "bart", "fft", "-i", "-u", "3", "b", "images")
    run(tmp_path, "bart", "rss", "8", "images", "rss")
    theirs = np.abs(read_cfl(tmp_path / "rss.cfl")).reshape(*shape[2:], shape[0]).transpose(2, 0, 1)
    np.testing.assert_allclose(image_of(tmp_path / "a.h5"), theirs, rtol=1e-5)
    for number in range(shape[0]):  # slices by BART's own dimension for them
        run(tmp_path, "bart", "slice", "13", str(number), "b", "one")
        np.testing.assert_array_equal(read_cfl(tmp_path / "one.cfl").reshape(*shape[2:], shape[1]).transpose(2, 0, 1), kspace[number])  # fmt: skip


@needs_bart
def test_averages_of_bart_are_repetitions(tmp_path):
    run(tmp_path, "bart", "phantom", "-k", "-x", "32", "-s", "2", "clean")
    for seed in (1, 2):
        run(tmp_path, "bart", "noise", "-s", str(seed), "-n", "1", "clean", f"noisy{seed}")
    run(tmp_path, "bart", "join", str(cfl.AVERAGE), "noisy1", "noisy2", "scan")
    assert open_scan(tmp_path / "scan.cfl").repetitions == 2
    each = [open_scan(tmp_path / "scan.cfl", repetition=number).read(0, 1).kspace for number in (0, 1)]
    for number, kspace in enumerate(each, start=1):
        assert torch.equal(kspace, open_scan(tmp_path / f"noisy{number}.cfl").read(0, 1).kspace)
    torch.testing.assert_close(open_scan(tmp_path / "scan.cfl").read(0, 1).kspace, (each[0] + each[1]) / 2)


# --------------------------------------------------------------------------------------------------------------- ISMRMRD


def generate(folder: Path, *options: str) -> Path:
    run(folder, "ismrmrd_generate_cartesian_shepp_logan", "-o", "scan.h5", *options)
    return folder / "scan.h5"


@needs_tools
@pytest.mark.parametrize("oversampling", [1, 2])
@pytest.mark.parametrize(("coils", "size"), [(1, 48), (4, 64)])
def test_full_sampling_agrees_with_ismrmrds_reconstruction(oversampling, coils, size, tmp_path):
    path = generate(tmp_path, "-n", "0.02", "-m", str(size), "-c", str(coils), "-O", str(oversampling))
    scan = open_scan(path)
    # The tool's header asks for half of the readout, whatever the oversampling.
    assert (
        scan.shape == (1, coils, size * oversampling // 2, size)
        and scan.repetitions == 1
        and scan.read(0, 1).mask.all()
    )
    ours = image_of(path)[0]
    run(tmp_path, "ismrmrd_recon_cartesian_2d", "scan.h5")
    with h5py.File(path) as file:
        theirs = file["dataset/cpp/data"][0, 0, 0].T
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-5)


@needs_tools
@pytest.mark.parametrize("oversampling", [1, 2])
def test_noise_readouts_tell_the_noise_that_repetitions_have(oversampling, tmp_path):
    """Two repetitions differ by noise alone, whose variance the noise readouts give, oversampling removed or not."""
    path = generate(tmp_path, "-C", "-n", "0.1", "-m", "96", "-c", "4", "-r", "2", "-O", str(oversampling))
    one, two = (open_scan(path, repetition=number).read(0, 1) for number in (0, 1))
    scan = open_scan(path)
    assert scan.repetitions == 2 and scan.noise_covariance.shape == (4, 4)
    variance = ((one.kspace - two.kspace).abs().square().mean() / 2).item()
    assert one.noise_variance == pytest.approx(variance, rel=0.1)
    covariance = scan.noise_covariance / variance
    assert (covariance - torch.eye(4)).abs().max() < 0.35  # from few samples: hardly correlated, alike
    mean = scan.read(0, 1)
    torch.testing.assert_close(mean.kspace, (one.kspace + two.kspace) / 2)
    assert mean.noise_variance == pytest.approx(one.noise_variance / 2)


@needs_tools
@pytest.mark.parametrize(("acceleration", "width"), [(2, 0), (2, 12), (4, 16), (3, 10)])
def test_accelerated_scans_with_calibration_lines(acceleration, width, tmp_path):
    """Every n-th line, shifted from repetition to repetition, and the calibration lines about the centre."""
    path = generate(tmp_path, "-a", str(acceleration), "-w", str(width), "-m", "60", "-c", "2", "-n", "0")
    scan = open_scan(path)
    assert scan.repetitions == acceleration and scan.shape == (1, 2, 60, 60)
    seen = np.zeros(60)
    for number in range(acceleration):
        acquisition = open_scan(path, repetition=number).read(0, 1)
        lines = acquisition.mask[0, 0, 0].numpy()
        assert (acquisition.mask == acquisition.mask[:, :, :1]).all() and lines[30 - width // 2 : 30 + width // 2].all()
        outside = np.flatnonzero(np.concatenate((lines[: 30 - width // 2 - 1], 0 * lines[30 - width // 2 - 1 :])))
        assert (np.diff(outside) == acceleration).all()
        assert ((acquisition.kspace.abs().sum(dim=(0, 1, 2)) > 0).numpy() == lines).all()
        seen += lines
    assert (seen > 0).all()
    full = tmp_path / "full"
    full.mkdir()
    whole = generate(full, "-m", "60", "-c", "2", "-n", "0")
    np.testing.assert_allclose(image_of(path), image_of(whole), atol=1e-4 * image_of(whole).max())  # all together: all


@needs_tools
def test_what_the_tools_wrote_survives_conversion(tmp_path):
    path = generate(tmp_path, "-C", "-a", "2", "-w", "12", "-m", "32", "-c", "3")
    before = open_scan(path, repetition=1).read(0, 1)
    convert(path, tmp_path / "b.mrd", repetition=1, lossy=True)
    after = open_scan(tmp_path / "b.mrd").read(0, 1)
    assert torch.equal(after.kspace, before.kspace) and torch.equal(after.mask, before.mask)
    assert after.noise_variance == before.noise_variance
    run(tmp_path, "ismrmrd_recon_cartesian_2d", "b.mrd")  # and their reconstruction opens ours


@needs_tools
def test_ismrmrds_reconstruction_of_what_we_write(tmp_path):
    kspace = noise(1, 3, 32, 32)
    write_scan(tmp_path / "a.h5", kspace, kspace.shape, mask=np.ones(32), attributes={"noise_variance": 2.0})
    convert(tmp_path / "a.h5", tmp_path / "b.mrd")
    run(tmp_path, "ismrmrd_recon_cartesian_2d", "b.mrd")
    with h5py.File(tmp_path / "b.mrd") as file:
        theirs = file["dataset/cpp/data"][0, 0, 0].T
    ours = image_of(tmp_path / "a.h5")[0]
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-5)


def test_ismrmrds_package_reads_every_readout_of_ours(tmp_path):
    ismrmrd = pytest.importorskip("ismrmrd")
    kspace, lines = noise(3, 4, 10, 9), np.arange(9) % 2 == 0
    write_scan(tmp_path / "a.h5", iter(kspace * lines), kspace.shape, mask=lines, attributes={"noise_variance": 0.25})
    convert(tmp_path / "a.h5", tmp_path / "b.mrd")
    with ismrmrd.Dataset(str(tmp_path / "b.mrd"), create_if_needed=False, mode="r") as data:
        header = ismrmrd.xsd.CreateFromDocument(data.read_xml_header())
        readouts = [data.read_acquisition(number) for number in range(data.number_of_acquisitions())]
    assert len(readouts) == 3 * 5 and [one.scan_counter for one in readouts] == list(range(15))
    for one in readouts:
        assert one.data.shape == (4, 10) and one.active_channels == 4 and one.center_sample == 5
        np.testing.assert_array_equal(one.data, kspace[one.idx.slice, :, :, one.idx.kspace_encode_step_1])
    (encoding,) = header.encoding
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y) == (10, 9)
    limits = encoding.encodingLimits.kspace_encoding_step_1
    assert (limits.minimum, limits.maximum, limits.center) == (0, 8, 4) and encoding.trajectory.value == "cartesian"
    (double,) = header.userParameters.userParameterDouble
    assert (double.name, double.value) == ("mri_n2n_noise_variance", 0.25)
    again = ismrmrd.xsd.CreateFromDocument(ismrmrd.xsd.ToXML(header))  # by their own writer, and back
    assert again == header


# --------------------------------------------------------------------------------------------------------------- fastMRI


@pytest.mark.parametrize(("coils", "challenge"), [(1, "singlecoil"), (3, "multicoil")])
def test_fastmris_loader_opens_what_simulate_and_convert_write(coils, challenge, tmp_path):
    from fastmri.data import SliceDataset
    from fastmri.data.transforms import to_tensor

    images = np.random.default_rng(0).random((20, 24, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(images, np.eye(4)), tmp_path / "volume.nii.gz")
    for name in ("simulated", "converted"):
        (tmp_path / name).mkdir()
    options = SimulationOptions(coils=coils, mask="random-lines", acceleration=2)
    (path,) = simulate_file(tmp_path / "volume.nii.gz", tmp_path / "simulated" / "scan.h5", options)
    convert(path, tmp_path / "scan.mrd", lossy=True)
    convert(tmp_path / "scan.mrd", tmp_path / "converted" / "scan.h5")
    ours = open_scan(path).read(0, 3)
    for name in ("simulated", "converted"):
        loaded = SliceDataset(tmp_path / name, challenge, use_dataset_cache=False)
        assert len(loaded) == 3
        for number in range(3):
            kspace, mask, target, attributes, file, index = loaded[number]
            expected = ours.kspace[number] if coils > 1 else ours.kspace[number, 0]
            assert (file, index) == ("scan.h5", number)
            torch.testing.assert_close(to_tensor(kspace), torch.view_as_real(expected), rtol=0, atol=0)
            np.testing.assert_array_equal(np.broadcast_to(mask, (24, 20)), ours.mask[0, 0].numpy())
            assert (attributes["padding_left"], attributes["padding_right"]) == (0, 20)
            assert attributes["encoding_size"] == (24, 20, 1) == attributes["recon_size"]
            if name == "simulated":
                assert target.shape == (24, 20) and attributes["max"] == pytest.approx(images.max(), rel=1e-5)
                np.testing.assert_allclose(target, images[:, :, number].T, atol=1e-5)
            else:
                assert target is None
