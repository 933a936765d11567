"""Damaged, hostile and impossible files: each ends in one clear line, and leaves nothing behind."""

import gzip
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError
from mri_n2n.files import atomic_output, sha256_of
from mri_n2n.formats import (
    detect,
    open_scan,
    read_reference,
    read_result,
    read_volume,
    volume_shape,
    write_nifti,
    write_result,
    write_scan,
)
from mri_n2n.formats.hdf5 import MAX_GIB


def refused(call, *arguments, match: str, error: type[UserError] = InputError, **options) -> str:
    """The one-line message with which the call is refused; it names the file."""
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and len(message) < 700
    if arguments and isinstance(arguments[0], Path):
        assert arguments[0].name in message
    return message


def read_all(path: Path):
    scan = open_scan(path)
    return scan.read(0, scan.shape[0])


def kspace(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.complex64)


@pytest.fixture
def scan_file(tmp_path) -> Path:
    """A good scan, for damaging."""
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace(4, 3, 16, 20)
        file["reconstruction_rss"] = np.ones((4, 16, 20), np.float32)
        file["mask"] = np.ones(20, np.float32)
    assert read_all(tmp_path / "scan.h5").kspace.shape == (4, 3, 16, 20)
    return tmp_path / "scan.h5"


def replace(path: Path, name: str, value) -> Path:
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file[name] = value
    return path


# ------------------------------------------------------------------------------------- HDF5 that points to other files


SECRET = b"secret bytes of another file on this machine " * 1000


@pytest.mark.parametrize("name", ["kspace", "mask", "probability", "reconstruction_rss"])
def test_external_storage_is_refused(scan_file, tmp_path, name):
    (tmp_path / "secret").write_bytes(SECRET)
    shape, dtype = ((4, 16, 20), "c8") if name == "kspace" else ((4, 16, 20), "f4")
    with h5py.File(scan_file, "r+") as file:
        if name in file:
            del file[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        file.create_dataset(name, shape, dtype, external=[(str(tmp_path / "secret"), 0, size)])
        assert file[name][()].any()  # the library itself would hand out the other file's bytes
    refused(read_reference if name == "reconstruction_rss" else read_all, scan_file, match="external")


@pytest.mark.parametrize("name", ["kspace", "mask", "probability", "reconstruction_rss"])
@pytest.mark.parametrize("kind", ["external", "soft", "dangling"])
def test_links_are_refused(scan_file, tmp_path, name, kind):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = kspace(4, 3, 16, 20) if name == "kspace" else np.ones((4, 16, 20))
    with h5py.File(scan_file, "r+") as file:
        file["elsewhere"] = kspace(4, 3, 16, 20) if name == "kspace" else np.ones((4, 16, 20))
    link = {"external": h5py.ExternalLink(tmp_path / "other.h5", "data"), "soft": h5py.SoftLink("/elsewhere")}
    replace(scan_file, name, link.get(kind, h5py.SoftLink("/nowhere")))
    assert detect(scan_file) == "fastmri-hdf5"  # by the name alone
    refused(read_reference if name == "reconstruction_rss" else read_all, scan_file, match="link")


@pytest.mark.parametrize("name", ["kspace", "mask"])
def test_virtual_data_sets_are_refused(scan_file, tmp_path, name):
    shape, dtype = ((4, 3, 16, 20), "c8") if name == "kspace" else ((16, 20), "f4")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones(shape, dtype)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "data", shape)
    with h5py.File(scan_file, "r+") as file:
        del file[name]
        file.create_virtual_dataset(name, layout)
    refused(read_all, scan_file, match="virtual")


