"""Which method fits the data, every method from the command line, and how training's acquisitions are simulated."""

import json
import math
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mri_n2n import cli
from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import _example, training_batches
from mri_n2n.checkpoint import load_tensors
from mri_n2n.choice import choose_method
from mri_n2n.choices import METHODS
from mri_n2n.datasets import find_sources
from mri_n2n.errors import UserError
from mri_n2n.fourier import ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.options import TrainOptions, check_options
from mri_n2n.pairs import SINGLE_SCAN_METHODS, PairOptions
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol, design, simulated_coils, simulated_repetitions
from mri_n2n.simulation import seeded
from mri_n2n.sources import Source

KINDS = ("repetitions", "masks", "one mask", "noisy masks", "noisy mask", "coils")
CHOSEN = {
    "repetitions": "noise2noise", "masks": "k-weighted-ssdu", "one mask": "equivariant", "noisy masks": "robust-ssdu",
    "noisy mask": "robust-equivariant", "coils": "k-weighted-ssdu",
}  # fmt: skip

# Noise2Void, of fully sampled scans, is in test_denoising.py.
UNDERSAMPLED = [method for method in SINGLE_SCAN_METHODS if method != "noise2void"]


def volume(path: Path, seed: int) -> Path:
    images = [ifft2c(phantom_kspace((32, 28), generator=seeded(seed, i)))[0].abs().numpy() for i in range(2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.stack(images, axis=-1).transpose(1, 0, 2) * 900, np.diag([2, 2, 3, 1])), path)
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """A folder of three scans for each of KINDS, written by `mri-n2n simulate`. Masks follow from the volume's name."""
    root = tmp_path_factory.mktemp("studies")
    for kind in KINDS:
        for number, subject in enumerate(("ann", "bob", "eve")):
            name = "volume.nii.gz" if kind in ("one mask", "noisy mask") else f"{subject}.nii.gz"
            source = volume(root / "volumes" / kind / str(number) / name, number)
            (root / kind).mkdir(exist_ok=True)
            command = ["simulate", source, "-o", root / kind / f"{subject}.h5", "--acceleration", "3"]
            command += ["--repetitions", "2", "--noise", "0.1"] if kind == "repetitions" else []
            command += ["--noise", "0.1"] if kind.startswith("noisy") else ["--coils", "3"] if kind == "coils" else []
            assert cli.main([*map(str, command), "--quiet"]) == 0
    return root


def dataset_of(kind: str) -> str:
    return "pairs" if kind == "repetitions" else "scans"


@pytest.mark.parametrize("kind", KINDS)
def test_the_method_follows_from_the_scans(kind, studies):
    sources = find_sources(dataset_of(kind), studies / kind)
    method, why = choose_method(dataset_of(kind), sources.train, Protocol())
    assert method == CHOSEN[kind]
    said = {
        "repetitions": ["repetitions", "one coil"], "masks": ["different masks", "little noise", "one coil"],
        "one mask": ["one mask in all of the", "little noise"], "noisy masks": ["different masks", "noise of"],
        "noisy mask": ["one mask in all of the", "noise of"], "coils": ["3 coils", "different masks"],
    }[kind]  # fmt: skip
    assert all(words in why for words in said), why


def test_the_method_follows_from_what_is_simulated():
    chosen = lambda **changes: choose_method("nifti", [], Protocol(**changes))[0]  # noqa: E731
    assert chosen() == chosen(noise=(0.1, 0.2)) == "noise2noise"
    assert chosen(acquisitions=1) == "k-weighted-ssdu" and chosen(acquisitions=1, one_mask=True) == "equivariant"
    assert chosen(acquisitions=1, noise=(0.0, 0.1)) == "robust-ssdu"
    assert chosen(acquisitions=1, one_mask=True, noise=(0.1, 0.1)) == "robust-equivariant"


