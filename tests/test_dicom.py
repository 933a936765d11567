"""DICOM derived from a source series: where each voxel lies, what is kept and what is new, and what is refused."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import (
    ROTATION,
    affine_ras,
    exact_weights,
    mr_image,
    read_slices,
    read_voxels,
    write_scan_at,
    write_series,
)

import mri_n2n
from mri_n2n import files
from mri_n2n.cli import main
from mri_n2n.errors import InputError, NotFoundError, OutputError
from mri_n2n.formats import open_scan
from mri_n2n.formats.derived_dicom import lay_out
from mri_n2n.formats.derived_dicom import write_series as write_derived
from mri_n2n.formats.dicom import LARGE, read_series

SHAPE = (22, 18, 4)  # columns, rows, slices of the source
SECRETS = ("CompressedSamples", "4MR1", "19700101", "ACC-4711", "5962", "1.2.826", "2.25.", "a private note")
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return exact_weights(tmp_path_factory.mktemp("weights") / "exact.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_series(tmp_path_factory.mktemp("source") / "series")


def volume(shape: tuple[int, int, int] = SHAPE, scale: float = 700.0) -> np.ndarray:
    """Different everywhere, so that no exchange of voxels goes unseen."""
    return (scale * np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / np.prod(shape)).astype("f4")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def reconstruct(scan: Path, out: Path, weights: Path, source: Path, **options) -> dict:
    (sidecar,) = mri_n2n.reconstruct(scan, out, weights=weights, dicom=source, **options)
    return sidecar


def expect_voxels(folder: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel of the array is in the DICOM files at its place, to 1e-6 mm and the rounding, and nothing else is."""
    places, values = read_voxels(folder)
    index = (np.c_[places, np.ones(len(places))] @ np.linalg.inv(affine).T)[:, :3]
    whole = np.rint(index).astype(int)
    assert np.abs(whole - index).max() < 1e-6 and len({*map(tuple, whole)}) == array.size
    slope = float(images(folder)[0].RescaleSlope)
    assert np.abs(values - array[tuple(whole.T)]).max() <= slope / 2 + 1e-5 * array.max()


# --------------------------------------------------------------------------------------------------- the right place


@pytest.mark.parametrize("axes, signs", TURNS, ids=lambda value: "".join(map(str, value)))
def test_every_voxel_is_where_the_affine_puts_it_and_seen_as_the_source(axes, signs, source, tmp_path):
    """The scan's array in all 48 orders and directions, right- and left-handed; always the same DICOM."""
    reference = volume()
    turn = np.zeros((4, 4))  # index in the turned array -> index in the reference
    for new, old in enumerate(axes):
        turn[old, new] = signs[old]
        turn[old, 3] = SHAPE[old] - 1 if signs[old] < 0 else 0
    turn[3, 3] = 1
    array = np.ascontiguousarray(reference[tuple(slice(None, None, sign) for sign in signs)].transpose(axes))
    affine = affine_ras() @ turn
    scan = open_scan(write_scan_at(tmp_path / "scan.h5", array, affine, axis=axes.index(2)))
    magnitude = read_slices(array, axes.index(2))
    write_derived(tmp_path / "out", magnitude, lay_out(scan, read_series(source)), simulated=True)
    expect_voxels(tmp_path / "out", array, affine)
    for derived, original in zip(images(tmp_path / "out"), images(source), strict=True):
        for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
            np.testing.assert_allclose(derived[name].value, original[name].value, atol=1e-6)
        assert (derived.Rows, derived.Columns) == (original.Rows, original.Columns)
        assert derived.InstanceNumber == original.InstanceNumber
        assert float(derived.SpacingBetweenSlices) == pytest.approx(3.5) and float(derived.SliceThickness) == 3
        (reference_,) = derived.SourceImageSequence
        assert reference_.ReferencedSOPInstanceUID == original.SOPInstanceUID


