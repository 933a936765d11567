"""Corruptions are what they say, and each loss estimates what it is for."""

import json

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import moved_pair, training_batches
from mri_n2n.choices import CORRUPTIONS as NAMES
from mri_n2n.cli import main
from mri_n2n.corruptions import BROWN_DEVIATION, CORRUPTIONS, corrupted_kspace, corrupted_pair
from mri_n2n.errors import OptionError
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.losses import LOSSES
from mri_n2n.pairs import Pair
from mri_n2n.protocol import Protocol
from mri_n2n.sources import Source
from mri_n2n.volumes import load_phantom


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def full() -> torch.Tensor:
    """Of a magnitude image: the phantom's Fourier series is a little below zero here and there."""
    return fft2c(ifft2c(load_phantom("head", 1, 65, None)).real.clamp_min(0).to(torch.complex64))


def many(kind: str, full: torch.Tensor, strength: float, count: int) -> torch.Tensor:
    generator = draw()
    return torch.cat([ifft2c(corrupted_kspace(full, kind, (strength, strength), generator)) for _ in range(count)])


def test_the_command_line_names_them_all():
    assert NAMES == tuple(CORRUPTIONS)


@pytest.mark.parametrize("kind, strength", [("gaussian", 0.1), ("brown", 1.5), ("poisson", 30.0)])
def test_mean_and_variance_of_zero_mean_noise(full, kind, strength):
    image, count = ifft2c(full), 400
    found = many(kind, full, strength, count)
    error = found.mean(dim=0) - image[0]
    variance = (found - image).abs().square().mean(dim=0)
    expected = {"gaussian": strength**2, "brown": BROWN_DEVIATION**2}.get(kind)
    if expected is None:
        expected = image.real.clamp_min(0).mean().item() / strength  # of counts: |x| / peak
    assert error.abs().square().mean() < 3 * expected / count, "unbiased"
    assert variance.mean().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("width", [0.7, 1.5, 3.0])
def test_brown_noise_has_the_correlation_of_its_blur(full, width):
    """A Gaussian blur of width w leaves exp(-d^2 / (4 w^2)) at distance d."""
    noise = many("brown", full, width, 200) - ifft2c(full)
    for lag in (1, 2):
        product = (noise[..., lag:] * noise[..., :-lag].conj()).real.mean() / noise.abs().square().mean()
        assert product.item() == pytest.approx(np.exp(-(lag**2) / (4 * width**2)), abs=0.03)


def test_magnitudes_are_biased_and_their_squares_are_not(full):
    image, v = ifft2c(full).real.clamp_min(0), 0.1**2
    m = many("rician", full, 0.1, 400).real
    assert (m.mean(dim=0) - image[0])[image[0] < 0.01].mean() > 0.08, "the floor"
    generator = draw()
    targets = torch.cat(
        [
            corrupted_pair(full, "rician-corrected", (0.1, 0.1), (generator, generator), clean=False).target
            for _ in range(400)
        ]
    )
    bias = targets.real.mean(dim=0) - image[0].square()
    assert abs(bias.mean()) < 4 * ((v**2 + 2 * image.square().mean() * v) / 400 / bias.numel()) ** 0.5


def test_bernoulli_loses_pixels_and_targets_count_where_they_are_kept(full):
    pair = corrupted_pair(full, "bernoulli", (0.4, 0.4), (draw(0), draw(1)), clean=False)
    assert pair.weight.mean().item() == pytest.approx(0.6, abs=0.03)
    given = ifft2c(pair.input.kspace)
    image = ifft2c(full)
    inside = image.abs() > 0.1
    lost = (given.abs() < 1e-5)[inside].float().mean().item()
    assert lost == pytest.approx(0.4, abs=0.05)
    assert torch.allclose(pair.target[pair.weight > 0], image[pair.weight > 0], atol=1e-6)
    kept = given.abs() > 1e-4
    assert not torch.equal(kept & inside, (pair.weight > 0) & inside), "the two are independent"