def test_results_are_checked_alike(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["reconstruction"] = h5py.ExternalLink(tmp_path / "other.h5", "data")
    refused(read_result, tmp_path / "r.h5", match="link")
    refused(read_result, replace(tmp_path / "r.h5", "reconstruction", np.full((2, 3, 3), np.nan)), match="NaN")
    refused(read_result, replace(tmp_path / "r.h5", "reconstruction", np.ones((3, 3))), match="3 axes")
    refused(read_result, replace(tmp_path / "r.h5", "reconstruction", kspace(2, 3, 3)), match="real")


# ------------------------------------------------------------------------------------------------------------- bombs


def bomb(path: Path, shape, name="kspace", dtype="c8", **options) -> Path:
    with h5py.File(path, "w") as file:
        if name != "kspace":
            file["kspace"] = kspace(2, 8, 8)
        file.create_dataset(name, shape, dtype, **options)
    assert path.stat().st_size < 500_000
    return path


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1, 64, 64)}, {"chunks": (1, 1, 64, 64), "compression": "gzip"}])
def test_logical_bombs(tmp_path, options):
    """A kilobyte that declares 30 TB, or just what the limit allows."""
    refused(open_scan, bomb(tmp_path / "a.h5", (1000, 1000, 2048, 2048), **options), match="declares .* GiB")
    refused(open_scan, bomb(tmp_path / "b.h5", (64, 4, 512, 512), **options), match="declares 512 MiB")
    refused(open_scan, bomb(tmp_path / "c.h5", (1, 1000, 2048, 2048), **options), match="one slice")
    refused(read_reference, bomb(tmp_path / "d.h5", (10**6, 2048, 2048), "reconstruction_esc", "f4"), match="declares")
    refused(read_all, bomb(tmp_path / "e.h5", (10**6, 2048, 2048), "mask", "f4"), match="declares")


def test_chunk_bomb(tmp_path):
    """A compressed chunk that unpacks to a thousand times its size; and one larger than memory allows."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("kspace", (4, 1, 1920, 1920), "c8", chunks=(4, 1, 1920, 1920), compression=9)
        dataset[0, 0, 0, 0] = 1
    assert path.stat().st_size < 300_000
    refused(open_scan, path, match="declares 112 MiB")
    chunks = {"chunks": (30, 1, 4096, 4096)}  # 3.8 GiB: what the file may hold, but not memory
    os.environ["MRI_N2N_MAX_GIB"] = "1"
    try:
        refused(open_scan, bomb(tmp_path / "b.h5", (30, 1, 4096, 4096), **chunks), match="one chunk")
    finally:
        del os.environ["MRI_N2N_MAX_GIB"]


def test_the_limit_can_be_moved(scan_file, monkeypatch, tmp_path):
    assert MAX_GIB == 4
    monkeypatch.setenv("MRI_N2N_MAX_GIB", "0.000001")
    assert "MRI_N2N_MAX_GIB" in refused(open_scan, scan_file, match="GiB")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), tmp_path / "a.nii")
    refused(read_volume, tmp_path / "a.nii", match="GiB")
    monkeypatch.setenv("MRI_N2N_MAX_GIB", "1")
    read_all(scan_file)
    for value in ("none", "-1", "0", "inf", "nan"):
        monkeypatch.setenv("MRI_N2N_MAX_GIB", value)
        with pytest.raises(UserError, match="positive number"):
            open_scan(scan_file)


def test_real_compression_is_no_bomb(tmp_path):
    full = np.zeros((40, 2, 128, 128), np.complex64)
    full[..., ::20] = kspace(40, 2, 128, 7)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("kspace", data=full, chunks=(1, 2, 128, 128), compression="gzip")
        file.create_dataset(
            "mask", data=np.tile((full[0, 0] != 0).astype("f4"), (40, 1, 1)), compression="gzip", chunks=True
        )
    assert np.array_equal(read_all(tmp_path / "a.h5").kspace, full)


# ---------------------------------------------------------------------------------------------------- damaged scans


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.3, 0.7, 0.99])
def test_truncated_hdf5(scan_file, keep):
    content = scan_file.read_bytes()
    scan_file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    for call in (detect, read_all, read_reference, read_result):
        refused(call, scan_file, match="truncated|empty|format|no HDF5")


def test_overwritten_hdf5_never_ends_otherwise(scan_file, tmp_path):
    """Any byte of the file's structure overwritten: read as it was, or refused in one line."""
    content, rng = scan_file.read_bytes(), np.random.default_rng(0)
    script = """
        import sys
        from pathlib import Path
        from mri_n2n.errors import InputError
        from mri_n2n.formats import detect, open_scan, read_reference
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                detect(path), open_scan(path).read(0, 1), read_reference(path)
            except InputError as error:
                assert "\\n" not in str(error)
    """
    (tmp_path / "damaged").mkdir()
    for number in range(60):
        damaged = bytearray(content)
        for position in rng.integers(0, 2500, 4):
            damaged[position] = rng.integers(256)
        (tmp_path / "damaged" / f"{number}.h5").write_bytes(damaged)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "damaged")], capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()[-2000:]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(scan_file, value):
    for part in (value, value * 1j):
        samples = kspace(4, 3, 16, 20)
        samples[2, 1, 5, 6] = part
        scan = open_scan(replace(scan_file, "kspace", samples))
        scan.read(0, 2)
        refused(read_all, scan_file, match="NaN or infinite")
    refused(read_all, replace(scan_file, "kspace", np.full((4, 3, 16, 20), 1e300, np.complex128)), match="infinite")
    with h5py.File(scan_file, "r+") as file:
        del file["mask"]
    refused(read_all, scan_file, match="NaN or infinite")
    replace(scan_file, "reconstruction_rss", np.full((4, 16, 20), value))
    refused(read_reference, replace(scan_file, "kspace", kspace(4, 3, 16, 20)), match="NaN or infinite")