@pytest.mark.parametrize("numbers", [[4, 3, 2, 1], [7, 1, 8, 2], [None] * 4, [1] * 4])
def test_slices_follow_the_numbers_of_the_source(numbers, weights, tmp_path):
    """Backwards, interleaved, and numbers that say nothing."""
    source = write_series(tmp_path / "source", numbers=numbers)
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out", weights, source)
    expect_voxels(tmp_path / "out" / "scan.dicom", volume(), affine_ras())
    derived = images(tmp_path / "out" / "scan.dicom")
    assert [image.InstanceNumber for image in derived] == [1, 2, 3, 4]
    order = np.argsort(numbers) if len(set(numbers)) == 4 else range(4)
    originals = images(source)
    for image, place in zip(derived, order, strict=True):
        np.testing.assert_allclose(image.ImagePositionPatient, originals[place].ImagePositionPatient, atol=1e-6)
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == originals[place].SOPInstanceUID


def test_more_slices_than_the_source_go_the_same_way(weights, tmp_path):
    source = write_series(tmp_path / "source", numbers=[4, 3, 2, 1])
    affine = affine_ras(slice_spacing=1.75)
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume((22, 18, 8)), affine), tmp_path / "out", weights, source)
    expect_voxels(tmp_path / "out" / "scan.dicom", volume((22, 18, 8)), affine)
    locations = [float(image.SliceLocation) for image in images(tmp_path / "out" / "scan.dicom")]
    np.testing.assert_allclose(np.diff(locations), -1.75, atol=1e-6)


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1e3), ("micron", 1e-3)])
def test_the_unit_of_the_affine_is_honoured(unit, millimetres, weights, source, tmp_path):
    affine = np.diag([1 / millimetres] * 3 + [1]) @ affine_ras()
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine, unit=unit), tmp_path / "out", weights, source)
    expect_voxels(tmp_path / "out" / "scan.dicom", volume(), affine_ras())


def test_another_matrix_and_fewer_thicker_slices(weights, source, tmp_path):
    """Geometry is the scan's own, not copied: two slices 7 mm apart, other pixels; their thickness is not known."""
    affine = affine_ras(pixel_spacing=(2.0, 1.5), slice_spacing=7.0)
    array = volume((10, 11, 2))
    reconstruct(write_scan_at(tmp_path / "scan.h5", array, affine), tmp_path / "out", weights, source)
    expect_voxels(tmp_path / "out" / "scan.dicom", array, affine)
    originals = images(source)
    for derived, nearest in zip(images(tmp_path / "out" / "scan.dicom"), (0, 2), strict=True):
        assert derived.SliceThickness is None and float(derived.SpacingBetweenSlices) == pytest.approx(7.0)
        assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == originals[nearest].SOPInstanceUID


# ---------------------------------------------------------------------------------------------- what is kept and new


def test_identity_is_the_sources_and_the_rest_is_new(weights, source, tmp_path):
    scan = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras())
    sidecar = reconstruct(scan, tmp_path / "out", weights, source)
    folder = tmp_path / "out" / "scan.dicom"
    derived, originals = images(folder), images(source)
    assert [path.name for path in sorted(folder.iterdir())] == [f"000{n}.dcm" for n in range(1, 5)]
    assert {name for name in sidecar["output_sha256"] if "dicom" in name} == {
        f"scan.dicom/000{n}.dcm" for n in range(1, 5)
    }
    assert sidecar["output_sha256"]["scan.dicom/0002.dcm"] == files.sha256_of(folder / "0002.dcm")
    for image, original in zip(derived, originals, strict=True):
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "PatientBirthDate",
                     "AccessionNumber", "StudyDate", "StudyID", "BurnedInAnnotation", "LossyImageCompression", "EchoTime",
                     "Manufacturer", "PatientPosition"):  # fmt: skip
            assert image[name].value == original[name].value, name
        for name in ("SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber"):
            assert image[name].value != original[name].value, name
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.file_meta.MediaStorageSOPClassUID == image.SOPClassUID == original.SOPClassUID
        assert image.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        for said in (mri_n2n.__version__, "mri-n2n", "research use only", "simulated k-space"):
            assert said in image.DerivationDescription
        assert "mri-n2n" in image.SeriesDescription
        assert not any(element.tag.is_private for element in image.iterall())
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "ImageComments"):
            assert name not in image
        assert (image.PixelRepresentation, image.BitsStored, image.HighBit, image.SamplesPerPixel) == (0, 16, 15, 1)
    for name in ("SeriesInstanceUID", "StudyInstanceUID"):
        assert len({image[name].value for image in derived}) == 1
    assert len({image.SOPInstanceUID for image in (*derived, *originals)}) == 8
    real = write_scan_at(tmp_path / "real.h5", volume(), affine_ras(), simulated=False)
    reconstruct(real, tmp_path / "out", weights, source)
    assert "simulated" not in images(tmp_path / "out" / "real.dicom")[0].DerivationDescription