@pytest.mark.parametrize("kind", ["text", "impulse"])
def test_share_of_pixels_that_are_covered(full, kind):
    for share in (0.1, 0.5):
        changed = (many(kind, full, share, 20) - ifft2c(full)).abs() > 0.02
        found = changed.float().mean().item()
        assert -0.03 < found - share < (0.2 if kind == "text" else 0.03), "text until it covers as much"
    assert torch.allclose(ifft2c(corrupted_kspace(full, kind, (0, 0), draw())), ifft2c(full), atol=1e-5)


def test_spikes_are_rare_in_kspace_and_everywhere_in_the_image(full):
    spiked = corrupted_kspace(full, "spikes", (0.01, 0.01), draw())
    hit = (spiked - full).abs() > 1e-3 * full.abs().max()
    assert 0.003 < hit.float().mean() < 0.04
    assert ((ifft2c(spiked) - ifft2c(full)).abs() > 1e-3).float().mean() > 0.9
    pair = corrupted_pair(full, "spikes", None, (draw(0), draw(1)), clean=False)
    assert pair.domain == "kspace" and pair.loss == "l2"


def test_the_mean_of_spiked_samples_is_the_share_of_the_clean_one_that_is_left(full):
    """Why spikes are for L2: a sample is lost with probability 1 - (1 - p)(1 - p / 10), and what is in its place has mean zero."""
    small, share, generator, count = torch.zeros(1, 1, 9, 9, dtype=full.dtype), 0.2, draw(), 4000
    small[..., 4, 4] = 1
    small = fft2c(small + 0.2)
    mean = sum(CORRUPTIONS["spikes"].make(ifft2c(small), share, generator).target for _ in range(count)) / count
    left = (1 - share) * (1 - share / 10)
    largest = small.abs().max()
    error = (mean - left * small).abs().square().mean().sqrt()
    assert error < 2 * (0.3 * largest * 0.2**0.5 + 0.4 * small.abs().square().mean().sqrt()) / count**0.5
    assert (mean - small).abs().square().mean().sqrt() > 5 * error, "and not the clean sample itself"


@pytest.mark.parametrize("kind", [kind for kind, one in CORRUPTIONS.items() if one.real])
def test_corruptions_of_magnitudes_refuse_complex_images(kind):
    with pytest.raises(OptionError, match="magnitude"):
        corrupted_kspace(load_phantom("a", 1, 32, 1), kind, None, draw())


@pytest.mark.parametrize("kind", ["gaussian", "text"])
def test_several_coils_are_refused(kind):
    with pytest.raises(OptionError, match="one coil"):
        corrupted_kspace(load_phantom("a", 1, 32, 3), kind, None, draw())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_pairs_move_as_one(full, kind):
    pair = corrupted_pair(full, kind, None, (draw(0), draw(1)), clean=False)
    moved = moved_pair(pair, (5, -9), (-1,))
    turned = lambda image: mirror_axes(image.roll((5, -9), (-2, -1)), (-1,))  # noqa: E731
    assert torch.allclose(ifft2c(moved.input.kspace), turned(ifft2c(pair.input.kspace)), atol=2e-6)
    image = (lambda target: target) if pair.domain == "image" else ifft2c
    assert torch.allclose(image(moved.target), turned(image(pair.target)), atol=2e-6)


# ---- what each loss estimates: a constant, fitted to samples of a skewed distribution ----


def fitted_constant(loss: str, samples: torch.Tensor, progress: float = 0.0) -> float:
    """The constant between 0 and 1 with the least loss over samples, as images of one row."""
    target = samples.reshape(1, 1, 1, -1).to(torch.complex64)
    pair = Pair(Acquisition(target, torch.ones(target.shape)), target, torch.ones(target.shape), "image", loss=loss)
    grid = torch.linspace(0, 1, 1001)
    losses = [LOSSES[loss](value.to(torch.complex64).expand(target.shape), pair, progress).item() for value in grid]
    return grid[int(np.argmin(losses))].item()


def test_l2_estimates_the_mean():
    samples = -0.5 * torch.rand(4000, generator=draw()).log()
    assert fitted_constant("l2", samples) == pytest.approx(samples.mean().item(), abs=0.01)


