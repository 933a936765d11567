"""Raw formats beside fastMRI's: MRD, BART and NumPy, against their own tools where these are installed."""

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_n2n.errors import InputError, NotFoundError, OptionError
from mri_n2n.formats import cfl, detect, open_scan
from mri_n2n.formats.sampling import _box_of, acquired_box, acquired_lines, acquired_range, doubtful_edges
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import MASKS, draw_mask
from mri_n2n.operators import root_sum_of_squares

HEAD = np.dtype(
    [("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
     ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
     ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)), ("discard_pre", "<u2"),
     ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"), ("trajectory_dimensions", "<u2"),
     ("sample_time_us", "<f4"), ("position", "<f4", (3,)), ("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)),
     ("slice_dir", "<f4", (3,)), ("patient_table_position", "<f4", (3,)),
     ("idx", [("kspace_encode_step_1", "<u2"), ("kspace_encode_step_2", "<u2"), ("average", "<u2"), ("slice", "<u2"),
              ("contrast", "<u2"), ("phase", "<u2"), ("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"),
              ("user", "<u2", (8,))]),
     ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))]
)  # fmt: skip
XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{y}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{frx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.complex64, generator=generator).numpy()


def write_mrd(
    path: Path, kspace: np.ndarray, *, oversampling: int = 1, lines=None, noise_readouts=None, xml=None, changes=()
) -> Path:
    """kspace: (slices, coils, readout, phase) as encoded. changes: functions of the heads and the list of readouts."""
    slices, coils, readout, phase = kspace.shape
    heads, rows = [], []

    def add(values: np.ndarray, line: int = 0, slice_: int = 0, flag: int = 0) -> None:
        head = np.zeros((), HEAD)
        head["flags"] = (1 << (flag - 1)) if flag else 0
        head["number_of_samples"], head["active_channels"], head["center_sample"] = values.shape[1], coils, readout // 2
        head["sample_time_us"], head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = 5.0, line, slice_
        head["position"], head["slice_dir"] = (10.0, 20.0, 30.0 + 7.0 * slice_), (0, 0, 1)
        head["read_dir"], head["phase_dir"] = (1, 0, 0), (0, 1, 0)
        heads.append(head)
        rows.append(np.ascontiguousarray(values).view(np.float32).ravel())

    if noise_readouts is not None:
        add(noise_readouts, flag=19)
    for slice_ in range(slices):
        for line in range(phase) if lines is None else lines:
            add(kspace[slice_, :, :, line], line, slice_)
    table = np.zeros(
        len(heads), [("head", HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))]
    )
    for number, (head, row) in enumerate(zip(heads, rows, strict=True)):
        table[number] = (head, np.zeros(0, np.float32), row)
    for change in changes:
        change(table)
    sizes = {
        "x": readout,
        "y": phase,
        "rx": readout // oversampling,
        "fx": 200.0 * oversampling,
        "frx": 200.0,
        "fy": 150.0,
    }
    sizes |= {"last": phase - 1, "center": phase // 2, "trajectory": "cartesian"}
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/data", data=table, maxshape=(None,), chunks=(1,))
        file["dataset/xml"] = np.array([(xml or XML).format(**sizes)], dtype=h5py.string_dtype())
    return path


@pytest.mark.parametrize("shape", [(2, 3, 16, 12), (1, 1, 15, 13)])
def test_mrd_readouts_are_sorted_into_kspace(shape, tmp_path):
    kspace = noise(*shape)
    scan = open_scan(write_mrd(tmp_path / "scan.h5", kspace, lines=[7, 2, 3, 9]))
    assert scan.format == "mrd" and scan.shape == shape and scan.repetitions == 1 and scan.noise_covariance is None
    mask = np.isin(np.arange(shape[-1]), [2, 3, 7, 9]).astype(np.float32)
    acquisition = scan.read(0, shape[0])
    np.testing.assert_array_equal(acquisition.kspace.numpy(), kspace * mask)
    np.testing.assert_array_equal(acquisition.mask[0, 0].numpy(), np.broadcast_to(mask, shape[-2:]))


def test_mrd_reversed_partial_averaged_and_other_readouts(tmp_path):
    kspace = noise(1, 2, 16, 8)

    def reverse(table):
        row = table[1]
        row["head"]["flags"] = 1 << 21
        values = row["data"].reshape(2, 16, 2)[:, ::-1].ravel()
        row["data"] = values
        row["head"]["center_sample"] = 16 - 1 - 8

    def partial(table):  # the first five samples of line 2 were not taken
        row = table[2]
        row["data"] = row["data"].reshape(2, 16, 2)[:, 5:].ravel()
        row["head"]["number_of_samples"], row["head"]["center_sample"] = 11, 3

    def navigator(table):
        table[3]["head"]["flags"] = 1 << 22

    def second_average(table):  # of line 5, in the place of line 4
        table[4]["head"]["idx"]["kspace_encode_step_1"], table[4]["head"]["idx"]["average"] = 5, 1

    changes = (reverse, partial, navigator, second_average)
    acquisition = open_scan(write_mrd(tmp_path / "scan.h5", kspace, changes=changes)).read(0, 1)
    expected, mask = kspace[0].copy(), np.ones((16, 8))
    expected[:, :5, 2], mask[:5, 2] = 0, 0
    expected[:, :, 3], mask[:, 3] = 0, 0
    expected[:, :, 5], expected[:, :, 4], mask[:, 4] = (kspace[0, :, :, 4] + kspace[0, :, :, 5]) / 2, 0, 0
    np.testing.assert_allclose(acquisition.kspace[0].numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(acquisition.mask[0, 0].numpy(), mask)


def test_mrd_oversampling_noise_and_geometry(tmp_path):
    image = noise(2, 3, 12, 10, seed=1)
    wide = np.zeros((2, 3, 24, 10), np.complex64)
    wide[:, :, 6:18] = image
    mixing = noise(3, 3, seed=2)
    white = noise(3, 4000, seed=3)
    path = write_mrd(
        tmp_path / "scan.h5", fft2c(torch.from_numpy(wide)).numpy(), oversampling=2, noise_readouts=mixing @ white
    )
    scan = open_scan(path)
    assert scan.shape == (2, 3, 12, 10)
    acquisition = scan.read(0, 2)
    np.testing.assert_allclose(ifft2c(acquisition.kspace).numpy(), image, atol=1e-5)
    covariance = mixing @ mixing.conj().T
    np.testing.assert_allclose(scan.noise_covariance.numpy(), covariance, atol=0.1 * np.abs(covariance).max())
    assert acquisition.noise_variance == pytest.approx(np.trace(covariance).real / 3, rel=0.05)
    # Voxel (x, y, slice) in R, A, S: phase runs along P, readout along L, slices 7 mm apart along S.
    affine = np.array(scan.geometry.affine)
    centre = affine @ [10 // 2, 12 // 2, 0, 1]
    np.testing.assert_allclose(centre[:3], [-10, -20, 30])
    np.testing.assert_allclose(affine[:3, :3], [[0, -200 / 12, 0], [-15, 0, 0], [0, 0, 7]], atol=1e-5)


def test_mrd_phase_oversampling_and_partial_fourier_as_the_header_says(tmp_path):
    """The image has the wanted field of view along phase too, each voxel at its place; lines that were never encoded are
    not called undersampled."""
    xml = XML.replace("<fieldOfView_mm><x>{frx}</x><y>{fy}</y>", "<fieldOfView_mm><x>{frx}</x><y>100</y>")
    xml = xml.replace("<maximum>{last}</maximum><center>{center}</center>", "<maximum>29</maximum><center>12</center>")
    kspace = noise(1, 2, 16, 36)
    shifted = lambda table: table["head"]["idx"].__setitem__("kspace_encode_step_1", np.arange(30))  # noqa: E731
    path = write_mrd(tmp_path / "scan.h5", kspace, xml=xml, lines=range(6, 36), changes=(shifted,))
    scan = open_scan(path)
    assert scan.image_matrix == (16, 24) and scan.shape == (1, 2, 16, 36)
    assert scan.acquired_columns == (6, 36) and acquired_box(scan) == ((0, 16), (6, 36))
    np.testing.assert_array_equal(scan.read(0, 1).kspace[..., 6:], torch.from_numpy(kspace[..., 6:]))
    whole, image = np.array(scan.geometry.affine), np.array(scan.image_geometry.affine)
    np.testing.assert_allclose(whole @ [18, 8, 0, 1], image @ [12, 8, 0, 1], atol=1e-6)
    assert np.linalg.norm(image[:3, 0]) * 24 == pytest.approx(100)


@pytest.mark.parametrize("field", [200.9, 201.9])
def test_mrd_wanted_fields_of_view_a_little_larger_than_the_encoded(field, tmp_path):
    """As rounding in headers makes them: nothing is cropped, and nothing else happens."""
    kspace = noise(1, 2, 256, 12)
    path = write_mrd(tmp_path / "scan.h5", kspace, xml=XML.replace("{frx}", str(field)))
    np.testing.assert_array_equal(open_scan(path).read(0, 1).kspace.numpy(), kspace)


@pytest.mark.parametrize("centers", ["after reversal", "as stored"])
@pytest.mark.parametrize("readout", [15, 16])
def test_mrd_centers_of_reversed_readouts(centers, readout, tmp_path):
    """The specification's centre is that of the samples as stored; some converters give the one after reversal."""
    kspace = noise(1, 2, readout, 8)

    def reverse(table: np.ndarray) -> None:
        for row in range(1, len(table), 2):
            values = table[row]["data"].view(np.complex64).reshape(2, readout)
            table[row]["data"] = np.ascontiguousarray(values[:, ::-1]).view(np.float32).ravel()
            table["head"]["flags"][row] = 1 << 21
            if centers == "as stored":
                table["head"]["center_sample"][row] = readout - 1 - readout // 2

    path = write_mrd(tmp_path / "scan.h5", kspace, changes=(reverse,))
    np.testing.assert_array_equal(open_scan(path).read(0, 1).kspace.numpy(), kspace)


def test_mrd_voxels_keep_their_size_where_the_crop_does_not_divide(tmp_path):
    xml = XML.replace("<fieldOfView_mm><x>{frx}</x>", "<fieldOfView_mm><x>165</x>")
    scan = open_scan(write_mrd(tmp_path / "scan.h5", noise(1, 2, 33, 8), xml=xml))
    assert scan.shape[2] == 27
    assert np.linalg.norm(np.array(scan.geometry.affine)[:3, 1]) == pytest.approx(200 / 33)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda table: table["head"]["idx"].__setitem__("contrast", np.arange(len(table))), "varies in contrast"),
        (lambda table: table["head"]["idx"].__setitem__("kspace_encode_step_1", 900), "do not fit"),
        (lambda table: table["head"].__setitem__("number_of_samples", 900), "longer than"),
        (lambda table: table["head"].__setitem__("active_channels", 7), "a readout holds"),
        (lambda table: table["head"].__setitem__("flags", 1 << 18), "no image readouts"),
    ],
)
def test_damaged_mrd_is_one_input_error(spoil, match, tmp_path):
    path = write_mrd(tmp_path / "scan.h5", noise(1, 2, 16, 8), changes=(spoil,))
    with pytest.raises(InputError, match=match):
        open_scan(path).read(0, 1)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("<?xml version", "<!DOCTYPE a [<!ENTITY b 'c'>]><?xml version", "entities"),
        ("<x>{x}</x><y>{y}</y>", "<x>-3</x><y>{y}</y>", "make no sense|longer|do not fit"),
        ("cartesian", "spiral", "Cartesian"), ("</encoding>", "", "cannot be read"), ("{trajectory}", "spiral", "Cartesian"),
        ("<y>{y}</y>", "<y>many</y>", "many"), ("encodedSpace", "otherSpace", "lacks"),
    ],
)  # fmt: skip
def test_headers_of_mrd_that_cannot_be_used(old, new, match, tmp_path):
    if old == "cartesian":
        old, new = "{trajectory}", "radial"
    path = write_mrd(tmp_path / "scan.h5", noise(1, 2, 16, 8), xml=XML.replace(old, new))
    with pytest.raises(InputError, match=match):
        open_scan(path)


