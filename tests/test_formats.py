"""What is written comes back, and other programs read it: scans, volumes, results, with geometry and intensities kept."""

import errno
import gzip
import itertools
import os
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, NotFoundError, OutputError
from mri_n2n.files import atomic_output, sha256_of
from mri_n2n.formats import (
    detect,
    nifti,
    open_scan,
    read_reference,
    read_result,
    read_volume,
    volume_shape,
    write_nifti,
    write_result,
    write_scan,
)

OPEN_MS = Path(__file__).resolve().parents[2] / "shared" / "data" / "open_ms"
OBLIQUE = ((0.0, -1.5, 0.2, 10.0), (0.9, 0.0, 0.0, -20.0), (0.0, 0.3, 3.0, 5.0), (0.0, 0.0, 0.0, 1.0))
GEOMETRY = Geometry(OBLIQUE, slice_axis=1, qform_code=1, sform_code=4, spatial_unit="micron")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------------------------------------------------- scans


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("matrix", [(6, 8), (5, 7)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scan_round_trip(tmp_path, coils, matrix, rank):
    slices, (y, x) = 4, matrix
    kspace = noise(slices, coils, y, x)
    rng = np.random.default_rng(1)
    mask = (rng.random({1: (x,), 2: (y, x), 3: (slices, y, x)}[rank]) < 0.5).astype(np.float32)
    mask[..., x // 2] = 1
    probability = np.where(mask == 1, 0.25 + mask / 2, 0.5).astype(np.float32)
    reference = rng.random((slices, y, x)).astype(np.float32)
    path = tmp_path / "scan.h5"
    write_scan(
        path,
        iter(kspace),
        kspace.shape,
        mask=mask,
        probability=probability,
        reference=reference,
        geometry=GEOMETRY,
        attributes={"simulated": True, "noise_variance": 0.25, "mask_kind": "roulette", "seed": 3},
    )
    scan = open_scan(path)
    assert (scan.path, scan.format, scan.shape) == (path, "fastmri-hdf5", kspace.shape) and detect(path) == scan.format
    assert (scan.mask_source, scan.simulated, scan.has_reference, scan.geometry) == ("stored", True, True, GEOMETRY)
    full = np.broadcast_to(mask, (slices, y, x))[:, None]
    for start, stop in [(0, 4), (1, 2), (2, 4)]:
        part = scan.read(start, stop)
        assert part.kspace.dtype == torch.complex64 and part.noise_variance == 0.25
        assert np.array_equal(part.kspace, kspace[start:stop] * full[start:stop])
        assert part.mask.dtype == torch.float32 and part.mask.shape == (stop - start if rank == 3 else 1, 1, y, x)
        assert np.array_equal(part.mask.expand(stop - start, 1, y, x), full[start:stop])
        assert np.array_equal(part.probability.expand(stop - start, 1, y, x), 0.5 + full[start:stop] / 4)
    assert np.array_equal(read_reference(path), reference)
    with h5py.File(path) as file:  # fastMRI's layout
        assert file["kspace"].shape == ((slices, y, x) if coils == 1 else kspace.shape) and file["kspace"].dtype == "c8"
        name, other = ("esc", "rss") if coils == 1 else ("rss", "esc")
        assert np.array_equal(file[f"reconstruction_{name}"], reference) and f"reconstruction_{other}" not in file
        assert file.attrs["max"] == reference.max() and file.attrs["norm"] == pytest.approx(np.linalg.norm(reference))
        assert file.attrs["mask_kind"] == "roulette" and file.attrs["acquisition"] == "unknown"
    with pytest.raises(ValueError):
        scan.read(3, 5)


def test_fastmri_reads_our_scans(tmp_path):
    from fastmri.data import SliceDataset

    kspace, mask = noise(3, 2, 6, 9), np.array([1, 0, 0, 1, 1, 1, 0, 0, 1], dtype=np.float32)
    write_scan(tmp_path / "scan.h5", kspace, kspace.shape, mask=mask, reference=np.ones((3, 6, 9)), attributes={})
    dataset = SliceDataset(tmp_path, challenge="multicoil", use_dataset_cache=False)
    assert len(dataset) == 3
    found, found_mask, target, attributes, name, index = dataset[2]
    assert np.array_equal(found, kspace[2]) and np.array_equal(found_mask, mask) and name == "scan.h5" and index == 2
    assert np.array_equal(target, np.ones((6, 9))) and attributes["max"] == 1
    assert (attributes["padding_left"], attributes["padding_right"]) == (0, 9)


@pytest.mark.parametrize("dtype", [">c8", "<c8", ">c16", "<c16"])
def test_other_byte_orders_and_precisions(tmp_path, dtype):
    kspace, mask = noise(2, 3, 5), np.array([True, False, True, True, False])
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace.astype(dtype)
        file["mask"] = mask  # stored as a boolean (an enumeration)
        file["reconstruction_esc"] = np.abs(kspace).astype(">f8")
    scan = open_scan(tmp_path / "scan.h5")
    part = scan.read(0, 2)
    assert np.array_equal(part.kspace[:, 0], kspace * mask) and part.kspace.abs().max() > 0
    assert np.allclose(read_reference(tmp_path / "scan.h5"), np.abs(kspace))
    assert (scan.simulated, scan.geometry, part.probability, part.noise_variance) == (None, None, None, None)


def write_plain(path: Path, kspace: np.ndarray, **datasets) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in {"kspace": kspace, **datasets}.items():
            file[name] = value
    return path


def test_mask_is_found_from_the_zeros(tmp_path):
    """One mask for all slices, although a sample happens to be zero in one slice and one slice is empty."""
    sampled = np.random.default_rng(2).random((12, 15)) < 0.3
    kspace = noise(5, 2, 12, 15) * sampled
    y, x = np.argwhere(sampled)[4]
    kspace[1, 0, y, x] = 0  # zero in one coil only: sampled
    kspace[3] = 0
    kspace = np.repeat(np.repeat(kspace, 3, axis=2), 3, axis=3)
    kspace[2, :, 3 * y, 3 * x] = 0  # zero in all coils of one slice, by chance
    scan = open_scan(write_plain(tmp_path / "scan.h5", kspace))
    assert scan.mask_source == "zeros" and not scan.has_reference
    expected = np.repeat(np.repeat(sampled, 3, axis=0), 3, axis=1)
    for start, stop in [(0, 1), (3, 4), (0, 5)]:
        part = scan.read(start, stop)
        assert np.array_equal(part.mask, expected[None, None]) and np.array_equal(part.kspace, kspace[start:stop])


def test_slices_sampled_differently_get_masks_of_their_own(tmp_path):
    sampled = np.random.default_rng(3).random((4, 1, 10, 11)) < 0.4
    kspace = noise(4, 3, 10, 11) * sampled
    part = open_scan(write_plain(tmp_path / "scan.h5", kspace)).read(1, 4)
    assert np.array_equal(part.mask, sampled[1:])


def test_fully_sampled_and_zero_padded_scans(tmp_path):
    kspace = noise(2, 3, 8, 10)
    kspace[..., :2] = kspace[..., 9:] = 0
    mask = open_scan(write_plain(tmp_path / "scan.h5", kspace)).read(0, 1).mask
    assert mask.shape == (1, 1, 8, 10) and mask[..., 2:9].all() and not mask[..., :2].any() and not mask[..., 9:].any()


def test_samples_outside_a_stored_mask_are_dropped(tmp_path):
    kspace, mask = noise(2, 1, 4, 6), np.array([0, 1, 0, 1, 1, 0], dtype=np.uint8)
    scan = open_scan(write_plain(tmp_path / "scan.h5", kspace, mask=mask))
    with pytest.warns(UserWarning, match="left out"):
        part = scan.read(0, 2)
    assert np.array_equal(part.kspace, kspace * mask)


def test_references_of_another_scan_are_refused(tmp_path):
    for shape in ((1, 12, 14), (2, 3, 14), (2, 12, 43)):
        wrong = write_plain(tmp_path / "scan.h5", noise(2, 12, 14), reconstruction_esc=np.ones(shape, np.float32))
        with pytest.raises(InputError, match="does not fit"):
            open_scan(wrong)


def test_damage_in_the_middle_of_a_compressed_volume_is_found(tmp_path):
    """A bit flipped in every 37th byte of the file in turn: gzip's own checksum is the witness."""
    path = tmp_path / "volume.nii.gz"
    write_nifti(path, np.random.default_rng(0).random((3, 9, 11)).astype(np.float32), None)
    good = path.read_bytes()
    for position in range(40, len(good), 37):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(InputError):
            read_volume(path)


def test_nifti_says_when_its_kspace_was_simulated(tmp_path):
    for simulated in (False, True):
        write_nifti(tmp_path / "v.nii", np.ones((2, 3, 4)), None, force=True, simulated=simulated)
        described = bytes(nibabel.load(tmp_path / "v.nii").header["descrip"]).decode()
        assert "research use only" in described and ("simulated" in described) == simulated


def test_which_reference_is_read(tmp_path):
    esc, rss = np.ones((2, 4, 4), np.float32), np.full((2, 4, 4), 2, np.float32)
    both = {"reconstruction_esc": esc, "reconstruction_rss": rss}
    assert np.array_equal(read_reference(write_plain(tmp_path / "one.h5", noise(2, 4, 4), **both)), esc)
    assert np.array_equal(read_reference(write_plain(tmp_path / "many.h5", noise(2, 3, 4, 4), **both)), rss)
    with pytest.raises(InputError, match="no reference"):
        read_reference(write_plain(tmp_path / "none.h5", noise(2, 4, 4)))


def test_writing_streams_and_reading_takes_what_was_asked(tmp_path):
    """60 MB go through; what either side holds beyond the interpreter stays far below."""
    script = """
        import resource, sys, numpy as np
        from mri_n2n.formats import open_scan, write_scan
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shape = (60, 4, 200, 160)
        warm = np.ones((2, *shape[1:]), np.complex64)
        write_scan(sys.argv[1] + "/a.h5", iter(warm), warm.shape, mask=np.ones(160), attributes={})
        open_scan(sys.argv[1] + "/a.h5").read(0, 1)
        before = peak()
        write_scan(sys.argv[1] + "/b.h5", (np.full(shape[1:], i + 1, np.complex64) for i in range(60)), shape,
                   mask=np.ones(160), attributes={})
        scan = open_scan(sys.argv[1] + "/b.h5")
        for i in range(60):
            assert scan.read(i, i + 1).kspace[0, 0, 0, 0] == i + 1
        assert peak() - before < 20_000, (before, peak())  # kB
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True)


# ----------------------------------------------------------------------------------------------------------- volumes


def marked_volume() -> np.ndarray:
    """(i, j, k) with sizes and values that betray any exchange or reversal of axes."""
    i, j, k = np.meshgrid(np.arange(5), np.arange(7), np.arange(4), indexing="ij")
    return 100 * i + 10 * j + k + 1


def save(
    path: Path, volume: np.ndarray, qform=OBLIQUE, sform=OBLIQUE, codes=(1, 1), dtype=np.int16, unit="mm", endian="<"
):
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(volume.astype(dtype), None, header)
    image.set_qform(np.array(qform), codes[0], strip_shears=True)
    image.set_sform(np.array(sform), codes[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nifti_round_trip(tmp_path, axis, suffix):
    orthogonal = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.1, 0.2, 0.3) * [1.5, 0.9, 3], [4, 5, 6])
    volume = marked_volume()
    path = save(tmp_path / f"in{suffix}", volume, orthogonal, orthogonal, codes=(2, 3), unit="micron")
    array, geometry = read_volume(path, axis)
    assert (geometry.slice_axis, geometry.qform_code, geometry.sform_code, geometry.spatial_unit) == (
        axis,
        2,
        3,
        "micron",
    )
    assert detect(path) == "nifti" and volume_shape(path) == volume.shape
    low, high = (a for a in range(3) if a != axis)
    assert array.dtype == np.float32 and array.shape == (volume.shape[axis], volume.shape[high], volume.shape[low])
    for at in np.ndindex(*array.shape):  # slowly, by the words of the interface
        index = {axis: at[0], high: at[1], low: at[2]}
        assert array[at] == volume[index[0], index[1], index[2]]

    out = tmp_path / f"out{suffix}"
    write_nifti(out, array + np.float32(0.25), geometry)  # int16 would lose the quarter
    before, after = nibabel.load(path), nibabel.load(out)
    assert np.array_equal(after.get_fdata(), volume + 0.25) and after.get_data_dtype() == np.float32
    assert np.allclose(after.affine, before.affine, atol=1e-6)
    assert np.allclose(after.get_qform(), before.get_qform(), atol=1e-4) and np.allclose(after.get_sform(), orthogonal)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (2, 3)
    assert after.header.get_xyzt_units()[0] == "micron" and after.header["descrip"].item() == b"research use only"
    raw = out.read_bytes() if suffix == ".nii" else gzip.decompress(out.read_bytes())
    assert struct.unpack("<2f", raw[112:120]) == (1, 0)  # nibabel hides what is stored
    again, same = read_volume(out, axis)
    assert np.array_equal(again, array + 0.25) and same == geometry
    assert np.array_equal(read_reference(out, slice_axis=axis), again)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_in_a_file_is_written_part_by_part(tmp_path, axis, monkeypatch):
    volume, geometry = np.random.default_rng(0).random((5, 7, 6)).astype(np.float32), replace(GEOMETRY, slice_axis=axis)
    write_nifti(tmp_path / "whole.nii", volume, geometry)
    monkeypatch.setattr(nifti, "VOXELS_AT_ONCE", 90)  # two or three planes
    with h5py.File(tmp_path / "v.h5", "w") as file:
        write_nifti(tmp_path / "parts.nii", file.create_dataset("v", data=volume), geometry)
    assert (tmp_path / "parts.nii").read_bytes() == (tmp_path / "whole.nii").read_bytes()
    assert np.array_equal(read_volume(tmp_path / "parts.nii", axis)[0], volume)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_affine_and_codes_as_nibabel_has_them(tmp_path, codes):
    path = save(tmp_path / "in.nii", marked_volume(), codes=codes)
    array, geometry = read_volume(path)
    expected = nibabel.load(path).affine
    assert np.allclose(geometry.affine, expected, atol=1e-6)
    write_nifti(tmp_path / "out.nii", array, geometry)
    assert np.allclose(nibabel.load(tmp_path / "out.nii").affine, expected, atol=1e-5)
    # The qform cannot hold the shear of this affine: it is elsewhere than the sform, and not kept beside it.
    assert (geometry.qform_code, geometry.sform_code) == ((0, 1) if codes == (1, 1) else codes)


def test_without_geometry_place_and_size_are_unknown(tmp_path):
    array = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    write_nifti(tmp_path / "out.nii.gz", array, None)
    image = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(image.get_fdata(), array.transpose(2, 1, 0))
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0
    assert image.header.get_xyzt_units()[0] == "unknown"


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_types_and_byte_orders(tmp_path, dtype, endian):
    path = save(tmp_path / "in.nii.gz", marked_volume() % 200, dtype=dtype, endian=endian)
    assert np.array_equal(read_volume(path)[0], (marked_volume() % 200).transpose(2, 1, 0))


def test_scale_nifti2_extensions_names_and_a_trailing_axis(tmp_path):
    volume = marked_volume().astype(np.float64) / 7
    image = nibabel.Nifti2Image(volume[..., None], np.eye(4))
    image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello" * 20))
    nibabel.save(image, tmp_path / "in.nii")
    for name, content in (
        ("wrong.h5", (tmp_path / "in.nii").read_bytes()),
        ("wrong.nii", gzip.compress((tmp_path / "in.nii").read_bytes())),
    ):
        (tmp_path / name).write_bytes(content)
        array = read_volume(tmp_path / name)[0]
        assert np.allclose(array, nibabel.load(tmp_path / "in.nii").get_fdata()[..., 0].transpose(2, 1, 0), atol=1e-5)
        assert np.allclose(array, volume.transpose(2, 1, 0), atol=1e-3) and detect(tmp_path / name) == "nifti"


def test_equal_volumes_make_equal_files(tmp_path):
    array = np.ones((2, 3, 4), np.float32)
    write_nifti(tmp_path / "a.nii.gz", array, None)
    write_nifti(tmp_path / "b.nii.gz", array, None)
    assert sha256_of(tmp_path / "a.nii.gz") == sha256_of(tmp_path / "b.nii.gz")


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="needs the open_ms volumes")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["patient04_study1_T1W", "patient09_study2_FLAIR"])
def test_real_volumes_round_trip(tmp_path, name, axis):
    original = nibabel.load(OPEN_MS / f"{name}.nii.gz")
    array, geometry = read_volume(OPEN_MS / f"{name}.nii.gz", axis)
    write_nifti(tmp_path / "out.nii", array, geometry)
    copy = nibabel.load(tmp_path / "out.nii")
    assert np.array_equal(np.asarray(copy.dataobj), np.asarray(original.dataobj))
    assert np.allclose(copy.affine, original.affine, atol=1e-6)
    assert np.allclose(copy.get_qform(), original.get_qform(), atol=1e-4)
    for field in ("qform_code", "sform_code"):
        assert copy.header[field] == original.header[field] > 0
    assert copy.header.get_xyzt_units()[0] == original.header.get_xyzt_units()[0] == "mm"


# ----------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("coils", [None, 2])
def test_result_round_trip(tmp_path, coils):
    shape = (3, 5, 7) if coils is None else (3, coils, 5, 7)
    image = noise(*shape)
    slices = ((np.full((5, 7), i + 1.0), one) for i, one in enumerate(image))
    write_result(tmp_path / "r.h5", slices, {"image": shape}, {"software": "x 1", "n": 2, "no": None}, GEOMETRY)
    found, attributes, geometry = read_result(tmp_path / "r.h5")
    assert found.dtype == np.float32 and found[:, 0, 0].tolist() == [1, 2, 3] and geometry == GEOMETRY
    assert attributes == {"note": "research use only", "software": "x 1", "n": 2}
    assert detect(tmp_path / "r.h5") == "result-hdf5" and np.array_equal(read_reference(tmp_path / "r.h5"), found)
    with h5py.File(tmp_path / "r.h5") as file:
        assert np.array_equal(file["image"], image) and file["image"].dtype == "c8"


@pytest.mark.parametrize("slices", [2, 4])
def test_a_wrong_number_of_slices_is_not_written(tmp_path, slices):
    kspace = noise(slices, 1, 4, 4)
    with pytest.raises(ValueError, match="3 slices"):
        write_scan(tmp_path / "s.h5", kspace, (3, 1, 4, 4), mask=np.ones(4), attributes={})
    with pytest.raises(ValueError, match="3 slices"):
        write_result(tmp_path / "r.h5", ((abs(one[0]), one[0]) for one in kspace), {"image": (3, 4, 4)})
    assert names(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- atomic output


def test_atomic_output_replaces_only_when_complete_and_forced(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_output(path, force=False) as temporary:
        temporary.write_text("one")
        assert temporary.parent == tmp_path and not path.exists()
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), atomic_output(path, force=True) as temporary:
            temporary.write_text("half")
            raise error
    with pytest.raises(OutputError, match="exists"), atomic_output(path, force=False):
        raise AssertionError("not reached")
    assert path.read_text() == "one" and names(tmp_path) == ["out.txt"]
    with atomic_output(path, force=True) as temporary:
        temporary.write_text("two")
    assert path.read_text() == "two" and names(tmp_path) == ["out.txt"]
    mode = os.umask(0o022)
    os.umask(mode)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mode  # readable by whoever can read other files


def test_atomic_output_does_not_beat_another_writer(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(OutputError, match="exists"), atomic_output(path, force=False) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and names(tmp_path) == ["out.txt"]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(NotFoundError):
        sha256_of(tmp_path / "b")


def test_all_combinations_of_axes_are_inverse_to_each_other(tmp_path):
    volume = marked_volume()
    save(tmp_path / "in.nii", volume)
    for read, flip in itertools.product(range(3), (False, True)):
        array, geometry = read_volume(tmp_path / "in.nii", read)
        array = array[::-1] if flip else array  # negative strides are fine too
        write_nifti(tmp_path / "out.nii", array, geometry, force=True)
        written = nibabel.load(tmp_path / "out.nii").get_fdata()
        assert np.array_equal(np.flip(written, read) if flip else written, volume)


def test_a_sound_file_is_opened_however_well_it_compresses(tmp_path):
    """One chunk of 128 MiB in little more than 1 MiB: trying a file out must not cost what reading it costs."""
    kspace = np.zeros((1, 4096, 4096), np.complex64)
    kspace[0, ::8, ::64] = noise(512, 64)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("kspace", data=kspace, chunks=kspace.shape, compression="gzip", shuffle=True)
    assert (tmp_path / "scan.h5").stat().st_size < 3 * 2**20
    assert open_scan(tmp_path / "scan.h5").shape == (1, 1, 4096, 4096)


def test_a_file_is_opened_where_no_process_can_be_started(tmp_path, monkeypatch):
    def refused() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = noise(1, 8, 8)
    monkeypatch.setattr(os, "fork", refused)
    assert open_scan(tmp_path / "scan.h5").shape == (1, 1, 8, 8)