def test_l1_estimates_the_median():
    samples = -0.5 * torch.rand(4000, generator=draw()).log()
    assert fitted_constant("l1", samples) == pytest.approx(samples.median().item(), abs=0.02)
    assert abs(samples.mean() - samples.median()) > 0.12, "which is not the mean"


def test_annealed_l0_estimates_the_atom():
    """The atom holds 0.3 of the samples, so that it is neither mean nor median."""
    generator = draw()
    uniform = torch.rand(4000, generator=generator)
    samples = torch.where(torch.rand(4000, generator=generator) < 0.3, torch.tensor(0.2), uniform)
    assert fitted_constant("l0", samples, progress=0.95) == pytest.approx(0.2, abs=0.002)
    assert fitted_constant("l0", samples, progress=0.0) == pytest.approx(samples.mean().item(), abs=0.002), (
        "it begins as L2"
    )
    assert fitted_constant("l0", samples, progress=0.5) == pytest.approx(samples.median().item(), abs=0.01), (
        "and passes L1"
    )
    assert samples.mean() > 0.38 and samples.median() > 0.27, "neither of which is the atom"


def test_squares_estimate_the_signal_under_magnitudes():
    noise = torch.randn(20000, dtype=torch.complex64, generator=draw())
    squares = (0.8 + 0.5 * noise).abs().square() - 0.25
    assert fitted_constant("l2-of-squares", squares) == pytest.approx(0.8, abs=0.02)


# ---- training and simulation ----


def batches(kind: str, full: torch.Tensor, epochs: int, **changes) -> list[Pair]:
    protocol = Protocol(corrupt=kind, acceleration=(1.0, 1.0), translation=0, flips=False, **changes)
    source = Source("one", "one", 1, lambda: full, True)
    stream = training_batches([source], protocol, 1)
    return [next(stream)[0] for _ in range(epochs)]


def test_fixed_pairs_are_two_images_for_ever_and_redrawn_ones_are_not(full):
    inputs = {one.input.kspace.numpy().tobytes() for one in batches("gaussian", full, 8)}
    assert len(inputs) == 2, "the two, in either role"
    inputs = {one.input.kspace.numpy().tobytes() for one in batches("gaussian", full, 8, pairs="redrawn")}
    assert len(inputs) == 8
    clean = batches("gaussian", full, 2, method="supervised")
    assert all(torch.allclose(one.target, ifft2c(full), atol=1e-6) and one.loss == "l2" for one in clean)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_trains_from_the_command_line(kind, tmp_path):
    command = ["train", "--dataset", "phantom", "--corrupt", kind, "--matrix-size", "32", "--channels", "4"]
    assert main([*command, "--steps", "2", "-o", str(tmp_path / "run"), "--quiet"]) == 0
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert header["protocol"]["corrupt"] == kind and header["network"] == "denoiser"
    again = [*command, "--steps", "1", "-o", str(tmp_path / "again"), "--quiet", "--init", str(tmp_path / "run")]
    assert main(again) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, floor", [("gaussian", "left"), ("rician-corrected", "lowered, by the weights")])
