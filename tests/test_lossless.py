"""What `convert` calls lossless is: every format to every other and back, samples to the bit, and all it has room for."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Geometry, Scan
from mri_n2n.conversion import ROOM, convert
from mri_n2n.errors import InputError, OptionError
from mri_n2n.formats import open_scan, write_scan

OBLIQUE = ((0.0, -1.5, 0.2, 10.0), (0.9, 0.0, 0.0, -20.0), (0.0, 0.3, 3.0, 5.0), (0.0, 0.0, 0.0, 1.0))
ROTATED = ((0.8, -0.6, 0.0, -31.5), (0.6, 0.8, 0.0, 7.25), (0.0, 0.0, -4.0, 1e3), (0.0, 0.0, 0.0, 1.0))
SHEARED = ((1.0, 0.4, 0.3, 0.0), (0.0, 1.2, 0.1, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GEOMETRIES = {
    "oblique": Geometry(OBLIQUE, 1, 1, 4, "micron"), "rotated": Geometry(ROTATED, 2, 2, 0, "mm"),
    "sheared": Geometry(SHEARED, 0, 0, 3, "mm"), "unknown": Geometry(SHEARED, 0, 0, 3, "unknown"), "left-handed": Geometry(ROTATED, 0, 5, 5, "meter"),
    "mirrored": Geometry(((-1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0.0, 0.0, 0.0, 1.0)), 2, 0, 0, "mm"),
    "none": None,
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def scan_of(path: Path, shape: tuple[int, int, int, int], *, bare: bool, geometry: Geometry | None = None) -> Path:
    """A scan of lines; bare: with nothing beside its samples and mask."""
    kspace, lines = noise(*shape), np.arange(shape[-1]) % 3 != 1
    attributes = {} if bare else {"noise_variance": 0.1 + 0.2, "simulated": True}
    write_scan(path, kspace * lines, shape, mask=lines, geometry=geometry, attributes=attributes, force=True)
    return path


def contents(path: Path) -> tuple[np.ndarray, np.ndarray, Scan]:
    scan = open_scan(path)
    acquisition = scan.read(0, scan.shape[0])
    mask = np.broadcast_to(acquisition.mask.numpy(), (scan.shape[0], 1, *scan.shape[2:]))
    return acquisition.kspace.numpy(), mask, scan


def unstored(path: Path) -> set[str]:
    return {"mask"} if open_scan(path).mask_source == "zeros" else set()


def same_samples(one: Path, other: Path) -> None:
    for found, expected in zip(contents(one)[:2], contents(other)[:2], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 4, 12, 9), (1, 1, 7, 8)])
@pytest.mark.parametrize("first", ROOM)
@pytest.mark.parametrize("second", ROOM)
def test_every_format_to_every_other_and_back(first, second, shape, tmp_path):
    """Samples and mask are the same at every station; where no mask is stored, the zeros tell it."""
    source = scan_of(tmp_path / "source.h5", shape, bare=True)
    stations = [source]
    for number, suffix in enumerate((first, second, first, ".h5")):
        stations.append(tmp_path / f"{number}{suffix}")
        assert set(convert(stations[-2], stations[-1], lossy=True)) == {"mask"} - ROOM[suffix] - unstored(stations[-2])
        same_samples(stations[-1], source)


@pytest.mark.parametrize("suffix", ROOM)
def test_what_a_format_has_room_for_comes_back_and_the_rest_is_refused(suffix, tmp_path):
    source = scan_of(tmp_path / "source.h5", (3, 2, 10, 9), bare=False, geometry=GEOMETRIES["oblique"])
    before = contents(source)[2]
    held = {"geometry", "mask", "noise variance", "word on whether it is simulated"}
    target = tmp_path / f"there{suffix}"
    if held - ROOM[suffix]:
        with pytest.raises(OptionError, match="no room for") as caught:
            convert(source, target)
        assert all(name in str(caught.value) for name in held - ROOM[suffix])
        assert [path.name for path in tmp_path.iterdir()] == ["source.h5"]
    lost = convert(source, target, lossy=True)
    assert set(lost) == held - ROOM[suffix]
    convert(target, tmp_path / "back.h5")
    for path in (target, tmp_path / "back.h5"):
        found = contents(path)[2]
        kept = ROOM[suffix]
        assert found.geometry == (before.geometry if "geometry" in kept else None)
        assert found.read(0, 1).noise_variance == (0.1 + 0.2 if "noise variance" in kept else None)
        assert found.simulated is (True if suffix in (".h5", ".mrd") else None)
        assert found.mask_source == "stored" or suffix in (".cfl", ".npy") and path == target


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("slices", [1, 4])
def test_geometry_through_mrd(name, slices, tmp_path):
    """To the last bit, codes and array axes too; and other programs find every voxel where NIfTI has it."""
    geometry = GEOMETRIES[name]
    source = scan_of(tmp_path / "a.h5", (slices, 2, 8, 7), bare=False, geometry=geometry)
    convert(source, tmp_path / "b.mrd")
    convert(tmp_path / "b.mrd", tmp_path / "c.h5")
    assert open_scan(tmp_path / "b.mrd").geometry == open_scan(tmp_path / "c.h5").geometry == geometry
    ismrmrd = pytest.importorskip("ismrmrd")
    with ismrmrd.Dataset(str(tmp_path / "b.mrd"), create_if_needed=False, mode="r") as data:
        header = ismrmrd.xsd.CreateFromDocument(data.read_xml_header())
        readouts = [data.read_acquisition(number) for number in range(data.number_of_acquisitions())]
    assert header.userParameters.userParameterLong[0].value == 1  # simulated
    space = header.encoding[0].reconSpace
    if geometry is None or geometry.spatial_unit == "unknown" or not geometry.qform_code + geometry.sform_code:
        assert not np.any([list(one.position) + list(one.read_dir) for one in readouts])
        return
    low, high = (axis for axis in range(3) if axis != geometry.slice_axis)
    scale = {"meter": 1e3, "micron": 1e-3}.get(geometry.spatial_unit, 1)
    for one in readouts:
        index = np.zeros(4)
        index[[low, high, geometry.slice_axis, 3]] = 5, 2, one.idx.slice, 1  # a voxel: x 5, y 2
        expected = scale * (np.array(geometry.affine) @ index)[:3] * [-1, -1, 1]  # in L, P, S
        found = (
            np.array(one.position)
            + np.array(one.phase_dir) * (5 - 7 // 2) * space.fieldOfView_mm.y / 7
            + np.array(one.read_dir) * (2 - 8 // 2) * space.fieldOfView_mm.x / 8
        )
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-6)
        normal = np.array(one.slice_dir)
        assert abs(normal @ np.array(one.phase_dir)) < 1e-6 and abs(normal @ np.array(one.read_dir)) < 1e-6


def edit_readouts(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][()]
        change(table["head"])
        file["dataset/data"][...] = table


def test_noted_geometry_is_not_believed_once_the_readouts_moved(tmp_path):
    """Another program shifts the slices, and carries our note along."""
    affine = ((2.0, 0, 0, 1.0), (0, 3.0, 0, 2.0), (0, 0, 4.0, 3.0), (0.0, 0.0, 0.0, 1.0))
    source = scan_of(tmp_path / "a.h5", (3, 2, 8, 7), bare=True, geometry=Geometry(affine, 2, 2, 3, "mm"))
    convert(source, tmp_path / "b.mrd")
    edit_readouts(tmp_path / "b.mrd", lambda head: head["position"].__iadd__(np.float32([0, 0, 5])))
    found = open_scan(tmp_path / "b.mrd").geometry
    np.testing.assert_allclose(found.affine, np.array(affine) + [[0] * 4, [0] * 4, [0, 0, 0, 5], [0] * 4], atol=1e-5)
    assert (found.qform_code, found.sform_code) == (1, 1)


@pytest.mark.parametrize("spoil", ["0", "1 2 3", "nan " * 16, "x " * 16, "0 " * 16])
def test_notes_that_make_no_sense_are_passed_over(spoil, tmp_path):
    source = scan_of(tmp_path / "a.h5", (2, 1, 8, 7), bare=False, geometry=GEOMETRIES["rotated"])
    convert(source, tmp_path / "b.mrd")
    with h5py.File(tmp_path / "b.mrd", "r+") as file:
        text = file["dataset/xml"][0].decode()
        noted = " ".join(repr(number) for row in ROTATED for number in row)
        assert noted in text
        text = text.replace(noted, spoil).replace(repr(0.1 + 0.2), "loud").replace("simulated</name><value>1", "simulated</name><value>7")  # fmt: skip
        file["dataset/xml"][0] = text
    scan = open_scan(tmp_path / "b.mrd")
    expected = np.array(ROTATED)
    np.testing.assert_allclose(scan.geometry.affine, expected, atol=1e-4)  # by the readouts alone
    assert scan.read(0, 1).noise_variance is None and scan.simulated is None


def test_a_noted_noise_variance_that_cannot_be_is_refused(tmp_path):
    source = scan_of(tmp_path / "a.h5", (2, 1, 8, 7), bare=False, geometry=GEOMETRIES["rotated"])
    convert(source, tmp_path / "b.mrd")
    with h5py.File(tmp_path / "b.mrd", "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].decode().replace(repr(0.1 + 0.2), "-0.5")
    with pytest.raises(InputError, match="noise_variance must be a number of at least 0; got -0.5"):
        open_scan(tmp_path / "b.mrd")


def test_what_mrd_has_no_numbers_for_is_refused_before_anything_is_written(tmp_path):
    wide = Geometry(((3e4, 0, 0, 0), (0, 3e4, 0, 0), (0, 0, 1.0, 0), (0.0, 0.0, 0.0, 1.0)))
    source = scan_of(tmp_path / "a.h5", (2, 1, 8, 7), bare=True, geometry=wide)
    with pytest.raises(OptionError, match="MRD cannot hold"):
        convert(source, tmp_path / "b.mrd")
    kspace, mask = noise(2, 1, 8, 7), np.ones((2, 8, 7))
    mask[1] = 0
    write_scan(tmp_path / "a.h5", kspace * mask[:, None], kspace.shape, mask=mask, attributes={}, force=True)
    with pytest.raises(OptionError, match="slice 1 .* no samples"):
        convert(tmp_path / "a.h5", tmp_path / "b.mrd")
    write_scan(tmp_path / "a.h5", kspace[..., :1], (2, 1, 8, 1), mask=np.ones(1), attributes={}, force=True)
    with pytest.raises(OptionError, match="BART"):
        convert(tmp_path / "a.h5", tmp_path / "b.cfl", lossy=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_noise_covariance_of_several_coils_has_no_room_anywhere(tmp_path):
    from test_raw_formats import write_mrd

    write_mrd(tmp_path / "a.h5", noise(2, 3, 8, 6), noise_readouts=noise(3, 200, seed=1))
    assert open_scan(tmp_path / "a.h5").noise_covariance is not None
    for suffix in ROOM:
        with pytest.raises(OptionError, match="no room for.*noise covariance"):
            convert(tmp_path / "a.h5", tmp_path / f"b{suffix}")
    convert(tmp_path / "a.h5", tmp_path / "b.mrd", lossy=True)
    variance = open_scan(tmp_path / "a.h5").read(0, 1).noise_variance
    assert open_scan(tmp_path / "b.mrd").read(0, 1).noise_variance == variance > 0
    same_samples(tmp_path / "b.mrd", tmp_path / "a.h5")


def test_the_image_matrix_of_fastmris_header_is_not_dropped_in_silence(tmp_path):
    source = scan_of(tmp_path / "a.h5", (2, 1, 8, 6), bare=True)
    with h5py.File(source, "r+") as file:
        header = file["ismrmrd_header"][()].decode()
        recon = header.index("<reconSpace>")
        del file["ismrmrd_header"]
        header = header[:recon] + header[recon:].replace("<x>8</x>", "<x>4</x>", 1)
        fields = "<fieldOfView_mm><x>{}</x><y>6</y><z>1</z></fieldOfView_mm></{}Space>"
        for name, width in (("encoded", 8), ("recon", 4)):
            header = header.replace(f"</{name}Space>", fields.format(width, name))
        file["ismrmrd_header"] = header
    assert open_scan(source).image_matrix == (4, 6)
    with pytest.raises(OptionError, match="matrix of the image"):
        convert(source, tmp_path / "b.mrd")
    convert(source, tmp_path / "b.mrd", lossy=True)
    same_samples(tmp_path / "b.mrd", source)


def test_large_small_and_negative_numbers_keep_their_bits(tmp_path):
    kspace = np.array([1e38, -1e38j, 1e-45, -1e-45j, 3.0000002, 1 + 1e-38j] * 7, np.complex64).reshape(1, 1, 6, 7)
    write_scan(tmp_path / "a.h5", kspace, kspace.shape, mask=np.ones(7), attributes={})
    for suffix in ROOM:
        convert(tmp_path / "a.h5", tmp_path / f"b{suffix}", lossy=True)
        found = open_scan(tmp_path / f"b{suffix}").read(0, 1).kspace
        assert torch.equal(torch.view_as_real(found), torch.view_as_real(torch.from_numpy(kspace)))


def test_scan_is_described_alike_after_a_round(tmp_path):
    source = scan_of(tmp_path / "a.h5", (3, 2, 10, 9), bare=False, geometry=GEOMETRIES["oblique"])
    convert(source, tmp_path / "b.mrd")
    convert(tmp_path / "b.mrd", tmp_path / "c.h5")
    one, two = (open_scan(path) for path in (source, tmp_path / "c.h5"))
    assert replace(one, path=two.path, read=two.read) == two


def test_a_place_without_unit_or_code_is_in_no_readout(tmp_path):
    """MRD means millimetres: other programs find no place there, and we find what was noted."""
    geometry = Geometry(tuple(map(tuple, np.diag([2.0, 3.0, 4.0, 1.0]).tolist())), 2, 1, 1, "unknown")
    kspace = np.ones((2, 1, 6, 5), np.complex64)
    write_scan(tmp_path / "a.h5", kspace, kspace.shape, mask=np.ones(5), geometry=geometry)
    convert(tmp_path / "a.h5", tmp_path / "b.mrd")
    with h5py.File(tmp_path / "b.mrd") as file:
        heads = file["dataset/data"]["head"]
    assert not any(heads[name].any() for name in ("position", "read_dir", "phase_dir", "slice_dir"))
    assert open_scan(tmp_path / "b.mrd").geometry == geometry