def test_the_level_of_the_noise_that_decides_is_the_stored_one_or_what_the_samples_say(studies):
    (source,) = find_sources("scans", studies / "noisy masks").train[:1]
    stored = source.load()[0]
    unknown = replace(stored, noise_variance=None)
    for scan in (stored, unknown):
        only = [Source("a", "a", 2, lambda scan=scan: (scan,))]
        method, why = choose_method("scans", only, Protocol())
        assert method == "robust-equivariant"  # one scan has one mask
        share = float(why.split("noise of ")[1].split("%")[0]) / 100
        peak = ifft2c(stored.kspace[1:2]).abs().max().item()
        known = math.sqrt(stored.noise_variance) / peak
        if scan is stored:
            assert share == pytest.approx(known, rel=0.01)
        else:  # at most: what signal a small phantom has so far out is in it too
            assert 0.8 * known < share < 3 * known


TRAIN = ["--steps", "2", "--batch-size", "2", "--channels", "8", "--device", "cpu", "--precision", "float32"]


def trained(arguments: list, output: Path, capsys, monkeypatch) -> tuple[dict, str]:
    """Header of the weights, and what was said on stderr."""
    monkeypatch.setattr(import_module("mri_n2n.validation"), "VALIDATION_SLICES", 2)
    capsys.readouterr()
    assert cli.main([str(a) for a in ("train", *TRAIN, *arguments, "-o", output)]) == 0, capsys.readouterr().err
    header = load_tensors(output / "weights.safetensors")[1]
    line = json.loads((output / "log.jsonl").read_text().splitlines()[-1])
    quality = line.get("psnr", line.get("validation_loss"))
    assert header["step"] == 2 and np.isfinite(line["loss"]) and np.isfinite(quality)
    return header, capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:calibration region too small")
def test_auto_says_what_it_chose_and_trains(kind, studies, tmp_path, capsys, monkeypatch):
    given = ["--dataset", dataset_of(kind), "--data", studies / kind, "--cascades", "1"]
    header, said = trained(given, tmp_path / "run", capsys, monkeypatch)
    (line,) = [line for line in said.splitlines() if line.startswith("method:")]
    assert line.startswith(f"method: {CHOSEN[kind]} (") and line.endswith(")")
    assert header["training"]["protocol"]["method"] == CHOSEN[kind]
    if kind != "one mask":
        return
    again, said = trained([*given, "--quiet"], tmp_path / "quiet", capsys, monkeypatch)
    assert "method:" not in said and again["training"]["protocol"]["method"] == CHOSEN[kind]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("auto", "noise2void")])
@pytest.mark.filterwarnings("ignore:calibration region too small")
def test_every_method_trains_on_phantoms(method, tmp_path, capsys, monkeypatch):
    given = ["--dataset", "phantom", "--matrix-size", "24", "--acceleration", "3", "--method", method, "--quiet"]
    given += [] if method.endswith("2018") else ["--cascades", "1", "--noise", "0:0.05", "--coils", "2"]
    header, _ = trained(given, tmp_path / "run", capsys, monkeypatch)
    assert header["training"]["protocol"]["method"] == method
    assert header["network"] == ("unet" if method.endswith("2018") else "unrolled")


@pytest.mark.parametrize("method", UNDERSAMPLED)
def test_every_method_of_single_scans_trains_on_them(method, studies, tmp_path, capsys, monkeypatch):
    given = ["--dataset", "scans", "--data", studies / "noisy masks", "--method", method, "--cascades", "1", "--quiet"]
    trained(given, tmp_path / "run", capsys, monkeypatch)


@pytest.mark.parametrize("network", ["fastmri-varnet", "fastmri-unet", "unet"])
def test_other_networks_train(network, studies, tmp_path, capsys, monkeypatch):
    given = ["--dataset", "pairs", "--data", studies / "repetitions", "--network", network, "--exchange", "--quiet"]
    header, _ = trained(given, tmp_path / "run", capsys, monkeypatch)
    assert header["network"] == network and header["training"]["protocol"]["pair"]["exchange"]


# -------------------------------------------------------------------------------------------- simulated acquisitions


def phantom(coils: int = 1, shape=(48, 44), slices: int = 3) -> torch.Tensor:
    return torch.stack([phantom_kspace(shape, coils, seeded(7, i), real=coils == 1) for i in range(slices)])


