"""Classical baselines: against closed forms, explicit matrices, PyWavelets, BART, and conditions of optimality."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import pywt
import torch

import mri_n2n
from mri_n2n import arguments, baselines, cli, inference, reconstruction, regularisation
from mri_n2n.acquisition import Acquisition
from mri_n2n.baselines import TIKHONOV, compressed_sensing, reconstruct_baseline
from mri_n2n.coils import SIDE, with_sensitivity_maps
from mri_n2n.errors import InputError, OptionError
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.masks import MASKS, draw_mask
from mri_n2n.operators import adjoint, forward, root_sum_of_squares
from mri_n2n.penalties import PENALTIES
from mri_n2n.phantom import phantom_kspace
from mri_n2n.regularisation import choose_regularisation, hold_out
from mri_n2n.simulation import SimulationOptions, acquire, full_kspace, simulate_file


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=seeded(seed))


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.conj() * b).real.double().sum().item()


def head(shape: tuple[int, int], seed: int = 3) -> torch.Tensor:
    """A phantom's magnitude (1, y, x), maximum 1."""
    image = ifft2c(phantom_kspace(shape, generator=seeded(seed)))[0].abs()
    return (image / image.max())[None]


def scan(shape=(64, 64), coils=1, kind="gaussian-points", acceleration=3.0, noise=0.0, seed=0) -> Acquisition:
    """One slice with a phase, with maps if there are several coils."""
    full = full_kspace(head(shape), coils=coils, phase=True, generator=seeded(seed + 7))
    found = acquire(full, kind, acceleration, seeded(seed), noise_variance=noise)
    return with_sensitivity_maps(found)[0] if coils > 1 else found


SHAPES = [(32, 32), (33, 47), (64, 70)]