def test_identifiers_are_in_the_dicom_files_alone(weights, source, tmp_path, capsys):
    scan = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras())
    words = ["reconstruct", scan, "-o", tmp_path / "out", "--weights", weights, "--dicom", source, "--json"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    texts = {"stdout": said.out.encode(), "stderr": said.err.encode(), **tree(tmp_path / "out")}
    for name, text in texts.items():
        for secret in (*SECRETS, str(source)):
            if not name.endswith(".dcm"):
                assert secret.encode() not in text, f"{secret} in {name}"
        assert b"a private note" not in text
    json.loads(said.out)


def test_names_in_other_character_sets_stay_readable(weights, tmp_path):
    def change(image, number):
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "M\u00fcller^J\u00f6rg"

    source = write_series(tmp_path / "source", change=change)
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out", weights, source)
    (image, *_) = images(tmp_path / "out" / "scan.dicom")
    assert (
        image.PatientName == "M\u00fcller^J\u00f6rg"
        and "M\u00fcller".encode("latin-1") in (tmp_path / "out/scan.dicom/0001.dcm").read_bytes()
    )


def test_private_elements_inside_sequences_are_dropped(weights, tmp_path):
    def change(image, number):
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99X", "a procedure"
        item.private_block(0x0029, "SOMEBODY", create=True).add_new(1, "LO", "a private note")
        image.ProcedureCodeSequence = [item]

    source = write_series(tmp_path / "source", change=change)
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out", weights, source)
    (image, *_) = images(tmp_path / "out" / "scan.dicom")
    assert image.ProcedureCodeSequence[0].CodeMeaning == "a procedure"
    assert not any(element.tag.is_private for element in image.iterall())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 3e4, 1e20])
def test_intensities_are_on_the_scans_own_scale(scale, weights, source, tmp_path):
    """One slope for all slices; the largest value is 65535, rounding at most half a slope."""
    array = volume(scale=scale)
    array[..., 0] *= 1e-3  # a dark slice keeps the scale of the others
    sidecar = reconstruct(write_scan_at(tmp_path / "scan.h5", array, affine_ras()), tmp_path / "out", weights, source)
    derived = images(tmp_path / "out" / "scan.dicom")
    (slope,) = {float(image.RescaleSlope) for image in derived}
    assert {float(image.RescaleIntercept) for image in derived} == {0}
    assert max(image.pixel_array.max() for image in derived) == 65535
    assert slope == pytest.approx(float(array.max()) / 65535, rel=1e-5)
    expect_voxels(tmp_path / "out" / "scan.dicom", array, affine_ras())
    (width,), (center,) = ({float(image[f"Window{what}"].value) for image in derived} for what in ("Width", "Center"))
    assert 0.5 * array.max() < width <= 1.001 * array.max() and center == pytest.approx(width / 2)
    assert "scale" in sidecar["intensity"]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("bare", [False, True])
def test_dciodvfy_finds_no_errors_that_the_source_has_not(bare, weights, tmp_path):
    def without_equipment(image, number):
        del image.Manufacturer, image.EchoTime

    source = write_series(tmp_path / "source", change=without_equipment if bare else lambda image, number: None)
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out", weights, source)

    def errors(path: Path) -> set[str]:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        assert "MRImage" in said.stderr + said.stdout
        return {line for line in (said.stderr + said.stdout).splitlines() if line.startswith("Error")}

    known = errors(next(source.iterdir()))
    assert bool(known) == bare
    for path in (tmp_path / "out" / "scan.dicom").iterdir():
        assert errors(path) <= known