def test_simulated_coils_are_those_of_the_volume():
    """One of the numbers for each volume; sum |S|^2 = 1, equal for all slices and repetitions, other ones per volume."""
    full, protocol = phantom(shape=(33, 28)), Protocol(coils=(1, 4, 7), acceleration=(3.0, 3.0))
    counts = [simulated_coils(f"volume {i}", protocol) for i in range(200)]
    assert {number: counts.count(number) > 40 for number in set(counts)} == {1: True, 4: True, 7: True}
    seen = {}
    for name in ("volume 0", "volume 1", "volume 2", "volume 3"):
        maps = []
        for index in range(3):
            measured = simulated_repetitions(full[index : index + 1], index, name, protocol)
            image, coil_images = ifft2c(full[index]), ifft2c(measured.full[0])
            assert measured.first.kspace.shape[1] == len(coil_images) == simulated_coils(name, protocol)
            assert torch.equal(measured.second.kspace, measured.full * measured.second.mask)
            inside = image[0].abs() > 0.1 * image.abs().max()
            torch.testing.assert_close(
                coil_images.abs().square().sum(dim=0)[inside], image[0].abs().square()[inside], rtol=1e-4, atol=1e-6
            )
            maps.append((coil_images / image, inside))
        for found, inside in maps[1:]:
            both = inside & maps[0][1]
            torch.testing.assert_close(found[:, both], maps[0][0][:, both], rtol=1e-3, atol=1e-3)
        seen[name] = maps[0][0]
    several = [value for value in seen.values() if len(value) > 1]
    assert len(several) > 1 and not any(
        a.shape == b.shape and torch.allclose(a, b) for a, b in zip(several, several[1:])
    )
    four = [ifft2c(simulated_repetitions(full[:1], 0, name, replace(protocol, coils=(4,))).full) for name in ("a", "b")]
    assert (four[0] - four[1]).abs().max() > 0.1 * four[0].abs().max()
    measured_coils = simulated_repetitions(phantom(coils=2)[:1], 0, "volume 0", protocol)
    assert measured_coils.first.kspace.shape[1] == 2  # coils of its own stay


def test_simulated_noise_is_drawn_for_each_slice_within_its_range():
    full = phantom(slices=1)
    protocol = Protocol(noise=(0.01, 0.05), acceleration=(3.0, 3.0))
    deviations = []
    for index in range(60):
        measured, again = (simulated_repetitions(full, index, "a", protocol) for _ in range(2))
        assert torch.equal(measured.first.kspace, again.first.kspace)
        assert measured.first.noise_variance == measured.second.noise_variance
        for scan in (measured.first, measured.second):
            noise = (scan.kspace - full)[(scan.mask > 0).expand_as(full)].abs().square()
            assert noise.mean().item() == pytest.approx(scan.noise_variance, rel=6 / math.sqrt(len(noise)))
        deviations.append(math.sqrt(measured.first.noise_variance))
    assert 0.01 <= min(deviations) < 0.015 and 0.045 < max(deviations) <= 0.05
    # 0.01 + 0.04 u^2, u uniform: mean 1/3, variance 4/45 of the range
    assert np.mean(deviations) == pytest.approx(0.01 + 0.04 / 3, abs=5 * 0.04 * math.sqrt(4 / 45 / 60))
    quiet, fixed = (replace(protocol, noise=noise) for noise in ((0.0, 0.0), (0.05, 0.05)))
    a, b = (simulated_repetitions(full, 0, "a", chosen).first for chosen in (quiet, fixed))
    assert torch.equal(a.mask, b.mask) and a.noise_variance == 0  # what else is drawn stays what it was
    for chosen, wanted in ((quiet, 0.0), (fixed, 0.05)):
        assert design(chosen, seeded(0, "slice", "a", 0))[2] == wanted