@pytest.mark.skipif(shutil.which("ismrmrd_generate_cartesian_shepp_logan") is None, reason="needs ismrmrd-tools")
def test_a_file_of_ismrmrds_own_tools(tmp_path):
    """Fully sampled: our root-sum-of-squares is that of the format's own reconstruction, up to scale and transposition."""
    generate = ["ismrmrd_generate_cartesian_shepp_logan", "-n", "0", "-m", "64", "-c", "3", "-O", "2", "-o", "full.h5"]
    for command in (generate, ["ismrmrd_recon_cartesian_2d", "full.h5"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    scan = open_scan(tmp_path / "full.h5")
    assert scan.shape == (1, 3, 64, 64) and scan.geometry is None  # its directions are zero
    ours = root_sum_of_squares(ifft2c(scan.read(0, 1).kspace))[0].numpy()
    with h5py.File(tmp_path / "full.h5") as file:
        theirs = file["dataset/cpp/data"][0, 0, 0].T
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-5)
    noisy = [
        "ismrmrd_generate_cartesian_shepp_logan",
        "-C",
        "-n",
        "0.1",
        "-m",
        "64",
        "-c",
        "3",
        "-a",
        "2",
        "-w",
        "12",
        "-r",
        "2",
    ]
    subprocess.run([*noisy, "-o", "noisy.h5"], cwd=tmp_path, check=True, capture_output=True)
    scan = open_scan(tmp_path / "noisy.h5", repetition=0)
    assert scan.repetitions == 4 and scan.noise_covariance.shape == (3, 3)
    share = scan.read(0, 1).mask.mean().item()
    assert share == pytest.approx((32 + 6) / 64)  # every second line, and the calibration lines between them


# ---- BART, NumPy ----


def write_cfl(path: Path, array: np.ndarray) -> Path:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))
    return path.with_suffix(".cfl")