# -------------------------------------------------------------------------------------------------- what is refused


def two_series(folder: Path) -> None:
    write_series(folder)
    other = write_series(folder.parent / "other", slices=2, change=lambda image, _: setattr(image, "Modality", "CT"))
    for path in other.iterdir():
        path.rename(folder / f"other-{path.name}")


def deflated(folder: Path) -> None:
    write_series(folder)
    image = mr_image()
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    image.save_as(folder / "IM9", enforce_file_format=True)
    content = (folder / "IM9").read_bytes()
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    # What follows is no deflate stream: whoever inflates it finds that out.
    (folder / "IM9").write_bytes(content[:meta_end] + b"\xff" * 100)
    with pytest.raises(zlib.error):
        pydicom.dcmread(folder / "IM9")


def changed(**values):
    """A series in which the last image has other values; None: removed."""

    def change(image, number):
        for name, value in values.items():
            if number == 3:
                delattr(image, name) if value is None else setattr(image, name, value)

    return lambda folder: write_series(folder, change=change)


def truncated(folder: Path) -> None:
    write_series(folder)
    content = (folder / "IM003").read_bytes()
    (folder / "IM003").write_bytes(content[: content.index(b"CompressedSamples") + 5])


def garbled(folder: Path) -> None:
    """A position that is no number."""
    write_series(folder)
    content = (folder / "IM003").read_bytes()
    at = content.index(b"\x20\x00\x32\x00DS") + 8
    (folder / "IM003").write_bytes(content[:at] + b"4MR1" + content[at + 4 :])