def test_one_mask_is_that_of_every_slice_and_scan():
    full = phantom(slices=1)
    protocol = Protocol(one_mask=True, acquisitions=1, acceleration=(3.0, 3.0), noise=(0.05, 0.05))
    all_of_them = [simulated_repetitions(full, index, name, protocol) for name in "ab" for index in range(3)]
    first = all_of_them[0]
    assert torch.equal(first.first.probability, first.first.mask)  # what it leaves out is never sampled
    for measured in all_of_them[1:]:
        assert torch.equal(measured.first.mask, first.first.mask)
        assert not torch.equal(measured.first.kspace, first.first.kspace)  # noise of its own
    other = simulated_repetitions(full, 0, "a", replace(protocol, one_mask=False))
    assert not torch.equal(other.first.mask, first.first.mask)


@pytest.mark.parametrize("simulated", [{"phase": 0.5}, {"coils": (1, 4)}])
def test_one_mask_needs_slices_of_one_kind(simulated):
    """Real images are given symmetric masks, others not: a share of slices with a phase, or coils for some, makes two masks."""
    protocol = Protocol(method="ssdu", one_mask=True, acquisitions=1, **simulated)
    with pytest.raises(UserError, match="--one-mask goes with"):
        check_options(TrainOptions("nifti", "volumes", protocol=protocol, steps=1))
    check_options(TrainOptions("nifti", "volumes", protocol=replace(protocol, phase=1.0, coils=(4,)), steps=1))


@pytest.mark.parametrize("pairs", ["fixed", "redrawn"])
@pytest.mark.parametrize(("mask", "acceleration"), [("gaussian-lines", 2.0), ("roulette", 3.0)])
@pytest.mark.parametrize("method", ["ssdu", "k-weighted-ssdu", "robust-ssdu", "noise2noise", "exchange"])
@pytest.mark.filterwarnings("ignore:calibration region too small")
def test_maps_of_the_input_never_know_the_samples_of_the_target(method, mask, acceleration, pairs):
    """Other numbers where the target has samples and the input none: the input, maps included, is the same to the bit."""
    protocol = Protocol(
        "noise2noise" if method == "exchange" else method, PairOptions(exchange=method == "exchange"), pairs=pairs,
        masks=(mask,), acceleration=(acceleration, acceleration), flips=False, translation=0.0,
    )  # fmt: skip
    full, kept = phantom(coils=3, slices=1), {}
    for draw in range(2):  # twice: maps that are kept for the next epoch too
        made = lambda kspace, maps: _example(kspace, 0, "a", protocol, seeded(draw, "draw"), maps)  # noqa: B023, E731
        pair = made(full, kept)
        only_target = (pair.weight > 0) & (pair.input.mask == 0)
        assert only_target.any() and pair.input.sensitivity_maps.abs().max() > 0.1
        assert pair.input.kspace.shape[1] == 3
        changed = full + only_target * 5 * torch.randn(full.shape, dtype=full.dtype, generator=seeded(1))
        other = made(changed, {})
        assert torch.equal(other.input.kspace, pair.input.kspace) and not torch.equal(other.target, pair.target)
        if draw == 0:  # later the kept maps are those of the slice before it was changed
            assert torch.equal(other.input.sensitivity_maps, pair.input.sensitivity_maps)


@pytest.mark.parametrize("measured", [False, True])
def test_the_lines_of_a_simulated_comb_are_not_exchanged(measured):
    """Of simulated acquisitions, and of measured ones that are undersampled by simulation; other masks are."""
    full = phantom(slices=1)
    one = torch.ones((1, 1, *full.shape[-2:]))
    data = (Acquisition(full, one, one), Acquisition(full, one, one)) if measured else full
    for kind, stays in (("equispaced-lines", True), ("gaussian-lines", False)):
        inputs = []
        for exchange in (False, True):
            protocol = Protocol(
                pair=PairOptions(exchange=exchange), masks=(kind,), acceleration=(4.0, 4.0), undersample=measured
            )
            inputs.append(_example(data, 0, "a", protocol, seeded(0, "draw"), {}).input.mask)
        assert torch.equal(*inputs) == stays