@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (3, 4, 9, 8)])
def test_cfl_goes_round(shape, tmp_path):
    kspace = noise(*shape) * (np.arange(8) % 2)
    cfl.write_scan(tmp_path / "scan.cfl", iter(kspace), shape, force=False)
    for name in ("scan.cfl", "scan.hdr"):
        assert detect(tmp_path / name) == "cfl"
        scan = open_scan(tmp_path / name)
        assert scan.shape == shape and scan.mask_source == "zeros"
        np.testing.assert_array_equal(scan.read(0, shape[0]).kspace.numpy(), kspace)
        np.testing.assert_array_equal(scan.read(0, 1).mask[0, 0].numpy(), np.broadcast_to(np.arange(8) % 2, (9, 8)))


def test_cfl_repetitions_and_both_phase_axes(tmp_path):
    """Both axes phase-encoded (READ 1); of two averages the mean where both have a sample."""
    kspace = noise(2, 3, 7, 6)  # averages, coils, y, x
    kspace[0, :, 2], kspace[1, :, 3] = 0, 0
    array = kspace.transpose(2, 3, 1, 0)[None].reshape(1, 7, 6, 3, *[1] * 10, 2)
    path = write_cfl(tmp_path / "scan", array)
    scan = open_scan(path)
    assert scan.shape == (1, 3, 7, 6) and scan.repetitions == 2
    count = (kspace != 0).any(axis=1).sum(axis=0)
    np.testing.assert_allclose(scan.read(0, 1).kspace[0].numpy(), kspace.sum(0) / count, rtol=1e-6)
    np.testing.assert_array_equal(open_scan(path, repetition=1).read(0, 1).kspace[0].numpy(), kspace[1])
    with pytest.raises(OptionError, match="repetitions 0 to 1"):
        open_scan(path, repetition=2)


