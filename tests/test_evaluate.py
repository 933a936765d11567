"""Metrics agree with fastMRI's functions and with their formulas; files are matched, and misfits are refused."""

import argparse
import json
import math
from dataclasses import astuple, replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, NotFoundError
from mri_n2n.evaluation import evaluate_files, format_table, match_files, summarise, to_json
from mri_n2n.formats import write_nifti, write_result, write_scan
from mri_n2n.metrics import crop_as_fastmri, evaluate_arrays, nmse, psnr, ssim

OPEN_MS = Path(__file__).resolve().parents[2] / "shared" / "data" / "open_ms"


def pair(shape=(3, 20, 17), dtype=np.float32, scale=1.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth positive image and a noisy copy of it."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(0, 3, n) for n in shape], indexing="ij")
    reference = 1.1 + np.prod([np.sin(g + i) for i, g in enumerate(grid)], axis=0)
    noisy = reference + 0.05 * rng.standard_normal(shape)
    return (scale * reference).astype(dtype), (scale * np.abs(noisy)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1000.0])
def test_agrees_with_fastmri(dtype, scale):
    from fastmri import evaluate as fastmri

    x, y = pair(dtype=dtype, scale=scale)
    assert nmse(x, y) == pytest.approx(float(fastmri.nmse(x, y)), rel=1e-6)
    assert psnr(x, y) == pytest.approx(float(fastmri.psnr(x, y)), rel=1e-6)
    assert ssim(x, y) == pytest.approx(float(fastmri.ssim(x, y)[0]), rel=1e-6)
    score = evaluate_arrays(x, y)
    assert (score.volume.nmse, score.volume.psnr) == (nmse(x, y), psnr(x, y))
    assert score.volume.ssim == pytest.approx(ssim(x, y), rel=1e-12)
    assert score.peak == x.max() and score.shape == x.shape
    for i, s in enumerate(score.slices):  # with the volume's peak, not the slice's
        assert s.nmse == pytest.approx(float(fastmri.nmse(x[i], y[i])), rel=1e-6)
        assert s.psnr == pytest.approx(float(fastmri.psnr(x[i], y[i], maxval=x.max())), rel=1e-6)
        assert s.ssim == pytest.approx(float(fastmri.ssim(x[i : i + 1], y[i : i + 1], maxval=x.max())[0]), rel=1e-6)


