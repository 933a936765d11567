"""Raw scans from format to format: the samples unchanged, and nothing left out in silence."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.conversion import SIMULATED, convert
from mri_n2n.errors import OptionError, OutputError
from mri_n2n.formats import open_scan
from mri_n2n.simulation import SimulationOptions, simulate_file

AFFINE = np.array([[0, -1.5, 0.2, 10.0], [0.9, 0, 0, -20.0], [0, 0.3, 3.0, 30.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """Three slices of 20 x 17, four coils, lines, noise, oblique."""
    folder = tmp_path_factory.mktemp("scans")
    images = np.random.default_rng(0).random((17, 20, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(images, AFFINE), folder / "volume.nii.gz")
    options = SimulationOptions(coils=4, mask="random-lines", acceleration=3, noise=0.01)
    return simulate_file(folder / "volume.nii.gz", folder / "scan.h5", options)[0]


def samples(path: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    opened = open_scan(path, **options)
    acquisition = opened.read(0, opened.shape[0])
    return acquisition.kspace.numpy(), np.broadcast_to(acquisition.mask.numpy(), acquisition.kspace[:, :1].shape)


@pytest.mark.parametrize("suffix", [".cfl", ".npy", ".mrd"])
def test_samples_go_round_bit_for_bit(suffix, scan, tmp_path):
    with pytest.raises(OptionError, match="no room for.*probability.*--lossy"):
        convert(scan, tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []
    lost = convert(scan, tmp_path / f"a{suffix}", lossy=True)
    assert {"probability", "reference"} <= set(lost)
    for name in ("geometry", "noise variance", SIMULATED):
        assert (name in lost) == (suffix != ".mrd")
    convert(tmp_path / f"a{suffix}", tmp_path / "back.h5")
    for path in (tmp_path / f"a{suffix}", tmp_path / "back.h5"):
        for found, expected in zip(samples(path), samples(scan), strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(OutputError, match="--force"):
        convert(scan, tmp_path / f"a{suffix}", lossy=True)


def test_mrd_keeps_the_geometry_and_its_own_package_reads_it(scan, tmp_path):
    ismrmrd = pytest.importorskip("ismrmrd")
    with pytest.raises(OptionError, match="points"):  # before anything is written
        points = simulate_file(
            scan.parent / "volume.nii.gz", tmp_path / "points.h5", SimulationOptions(acceleration=2)
        )[0]
        convert(points, tmp_path / "points.mrd", lossy=True)
    assert not (tmp_path / "points.mrd").exists()
    straight = nibabel.load(scan.parent / "volume.nii.gz")
    affine = np.diag([0.9, 1.5, 3.0, 1.0])
    affine[:3, 3] = -3, 4, 5
    volume = nibabel.Nifti1Image(straight.get_fdata().astype(np.float32), affine)
    volume.header.set_xyzt_units("mm")
    nibabel.save(volume, tmp_path / "v.nii.gz")
    options = SimulationOptions(mask="equispaced-lines", acceleration=2, coils=2)
    (path,) = simulate_file(tmp_path / "v.nii.gz", tmp_path / "scan.h5", options)
    convert(path, tmp_path / "scan.mrd", lossy=True)
    np.testing.assert_allclose(open_scan(tmp_path / "scan.mrd").geometry.affine, affine, atol=1e-4)
    with ismrmrd.Dataset(str(tmp_path / "scan.mrd"), "dataset", create_if_needed=False) as data:
        header = ismrmrd.xsd.CreateFromDocument(data.read_xml_header())
        first = data.read_acquisition(0)
        kspace, mask = samples(path)
        line = int(first.idx.kspace_encode_step_1)
        assert line == np.flatnonzero(mask[0, 0, 0])[0] and data.number_of_acquisitions() == 3 * mask[0, 0, 0].sum()
        np.testing.assert_array_equal(first.data, kspace[0, :, :, line])
    assert header.encoding[0].encodedSpace.matrixSize.x == 20
    assert header.encoding[0].encodedSpace.fieldOfView_mm.x == pytest.approx(1.5 * 20)


def test_fastmris_own_loader_opens_what_is_converted(scan, tmp_path):
    from fastmri.data.mri_data import SliceDataset

    (tmp_path / "data").mkdir()
    convert(scan, tmp_path / "a.mrd", lossy=True)
    convert(tmp_path / "a.mrd", tmp_path / "data" / "b.h5", lossy=True)
    loaded = SliceDataset(tmp_path / "data", "multicoil")
    assert len(loaded) == 3
    np.testing.assert_array_equal(loaded[1][0], samples(scan)[0][1])


def test_what_makes_no_sense_is_refused(scan, tmp_path):
    for target in ("scan.dcm", "scan"):
        with pytest.raises(OptionError, match="suffix"):
            convert(scan, tmp_path / target)
    with pytest.raises(OutputError, match="input itself"):
        convert(scan, scan, force=True)
    np.save(tmp_path / "a.npy", np.ones((2, 8, 8), np.complex64))
    with pytest.raises(OptionError, match="npy-coils"):
        convert(tmp_path / "a.npy", tmp_path / "a.h5")
    convert(tmp_path / "a.npy", tmp_path / "a.h5", format="npy-coils")
    assert open_scan(tmp_path / "a.h5").shape == (1, 2, 8, 8)
    assert torch.equal(open_scan(tmp_path / "a.h5").read(0, 1).mask, torch.ones(1, 1, 8, 8))


def test_neither_half_of_a_bart_pair_is_overwritten_by_itself(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 2, 8, 6), np.complex64))
    convert(tmp_path / "a.npy", tmp_path / "a.cfl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for source in ("a.hdr", "a.cfl"):
        with pytest.raises(OutputError, match="input itself"):
            convert(tmp_path / source, tmp_path / "a.cfl", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