REFUSED = {
    "missing": (lambda folder: None, NotFoundError, "no directory"),
    "a file": (lambda folder: folder.write_text("text"), InputError, "no directory; expected one"),
    "empty": (lambda folder: folder.mkdir(), NotFoundError, "no DICOM images"),
    "two series": (two_series, InputError, r"2 DICOM series \(MR of 4 files, CT of 2 files\)"),
    "no MR": (lambda f: write_series(f, change=lambda i, _: setattr(i, "Modality", "CT")), InputError, "CT of 4 files"),
    "deflated": (deflated, InputError, "IM9 is deflated"),
    "truncated": (truncated, InputError, "2 DICOM series|IM003"),
    "garbled": (garbled, InputError, "IM003"),
    "enhanced": (changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1"), InputError, "IM003 is multi-frame"),
    "frames": (changed(NumberOfFrames=7), InputError, "IM003 is multi-frame"),
    "capture": (changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), InputError, "IM003 is Secondary Capture Image Storage"),
    "no position": (changed(ImagePositionPatient=None), InputError, "IM003 lacks ImagePositionPatient"),
    "no orientation": (changed(ImageOrientationPatient=None), InputError, "IM003 lacks ImageOrientationPatient"),
    "no spacing": (changed(PixelSpacing=None), InputError, "IM003 lacks PixelSpacing"),
    "no frame": (changed(FrameOfReferenceUID=None), InputError, "IM003 lacks FrameOfReferenceUID"),
    "no UID": (changed(SOPInstanceUID=""), InputError, "IM003 lacks SOPInstanceUID"),
    "orientation": (changed(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), InputError, "differ in ImageOrientation"),
    "no directions": (changed(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), InputError, "IM003: .* makes no sense"),
    "frame": (changed(FrameOfReferenceUID="1.2.3"), InputError, "differ in FrameOfReferenceUID"),
    "patient": (changed(PatientID="other"), InputError, "differ in PatientID"),
    "matrix": (changed(Rows=9, Columns=44), InputError, "differ in Rows or Columns"),
    "gap": (changed(ImagePositionPatient=[0, 0, 0]), InputError, "even spacing"),
    "echoes": (lambda folder: write_series(folder, slice_spacing=0), InputError, "even spacing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_series_that_are_refused(name, weights, tmp_path, capsys):
    make, error, message = REFUSED[name]
    make(tmp_path / "series")
    with pytest.raises(error, match=message) as caught:
        read_series(tmp_path / "series")
    scan = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras())
    words = ["reconstruct", scan, "-o", tmp_path / "out", "--weights", weights, "--dicom", tmp_path / "series"]
    assert main([str(word) for word in words]) == error.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(caught.value) in said and not (tmp_path / "out").exists()
    assert not any(secret in said.replace(str(tmp_path), "") for secret in SECRETS)


def test_files_beside_the_series_are_passed_over(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "series")
    (folder / "notes.txt").write_text("notes")
    (folder / "empty").write_bytes(b"")
    write_series(folder / "another")  # folders are not searched
    directory = mr_image()
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    assert [path.name for path in read_series(folder).files] == [f"IM00{n}" for n in range(4)]


def test_no_pixel_is_read(tmp_path):
    """Reading the series takes less memory than the pixels of one image, which are below the limit for large values."""
    folder = write_series(tmp_path / "series", size=(600, 700))
    assert LARGE > 2 * 600 * 700 > 800_000
    read_series(folder)  # what pydicom loads once
    tracemalloc.start()
    assert len(read_series(folder).headers) == 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000


def rotated(degrees: float) -> np.ndarray:
    """About the rows' direction: the normals differ by as much."""
    a = np.radians(degrees)
    return ROTATION @ np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


ELSEWHERE = {
    "tilted": (affine_ras(rotated(3)), {}, r"3\.0 degrees apart"),
    "between": (affine_ras(origin=np.array([-31, 12.5, 40.25]) - 2 * ROTATION[:, 2]), {}, "slice 1 .* 2.0 mm from"),
    "longer": (affine_ras(slice_spacing=5.0), {}, r"slice 4 .* 4\.5 mm from"),
    "beside": (affine_ras(origin=np.array([-31, 12.5, 40.25]) + 9 * ROTATION[:, 0]), {}, "slice 1 .* outside"),
    "below": (affine_ras(origin=np.array([-31, 12.5, 40.25]) - 12 * ROTATION[:, 1]), {}, "slice 1 .* outside"),
    "sheared": (affine_ras(ROTATION @ np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])), {}, "shears"),
    "codes 0": (affine_ras(), {"codes": (0, 0)}, "nothing of where its slices lie"),
    "no unit": (affine_ras(), {"unit": "unknown"}, "unit"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_scans_that_do_not_lie_in_the_series(name, weights, source, tmp_path):
    affine, options, message = ELSEWHERE[name]
    scan = write_scan_at(tmp_path / "scan.h5", volume(), affine, **options)
    with pytest.raises(InputError, match=f"scan.h5.*{message}|{message}.*scan.h5|{message}"):
        reconstruct(scan, tmp_path / "out", weights, source)
    assert not (tmp_path / "out").exists()


def test_slightly_off_is_accepted(weights, source, tmp_path):
    """Two degrees, and a millimetre, as between a prescription and what a converter makes of it."""
    affine = affine_ras(rotated(2), origin=np.array([-31, 12.5, 40.25]) + ROTATION[:, 2])
    reconstruct(write_scan_at(tmp_path / "scan.h5", volume(), affine), tmp_path / "out", weights, source)
    expect_voxels(tmp_path / "out" / "scan.dicom", volume(), affine)


def test_one_scan_at_a_time(weights, source, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_scan_at(tmp_path / "in" / f"{name}.h5", volume(), affine_ras())
    words = ["reconstruct", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--dicom", source]
    assert main([str(word) for word in words]) == 2
    assert "one scan" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_pydicom_the_command_is_named(weights, source, tmp_path):
    scan = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras())
    words = [str(word) for word in ("reconstruct", scan, "-o", tmp_path / "out", "--weights", weights)]
    code = "import sys; sys.modules['pydicom'] = None; from mri_n2n.cli import main; sys.exit(main(sys.argv[1:]))"

    def run(*extra: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code, *words, *extra], capture_output=True, text=True)

    done = run("--dicom", str(source))
    assert done.returncode == 2 and "python -m pip install 'pydicom>=3'" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert run().returncode == 0  # nothing else needs it


# ------------------------------------------------------------------------------------- nothing is lost or half-written


def test_an_earlier_folder_is_replaced_only_when_told(weights, source, tmp_path):
    scan, out = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out"
    (out / "scan.dicom").mkdir(parents=True)
    for number in range(1, 8):
        (out / "scan.dicom" / f"000{number}.dcm").write_text("earlier")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="scan.dicom exists.*--force"):
        reconstruct(scan, out, weights, source)
    assert tree(tmp_path) == before
    reconstruct(scan, out, weights, source, force=True)
    assert sorted(tree(out)) == [f"scan.dicom/000{n}.dcm" for n in range(1, 5)] + [f"scan.{s}" for s in ("h5", "json", "nii.gz", "png")]  # fmt: skip
    assert not any(path.name.startswith(".") for path in out.iterdir())