def ssim_by_definition(x: np.ndarray, y: np.ndarray, peak: float) -> float:
    """Wang et al. 2004 with a uniform 7x7 window and unbiased (co)variances, from windows taken one by one."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = []
    for i in range(x.shape[0] - 6):
        for j in range(x.shape[1] - 6):
            a, b = x[i : i + 7, j : j + 7].ravel(), y[i : i + 7, j : j + 7].ravel()
            (va, cab), (_, vb) = np.cov(a, b)
            mean = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(mean * (2 * cab + c2) / (va + vb + c2))
    return float(np.mean(values))


def test_agrees_with_the_formulas():
    x, y = pair(dtype=np.float64)
    assert nmse(x, y) == pytest.approx(((x - y) ** 2).sum() / (x**2).sum(), rel=1e-12)
    assert psnr(x, y) == pytest.approx(10 * np.log10(x.max() ** 2 / ((x - y) ** 2).mean()), rel=1e-12)
    assert psnr(x, y, peak=2.0) == pytest.approx(10 * np.log10(4 / ((x - y) ** 2).mean()), rel=1e-12)
    assert ssim(x, y) == pytest.approx(np.mean([ssim_by_definition(a, b, x.max()) for a, b in zip(x, y)]), rel=1e-9)


def test_a_single_slice_is_a_volume_of_one():
    x, y = pair()
    for metric in (nmse, psnr, ssim):
        assert metric(x[1], y[1]) == metric(x[1:2], y[1:2])
    assert evaluate_arrays(x[1], y[1]).shape == (1, 20, 17)
    assert evaluate_arrays(x[1], y[1]).slices[0] == evaluate_arrays(x[1], y[1]).volume


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-7, 1e8, 1e15])
def test_scores_do_not_depend_on_the_unit_even_in_float32(scale):
    """SSIM multiplies four intensities: in float32 it fails outside a few orders of magnitude."""
    x, y = pair()
    scaled = evaluate_arrays(x * np.float32(scale), y * np.float32(scale)).volume
    expected = evaluate_arrays(x, y).volume
    np.testing.assert_allclose(astuple(scaled), astuple(expected), rtol=1e-4)


def test_integers_do_not_wrap_around():
    x = np.full((8, 8), 10, np.uint16)
    assert nmse(x, x + 1) == nmse(x, x - 1) == pytest.approx(0.01)


def test_equal_images():
    x, _ = pair()
    score = evaluate_arrays(x, x)
    assert score.volume.nmse == 0 and score.volume.psnr == math.inf and score.volume.ssim == pytest.approx(1)
    text = json.dumps(to_json(summarise((score, score))), allow_nan=False)
    assert json.loads(text)["volumes"][0]["volume"]["psnr"] is None


def test_an_empty_slice_of_a_volume_has_no_nmse():
    x, y = pair()
    x[0] = 0
    score = evaluate_arrays(x, y)
    assert math.isnan(score.slices[0].nmse) and math.isfinite(score.slices[0].psnr) and math.isfinite(score.volume.nmse)
    assert to_json(summarise((score,)))["volumes"][0]["per_slice"][0]["nmse"] is None


@pytest.mark.parametrize("metric", [nmse, psnr, ssim, evaluate_arrays])
def test_input_without_a_meaningful_score_is_refused(metric):
    x, y = pair()
    nan, infinite = y.copy(), y.copy()
    nan[1, 2, 3], infinite[0, 0, 0] = np.nan, np.inf
    for bad, message in [
        ((np.zeros_like(x), y), "empty"),
        ((-x, y), "positive"),
        ((x, nan), "reconstruction holds NaN"),
        ((infinite, y), "reference holds NaN"),
        ((x, y.astype(np.complex64)), "real"),
        ((x, y[:2]), "one shape"),
        ((x[0], y[:1]), "one shape"),
        ((x[0, 0], y[0, 0]), "axes"),
        ((x[:0], y[:0]), "none empty"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            metric(*bad)
        assert "\n" not in str(error.value)


def test_slices_smaller_than_the_ssim_window_are_refused():
    x, y = pair((2, 6, 20))
    assert math.isfinite(nmse(x, y)) and math.isfinite(psnr(x, y))
    for metric in (ssim, evaluate_arrays):
        with pytest.raises(InputError, match="7x7"):
            metric(x, y)
    x, y = pair((1, 7, 7), np.float64)
    assert ssim(x, y) == pytest.approx(ssim_by_definition(x[0], y[0], x.max()), rel=1e-9)


@pytest.mark.parametrize(("small", "large"), [((10, 10), (21, 16)), ((11, 9), (20, 12)), ((9, 9), (9, 12))])
def test_crops_as_fastmri_does(small, large):
    from fastmri.data.transforms import center_crop

    reference, reconstruction = np.random.rand(2, *small), np.random.rand(2, *large)
    size = (small[1], small[1])
    a, b, cropped = crop_as_fastmri(reference, reconstruction)
    assert cropped
    assert np.array_equal(a, center_crop(reference, size)) and np.array_equal(b, center_crop(reconstruction, size))


def test_equal_sizes_are_not_cropped_and_other_sizes_are_refused():
    image = np.ones((2, 12, 9))
    assert crop_as_fastmri(image, image)[2] is False and crop_as_fastmri(image, image)[0].shape == (2, 12, 9)
    for shape in [(2, 12, 8), (2, 10, 20), (3, 12, 9), (3, 20, 20)]:  # narrower, lower, other numbers of slices
        with pytest.raises(InputError, match="sizes"):
            crop_as_fastmri(image, np.ones(shape))
    with pytest.raises(InputError, match="sizes"):  # a reference wider than high: no square of its width fits in it
        crop_as_fastmri(np.ones((2, 8, 10)), np.ones((2, 20, 20)))


def test_directory_is_the_mean_over_volumes():
    scores = [evaluate_arrays(*pair(seed=s), name=f"{s}.h5") for s in range(3)]
    result = summarise(tuple(scores))
    values = [s.volume.psnr for s in scores]
    assert result.mean.psnr == pytest.approx(np.mean(values))
    assert result.standard_deviation.psnr == pytest.approx(np.std(values, ddof=1))
    assert summarise(tuple(scores[:1])).standard_deviation is None
    assert to_json(summarise(tuple(scores[:1])))["directory"]["standard_deviation"] is None
    with pytest.raises(InputError):
        summarise(())


def test_table_and_json_name_the_peak_and_the_definition():
    score = evaluate_arrays(*pair(), name="scan.h5")
    one, two = format_table(summarise((score,))), format_table(summarise((score, score), ["lonely.h5"], ["missing.h5"]))
    assert f"{score.volume.psnr:.2f}" in one and "slice 2" in one and "slice 2" not in two
    assert "mean of volumes" in two and "lonely.h5" in two and "missing.h5" in two
    assert "peak" in one and "fastmri.evaluate" in one and "largest value of the reference volume" in one
    result = json.loads(json.dumps(to_json(summarise((score,))), allow_nan=False))
    assert result["definition"]["peak"].startswith("largest value of the reference volume")
    volume = result["volumes"][0]
    assert volume["peak"] == score.peak and len(volume["per_slice"]) == 3
    assert result["directory"]["mean"] == volume["volume"]
    assert volume["volume"]["psnr"] == score.volume.psnr


def touch(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).touch()
    return directory


def test_files_match_by_name_then_by_stem(tmp_path):
    names = ("s1.h5", "s1.nii.gz", "s1.png", "s1.json", "s2.nii.gz", "s3.h5", "lonely.h5", ".s4.h5")
    results = touch(tmp_path / "a", *names)
    references = touch(tmp_path / "b", "s1.h5", "s1.nii.gz", "s2.h5", "s2.nii.gz", "s3.nii", "unused.h5", "README.md")
    pairs, without_reference, without_reconstruction = match_files(results, references)
    assert [(a.name, b.name) for a, b in pairs] == [("s1.h5", "s1.h5"), ("s2.nii.gz", "s2.nii.gz"), ("s3.h5", "s3.nii")]
    assert without_reference == ["lonely.h5"] and without_reconstruction == ["unused.h5"]


def test_a_file_and_a_directory(tmp_path):
    results = touch(tmp_path / "a", "s1.h5", "s2.h5")
    references = touch(tmp_path / "b", "s1.h5", "s2.nii.gz")
    assert [b.name for _, b in match_files(results / "s2.h5", references)[0]] == ["s2.nii.gz"]
    pairs, unmatched, _ = match_files(results, references / "s1.h5")
    assert [a.name for a, _ in pairs] == ["s1.h5"] and unmatched == ["s2.h5"]
    # One image and one reference, or two files: names need not agree.
    single, volume = touch(tmp_path / "c", "s9.h5", "s9.json"), references / "s2.nii.gz"
    assert match_files(single, volume)[0] == [(single / "s9.h5", volume)]
    assert match_files(results / "s1.h5", volume)[0] == [(results / "s1.h5", volume)]
    with pytest.raises(InputError, match="partner"):
        match_files(touch(tmp_path / "d", "x.h5", "y.h5"), volume)
    with pytest.raises(NotFoundError, match="holds no image"):
        match_files(touch(tmp_path / "e", "x.txt"), references)
    with pytest.raises(NotFoundError):
        match_files(tmp_path / "nowhere", references)


# Files. The reconstruction is the reference plus noise; every file is written by the package's own writers.

AFFINE = ((-1.0, 0.0, 0.0, 3.0), (0.0, -1.0, 0.0, 4.0), (0.0, 0.0, 2.5, 5.0), (0.0, 0.0, 0.0, 1.0))


def save_scan(path: Path, reference: np.ndarray | None, geometry: Geometry | None = None, shape=None) -> Path:
    """A fully sampled single-coil scan of the reference (slice, y, x)."""
    slices, y, x = shape or reference.shape
    kspace = np.random.default_rng(0).standard_normal((slices, 1, y, x)).astype(np.complex64)
    mask = np.ones((y, x), np.float32)
    write_scan(
        path, iter(kspace), (slices, 1, y, x), mask=mask, probability=None, reference=reference, geometry=geometry,
        attributes={"simulated": True}, force=False,
    )  # fmt: skip
    return path


def save_result(path: Path, image: np.ndarray, geometry: Geometry | None = None, **attributes) -> Path:
    slices, y, x = image.shape
    write_result(
        path,
        ((one, one.astype(np.complex64)) for one in image),
        {"image": image.shape},
        attributes,
        geometry,
        force=False,
    )
    return path


def test_a_result_against_its_scan(tmp_path):
    x, y = pair()
    scan = save_scan(tmp_path / "scan.h5", x)
    result = evaluate_files(save_result(tmp_path / "result.h5", y), scan)
    (volume,) = result.volumes
    assert volume.volume == evaluate_arrays(x, y).volume and volume.slices == evaluate_arrays(x, y).slices
    assert (volume.name, volume.reference, volume.simulated, volume.cropped) == ("result.h5", "scan.h5", True, False)
    assert "Simulated k-space" in format_table(result)
    contrary = save_result(tmp_path / "contrary.h5", y, simulated=False)
    assert evaluate_files(contrary, scan).volumes[0].simulated is False  # the reconstruction's word counts
    by_result = save_result(tmp_path / "said.h5", y, simulated=True), save_result(tmp_path / "reference.h5", x)
    assert evaluate_files(*by_result).volumes[0].simulated is True
    assert evaluate_files(by_result[1], by_result[1]).volumes[0].simulated is None
    assert str(tmp_path) not in json.dumps(to_json(result)) + format_table(result)


def test_the_official_evaluation_crops_a_larger_reconstruction(tmp_path):
    x, y = pair((2, 31, 20))
    inner = (slice(None), slice(8, 22), slice(3, 17))
    scan = save_scan(tmp_path / "b.h5", x[inner], shape=x.shape)
    result = evaluate_files(save_result(tmp_path / "a.h5", y), scan)
    assert result.volumes[0].cropped and result.volumes[0].volume == evaluate_arrays(x[inner], y[inner]).volume
    assert "Centre-cropped" in format_table(result)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis_on_record_is_used_for_nifti_references(tmp_path, axis):
    x, y = pair((12, 10, 11))
    geometry = Geometry(AFFINE, axis)
    write_nifti(tmp_path / "volume.nii.gz", x, geometry, force=False)
    write_nifti(tmp_path / "recon.nii.gz", y, geometry, force=False)
    result = save_result(tmp_path / "recon.h5", y, geometry)
    scan = save_scan(tmp_path / "scan.h5", x, geometry)
    expected = evaluate_arrays(x, y)
    for reconstruction, reference, argument in [
        (result, tmp_path / "volume.nii.gz", 2),
        (tmp_path / "recon.nii.gz", scan, 2),
        (tmp_path / "recon.nii.gz", tmp_path / "volume.nii.gz", axis),
    ]:
        (volume,) = evaluate_files(reconstruction, reference, axis=argument).volumes
        assert volume.slices == expected.slices and volume.shape == x.shape


def test_files_that_lie_in_different_places_are_not_compared(tmp_path):
    """The reference reoriented by nibabel is the same image in another voxel order: no score instead of a wrong one."""
    x, y = pair((12, 10, 11))
    geometry = Geometry(AFFINE, 2)
    write_nifti(tmp_path / "volume.nii.gz", x, geometry)
    turned = nibabel.as_closest_canonical(nibabel.load(tmp_path / "volume.nii.gz"))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    for result in (save_result(tmp_path / "recon.h5", y, geometry), tmp_path / "volume.nii.gz"):
        with pytest.raises(InputError, match="different places or orientations"):
            evaluate_files(result, tmp_path / "turned.nii.gz")
    shifted = replace(geometry, affine=(*AFFINE[:2], (0.0, 0.0, 2.5, 5.001), AFFINE[3]))  # rounding of a header
    write_nifti(tmp_path / "shifted.nii.gz", x, shifted)
    assert evaluate_files(tmp_path / "recon.h5", tmp_path / "shifted.nii.gz").volumes
    unknown = replace(shifted, affine=((2.0, 0, 0, 0), *AFFINE[1:]), qform_code=0, sform_code=0)
    write_nifti(tmp_path / "unknown.nii.gz", x, unknown)  # says nothing of where it lies
    assert evaluate_files(tmp_path / "recon.h5", tmp_path / "unknown.nii.gz").volumes


def test_directories_of_files(tmp_path):
    for directory in ("recon", "scans"):
        (tmp_path / directory).mkdir()
    expected = []
    for seed in range(3):
        x, y = pair(seed=seed)
        save_result(tmp_path / "recon" / f"s{seed}.h5", y)
        write_nifti(tmp_path / "recon" / f"s{seed}.nii.gz", y, None, force=False)
        save_scan(tmp_path / "scans" / f"s{seed}.h5", x)
        expected.append(evaluate_arrays(x, y).volume.psnr)
    save_scan(tmp_path / "scans" / "other.h5", x)
    result = evaluate_files(tmp_path / "recon", tmp_path / "scans")
    assert [v.volume.psnr for v in result.volumes] == expected
    assert result.mean.psnr == pytest.approx(np.mean(expected)) and result.without_reconstruction == ("other.h5",)


def test_files_that_cannot_be_scored_are_named(tmp_path):
    x, y = pair()
    result, scan = save_result(tmp_path / "r.h5", y), save_scan(tmp_path / "s.h5", x)
    for reconstruction, reference, words in [
        (scan, result, "--reference"),
        (result, save_scan(tmp_path / "bare.h5", None, shape=x.shape), "bare.h5"),
        (result, save_scan(tmp_path / "black.h5", np.zeros_like(x)), "black.h5.*empty"),
        (result, save_scan(tmp_path / "small.h5", x[:2]), "small.h5.*sizes"),
        (save_result(tmp_path / "tiny.h5", y[:, :5, :5]), save_scan(tmp_path / "t.h5", x[:, :5, :5]), "tiny.h5.*7x7"),
        (result, Path(__file__), Path(__file__).name),
    ]:
        with pytest.raises(InputError, match=words) as error:
            evaluate_files(reconstruction, reference)
        assert "\n" not in str(error.value)
    with pytest.raises(NotFoundError):
        evaluate_files(result, tmp_path / "nowhere.h5")


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="needs the open_ms volumes")
def test_a_real_volume_against_itself_with_known_noise(tmp_path):
    from fastmri import evaluate as fastmri

    path = OPEN_MS / "patient04_study1_T1W.nii.gz"
    stored = nibabel.load(path)
    volume = np.asarray(stored.dataobj).astype(np.float32)[:, :, 20:26]
    sigma = 0.02 * volume.max()
    noisy = np.abs(volume + sigma * np.random.default_rng(0).standard_normal(volume.shape)).astype(np.float32)
    for name, array in (("clean.nii.gz", volume), ("noisy.nii.gz", noisy)):
        nibabel.save(nibabel.Nifti1Image(array, stored.affine), tmp_path / name)
    (score,) = evaluate_files(tmp_path / "noisy.nii.gz", tmp_path / "clean.nii.gz").volumes
    x, y = (np.ascontiguousarray(a.transpose(2, 1, 0)) for a in (volume, noisy))
    assert score.volume.nmse == pytest.approx(float(fastmri.nmse(x, y)), rel=1e-6)
    assert score.volume.psnr == pytest.approx(float(fastmri.psnr(x, y)), rel=1e-6)
    assert score.volume.ssim == pytest.approx(float(fastmri.ssim(x, y)[0]), rel=1e-6)
    # |x + n| has an error of variance at most sigma^2: at least 20 log10(1 / 0.02) = 33.98 dB, and little more.
    assert 33.9 < score.volume.psnr < 36


def test_the_table_of_a_split_is_that_of_fastmris_own_evaluation(tmp_path):
    """fastMRI's leaderboard is filled by this function; it filters by the acquisition and acceleration of the target's file."""
    import fastmri.evaluate as fastmri_evaluate

    generator = np.random.default_rng(3)
    (tmp_path / "target").mkdir()
    (tmp_path / "recon").mkdir()
    kinds = [("CORPD_FBK", 4), ("CORPDFS_FBK", 4), ("CORPD_FBK", 8), ("CORPD_FBK", 4)]
    for number, (acquisition, acceleration) in enumerate(kinds):
        reference = generator.random((3, 20, 20)).astype(np.float32) * (number + 1)
        with h5py.File(tmp_path / "target" / f"file{number}.h5", "w") as file:
            file["kspace"] = generator.standard_normal((3, 2, 24, 20)).astype(np.complex64)
            file["reconstruction_rss"] = reference
            file.attrs.update(acquisition=acquisition, acceleration=acceleration)
        with h5py.File(tmp_path / "recon" / f"file{number}.h5", "w") as file:
            file["reconstruction"] = (reference + 0.1 * generator.random((3, 20, 20))).astype(np.float32)
    result = evaluate_files(tmp_path / "recon", tmp_path / "target")
    assert [(name, count) for name, _, count in result.groups] == [
        ("CORPDFS_FBK 4x", 1), ("CORPD_FBK 4x", 2), ("CORPD_FBK 8x", 1)
    ]  # fmt: skip
    found = {name: score for name, score, _ in result.groups} | {None: result.mean}
    for name, score in found.items():
        acquisition, acceleration = name.split() if name else (None, None)
        arguments = argparse.Namespace(
            target_path=tmp_path / "target",
            predictions_path=tmp_path / "recon",
            challenge="multicoil",
            acquisition=acquisition,
            acceleration=int(acceleration[:-1]) if name else None,
        )
        official = fastmri_evaluate.evaluate(arguments, "reconstruction_rss").means()
        assert score.nmse == pytest.approx(official["NMSE"], rel=1e-5)
        assert score.psnr == pytest.approx(official["PSNR"], rel=1e-5)
        assert score.ssim == pytest.approx(official["SSIM"], rel=1e-5)
    assert "mean of CORPD_FBK 8x" in format_table(result)
    assert to_json(result)["directory"]["groups"]["CORPD_FBK 4x"]["volumes"] == 2


def test_a_raw_scan_of_another_format_is_no_reference(tmp_path):
    np.save(tmp_path / "scan.npy", np.ones((2, 8, 8), np.complex64)[:, None])
    with h5py.File(tmp_path / "result.h5", "w") as file:
        file["reconstruction"] = np.ones((2, 8, 8), np.float32)
    with pytest.raises(InputError, match="raw scan .npy., which holds no reference"):
        evaluate_files(tmp_path / "result.h5", tmp_path / "scan.npy")