@pytest.mark.parametrize("mask", [None, np.ones(20), np.ones((16, 20)), np.ones((4, 16, 20)), np.zeros(20)])
def test_all_zero_kspace(scan_file, mask):
    with h5py.File(scan_file, "r+") as file:
        del file["mask"]
        if mask is not None:
            file["mask"] = mask
    if mask is None or mask.any():
        replace(scan_file, "kspace", np.zeros((4, 3, 16, 20), np.complex64))
    refused(read_all, scan_file, match="zero everywhere")
    refused(lambda: open_scan(scan_file).read(1, 2), match="zero everywhere")


def test_one_empty_slice_is_fine(scan_file):
    for with_mask in (True, False):
        samples = kspace(4, 3, 16, 20)
        samples[0] = 0
        replace(scan_file, "kspace", samples)
        if not with_mask:
            with h5py.File(scan_file, "r+") as file:
                del file["mask"]
        part = open_scan(scan_file).read(0, 1)
        assert not part.kspace.any() and part.mask.all()


@pytest.mark.parametrize("name", ["mask", "probability"])
@pytest.mark.parametrize(
    "shape",
    [
        (),
        (0,),
        (19,),
        (21,),
        (16,),
        (20, 16),
        (16, 21),
        (3, 16, 20),
        (4, 20, 16),
        (1, 16, 20),
        (4, 3, 16, 20),
        (1, 20, 1, 1),
    ],
)
def test_masks_that_do_not_fit(scan_file, name, shape):
    refused(open_scan, replace(scan_file, name, np.ones(shape, np.float32)), match=f"{name}' (must have|has shape)")


@pytest.mark.parametrize("value", [0.5, 2, -1, np.nan, np.inf])
def test_mask_values(scan_file, value):
    mask = np.ones((16, 20))
    mask[3, 3] = value
    refused(read_all, replace(scan_file, "mask", mask), match="mask")


@pytest.mark.parametrize("value", [0, -0.1, 1.1, np.nan, np.inf])
def test_probability_values(scan_file, value):
    probability = np.full((16, 20), 0.5)
    probability[3, 3] = value
    refused(read_all, replace(scan_file, "probability", probability), match="probability")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (kspace(16, 20), "3 or 4 axes"),
        (kspace(1, 4, 3, 16, 20), "3 or 4 axes"),
        (kspace(0, 16, 20), "none of them empty"),
        (kspace(4, 3, 0, 20), "none of them empty"),
        (np.complex64(1), "3 or 4 axes"),
        (h5py.Empty("c8"), "3 or 4 axes"),
        (np.ones((4, 3, 16, 20), np.float32), "complex"),
        (np.ones((4, 3, 16, 20, 2), np.float32), "3 or 4 axes"),
        (np.zeros((4, 16, 20), [("real", "f4"), ("imag", "f4")]), "complex"),
        ("text", "3 or 4 axes"),
    ],
)
def test_kspace_of_wrong_rank_or_type(scan_file, value, match):
    refused(open_scan, replace(scan_file, "kspace", value), match=match)


