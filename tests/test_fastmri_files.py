"""Files as fastMRI and M4Raw publish them (their keys, axes and headers, with made-up contents), and what `info` finds."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mri_n2n
from mri_n2n.errors import UserError
from mri_n2n.formats import open_scan
from mri_n2n.formats.sampling import acquired_box
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inspection import describe_sampling
from mri_n2n.masks import draw_mask
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import phantom_kspace
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.resample import crop_or_pad
from mri_n2n.simulation import seeded

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<studyInformation><studyTime>12:00:00</studyTime></studyInformation>
<experimentalConditions><H1resonanceFrequency_Hz>127728000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fx}</x><y>200</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{ry}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>140</x><y>140</y><z>4.5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""

SLICES, COILS, READOUT, PHASE, IMAGE = 2, 3, 64, 46, 32
FIRST, LAST = 4, 41  # the phase-encoded lines that were acquired


def images(*shape: int) -> torch.Tensor:
    """Coil images of smooth blobs with a phase, and some noise."""
    generator = torch.Generator().manual_seed(0)
    *leading, y, x = shape
    coarse = torch.randn((*leading, 5, 5), dtype=torch.complex64, generator=generator)
    smooth = crop_or_pad(coarse, y, x)
    return ifft2c(smooth) * 50 + 1e-3 * torch.randn(shape, dtype=torch.complex64, generator=generator)


def write_fastmri(path: Path, kspace: np.ndarray, *, header: str | None = None, **datasets) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header or HEADER.format(
            x=READOUT, y=PHASE, rx=IMAGE, ry=IMAGE, fx=280, maximum=LAST - FIRST - 1, center=PHASE // 2 - FIRST
        )
        for name, value in datasets.items():
            file[name] = value
        file.attrs.update(acquisition="CORPDFS_FBK", patient_id="0" * 64, max=1.0, norm=1.0)
    return path


def padded(kspace: torch.Tensor) -> np.ndarray:
    kspace = kspace.clone()
    kspace[..., :FIRST] = 0
    kspace[..., LAST:] = 0
    return kspace.numpy()


@pytest.mark.parametrize("coils", [1, COILS])
def test_training_files_are_full_within_their_padding(coils, tmp_path):
    """The padding as fastMRI's own loader computes it from the header."""
    import fastmri.data as fastmri_data

    shape = (SLICES, READOUT, PHASE) if coils == 1 else (SLICES, coils, READOUT, PHASE)
    object_kspace = torch.stack([phantom_kspace((READOUT, PHASE), coils, seeded(2), real=False)] * SLICES)
    kspace = padded(object_kspace.reshape(shape))
    reference = crop_or_pad(ifft2c(torch.from_numpy(kspace.reshape(SLICES, coils, READOUT, PHASE))), IMAGE, IMAGE)
    name = "reconstruction_esc" if coils == 1 else "reconstruction_rss"
    reference = {name: root_sum_of_squares(reference).numpy()}
    path = write_fastmri(tmp_path / "file1.h5", kspace, **reference)
    loaded = fastmri_data.SliceDataset(tmp_path, "singlecoil" if coils == 1 else "multicoil")[0]
    attributes = loaded[3]
    scan = open_scan(path)
    assert scan.acquired_columns == (attributes["padding_left"], attributes["padding_right"]) == (FIRST, LAST)
    assert acquired_box(scan) == ((0, READOUT), (FIRST, LAST)) and scan.image_matrix == (IMAGE, IMAGE)
    facts = mri_n2n.info(path)
    assert facts["sampling"].startswith("full") and f"columns {FIRST} to {LAST - 1}" in facts["acquired"]
    assert facts["acquisition"] == "CORPDFS_FBK" and "0000" not in str(facts)
    with pytest.warns(UserWarning, match="zero padding"):
        [sidecar] = reconstruct_files([path], tmp_path / "out")
    assert sidecar["image_matrix"] == [IMAGE, IMAGE]
    with h5py.File(tmp_path / "out" / "file1.h5") as file:
        found = file["reconstruction"][()]
    # A scan that does not tell its noise: what lies outermost counts for some, so samples are not quite as measured; how far the image
    # moves is the bundled weights' matter.
    assert np.abs(found - reference[name]).max() < (0.06 if coils == 1 else 0.1) * reference[name].max()


