"""Pictures: upright, on the stated window, readable as PNG, right for real volumes in any storage order."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mri_n2n.acquisition import Geometry
from mri_n2n.report import _ticks, comparison_figure, describe_view, line_plot, montage, orient_for_display

OPEN_MS = Path(__file__).resolve().parents[2] / "shared" / "data" / "open_ms"


def geometry_of(affine, slice_axis=2, **codes) -> Geometry:
    return Geometry(tuple(tuple(float(v) for v in row) for row in affine), slice_axis, **codes)


def diagonal(x: float, y: float, z: float, slice_axis: int = 2, **codes) -> Geometry:
    return geometry_of(np.diag([x, y, z, 1.0]), slice_axis, **codes)


def slices_of(volume: np.ndarray, axis: int) -> np.ndarray:
    """(slice, y, x) with the higher remaining axis as y, as the package reads volumes."""
    return np.moveaxis(volume, axis, 0).swapaxes(1, 2)


# An asymmetric slice (y, x): the values name the corners.
CORNERS = np.array([[1, 2, 0], [3, 4, 5]])


def test_no_geometry_leaves_the_slice_alone():
    assert np.array_equal(orient_for_display(CORNERS, None), CORNERS)
    assert np.array_equal(orient_for_display(CORNERS, diagonal(1, 1, 1, qform_code=0, sform_code=0)), CORNERS)
    assert describe_view(None) == ""


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ((-1, -1), CORNERS),  # LP: already radiological
        ((1, -1), CORNERS[:, ::-1]),
        ((-1, 1), CORNERS[::-1]),
        ((1, 1), CORNERS[::-1, ::-1]),  # RA: both point the wrong way
    ],
)
def test_axial_slices_are_flipped_to_the_radiological_view(signs, expected):
    geometry = diagonal(*signs, 1)
    assert np.array_equal(orient_for_display(CORNERS, geometry), expected)
    assert describe_view(geometry) == "anterior at the top, patient's right at the left"


def test_every_storage_order_of_a_volume_gives_the_same_pictures():
    """One patient stored in all 48 axis orders and directions: axial, coronal and sagittal views must not differ."""
    volume = np.random.default_rng(0).random((5, 6, 7))
    canonical = nibabel.Nifti1Image(volume, np.diag([1, 1.2, 3, 1.0]))  # RAS+
    # Written down independently of the code: right at the left, anterior or superior at the top.
    expected = {
        "S": volume[::-1, ::-1, 2].T,
        "A": volume[::-1, 2, ::-1].T,
        "R": volume[2, ::-1, ::-1].T,
    }
    letters = [("R", "L"), ("A", "P"), ("S", "I")]
    start = nibabel.io_orientation(canonical.affine)
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
        for flips in np.ndindex(2, 2, 2):
            codes = tuple(letters[axis][flip] for axis, flip in zip(order, flips, strict=True))
            target = nibabel.orientations.axcodes2ornt(codes)
            stored = canonical.as_reoriented(nibabel.orientations.ornt_transform(start, target))
            for axis, code in enumerate(codes):
                geometry = geometry_of(stored.affine, axis)
                index = 2 if code in "RAS" else stored.shape[axis] - 1 - 2
                slice2d = slices_of(stored.get_fdata(), axis)[index]
                key = {"L": "R", "P": "A", "I": "S"}.get(code, code)
                assert np.array_equal(orient_for_display(slice2d, geometry), expected[key]), (codes, axis)


def test_describe_view_of_a_sagittal_slice():
    assert describe_view(diagonal(1, 1, 1, slice_axis=0)) == "superior at the top, anterior at the left"


def test_montage_maps_the_window_to_grey(tmp_path):
    image = np.repeat(np.linspace(-1, 3, 320)[None], 320, axis=0)
    montage([("ramp", image, (0.0, 2.0))], tmp_path / "temporary-name")
    with Image.open(tmp_path / "temporary-name") as picture:
        assert picture.format == "PNG"
        row = np.asarray(picture)[28 + 12 + 160, :, 0]
    shown = row[(picture.width - 320) // 2 :][:320].astype(float)
    np.testing.assert_allclose(shown, 255 * np.clip(image[0] / 2, 0, 1), atol=0.51)


def test_montage_shows_values_that_are_not_finite(tmp_path):
    image = np.zeros((320, 320))
    image[:100] = np.nan
    montage([("nan", image, (0.0, 0.0))], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert (pixels == (255, 0, 255)).all(axis=2).sum() == 100 * 320


def test_montage_lays_out_rows(tmp_path):
    panel = ("a", np.ones((64, 64)), (0, 1))
    montage([panel] * 3, tmp_path / "row.png")
    montage([panel] * 3, tmp_path / "column.png", columns=1)
    row, column = Image.open(tmp_path / "row.png"), Image.open(tmp_path / "column.png")
    assert row.width > 2.5 * column.width > 2.5 * 320 and column.height > 2.5 * 320 > row.height / 2


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((0, 4))])
def test_montage_refuses_what_is_no_image(tmp_path, image):
    with pytest.raises(ValueError, match="axes"):
        montage([("x", image, (0, 1))], tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one"):
        montage([], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def _panels_of(path: Path, count: int, size: int) -> list[np.ndarray]:
    """The grey images of a one-row figure of `count` square panels."""
    pixels = np.asarray(Image.open(path))
    cell = (pixels.shape[1] - 12) // count
    lefts = [12 + i * cell + (cell - 12) // 2 - size // 2 for i in range(count)]
    return [pixels[40 : 40 + size, left : left + size, 0] for left in lefts]


def test_comparison_figure_shows_five_times_the_error(tmp_path):
    rng = np.random.default_rng(1)
    reference = rng.uniform(0.2, 1, (320, 320))
    reconstruction = reference + rng.uniform(-0.1, 0.1, reference.shape)
    comparison_figure(reference, 0.5 * reference, reconstruction, tmp_path / "a.png")
    shown = _panels_of(tmp_path / "a.png", 4, 320)
    high = np.percentile(reference, 99.8)
    for picture, values in zip(
        shown, [reference, 0.5 * reference, reconstruction, 5 * abs(reconstruction - reference)], strict=True
    ):
        np.testing.assert_allclose(picture, 255 * np.clip(values / high, 0, 1), atol=0.51)


def test_comparison_figure_flips_by_geometry(tmp_path):
    image = np.zeros((320, 320))
    image[:40, :40] = 1  # the y = 0, x = 0 corner: posterior left of the patient's volume in RAS+
    comparison_figure(None, image, image, tmp_path / "a.png", diagonal(1, 1, 1))
    for picture in _panels_of(tmp_path / "a.png", 2, 320):
        assert picture[-40:, -40:].min() == 255 and picture.sum() == 255 * 1600


def test_comparison_figure_keeps_the_proportions_of_pixels_that_are_not_square(tmp_path):
    comparison_figure(None, np.ones((40, 320)), np.ones((40, 320)), tmp_path / "a.png", diagonal(1, 1, 4, slice_axis=1))
    bright = (np.asarray(Image.open(tmp_path / "a.png")) == 255).all(axis=2)
    assert bright[:, 60:260].sum(axis=0).max() >= 160  # 40 rows of 4 mm on 1 mm columns


@pytest.mark.parametrize("reference", [None, np.zeros((9, 11)), np.full((9, 11), np.nan)])
def test_comparison_figure_of_degenerate_images(tmp_path, reference):
    comparison_figure(reference, np.zeros((9, 11), np.complex64), np.zeros((9, 11)), tmp_path / "a.png", note="x" * 200)
    assert Image.open(tmp_path / "a.png").width > 500


def test_comparison_figure_refuses_different_shapes(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        comparison_figure(np.zeros((9, 9)), np.zeros((9, 9)), np.zeros((9, 8)), tmp_path / "a.png")


def test_line_plot_draws_every_series_and_gaps(tmp_path):
    x = np.arange(100.0)
    gap = np.where((x > 40) & (x < 60), np.nan, 1.0)
    line_plot({"flat": (x, gap), "dot": (50, 0.0)}, tmp_path / "a.png", "step", "PSNR (dB)")
    pixels = np.asarray(Image.open(tmp_path / "a.png")).astype(int)[44:434, 85:755]
    blue = np.abs(pixels - (0, 114, 178)).sum(axis=2) < 60
    orange = np.abs(pixels - (213, 94, 0)).sum(axis=2) < 60
    drawn = blue.any(axis=0)
    assert 0.7 < drawn.mean() < 0.85 and not drawn[300:370].any()  # the gap is a gap
    assert blue.any(axis=1).nonzero()[0].max() < 60 and orange.any(axis=1).nonzero()[0].min() > 330  # 1 above 0


def test_a_band_surrounds_its_curve_and_reaches_the_edge_where_it_has_no_end(tmp_path):
    x = np.arange(100.0)
    high = np.where(x < 50, 2.0, np.inf)
    line_plot(
        {"a": (x, np.full(100, 1.0))}, tmp_path / "a.png", "step", "PSNR (dB)", bands={"a": (np.zeros(100), high)}
    )
    pixels = np.asarray(Image.open(tmp_path / "a.png")).astype(int)[44:434, 85:755]
    band = np.abs(pixels - (191, 220, 236)).sum(axis=2) < 40
    assert band[200:360, 100:600].mean() > 0.9  # below the curve, between 0 and 1
    assert band[:12, 400:600].mean() > 0.7 and not band[:12, 50:300].any()


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([1], [np.nan])}, {"a": ([1, 2], [1])}])
def test_line_plot_refuses_nothing(tmp_path, series):
    with pytest.raises(ValueError):
        line_plot(series, tmp_path / "a.png", "x", "y")
    assert not (tmp_path / "a.png").exists()


def test_line_plot_of_one_constant_point(tmp_path):
    for value in (0.0, 1e-9, -3.0, 1e12):
        line_plot({"a": (value, value)}, tmp_path / "a.png", "x", "y")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 1e5), (29.9, 30.05), (1e-9, 3e-9), (-2e7, 2e7)])
def test_ticks_are_round_inside_and_distinct(low, high):
    values, labels = zip(*_ticks(low, high), strict=True)
    assert 3 <= len(values) <= 9 and len(set(labels)) == len(labels)
    assert low - 1e-12 <= min(values) and max(values) <= high + 1e-12
    np.testing.assert_allclose([float(label) for label in labels], values, rtol=6e-3)


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="needs the open_ms volumes")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_real_volumes_stand_upright_however_they_are_stored(tmp_path, axis):
    """A real head: reorienting the file must not change its picture, and in an axial slice the face is at the top."""
    original = nibabel.load(OPEN_MS / "patient04_study1_T1W.nii.gz")
    assert nibabel.aff2axcodes(original.affine) == ("L", "P", "S")
    canonical = nibabel.as_closest_canonical(original)
    index = original.shape[axis] // 2
    mirrored = index if axis == 2 else original.shape[axis] - 1 - index  # L and P run against R and A; S does not
    pictures = []
    for image, k in ((original, index), (canonical, mirrored)):
        slice2d = slices_of(np.asarray(image.dataobj), axis)[k].astype(np.float32)
        comparison_figure(None, slice2d, slice2d, tmp_path / "a.png", geometry_of(image.affine, axis))
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")))
    assert np.array_equal(*pictures)