@pytest.mark.parametrize("what", ["other file", "link", "file", "series", "subfolder"])
def test_what_is_no_earlier_result_is_never_replaced(what, weights, source, tmp_path):
    scan, out = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out"
    out.mkdir()
    match what:
        case "other file":
            (out / "scan.dicom").mkdir()
            (out / "scan.dicom" / "mine.txt").write_text("mine")
        case "subfolder":
            (out / "scan.dicom" / "0001.dcm").mkdir(parents=True)
        case "link":
            (out / "scan.dicom").symlink_to(source)
        case "file":
            (out / "scan.dicom").write_text("mine")
        case "series":
            reconstruct(scan, out, weights, source)
            source = out / "scan.dicom"
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="scan.dicom"):
        reconstruct(scan, out, weights, source, force=True)
    assert tree(tmp_path) == before


def test_a_failure_leaves_the_earlier_result(weights, source, tmp_path, monkeypatch):
    """A disk that is full when the third DICOM file is written."""
    scan, out = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out"
    reconstruct(scan, out, weights, source)
    before, save = tree(tmp_path), pydicom.Dataset.save_as

    def full(self, path, **options):
        if path.name == "0003.dcm":
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(OutputError, match="No space left"):
        reconstruct(scan, out, weights, source, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_two_renames_loses_no_folder(renames, weights, source, tmp_path):
    """Killed when the earlier folder is set aside and the new one has not come, or has: the next run clears it up."""
    scan, out = write_scan_at(tmp_path / "scan.h5", volume(), affine_ras()), tmp_path / "out"
    code = f"""
import os, sys, mri_n2n
rename, left = os.rename, [{renames}]
def killed(*paths):
    rename(*paths)
    left[0] -= 1
    left[0] or os._exit(9)
os.rename = killed
mri_n2n.reconstruct(sys.argv[1], sys.argv[2], weights=sys.argv[3], dicom=sys.argv[4], force=True)
"""
    reconstruct(scan, out, weights, source)
    before = tree(out / "scan.dicom")
    assert subprocess.run([sys.executable, "-c", code, scan, out, weights, source]).returncode == 9
    (aside,) = [path for path in out.iterdir() if path.name.endswith(".replaced")]
    assert tree(aside) == before and (out / "scan.dicom").exists() == (renames == 2)
    for path in out.glob("scan.*"):
        path.is_dir() or path.unlink()
    with pytest.raises(OutputError, match="scan.dicom exists"):
        reconstruct(scan, out, weights, source)
    assert (tree(out / "scan.dicom") == before) == (renames == 1) and not aside.exists()
    reconstruct(scan, out, weights, source, force=True)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_help_asks_for_no_pydicom():
    code = (
        "import sys; from mri_n2n.arguments import parser; parser(); assert not {'torch', 'pydicom'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_extra_is_declared():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert re.search(r'^dicom = \["pydicom>=3"\]', text, re.M) and re.search(r"^test = .*pydicom>=3", text, re.M)