@pytest.mark.skipif(shutil.which("bart") is None, reason="needs bart")
def test_bart_reads_our_cfl_and_agrees(tmp_path):
    kspace = noise(1, 3, 11, 8)
    cfl.write_scan(tmp_path / "scan.cfl", iter(kspace), kspace.shape, force=False)
    for command in (["fft", "-u", "-i", "3", "scan", "images"], ["rss", "8", "images", "rss"]):
        subprocess.run(["bart", *command], cwd=tmp_path, check=True, capture_output=True)
    theirs = np.fromfile(tmp_path / "rss.cfl", np.complex64).reshape((11, 8), order="F").real
    np.testing.assert_allclose(root_sum_of_squares(ifft2c(torch.from_numpy(kspace)))[0].numpy(), theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("header", "match"),
    [("# Dimensions\n8 9 1 3\n", "truncated"), ("# Dimensions\n8 nine\n", "no header"), ("# Dimensions\n", "no header"),
     ("# Dimensions\n8 -9 1\n", "positive"), ("# Dimensions\n99999 99999 99999\n", "GiB"), ("# Dimensions\n72 1 1\n", "expected two of"),
     ("# Dimensions\n8 3 3\n", "expected two of"), ("# Dimensions\n8 3 1 1 3\n", "expected two of")],
)  # fmt: skip
def test_headers_of_bart_that_do_not_fit(header, match, tmp_path):
    path = write_cfl(tmp_path / "scan", noise(8, 9, 1))
    path.with_suffix(".hdr").write_text(header)
    with pytest.raises(InputError, match=match):
        open_scan(path)