def test_single_scan_methods_take_two_acquisitions_as_one_and_one_as_it_is():
    full = phantom(slices=1)
    source = Source("a", "a", 1, lambda: full)
    for method in UNDERSAMPLED:
        shares = {}
        for acquisitions in (1, 2):
            protocol = Protocol(method, acquisitions=acquisitions, acceleration=(4.0, 4.0), noise=(0.05, 0.05))
            ((pair,),) = islice(training_batches([source], protocol, 1), 1)
            sampled = ((pair.weight > 0) | (pair.input.mask > 0)).float().mean().item()
            shares[acquisitions] = sampled
            assert pair.input.noise_variance is not None
        assert shares[1] == pytest.approx(0.25, abs=0.06) and 1.3 * shares[1] < shares[2] < 2 * shares[1]


def test_multi_operator_is_given_another_mask_of_the_design_and_equivariant_its_own():
    full = phantom(slices=1)
    source = Source("a", "a", 1, lambda: full)
    for method in ("multi-operator", "equivariant"):
        masks = []
        protocol = Protocol(method, acquisitions=1, acceleration=(4.0, 4.0), flips=True)
        for (pair,) in islice(training_batches([source], protocol, 1), 6):
            masks.append(pair.again.mask)
            assert torch.equal(pair.again.mask, pair.input.mask) == (method == "equivariant")
            assert (pair.again.angle == 0).all() == (method == "multi-operator")
            assert pair.again.mask.mean().item() == pytest.approx(0.25, abs=0.06)
        if method == "multi-operator":
            assert len({mask.numpy().tobytes() for mask in masks}) == 6


def test_multi_operator_on_repetitions_is_given_the_mask_of_another_one():
    """Of fully sampled ones, which training undersamples, an undersampled one: no scan of that design is full."""
    full = phantom(slices=2)
    ones = torch.ones(1, 1, *full.shape[-2:])
    repetitions = tuple(Acquisition(full, ones, ones, None, 0.0) for _ in range(2))
    protocol = Protocol("multi-operator", undersample=True, acceleration=(4.0, 4.0))
    for pairs in ("fixed", "redrawn"):
        pair = _example(repetitions, 1, "a", replace(protocol, pairs=pairs), seeded(0, "draw"), {})
        assert pair.again.mask.mean().item() == pytest.approx(0.25, abs=0.06)
        assert not torch.equal(pair.again.mask, pair.input.mask)
    masks = [draw_mask("roulette", tuple(full.shape[-2:]), 4.0, seeded(i)).mask[None, None] for i in range(2)]
    as_measured = tuple(Acquisition(full * mask, mask, ones, None, 0.0) for mask in masks)
    protocol = replace(protocol, undersample=False, flips=False)
    pair = _example(as_measured, 1, "a", protocol, seeded(0, "draw"), {})
    either = [torch.equal(pair.input.mask, mask) for mask in masks], [torch.equal(pair.again.mask, m) for m in masks]
    assert sum(either[0]) == sum(either[1]) == 1 and either[0] != either[1]


def test_multi_operator_on_single_scans_is_given_the_mask_of_another_scan(studies, tmp_path, capsys):
    """Of each other one sooner or later, the same again in a resumed run; where all have one mask, that is said."""
    protocol = Protocol("multi-operator", flips=False)
    sources = find_sources("scans", studies / "masks", validation_subjects=("none",)).train
    of_scan = {s.load()[0].mask.numpy().tobytes(): s.name for s in sources}
    met = set()
    batches = list(islice(training_batches(sources, protocol, 2), 9))
    for (pair,) in batches:
        for own, other in zip(pair.input.mask, pair.again.mask):
            met.add((of_scan[own[None].numpy().tobytes()], of_scan[other[None].numpy().tobytes()]))
    assert len(of_scan) == 3 and met == {(a, b) for a in of_scan.values() for b in of_scan.values() if a != b}
    for (left,), (right,) in zip(batches[4:], training_batches(sources, protocol, 2, 4)):
        assert torch.equal(left.again.mask, right.again.mask) and torch.equal(left.input.kspace, right.input.kspace)
    given = ["--dataset", "scans", "--data", str(studies / "one mask"), "--method", "multi-operator", "--quiet"]
    assert cli.main(["train", *TRAIN, *given, "-o", str(tmp_path / "run")]) == 2
    assert "different masks" in capsys.readouterr().err and not (tmp_path / "run").exists()