@pytest.mark.parametrize("method", PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_adjoint_and_gram(method, shape):
    penalty, image = PENALTIES[method], normal_numbers(2, 1, *shape)
    values = penalty.analysis(image)
    other = normal_numbers(*values.shape, seed=1)
    assert dot(values, other) == pytest.approx(dot(image, penalty.adjoint(other)), rel=1e-4, abs=1e-2)
    through = ifft2c(penalty.gram(shape) * fft2c(image))
    torch.testing.assert_close(penalty.adjoint(values), through, atol=1e-5, rtol=1e-5)


def test_wavelets_are_the_mean_over_shifts_of_orthonormal_ones():
    """PyWavelets' decimated transform of every shifted image; 64 pixels leave two levels."""
    image = normal_numbers(1, 1, 64, 68)
    norms = []
    for shift in [(y, x) for y in range(4) for x in range(4)]:
        low, *details = pywt.wavedec2(np.roll(image[0, 0].numpy(), shift, (0, 1)), "db2", "periodization", level=2)
        norms.append(np.abs(low).sum() + sum(np.abs(band).sum() for level in details for band in level))
    assert PENALTIES["wavelet"].of(image).item() == pytest.approx(np.mean(norms), rel=1e-5)


def test_total_variation_is_isotropic():
    image = torch.zeros((1, 1, 20, 30), dtype=torch.complex64)
    image[..., 5:10, 5:12] = 2j
    # The differences to the neighbours before: the corner at the start has both, the one after the end neither.
    assert PENALTIES["tv"].of(image).item() == pytest.approx(2 * (2**0.5 + 4 + 6 + 5 + 7), rel=1e-6)


def full_sampling(image: torch.Tensor, method: str, regularisation: float, **options) -> torch.Tensor:
    mask = torch.ones((1, 1, *image.shape[-2:]))
    return compressed_sensing(method, fft2c(image), mask, None, regularisation, **options).image


def test_sampled_fully_total_variation_moves_two_plateaus_together():
    """Plateaus n / 2 wide with two edges each: 1/2 n/2 (a - a0)^2 + 2 L |a - b| per row has a = a0 - 4 L / n."""
    image, n, strength = torch.zeros((1, 1, 12, 40), dtype=torch.complex64), 40, 0.5
    image[..., :20] = 1
    found = full_sampling(image, "tv", strength, tolerance=0.0, iterations=400)
    expected = torch.where(image == 1, 1 - 4 * strength / n, 4 * strength / n)
    torch.testing.assert_close(found, expected.to(found.dtype), atol=2e-4, rtol=0)


def test_sampled_fully_without_room_for_a_level_wavelets_are_soft_thresholding():
    image, strength = normal_numbers(2, 1, 24, 17), 0.4
    found = full_sampling(image, "wavelet", strength, tolerance=0.0, iterations=200)
    size = image.abs()
    torch.testing.assert_close(found, image * (size - strength).clamp_min(0) / size, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", PENALTIES)
@pytest.mark.parametrize("coils, shape", [(1, (32, 32)), (1, (33, 47)), (3, (40, 36))])
def test_the_solution_meets_the_conditions_of_optimality(method, coils, shape):
    """A^H (s - A x) = K^H v with v in L times the subgradients of R at x: |v| <= L weight, and v . K x = L R(x)."""
    one, strength, penalty = scan(shape, coils), 0.02, PENALTIES[method]
    mask, maps = one.mask, one.sensitivity_maps
    found = compressed_sensing(method, one.kspace, mask, maps, strength, tolerance=0.0, iterations=800)
    image, dual = found.image, baselines.STIFFNESS * strength * found.multiplier
    gradient = adjoint(one.kspace - forward(image, mask, maps), mask, maps)
    assert (gradient - penalty.adjoint(dual)).norm() < 5e-3 * gradient.norm()
    sizes, weights = penalty.sizes(dual)
    assert (sizes <= strength * weights * (1 + 1e-4)).all()
    assert dot(dual, penalty.analysis(image)) == pytest.approx(strength * penalty.of(image).item(), rel=5e-3)


@pytest.mark.parametrize("method", PENALTIES)
@pytest.mark.parametrize("coils", [1, 4])
def test_what_is_used_is_as_good_as_converged(method, coils):
    """The stopping rule costs at most 0.1 dB, whatever L is."""
    one, reference = scan((64, 64), coils, kind="gaussian-lines", acceleration=2.5), head((64, 64))[0]
    for strength in (5e-4, 5e-3, 5e-2):
        runs = [
            compressed_sensing(method, one.kspace, one.mask, one.sensitivity_maps, strength, **options).image
            for options in ({}, {"tolerance": 0.0, "iterations": 1000})
        ]
        stopped, converged = (psnr(image[0, 0].abs(), reference) for image in runs)
        assert stopped == pytest.approx(converged, abs=0.1), strength


def psnr(image, reference) -> float:
    image, reference = np.asarray(image), np.asarray(reference)
    return float(10 * np.log10(np.square(reference.max()) / np.mean(np.square(image - reference))))


@pytest.mark.parametrize("coils", [1, 3])
def test_sense_is_the_least_squares_solution_of_the_explicit_matrix(coils):
    one = replace(scan((12, 11), 1, acceleration=2.0), kspace=normal_numbers(1, coils, 12, 11, seed=4))
    maps = None
    if coils > 1:
        maps = normal_numbers(1, coils, 12, 11, seed=5)
        maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    one = replace(one, kspace=one.kspace * one.mask, sensitivity_maps=maps)
    basis = torch.eye(132, dtype=torch.complex64).reshape(132, 1, 12, 11)
    matrix = forward(basis, one.mask, maps).reshape(132, -1).T.to(torch.complex128)
    system = matrix.mH @ matrix + TIKHONOV * torch.eye(132)
    expected = torch.linalg.solve(system, matrix.mH @ one.kspace.flatten().to(torch.complex128))
    found, _ = reconstruct_baseline(one, "sense")
    scale = expected.abs().max()
    torch.testing.assert_close(found.flatten().to(expected.dtype) / scale, expected / scale, atol=5e-3, rtol=0)


def test_zero_filled_is_the_adjoint():
    one = scan((20, 24), 3)
    found, steps = reconstruct_baseline(one, "zero-filled")
    torch.testing.assert_close(found, adjoint(one.kspace, one.mask, one.sensitivity_maps))
    assert steps.tolist() == [0]


# ------------------------------------------------------------------------------------------------------- against BART


def write_cfl(base: Path, array: np.ndarray) -> None:
    """BART's pair NAME.hdr, NAME.cfl: dimensions, then column-major complex64."""
    base.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(base.with_suffix(".cfl"))


def read_cfl(base: Path) -> np.ndarray:
    shape = [int(n) for n in base.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(base.with_suffix(".cfl"), dtype=np.complex64).reshape(shape, order="F").squeeze()


def pics(one: Acquisition, folder, *options: str) -> torch.Tensor:
    """BART's image (1, 1, y, x), with the same maps; A^H s has the maximum 1.

    Along sides of odd length `pics` (0.8.00, not `bart fft`) has its image one pixel further on, and all of it turned by
    one phase; both are undone.
    """
    odd = [n % 2 for n in one.kspace.shape[-2:]]
    maps = torch.ones_like(one.kspace) if one.sensitivity_maps is None else one.sensitivity_maps
    for name, value in (("kspace", one.kspace), ("maps", maps.roll(odd, (-2, -1)))):
        write_cfl(folder / name, value[0].permute(1, 2, 0)[:, :, None].numpy())
    command = ["bart", "pics", "-S", "-w", "1", *options, *(str(folder / name) for name in ("kspace", "maps", "image"))]
    subprocess.run(command, check=True, capture_output=True)
    image = torch.from_numpy(read_cfl(folder / "image").copy())[None, None].roll([-n for n in odd], (-2, -1))
    phase = torch.vdot(image.flatten(), adjoint(one.kspace, one.mask, one.sensitivity_maps).flatten())
    return image * torch.sgn(phase) if any(odd) else image


def objective(method: str, image: torch.Tensor, one: Acquisition, strength: float) -> float:
    wrong = forward(image, one.mask, one.sensitivity_maps) - one.kspace
    return (wrong.abs().square().sum() / 2 + strength * PENALTIES[method].of(image).sum()).item()


BART_CASES = [(1, (64, 64)), (1, (65, 75)), (8, (64, 64)), (8, (65, 75))]


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")
@pytest.mark.parametrize("coils, shape", BART_CASES)
def test_total_variation_is_that_of_bart(coils, shape, tmp_path):
    one, strength, reference = scan(shape, coils, noise=1e-4), 0.01, head(shape)[0]
    one = replace(one, kspace=one.kspace / adjoint(one.kspace, one.mask, one.sensitivity_maps).abs().max())
    found = compressed_sensing("tv", one.kspace, one.mask, one.sensitivity_maps, strength).image
    theirs = pics(one, tmp_path, "-i", "1000", "-u", "0.1", "-R", f"T:3:0:{strength}")
    assert objective("tv", found, one, strength) == pytest.approx(objective("tv", theirs, one, strength), rel=5e-3)
    scale = reference.norm() / theirs.norm()
    a, b = (psnr(scale * image[0, 0].abs(), reference) for image in (found, theirs))
    assert a == pytest.approx(b, abs=0.1) and psnr(found[0, 0].abs(), theirs[0, 0].abs()) > 55


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")
@pytest.mark.parametrize("coils, shape", BART_CASES)
def test_wavelets_are_those_of_bart(coils, shape, tmp_path):
    """BART shifts at random in each of its steps, which leaves it somewhat above the minimum, and so is the agreement."""
    one, strength, reference = scan(shape, coils, noise=1e-4), 0.01, head(shape)[0]
    one = replace(one, kspace=one.kspace / adjoint(one.kspace, one.mask, one.sensitivity_maps).abs().max())
    found = compressed_sensing("wavelet", one.kspace, one.mask, one.sensitivity_maps, strength).image
    theirs = pics(one, tmp_path, "-m", "-u", "5", "-i", "1000", "-R", f"W:3:0:{strength}")
    ours, bart = (objective("wavelet", image, one, strength) for image in (found, theirs))
    assert 0.98 * bart < ours < 1.002 * bart
    scale = reference.norm() / theirs.norm()
    a, b = (psnr(scale * image[0, 0].abs(), reference) for image in (found, theirs))
    assert a == pytest.approx(b, abs=0.25) and psnr(found[0, 0].abs(), theirs[0, 0].abs()) > 45


# ------------------------------------------------------------------------------------------------- slices and scales


@pytest.mark.parametrize("method", baselines.BASELINES)
def test_slices_scale_and_do_not_know_their_neighbours(method, monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLES_AT_ONCE", 2 * 4 * 32 * 40)  # two slices at once
    full = full_kspace(torch.cat([head((32, 40), seed) for seed in range(3)]), coils=4, phase=True, generator=seeded(1))
    kspace = torch.cat((full, torch.zeros_like(full[:1])))
    one, _ = with_sensitivity_maps(acquire(kspace, "gaussian-points", 2.0, seeded(2)))
    strength = 0.01 if method in PENALTIES else None
    images, steps = reconstruct_baseline(one, method, strength)
    assert images.shape == (4, 1, 32, 40) and not images[3].any() and steps[3] == 0
    for index in range(3):
        alone, taken = reconstruct_baseline(one.slices(torch.tensor([index])), method, strength)
        assert taken == steps[index]
        torch.testing.assert_close(alone[0], images[index], atol=1e-5, rtol=1e-4)
    scaled, _ = reconstruct_baseline(replace(one, kspace=1e5j * one.kspace), method, strength)
    torch.testing.assert_close(scaled / 1e5j, images, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("method", baselines.BASELINES)
def test_conjugate_symmetric_samples_give_a_real_image(method):
    kspace = full_kspace(head((32, 36)))
    one = acquire(kspace, "gaussian-points", 3.0, seeded(0), hermitian=True)
    images, _ = reconstruct_baseline(one, method, 0.01 if method in PENALTIES else None)
    assert (images.imag == 0).all() and images.real.any()


def test_a_mask_without_the_centre_gives_finite_images():
    mask = torch.ones((1, 1, 32, 32))
    mask[..., 16, 16] = 0
    one = Acquisition(full_kspace(head((32, 32))) * mask, mask)
    assert torch.isfinite(reconstruct_baseline(one, "tv", 0.01)[0].abs()).all()


# -------------------------------------------------------------------------------------------------------- choice of L


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("shape", [(64, 72), (65, 71)])
def test_what_is_held_out(kind, hermitian, shape):
    mask = draw_mask(kind, shape, 4.0, seeded(1), hermitian=hermitian).mask[None, None]
    for turned in (mask, mask.mT.contiguous()):
        parts, count = hold_out(turned, seeded(0), with_maps=False)
        assert sum(part.int() for part in parts).max() == 1, "each is left out once at most"
        held = parts[-1]
        y, x = turned.shape[-2:]
        assert held.any() and not (held & (turned == 0)).any() and not held[..., y // 2, x // 2].any()
        if hermitian:
            assert torch.equal(held, mirror_axes(held, (-2, -1)))
        if "lines" in kind:
            axis = -2 if turned is mask else -1
            assert torch.equal(held, held.narrow(axis, 0, 1).expand_as(held))
            held, turned = held.narrow(axis, 0, 1), turned.narrow(axis, 0, 1)
        assert count <= held.sum() <= 2 * count if hermitian else count == held.sum()
        assert 0.03 < held.sum() / turned.sum() < 0.17


def test_the_calibration_centre_is_not_held_out():
    mask = torch.ones((1, 1, 64, 64))
    held = torch.stack(hold_out(mask, seeded(0), with_maps=False)[0]).any(dim=0)
    centre = held[..., 32 - SIDE // 2 : 32 + SIDE // 2, 32 - SIDE // 2 : 32 + SIDE // 2]
    assert held.any() and not centre.any()
    mask = torch.zeros((1, 1, 64, 64))
    mask[..., 28:36, 28:36] = 1
    assert hold_out(mask, seeded(0), with_maps=False) == ([], 0)
    with pytest.raises(InputError, match="give --regularisation"):
        choose_regularisation(Acquisition(full_kspace(head((64, 64))) * mask, mask), "tv")
    both = Acquisition(full_kspace(head((64, 64))).expand(2, -1, -1, -1), torch.cat((mask, torch.ones_like(mask))))
    assert choose_regularisation(replace(both, kspace=both.kspace * both.mask), "tv")[1], "the second slice has some"


@pytest.mark.parametrize("block", [(60, 8), (24, 24), (4, 4)])
def test_maps_do_not_see_what_is_held_out(block):
    """Of a long narrow block among random points ESPIRiT takes more than 24 rows; of a small one no window but 24 x 24. The noise is
    said: where it is not, its level alone is of all samples."""
    full = full_kspace(head((64, 64)), coils=3, phase=True, generator=seeded(7))
    mask = (torch.rand((1, 1, 64, 64), generator=seeded(1)) < 0.3).float()
    (high, wide) = block
    mask[..., 32 - high // 2 : 32 + high // 2, 32 - wide // 2 : 32 + wide // 2] = 1
    parts, _ = hold_out(mask, seeded(0), with_maps=True)
    noise = torch.randn(full.shape, dtype=full.dtype, generator=seeded(2))
    maps = [
        with_sensitivity_maps(Acquisition(mask * kspace, mask, noise_variance=1e-6))[0].sensitivity_maps
        for kspace in (full, full + torch.stack(parts).any(dim=0) * noise)
    ]
    assert len(parts) >= 10 and torch.equal(*maps)


@pytest.mark.parametrize("method", PENALTIES)
def test_the_chosen_regularisation_is_near_the_best(method):
    """With noise, which wants much of it, and without; against the image, which the choice does not see."""
    images, chosen = torch.cat([head((96, 96), seed) for seed in (3, 4, 5)]), []
    full = full_kspace(images, phase=True, generator=seeded(7))
    for noise in (0.0, 0.003):
        some = acquire(full, "gaussian-points", 3.0, seeded(0), noise_variance=noise)
        strength, sweep = choose_regularisation(some, method)
        best = min(sweep, key=lambda pair: pair[1])[0]
        assert best / 2**0.5 <= strength <= best * 2**0.5
        quality = {
            each: psnr(reconstruct_baseline(some, method, each)[0][:, 0].abs(), images)
            for each in (strength, *regularisation.GRID[::2])
        }
        assert quality[strength] > max(quality.values()) - 0.5
        chosen.append(strength)
    assert chosen[1] > chosen[0]


def test_the_least_error_lies_between_the_tried_ones():
    """A parabola in log L is found exactly, between grid points and at them; at an end the end is kept."""
    for least in (0.01, 0.016, 0.004):
        tried = [(each, 2.0 * np.exp(0.3 * np.log(each / least) ** 2)) for each in regularisation.GRID]
        assert regularisation._least(tried) == pytest.approx(least, rel=1e-6)
    assert regularisation._least([(each, each) for each in regularisation.GRID]) == regularisation.GRID[-1]


# ------------------------------------------------------------------------------------------ files, arrays, command line


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Three slices, with one coil and with several; and no network may be loaded."""

    def loaded(*_):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(inference, "load_for_use", loaded)
    monkeypatch.setattr(reconstruction, "load_for_use", loaded)
    import nibabel

    images = np.stack([head((32, 36), seed)[0].numpy() for seed in range(3)])
    nibabel.save(nibabel.Nifti1Image(images.T.astype(np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    found = {}
    for name, coils in (("single", 1), ("coils", 4)):
        options = SimulationOptions(acceleration=3, mask="gaussian-points", coils=coils, noise=0.01)
        (found[name],) = simulate_file(tmp_path / "volume.nii.gz", tmp_path / f"{name}.h5", options)
    return found


@pytest.mark.parametrize("method", baselines.BASELINES)
@pytest.mark.parametrize("name", ["single", "coils"])
@pytest.mark.filterwarnings("ignore:.*ESPIRiT")
def test_files(scans, tmp_path, method, name):
    out = tmp_path / "out"
    assert cli.main(["reconstruct", str(scans[name]), "-o", str(out), "--baseline", method, "--quiet"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}{end}" for end in (".h5", ".json", ".nii.gz", ".png")
    ]
    sidecar = json.loads((out / f"{name}.json").read_text())
    said = sidecar["baseline"]
    assert sidecar["weights"] is None and said["name"] == method and "flips" not in sidecar["options"]
    if method in PENALTIES:
        assert said["chosen_on_slices"] == [0, 1, 2] and 0 < said["most_iterations"] <= baselines.ITERATIONS
        best = min(said["sweep"], key=lambda one: one["error"])
        assert best["regularisation"] / 2**0.5 <= said["regularisation"] <= best["regularisation"] * 2**0.5
    with h5py.File(scans[name]) as file:
        kspace, mask = file["kspace"][()], file["mask"][()]
    with h5py.File(out / f"{name}.h5") as file:
        image = file["image"][()]
        assert ("sensitivity_maps" in file) == (name == "coils")
    kspace = kspace if kspace.ndim == 4 else kspace[:, None]
    array = mri_n2n.reconstruct(kspace, mask=mask, baseline=method)
    np.testing.assert_allclose(array, image, rtol=0, atol=2e-3 * np.abs(image).max())


def test_a_given_regularisation_is_used(scans, tmp_path):
    (sidecar,) = mri_n2n.reconstruct(scans["single"], tmp_path / "out", baseline="tv", regularisation=0.02)
    said = sidecar["baseline"]
    assert said["regularisation"] == 0.02 and said["chosen_by"] == "given" and "sweep" not in said


def test_slices_that_do_not_converge_are_told(scans, tmp_path):
    with pytest.warns(UserWarning, match="not converged"):
        (sidecar,) = mri_n2n.reconstruct(scans["coils"], tmp_path / "out", baseline="tv", regularisation=1e-6)
    assert sidecar["warnings"] == [f"tv: 3 of 3 slices not converged in {baselines.ITERATIONS} iterations"]
    assert sidecar["baseline"]["most_iterations"] == baselines.ITERATIONS


@pytest.mark.filterwarnings("ignore:.*ESPIRiT")
def test_few_lines_are_enough_to_choose_by():
    """One slice of several coils, where a tenth of the lines would be one, and the error falls late: the image is within 0.75 dB
    of the best."""
    coils = full_kspace(head((96, 96)), coils=4, phase=True, generator=seeded(7))
    reference = root_sum_of_squares(ifft2c(coils))
    for baseline in PENALTIES:
        some = with_sensitivity_maps(acquire(coils, "gaussian-lines", 6.0, seeded(2)))[0]
        strength, sweep = choose_regularisation(some, baseline)
        assert len(sweep) >= 5
        quality = {
            each: psnr(reconstruct_baseline(some, baseline, each)[0][:, 0].abs(), reference)
            for each in (strength, *regularisation.GRID)
        }
        assert quality[strength] > max(quality.values()) - 0.75


def test_samples_that_are_zero_outside_the_centre_choose_nothing(tmp_path):
    kspace = torch.zeros((32, 32), dtype=torch.complex64)
    kspace[8:24, 8:24] = full_kspace(head((32, 32)))[0, 0, 8:24, 8:24]
    with pytest.raises(InputError, match="give --regularisation"):
        mri_n2n.reconstruct(kspace.numpy(), mask=np.ones((32, 32)), baseline="tv")


def test_an_end_of_the_grid_is_told():
    grid = regularisation.GRID
    for best, said in ((grid[0], "more"), (grid[-1], "less"), (grid[3], None)):
        facts = {"sweep": [{"regularisation": one, "error": 1.0 + (one != best)} for one in grid]}
        told = regularisation.at_an_end(facts)
        assert (said is None and not told) or (said in told[0] and f"{best:g}" in told[0])
    flat = {"regularisation": 0.064, "sweep": [{"regularisation": one, "error": 1.0} for one in grid]}
    assert "do not tell" in regularisation.at_an_end(flat)[0] and "0.064 was taken" in regularisation.at_an_end(flat)[0]
    assert regularisation.at_an_end({"regularisation": 0.1, "chosen_by": "given"}) == []


@pytest.mark.parametrize(
    "options, said",
    [
        (["--baseline", "tv", "--weights", "w.safetensors"], "--weights"),
        (["--baseline", "tv", "--no-flips"], "--no-flips"),
        (["--baseline", "sense", "--regularisation", "0.1"], "tv or wavelet"),
        (["--regularisation", "0.1"], "tv or wavelet"),
        *[(["--baseline", "tv", "--regularisation", value], "between") for value in ("0", "-1", "nan", "inf")],
        (["--baseline", "none"], "none"),
    ],
)
def test_options_that_do_not_go_together(scans, tmp_path, capsys, options, said):
    try:
        code = cli.main(["reconstruct", str(scans["single"]), "-o", str(tmp_path / "out"), *options])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr().err
    assert code == 2 and said in captured and captured.count("\n") == 1 and not (tmp_path / "out").exists()


def test_arrays_have_the_same_options():
    kspace = np.ones((8, 8), dtype=np.complex64)
    for options in (
        {"baseline": "none"},
        {"baseline": "tv", "regularisation": 0.0},
        {"baseline": "tv", "weights": "w"},
    ):
        with pytest.raises(OptionError):
            mri_n2n.reconstruct(kspace, **options)


def test_the_command_line_knows_the_baselines():
    assert arguments.BASELINES == baselines.BASELINES
    code = "import sys; from mri_n2n import cli\ntry: cli.main(['reconstruct', '--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("strength", ["1e30", "1e-30", "0", "nan", "11"])
def test_absurd_regularisations_are_refused(strength, tmp_path, capsys):
    from mri_n2n.cli import main

    assert main(["reconstruct", str(tmp_path / "s.h5"), "--baseline", "tv", "--regularisation", strength]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "between 1e-06 and 10" in said