def test_kspace_that_is_a_group_or_missing(scan_file):
    with h5py.File(scan_file, "r+") as file:
        del file["kspace"]
        file.create_group("kspace")
    refused(open_scan, scan_file, match="group")
    with h5py.File(scan_file, "r+") as file:
        del file["kspace"]
    refused(open_scan, scan_file, match="expected a dataset 'kspace'")
    assert "mask" in refused(detect, scan_file, match="expected")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("affine", np.eye(3)), ("affine", np.full((4, 4), np.nan)), ("affine", np.zeros((4, 4))), ("affine", "text"),
        ("slice_axis", 3), ("slice_axis", "z"), ("qform_code", -1), ("sform_code", 99), ("spatial_unit", "parsec"),
    ],
)  # fmt: skip
def test_geometry_that_makes_no_sense(scan_file, name, value):
    with h5py.File(scan_file, "r+") as file:
        file.attrs["affine"] = np.eye(4)
        file.attrs[name] = value
    refused(open_scan, scan_file, match="affine|geometry|cannot be read")


def test_an_entity_bomb_in_the_header_is_not_even_read(scan_file):
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    replace(scan_file, "ismrmrd_header", f'<!DOCTYPE x [<!ENTITY l0 "lol">{entities}]><x>&l9;</x>')
    started = time.process_time()
    read_all(scan_file)
    assert time.process_time() - started < 2


def test_attributes_of_any_kind_do_no_harm(scan_file):
    with h5py.File(scan_file, "r+") as file:
        for name, value in {
            "noise_variance": "loud",
            "simulated": np.ones(3),
            "x": h5py.Empty("f4"),
            "y": b"\xff",
        }.items():
            file.attrs[name] = value
    scan = open_scan(scan_file)
    assert scan.simulated is None and scan.read(0, 1).noise_variance is None


@pytest.mark.parametrize("variance", [-0.01, np.nan, np.inf])
def test_a_noise_variance_that_cannot_be(scan_file, variance):
    with h5py.File(scan_file, "r+") as file:
        file.attrs["noise_variance"] = variance
    refused(open_scan, scan_file, match="noise_variance must be a number of at least 0")


def test_the_first_slice_that_is_not_finite_is_named(scan_file):
    with h5py.File(scan_file, "r+") as file:
        file["kspace"][2, 0, 0] = np.nan
    refused(read_all, scan_file, match="first in slice 2;")


def test_a_scan_that_changes_while_it_is_read(scan_file):
    scan = open_scan(scan_file)
    replace(replace(scan_file, "kspace", kspace(4, 3, 16, 21)), "mask", np.ones(21))
    refused(lambda: scan.read(0, 1), match="changed")


# ------------------------------------------------------------------------------------------------------ NIfTI volumes


@pytest.fixture
def volume_file(tmp_path) -> Path:
    """A good int16 volume of 5 x 6 x 7, uncompressed."""
    image = nibabel.Nifti1Image(np.arange(210).reshape(5, 6, 7).astype(np.int16), np.diag([1, 2, 3, 1.0]))
    nibabel.save(image, tmp_path / "in.nii")
    assert read_volume(tmp_path / "in.nii")[0].shape == (7, 6, 5)
    return tmp_path / "in.nii"


def damage(path: Path, offset: int, layout: str, *values) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "dims", [(3, -5, 6, 7), (3, 5, 6, 0), (3, -5, -6, 7), (0, 5, 6, 7), (-1, 5, 6, 7), (8, 5, 6, 7)]
)
def test_impossible_dimensions(volume_file, dims):
    for call in (read_volume, volume_shape):
        refused(call, damage(volume_file, 40, "<4h", *dims), match="dimensions")