def test_test_files_have_a_mask_over_the_whole_width(tmp_path):
    """Their mask calls lines measured that are padding; those are not taken for measured zeros."""
    mask = np.zeros(PHASE, np.uint8)
    mask[::4] = mask[20:27] = 1
    kspace = padded(fft2c(images(SLICES, COILS, READOUT, PHASE))) * mask
    path = write_fastmri(tmp_path / "file2.h5", kspace, mask=mask.astype(bool))
    with h5py.File(path, "a") as file:
        file.attrs.update(acceleration=4, num_low_frequency=7)
        del file.attrs["max"], file.attrs["norm"]
    scan = open_scan(path)
    expected = mask.copy()
    expected[:FIRST] = expected[LAST:] = 0
    assert (scan.read(0, 1).mask[0, 0].numpy() == expected).all()
    facts = mri_n2n.info(path)
    assert "lines along y" in facts["sampling"] and "7 central ones full" in facts["sampling"]
    assert "equispaced" in facts["sampling"] and "reference" in facts["missing"]


def test_a_header_whose_padding_holds_samples_is_not_believed(tmp_path):
    path = write_fastmri(tmp_path / "file3.h5", fft2c(images(SLICES, COILS, READOUT, PHASE)).numpy())
    assert acquired_box(open_scan(path)) == ((0, READOUT), (0, PHASE))
    assert open_scan(path).read(0, 2).mask.all()


def test_m4raw_files_have_their_lines_first(tmp_path):
    """Axes slice, coil, PE, FE: the zero lines are rows, and the header speaks of the other axis."""
    kspace = padded(fft2c(images(SLICES, COILS, PHASE, READOUT).mT)).swapaxes(-1, -2)
    header = HEADER.format(x=READOUT, y=PHASE, rx=READOUT, ry=PHASE, fx=140, maximum=LAST - FIRST - 1, center=19)
    header = header.replace("</encoding>", "</encoding><vendor>x</vendor>")  # which the schema does not allow
    scan = open_scan(write_fastmri(tmp_path / "2022061003_T101.h5", kspace, header=header))
    assert scan.acquired_columns is None
    assert acquired_box(scan) == ((FIRST, LAST), (0, READOUT))
    assert "lines" not in mri_n2n.info(scan.path)["sampling"], "empty edges are no undersampling"


def test_an_unreadable_header_is_no_obstacle(tmp_path):
    kspace = fft2c(images(SLICES, READOUT, PHASE)).numpy()
    for header in ("<", "", "<a/>", HEADER.replace("{x}", "-3")):
        path = tmp_path / "file4.h5"
        path.unlink(missing_ok=True)
        scan = open_scan(write_fastmri(path, kspace, header=header or " "))
        assert scan.image_matrix is None and scan.acquired_columns is None


# ---- what info finds ----