def test_weights_against_a_corruption_are_no_blind_spot(kind, floor, tmp_path, capsys):
    """They see the pixel itself: its value is not put back, and the level of the noise is of no use to them."""
    command = ["train", "--dataset", "phantom", "--corrupt", kind, "--matrix-size", "32", "--channels", "4"]
    assert main([*command, "--steps", "2", "-o", str(tmp_path / "run"), "--quiet"]) == 0
    rng = np.random.default_rng(0)
    images = np.abs(1 + 0.1 * (rng.standard_normal((2, 48, 40)) + 1j * rng.standard_normal((2, 48, 40))))
    for name, values in (("magnitude", images), ("complex", images * np.exp(1j))):
        np.save(tmp_path / f"{name}.npy", fft2c(torch.from_numpy(values.astype(np.complex64))).numpy()[:, None])
    denoise = ["denoise", "--weights", str(tmp_path / "run"), "--json"]
    capsys.readouterr()
    assert main([*denoise, str(tmp_path / "magnitude.npy"), "-o", str(tmp_path / "o")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["denoise"]["own_pixels"] is None and told["denoise"]["rician_floor"] == floor
    assert any(f"trained to take away {kind}" in warning for warning in told["warnings"])
    assert not any(
        "blind spot" in warning or "--noise S" in warning and "detail" in warning for warning in told["warnings"]
    )
    assert main([*denoise, str(tmp_path / "complex.npy"), "-o", str(tmp_path / "p"), "--noise", "0.1"]) == 2
    assert "--noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, says",
    [
        (["--corrupt", "text", "--strength", "2"], "between 0 and 0.75"),
        (["--corrupt", "text", "--strength", "0.3:0.1"], "rising"),
        (["--corrupt", "text", "--strength", "x"], "--strength"),
        (["--corrupt", "text", "--noise", "0.1"], "--noise"),
        (["--corrupt", "text", "--mask", "roulette"], "--mask"),
        (["--corrupt", "text", "--method", "ssdu"], "noise2noise or supervised"),
        (["--corrupt", "text", "--network", "unrolled"], "denoiser"),
        (["--corrupt", "text", "--acceleration", "4"], "--acceleration 1"),
        (["--strength", "0.1"], "--corrupt"),
        (["--corrupt", "spikes", "--loss", "l2-of-squares"], "squares"),
        (["--corrupt", "rician-corrected", "--loss", "l2"], "squares"),
        (["--corrupt", "text", "--weight-cap", "3"], "--weight-cap"),
        (["--method", "noise2void", "--mask", "roulette"], "--mask"),
        (["--method", "ssdu", "--acceleration", "1"], "nothing to learn"),
        (["--loss", "l1"], "--corrupt"),
        (["--corrupt", "text", "--loss", "log-l2"], "--corrupt"),
        (["--method", "equivariant", "--loss", "log-l2"], "not of equivariant"),
        (["--method", "noise2noise-2018", "--loss", "log-l2"], "not of noise2noise-2018"),
        (["--body", "red30"], "denoiser"),
        (["--method", "noise2void", "--hidden-share", "0.5"], "--hidden-share"),
        (["--method", "noise2noise", "--hidden-share", "0.1"], "noise2void"),
    ],
)
def test_bad_options_of_training_end_in_one_line(options, says, tmp_path, capsys):
    assert main(["train", "--dataset", "phantom", "--steps", "1", "-o", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error and not (tmp_path / "run").exists()


def test_simulate_corrupts_repetitions_independently(tmp_path, capsys):
    volume = tmp_path / "v.nii.gz"
    images = 300 * ifft2c(load_phantom("v", 3, 40, None))[:, 0].real.clamp_min(0).numpy()
    nibabel.save(nibabel.Nifti1Image(images.transpose(2, 1, 0), np.eye(4)), volume)
    command = ["simulate", str(volume), "-o", str(tmp_path / "s.h5"), "--corrupt", "impulse", "--strength", "0.3"]
    assert main([*command, "--repetitions", "2"]) == 0
    found = []
    for repetition in (1, 2):
        with h5py.File(tmp_path / f"s_rep{repetition}.h5") as file:
            found.append(ifft2c(torch.from_numpy(file["kspace"][()])).real.numpy().reshape(images.shape))
            assert file.attrs["corruption"] == "impulse" and file.attrs["simulated"] and "mask_kind" not in file.attrs
            assert "noise_variance" not in file.attrs and file.attrs["strength"] == "0.3:0.3"
    hit = [np.abs(one - images) > 0.02 * images.max() for one in found]
    assert [h.mean() for h in hit] == pytest.approx([0.3, 0.3], abs=0.04)
    assert (hit[0] & hit[1]).mean() == pytest.approx(0.09, abs=0.03), "as independent ones meet"
    assert found[0].max() == pytest.approx(images.max(), rel=0.05), "in the volume's units"
    capsys.readouterr()
    for more in (["--coils", "2"], ["--noise", "0.1"], ["--acceleration", "2"], ["--mask", "roulette"]):
        assert main([*command, *more, "--force"]) == 2
        assert "--corrupt" in capsys.readouterr().err