@pytest.mark.parametrize("dims", [(2, 5, 6), (1, 210), (4, 5, 6, 7, 2), (5, 5, 6, 7, 1, 3)])
def test_other_numbers_of_axes(volume_file, dims):
    refused(read_volume, damage(volume_file, 40, f"<{len(dims)}h", *dims), match="three axes")


@pytest.mark.parametrize("compressed", [False, True])
def test_enormous_dimensions(volume_file, compressed):
    """Declared, not there: refused before any memory is taken, above the limit and below it."""
    for dims, match in [
        ((3, 32767, 32767, 32767), "declares .* GiB"),
        ((3, 900, 900, 900), "more than the file can hold"),
    ]:
        path = damage(volume_file, 40, "<4h", *dims)
        if compressed:
            path = path.with_suffix(".nii.gz")
            path.write_bytes(gzip.compress(volume_file.read_bytes()))
        refused(read_volume, path, match=match)


def test_enormous_nifti2_dimensions(tmp_path):
    nibabel.save(nibabel.Nifti2Image(np.ones((5, 6, 7), np.float32), np.eye(4)), tmp_path / "in.nii")
    refused(read_volume, damage(tmp_path / "in.nii", 16, "<4q", 3, 2**40, 2**40, 2**40), match="declares")
    refused(read_volume, damage(tmp_path / "in.nii", 16, "<4q", 3, -(2**62), 2, 1), match="dimensions")


@pytest.mark.parametrize("keep", [0, 3, 4, 100, 347, 348, 352, 400, -1])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_volumes(volume_file, keep, compressed):
    content = volume_file.read_bytes()
    path = volume_file.with_suffix(".nii.gz") if compressed else volume_file
    path.write_bytes(gzip.compress(content[:keep]) if compressed else content[:keep])
    for call in (read_volume, read_reference):
        refused(call, path, match="truncated|no NIfTI|empty|unknown format")


@pytest.mark.parametrize("keep", [1, 2, 5, 15, 50, 0.5, -20, -9, -5, -1])
def test_truncated_gzip(volume_file, keep):
    content = gzip.compress(volume_file.read_bytes())
    path = volume_file.with_suffix(".nii.gz")
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refused(read_volume, path, match="truncated|no NIfTI")


def test_damaged_gzip(volume_file):
    content = bytearray(gzip.compress(volume_file.read_bytes()))
    path = volume_file.with_suffix(".nii.gz")
    for position in (3, len(content) // 2, len(content) - 6):  # method, data, checksum
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        refused(read_volume, path, match="truncated|no NIfTI|damaged")


@pytest.mark.parametrize(("slope", "intercept"), [(np.nan, 0), (np.inf, 0), (-np.inf, 0), (1, np.nan), (2, np.inf)])
def test_scale_that_is_not_finite(volume_file, slope, intercept):
    refused(read_volume, damage(volume_file, 112, "<2f", slope, intercept), match="scl_slope")


def test_a_slope_of_zero_means_no_scale(volume_file):
    assert read_volume(damage(volume_file, 112, "<2f", 0, np.nan))[0].max() == 209


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(tmp_path, value):
    for dtype in (np.float32, np.float64):
        volume = np.ones((4, 5, 6), dtype)
        volume[1, 2, 3] = value
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "in.nii.gz")
        refused(read_volume, tmp_path / "in.nii.gz", match="NaN or infinite")


@pytest.mark.parametrize("code", [1, 32, 128, 1536, 1792, 2304, 77, -3])  # bit, complex, RGB, float128, RGBA, unknown
def test_voxels_of_other_types(volume_file, code):
    refused(read_volume, damage(volume_file, 70, "<h", code), match="data type|expected a magnitude")