KINDS = {
    "roulette": "points, denser towards the centre",
    "gaussian-points": "points, denser towards the centre",
    "random-lines": "random lines along y, ",
    "equispaced-lines": "equispaced lines along y",
    "gaussian-lines": "random lines along y, denser towards the centre",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceleration", [3, 4])
def test_masks_are_recognised(kind, acceleration):
    sampling = draw_mask(kind, (121, 180), acceleration, seeded(1, kind))
    words = describe_sampling(sampling.mask)
    assert KINDS[kind] in words, words
    assert ("denser" in words) == ("denser" in KINDS[kind])
    assert words.startswith(f"{1 / sampling.mask.mean():.1f}x")
    assert describe_sampling(sampling.mask.mT) == words.replace("along y", "along x")


def test_full_and_empty_masks():
    assert describe_sampling(torch.ones(5, 6)).startswith("full") and describe_sampling(torch.zeros(5, 6)) == "none"
    points = (torch.rand((64, 64), generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert "points" in describe_sampling(points) and "denser" not in describe_sampling(points)


def test_noise_is_bounded_by_the_outermost_samples(tmp_path):
    """White noise of known variance over a smooth image: its level is found to a few percent."""
    generator = torch.Generator().manual_seed(5)
    smooth = ifft2c(crop_or_pad(torch.randn((1, 4, 9, 9), dtype=torch.complex64, generator=generator), 96, 81))
    kspace = fft2c(smooth) + 0.02 * torch.randn((1, 4, 96, 81), dtype=torch.complex64, generator=generator)
    path = tmp_path / "noisy.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.numpy()
    words = mri_n2n.info(path)["noise"]
    assert words.startswith("standard deviation at most 0.0") and "outermost" in words
    assert float(words.split()[4].rstrip(",")) == pytest.approx(0.02, rel=0.1)


def test_converting_keeps_what_fastmris_header_says(tmp_path):
    """In its own layout nothing is lost; where there is no room it is said."""
    kspace = padded(fft2c(images(SLICES, COILS, READOUT, PHASE)))
    path = write_fastmri(tmp_path / "file5.h5", kspace)
    with h5py.File(path, "a") as file:
        file.attrs["acceleration"] = 4
    mri_n2n.convert(path, tmp_path / "again.h5")
    first, second = open_scan(path), open_scan(tmp_path / "again.h5")
    for name in ("image_matrix", "acquired_columns", "acquisition", "acceleration", "shape"):
        assert getattr(first, name) == getattr(second, name) is not None
    assert torch.equal(first.read(0, 2).kspace, second.read(0, 2).kspace)
    with pytest.raises(UserError, match="acquisition.*padding.*matrix of the image"):
        mri_n2n.convert(path, tmp_path / "file5.mrd")
    lost = mri_n2n.convert(path, tmp_path / "file5.mrd", lossy=True)
    assert len(lost) == 3


def test_kinds_of_masks_under_partial_fourier_are_judged_about_dc(tmp_path):
    lines = np.zeros(256, bool)
    lines[::3] = lines[116:140] = True
    lines[:96] = False
    generator = np.random.default_rng(0)
    kspace = generator.standard_normal((1, 2, 32, 256)) * lines
    np.save(tmp_path / "a.npy", kspace.astype(np.complex64))
    facts = mri_n2n.info(tmp_path / "a.npy")
    assert "columns 96 to 255" in facts["acquired"]
    assert "equispaced lines along y, 24 central ones full" in facts["sampling"], facts["sampling"]


def test_noise_of_unequal_coils_is_the_mean_of_their_variances(tmp_path):
    generator = torch.Generator().manual_seed(5)
    noise = (
        torch.randn((1, 2, 96, 96), dtype=torch.complex64, generator=generator)
        * torch.tensor([1.0, 5.0])[:, None, None]
    )
    np.save(tmp_path / "a.npy", noise.numpy())
    words = mri_n2n.info(tmp_path / "a.npy")["noise"]
    assert float(words.split()[4].rstrip(",")) == pytest.approx(13**0.5, rel=0.05)


def test_info_describes_one_repetition_and_names_coils_without_signal(tmp_path):
    """Not the mean of several, which is sampled better than each."""
    sizes = [32, 40, 1, 3, *[1] * 9, 1, 2, 1]
    array = np.zeros(sizes, np.complex64, order="F")
    generator = np.random.default_rng(0)
    for repetition in range(2):
        lines = np.zeros(40, bool)
        lines[repetition::4] = lines[18:22] = True
        samples = generator.standard_normal((32, 40, 3)) * lines[:, None]
        samples[..., 1] = 0
        array[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, repetition, 0] = samples
    (tmp_path / "a.hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n")
    array.ravel(order="F").tofile(tmp_path / "a.cfl")
    facts = mri_n2n.info(tmp_path / "a.cfl")
    share = (np.arange(40) % 4 == 0) | ((np.arange(40) >= 18) & (np.arange(40) < 22))
    assert facts["sampling"].startswith(f"{1 / share.mean():.1f}x") and "repetition 0" in facts["sampling"]
    assert facts["coils"] == "3, of which 1 (counted from 0) without signal"
    assert "train --dataset pairs" in facts["commands"]
    with pytest.raises(UserError, match="repetitions 0 to 1; no number 2"):
        mri_n2n.info(tmp_path / "a.cfl", repetition=2)
    (tmp_path / "a.hdr").unlink()
    with pytest.raises(UserError, match="no file .*a.hdr"):
        mri_n2n.info(tmp_path / "a.cfl")


@pytest.mark.parametrize("columns", [slice(None, 20, 2), slice(40, None, 2)])
def test_info_of_a_scan_without_the_centre(columns, tmp_path):
    kspace = np.zeros((1, 1, 64, 64), np.complex64)
    kspace[..., columns] = np.random.default_rng(0).standard_normal((64, len(range(64)[columns])))
    np.save(tmp_path / "a.npy", kspace)
    assert "lines along y" in mri_n2n.info(tmp_path / "a.npy")["sampling"]