def test_cfl_without_its_other_half_or_its_samples(tmp_path):
    path = write_cfl(tmp_path / "zero", np.zeros((8, 9)))
    with pytest.raises(InputError, match="zero everywhere"):
        open_scan(path).read(0, 1)
    nan = noise(8, 9)
    nan[2, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        open_scan(write_cfl(tmp_path / "nan", nan)).read(0, 1)
    path.with_suffix(".hdr").unlink()
    with pytest.raises(NotFoundError, match="no file .*zero.hdr"):
        open_scan(path)


@pytest.mark.parametrize(("shape", "format", "expected"), [
    ((9, 8), None, (1, 1, 9, 8)), ((3, 9, 8), "npy-coils", (1, 3, 9, 8)), ((3, 9, 8), "npy-slices", (3, 1, 9, 8)),
    ((2, 3, 9, 8), None, (2, 3, 9, 8)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, ">c8"])
def test_numpy_arrays(shape, format, expected, dtype, tmp_path):
    kspace = noise(*shape) * (np.arange(8) != 3)
    np.save(tmp_path / "scan.npy", kspace.astype(dtype))
    scan = open_scan(tmp_path / "scan.npy", format)
    assert scan.shape == expected
    np.testing.assert_array_equal(scan.read(0, expected[0]).kspace.numpy(), kspace.reshape(expected))
    np.testing.assert_array_equal(scan.read(0, 1).mask[0, 0, 0].numpy(), np.arange(8) != 3)


def test_numpy_arrays_that_are_no_scan(tmp_path):
    path = tmp_path / "scan.npy"
    np.save(path, noise(3, 9, 8))
    with pytest.raises(OptionError, match="--format npy-coils"):
        open_scan(path)
    for array, match in (
        (np.ones((9, 8)), "complex"),
        (noise(2, 2, 2, 9, 8), "2 to 4"),
        (np.zeros((9, 8), complex), "zero everywhere"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=match):
            open_scan(path).read(0, 1)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="no readable"):
        open_scan(path)
    np.save(path, noise(9, 8))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="no readable"):
        open_scan(path)


@pytest.mark.parametrize("shape", [(128, 128), (97, 160), (64, 256)])
@pytest.mark.parametrize("acceleration", [3.0, 8.0, 10.0])
@pytest.mark.parametrize("kind", MASKS)
def test_undersampling_is_not_taken_for_edges_that_were_never_acquired(kind, acceleration, shape):
    """Of 100 draws none is cut down, whatever the mask, and neither when it lies along the other axis."""
    for seed in range(100):
        mask = draw_mask(kind, shape, acceleration, torch.Generator().manual_seed(seed)).mask.numpy() > 0
        assert _box_of(mask) == ((0, shape[0]), (0, shape[1])), seed
        assert _box_of(mask.T) == ((0, shape[1]), (0, shape[0])), seed


@pytest.mark.parametrize("start", [0, 30, 64])
@pytest.mark.parametrize("spacing", [1, 2, 3.4, 4])
def test_zero_padding_and_partial_fourier_of_regular_lines_are_found(start, spacing):
    """Equispaced lines with a full centre, a part missing at one or both sides, a readout that is cut off too."""
    lines = np.zeros(256, bool)
    lines[np.arange(0, 256, spacing).astype(int)] = lines[116:140] = True
    for end in (256, 220):
        sampled = lines.copy()
        sampled[:start] = sampled[end:] = False
        at = np.flatnonzero(sampled)
        expected = (int(at[0]) if start else 0, int(at[-1]) + 1 if end < 256 else 256)
        assert acquired_lines(sampled) == expected
        rows = np.arange(64) >= 10
        assert _box_of(rows[:, None] & sampled) == ((10, 64), expected)


def test_irregular_lines_that_leave_wide_edges_are_doubtful(tmp_path):
    """Told, but not cut: 40 of 160 columns empty at one side."""
    told = 0
    for seed in range(20):
        lines = np.zeros(160, bool)
        lines[40:157] = np.random.default_rng(seed).random(117) < 0.4
        lines[[40, 79, 80, 81, 156]] = True
        np.save(tmp_path / f"{seed}.npy", noise(1, 2, 32, 160) * lines)
        scan = open_scan(tmp_path / f"{seed}.npy")
        assert acquired_box(scan) == ((0, 32), (0, 160))
        told += doubtful_edges(scan, acquired_box(scan))
    assert told >= 16
    np.save(tmp_path / "full.npy", noise(1, 2, 32, 160))
    scan = open_scan(tmp_path / "full.npy")
    assert not doubtful_edges(scan, acquired_box(scan))


def test_the_acquired_part_of_an_axis():
    assert acquired_range((np.arange(20) > 7) * 1.0) == (8, 20) and acquired_range(np.zeros(9)) == (0, 9)
    assert acquired_lines(np.arange(20) > 7) == (8, 20) and acquired_lines(np.zeros(9, bool)) == (0, 9)
    assert acquired_lines(np.arange(20) < 5) == (0, 5), "DC itself was not sampled"
    for few in ([20, *range(29, 34), 40, 43, 47], [1, 7, 31, 32, 33, 37, 44], [20, 31, 32, 33]):
        assert acquired_lines(np.isin(np.arange(64), few)) == (0, 64), "too few to be called regular"