@pytest.mark.parametrize(
    ("offset", "layout", "values", "match"),
    [
        (72, "<h", (64,), "bits"),
        (108, "<f", (np.nan,), "begin"),
        (108, "<f", (-352,), "begin"),
        (108, "<f", (1e30,), "begin"),
        (108, "<f", (1e12,), "GiB"),
        (108, "<f", (1e6,), "truncated"),
        (280, "<f", (np.nan,), "affine"),
        (280, "<12f", (0,) * 12, "affine"),
        (252, "<2h", (-1, 700), "affine"),
        (344, "<4s", (b"ni1\0",), "pair"),
        (344, "<4s", (b"abcd",), "no NIfTI"),
        (0, "<i", (349,), "no NIfTI"),
    ],
)
def test_damaged_headers(volume_file, offset, layout, values, match):
    refused(read_volume, damage(volume_file, offset, layout, *values), match=match)


# --------------------------------------------------------------------------------------------------------- any file


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "an empty file"),
        (b"hello", "unknown format"),
        (bytes(1000), "unknown format"),
        (bytes(128) + b"DICM" + bytes(600), "DICOM"),
        (b"\x93NUMPY" + bytes(200), "npy|no readable"),
        (gzip.compress(b"hello"), "unknown format"),
        (b"\x80\x04\x95" + bytes(50), "unknown format"),  # a pickle: never loaded
    ],
)
def test_other_formats_by_content(tmp_path, content, match):
    for name in ("a.h5", "a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        refused(read_reference, tmp_path / name, match=match)
        refused(open_scan, tmp_path / name, match=match)
        refused(read_volume, tmp_path / name, match="no NIfTI")


def test_ismrmrd_is_named(tmp_path):
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["dataset/xml"] = "<x/>"
    assert detect(tmp_path / "raw.h5") == "mrd"
    refused(open_scan, tmp_path / "raw.h5", match="0 ISMRMRD data sets")


@pytest.mark.parametrize("call", [detect, open_scan, read_volume, read_result, read_reference, sha256_of, volume_shape])
def test_paths_that_are_no_files(tmp_path, call):
    refused(call, tmp_path / "missing.h5", match="no file", error=NotFoundError)
    (tmp_path / "directory.h5").mkdir()
    refused(call, tmp_path / "directory.h5", match="is a directory")
    os.mkfifo(tmp_path / "pipe.h5")  # opening it would wait for ever
    refused(call, tmp_path / "pipe.h5", match="no regular file")
    with pytest.raises(NotFoundError) as caught:
        call(tmp_path / "new\nline")
    assert "\n" not in str(caught.value)


def test_inputs_are_left_as_they_are(scan_file):
    before, scan_file_mode = sha256_of(scan_file), scan_file.stat().st_mtime_ns
    scan_file.chmod(0o444)
    detect(scan_file), read_all(scan_file), read_reference(scan_file)
    assert sha256_of(scan_file) == before and scan_file.stat().st_mtime_ns == scan_file_mode


# ----------------------------------------------------------------------------------------------------- bad places


IMAGE = np.ones((8, 64, 64), np.float32)
WRITERS = {
    "scan.h5": lambda path, **o: write_scan(
        path, iter(IMAGE[:, None] + 0j), (8, 1, 64, 64), mask=IMAGE[0], attributes={}, **o
    ),
    "result.h5": lambda path, **o: write_result(path, ((one, one + 0j) for one in IMAGE), {"image": IMAGE.shape}, **o),
    "volume.nii": lambda path, **o: write_nifti(path, IMAGE, None, **o),
    "volume.nii.gz": lambda path, **o: write_nifti(path, np.random.default_rng(0).random(IMAGE.shape), None, **o),
    "text": lambda path, **o: atomic_output(path, o.get("force", False)).__enter__(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_overwritten_or_written_where_it_cannot_be(tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused(WRITERS[name], tmp_path / name, match="--force", error=OutputError)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(WRITERS[name], tmp_path / "link", match="exists", error=OutputError)
    (tmp_path / "directory").mkdir()
    refused(WRITERS[name], tmp_path / "directory", match="directory", error=OutputError, force=True)
    refused(WRITERS[name], tmp_path / "missing" / name, match="no directory", error=OutputError)
    refused(WRITERS[name], tmp_path / name / name, match="no directory", error=OutputError)
    refused(WRITERS[name], Path("/proc/self") / name, match="cannot write", error=OutputError)  # not even for root
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "link", "directory"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    refused(write_nifti, tmp_path / "locked" / "a.nii", IMAGE, None, match="cannot write", error=OutputError)


LIMITED = """
    import resource, signal, sys, numpy as np
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from mri_n2n.errors import OutputError
    from test_bad_input import WRITERS
    {limit}
    for name in sys.argv[2:]:
        path = Path(sys.argv[1]) / name
        if {existing}:
            path.write_text("mine")
        try:
            WRITERS[name](path, force=True)
        except OutputError as error:
            assert "\\n" not in str(error) and {message!r} in str(error), error
        else:
            raise AssertionError(name)
        left = [p.name for p in path.parent.iterdir()]
        assert left == ([name] if {existing} else []), left
        if {existing}:
            assert path.read_text() == "mine"
            path.unlink()
"""


def run_limited(directory: Path, limit: str, message: str, existing: bool, *prefix: str) -> None:
    script = textwrap.dedent(LIMITED).format(
        tests=str(Path(__file__).parent), limit=limit, existing=existing, message=message
    )
    names = [name for name in WRITERS if name != "text"]
    result = subprocess.run(
        [*prefix, sys.executable, "-c", script, str(directory), *names], capture_output=True, text=True
    )
    assert result.returncode == 0 and not result.stderr, result.stderr[-3000:]


@pytest.mark.parametrize("existing", [False, True])
def test_a_limit_on_file_size(tmp_path, existing):
    """The write itself fails in the middle, as on a full disk: works for every user, root or not."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    run_limited(tmp_path, limit, "File too large", existing)


def test_a_full_disk(tmp_path):
    """A really full file system, where a private one can be mounted."""
    mount = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("needs unprivileged mounts")
    run_limited(tmp_path, "", "No space left", False, "unshare", "-rm", "sh", "-c", mount, "sh")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_kill_in_the_middle(tmp_path, how):
    """The file is not there; what an outright kill leaves is hidden and goes with the next write."""
    script = """
        import sys, time, numpy as np
        from mri_n2n.formats import write_scan
        def slices():
            yield np.ones((1, 64, 64), np.complex64)
            print("writing", flush=True)
            time.sleep(60)
        write_scan(sys.argv[1], slices(), (2, 1, 64, 64), mask=np.ones(64), attributes={})
    """
    path = tmp_path / "scan.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"writing\n"
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".scan.h5.")
    WRITERS["volume.nii"](tmp_path / "other.nii")  # another file's write, and a living writer's file, are not touched
    with atomic_output(path, force=False) as temporary:
        assert partial.exists()
        temporary.write_text("x")
    path.unlink()
    process.send_signal(how)
    process.wait(timeout=120)
    process.stdout.close()
    assert not path.exists() and (how == signal.SIGINT) == (not partial.exists())
    WRITERS["scan.h5"](path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.nii", "scan.h5"]
    assert read_all(path).kspace.shape == (8, 1, 64, 64)


def test_geometry_survives_a_whole_chain(tmp_path):
    """Scan -> result -> NIfTI with awkward numbers: what is refused on reading is never written."""
    geometry = Geometry(((1e-3, 0, 0, -1e4), (0, 0, 2.5, 0), (0, -7.0, 0, 3), (0.0, 0.0, 0.0, 1.0)), 0, 4, 2, "meter")
    WRITERS["scan.h5"](tmp_path / "scan.h5", geometry=geometry)
    found = open_scan(tmp_path / "scan.h5").geometry
    write_result(tmp_path / "result.h5", ((one, one + 0j) for one in IMAGE), {"image": IMAGE.shape}, {}, found)
    write_nifti(tmp_path / "volume.nii", IMAGE, read_result(tmp_path / "result.h5")[2])
    again = read_volume(tmp_path / "volume.nii", 0)[1]
    assert found == geometry and np.allclose(again.affine, geometry.affine, rtol=1e-6)
    assert (again.slice_axis, again.qform_code, again.sform_code, again.spatial_unit) == (0, 4, 2, "meter")
