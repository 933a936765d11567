"""Measured repetitions as training pairs: several files, several in one file, and M4Raw's."""

from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n import cli
from mri_n2n.arguments import parser
from mri_n2n.batches import Protocol, training_batches
from mri_n2n.checkpoint import load_tensors
from mri_n2n.datasets import find_sources
from mri_n2n.errors import InputError, NotFoundError
from mri_n2n.formats import cfl, open_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import phantom_kspace
from mri_n2n.simulation import SimulationOptions, seeded, simulate_file
from mri_n2n.validation import validation_set

READOUT, PHASE, COILS, SLICES = 32, 40, 3, 2
FIRST, LAST = 4, 37  # phase-encoded lines that were acquired


def kspace_of(subject: int, repetition: int, noise: float = 0.02) -> np.ndarray:
    """(slices, coils, readout, phase), zero where M4Raw's files are."""
    one = phantom_kspace((READOUT, PHASE), COILS, seeded(subject), real=False)
    full = torch.stack([one * (1 + 0.2 * i) for i in range(SLICES)])
    full = full + noise * torch.randn(full.shape, dtype=torch.complex64, generator=seeded(subject, repetition))
    full[..., :FIRST] = 0
    full[..., LAST:] = 0
    return full.numpy()


def write_m4raw(folder: Path, subjects: int, repetitions: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for subject in range(subjects):
        for contrast in ("T1", "FLAIR"):
            for repetition in range(1, repetitions + 1):
                name = f"20220610{subject:02}_{contrast}0{repetition}.h5"
                with h5py.File(folder / name, "w") as file:
                    file["kspace"] = kspace_of(subject, repetition).swapaxes(-1, -2)
                    file.attrs.update(acquisition=contrast, patient_id=f"{subject}")


def test_m4raw_repetitions_are_grouped_by_subject_and_contrast(tmp_path):
    write_m4raw(tmp_path / "multicoil_train", 2)
    write_m4raw(tmp_path / "multicoil_val", 1, repetitions=2)
    with pytest.warns(UserWarning, match="share subjects"):
        split = find_sources("m4raw", tmp_path)
    assert [s.name for s in split.validation] == [
        f"2022061000_{c}" + s.name[-9:] for c, s in zip(("FLAIR", "T1"), split.validation)
    ]
    assert {s.subject for s in split.train} == {"2022061000", "2022061001"} and len(split.train) == 4
    acquisitions = split.train[0].load()
    assert len(acquisitions) == 3 and acquisitions[0].kspace.shape == (SLICES, COILS, READOUT, PHASE)
    scale = acquisitions[0].kspace.abs().max() / np.abs(kspace_of(0, 1)).max()
    for number, acquisition in enumerate(acquisitions, start=1):
        assert torch.allclose(acquisition.kspace, scale * torch.from_numpy(kspace_of(0, number)), atol=1e-6)
        columns = acquisition.mask[0, 0].amin(dim=0)
        assert columns[FIRST:LAST].all() and not columns[:FIRST].any() and not columns[LAST:].any()
        assert torch.equal(acquisition.probability, acquisition.mask), "what was never acquired has probability 0"
    joint = root_sum_of_squares(ifft2c(sum(a.kspace for a in acquisitions) / 3)).max()
    assert joint.item() == pytest.approx(1, rel=1e-5)


def test_m4raw_undersampled_pairs_are_independent_and_weighted_by_their_probability(tmp_path):
    """Over draws, the mean of mask / p is 1 inside what was acquired, for both sides; their masks do not depend on each other."""
    write_m4raw(tmp_path, 2, repetitions=2)
    split = find_sources("m4raw", tmp_path, validation_subjects=("none",))
    protocol = Protocol(
        masks=("random-lines",), acceleration=(2.0, 2.0), undersample=True, pairs="redrawn", translation=0, flips=False
    )
    batches = training_batches(split.train, protocol, 8)
    inputs, weights = [], []
    for _ in range(150):
        for pair in next(batches):
            inputs.append(pair.input.mask[:, 0, 0])
            weights.append(pair.weight[:, 0, 0])
            assert not (pair.target * (pair.weight == 0)).any()
    inputs, weights = torch.cat(inputs), torch.cat(weights)
    assert torch.allclose(weights.mean(0)[FIRST:LAST], torch.ones(LAST - FIRST), atol=0.15)
    assert not weights[:, :FIRST].any() and not inputs[:, LAST:].any()
    outside = torch.ones(PHASE, dtype=torch.bool)
    outside[:FIRST] = outside[LAST:] = False
    outside[inputs.mean(0) == 1] = False  # the full centre
    together = ((weights > 0).float() * inputs).mean(0)[outside] - (weights > 0).float().mean(0)[outside] * inputs.mean(
        0
    )[outside]
    assert together.abs().max() < 5 * 0.25 / len(inputs) ** 0.5


def test_m4raw_fixed_pairs_stay_and_acceleration_one_takes_all(tmp_path):
    write_m4raw(tmp_path, 2, repetitions=2)
    split = find_sources("m4raw", tmp_path, validation_subjects=("2022061001",))
    protocol = Protocol(
        masks=("gaussian-lines",), acceleration=(2.0, 2.0), undersample=True, translation=0, flips=False
    )
    masks = set()
    batches = training_batches(split.train, protocol, 4)
    for _ in range(12):
        for pair in next(batches):
            masks |= {tuple(row.tolist()) for row in pair.input.mask[:, 0, 0]}
            for seen, judged in zip(pair.input.mask[:, 0, 0], pair.weight[:, 0, 0], strict=True):
                assert not torch.equal(seen, (judged > 0).float()), "each repetition has a mask of its own"
    assert 4 <= len(masks) <= 8, "two slices of two contrasts, each with two masks for ever"
    everything = replace(protocol, acceleration=(1.0, 1.0))
    for pair in next(training_batches(split.train, everything, 4)):
        assert torch.equal(pair.input.mask[:, 0, 0, FIRST:LAST], torch.ones(4, LAST - FIRST))
        assert (pair.weight[..., FIRST:LAST] == 1).all()
    held = validation_set(split.validation, protocol)
    assert all(item.first.mask.mean() < 0.6 < (item.pair.weight > 0).float().mean() for item in held), (
        "judged by all samples"
    )


def test_training_on_m4raw_from_the_command_line(tmp_path, capsys):
    write_m4raw(tmp_path / "data", 3, repetitions=2)
    run = tmp_path / "run"
    command = ["train", "--dataset", "m4raw", "--data", str(tmp_path / "data"), "-o", str(run), "--steps", "2"]
    assert cli.main([*command, "--channels", "4", "--cascades", "1", "--batch-size", "2", "--quiet"]) == 0
    _, header = load_tensors(run / "weights.safetensors")
    protocol = header["training"]["protocol"]
    assert protocol["undersample"] and protocol["acceleration"] == [4, 4] and protocol["masks"] == ["gaussian-lines"]
    assert header["network_options"]["consistency"] == "soft" and "error_with_noise" in header["quality"]
    capsys.readouterr()
    assert cli.main(["info", str(run)]) == 0
    assert "repetitions, from files, undersampled" in capsys.readouterr().out


def test_options_of_measured_repetitions():
    options = lambda *given: cli.train_options_from(parser().parse_args(["train", "-o", "run", *given])).protocol  # noqa: E731
    assert not options("--dataset", "pairs").undersample
    assert options("--dataset", "pairs", "--acceleration", "2").undersample
    assert options("--dataset", "m4raw", "--acceleration", "1").acceleration == (1.0, 1.0)
    assert not options("--dataset", "ixi", "--acceleration", "2").undersample


def test_m4raw_folders_that_hold_none_or_undersampled_scans(tmp_path):
    with pytest.raises(NotFoundError, match="ID_T101.h5"):
        find_sources("m4raw", tmp_path)
    write_m4raw(tmp_path, 1, repetitions=1)
    with pytest.warns(UserWarning, match="single repetition"), pytest.raises(NotFoundError):
        find_sources("m4raw", tmp_path)
    for repetition in (1, 2):
        with h5py.File(tmp_path / f"a_T20{repetition}.h5", "w") as file:
            mask = draw_mask("random-lines", (READOUT, PHASE), 3, seeded(0)).mask.numpy()
            file["kspace"] = (kspace_of(0, repetition) * mask).swapaxes(-1, -2)
    with pytest.warns(UserWarning):
        source = find_sources("m4raw", tmp_path).train[0]
    with pytest.raises(InputError, match="undersampled"):
        source.load()


def test_repetitions_in_one_file_and_in_files_of_several_formats(tmp_path):
    """BART's AVG dimension, and pairs of NumPy arrays; other raw scans in the folder are no pairs."""
    masks = [draw_mask("random-lines", (READOUT, PHASE), 2, seeded(9, i)).mask.numpy() for i in range(2)]
    repetitions = [kspace_of(0, i, noise=0.0) * mask for i, mask in enumerate(masks)]
    for sub, folder in (("a", tmp_path), ("b", tmp_path)):
        sizes = [READOUT, PHASE, 1, COILS, *[1] * 9, SLICES, 2, 1]
        array = np.zeros(sizes, np.complex64, order="F")
        for index, kspace in enumerate(repetitions):
            array[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, :, index, 0] = kspace.transpose(2, 3, 1, 0)
        (folder / f"{sub}_scan.hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n")
        array.ravel(order="F").tofile(folder / f"{sub}_scan.cfl")
    for number, kspace in enumerate(repetitions, start=1):
        np.save(tmp_path / f"c_scan_rep{number}.npy", kspace)
    cfl.write_scan(tmp_path / "alone.cfl", repetitions[0], repetitions[0].shape, False)
    assert open_scan(tmp_path / "a_scan.cfl").repetitions == 2
    with pytest.warns(UserWarning) as said:
        split = find_sources("pairs", tmp_path)
    assert [s.name for s in split.train + split.validation] == ["a_scan", "b_scan", "c_scan"]
    words = " ".join(str(one.message) for one in said)
    assert "alone has a single repetition" in words and "estimated from 4 masks" in words
    loaded = [source.load() for source in split.train + split.validation]
    for pair in loaded:
        for acquisition, kspace, mask in zip(pair, repetitions, masks, strict=True):
            scale = acquisition.kspace.abs().max() / np.abs(kspace).max()
            assert torch.allclose(acquisition.kspace, scale * torch.from_numpy(kspace), atol=1e-6)
            inside = mask[:, FIRST:LAST]
            assert (acquisition.mask[0, 0, :, FIRST:LAST].numpy() == inside).all()


def test_the_kspace_of_a_transposed_file_is_that_of_the_transposed_image():
    image = torch.randn((1, 1, 5, 8), dtype=torch.complex64)
    assert torch.allclose(fft2c(image).mT, fft2c(image.mT), atol=1e-6)


def test_repetitions_that_clash_or_cannot_be_read_are_named(tmp_path):
    for name in ("a_rep1", "a_rep2"):
        np.save(tmp_path / f"{name}.npy", kspace_of(0, 1))
    with h5py.File(tmp_path / "a_rep1.h5", "w") as file:
        file["kspace"] = kspace_of(0, 1)
    with pytest.raises(InputError, match="a_rep1.*both repetition 1"):
        find_sources("pairs", tmp_path)
    (tmp_path / "a_rep1.h5").unlink()
    (tmp_path / "b.mrd").write_bytes(b"no HDF5 at all")
    with pytest.raises(InputError, match="b.mrd"):
        find_sources("pairs", tmp_path)


def test_lines_along_x_are_turned_in_training_as_in_use(tmp_path):
    """And their probability is estimated as that of lines; scans whose first and last slices are empty count too."""
    masks = {}
    for subject in range(6):
        for repetition in (1, 2):
            mask = draw_mask("random-lines", (READOUT, PHASE), 2, seeded(subject, repetition)).mask.numpy()
            kspace = np.zeros((4, COILS, READOUT, PHASE), np.complex64)
            kspace[1:3] = kspace_of(subject, repetition) * mask
            kspace[1] *= draw_mask("random-lines", (READOUT, PHASE), 2, seeded(7, subject, repetition)).mask.numpy()
            np.save(tmp_path / f"s{subject}_rep{repetition}.npy", kspace.swapaxes(-1, -2))
            masks[subject, repetition] = mask
    with pytest.warns(UserWarning, match="estimated from 20 masks"):
        split = find_sources("pairs", tmp_path)  # ten training scans, two slices each
    first, _ = split.train[0].load()
    assert first.kspace.shape == (4, COILS, READOUT, PHASE)
    assert (first.mask == first.mask[:, :, :1]).all(), "lines along y"
    assert (first.probability == first.probability[:, :, :1]).all()
    assert (first.mask[2, 0, 0, FIRST:LAST].numpy() == masks[0, 1][0, FIRST:LAST]).all()


def test_coils_are_mixed_in_training_as_in_use(tmp_path):
    """A dead coil is left out, sixteen become twelve, by one matrix for all repetitions."""
    for subject in "ab":
        for repetition in (1, 2):
            one = phantom_kspace((READOUT, PHASE), 16, seeded(3), real=False)
            one = one + 0.01 * torch.randn(one.shape, dtype=torch.complex64, generator=seeded(3, repetition))
            one[5] = 0
            np.save(tmp_path / f"{subject}_rep{repetition}.npy", torch.stack([one] * SLICES).numpy())
    with pytest.warns(UserWarning, match="coil 5"):
        first, second = find_sources("pairs", tmp_path).train[0].load()
    assert first.kspace.shape[1] == 12
    images = [ifft2c(a.kspace) for a in (first, second)]
    assert (images[0] - images[1]).norm() < 0.2 * images[0].norm(), "the same virtual coils in both"


def test_full_and_undersampled_repetitions_are_turned_together(tmp_path):
    for subject in range(4):
        for repetition in (1, 2):
            kspace = kspace_of(subject, repetition)
            kspace[..., :FIRST] = kspace[..., LAST:] = 1e-3  # full to the edges
            if repetition == 1:
                kspace = kspace * draw_mask("random-lines", (READOUT, PHASE), 2, seeded(subject)).mask.numpy()
            np.save(tmp_path / f"s{subject}_rep{repetition}.npy", kspace.swapaxes(-1, -2))
    with pytest.warns(UserWarning, match="estimated from 6 masks"):
        undersampled, full = find_sources("pairs", tmp_path).train[0].load()
    assert undersampled.kspace.shape == full.kspace.shape == (SLICES, COILS, READOUT, PHASE)
    for acquisition in (undersampled, full):
        assert (acquisition.probability == acquisition.probability[:, :, :1]).all(), "of lines along y"
        assert (acquisition.probability[acquisition.mask > 0] > 0).all()


def test_a_folder_that_is_not_there_and_repetitions_taken_for_single_scans(tmp_path, capsys):
    for dataset in ("pairs", "scans"):
        with pytest.raises(NotFoundError, match="there is no directory .*nowhere"):
            find_sources(dataset, tmp_path / "nowhere")
    image = np.abs(np.random.default_rng(0).normal(size=(2, 16, 16))).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "study").mkdir()
    simulate_file(tmp_path / "v.nii.gz", tmp_path / "study" / "v.h5", SimulationOptions(acceleration=2, repetitions=2))
    with pytest.warns(UserWarning, match="v_rep1.h5 looks like one of several repetitions; --dataset pairs"):
        find_sources("scans", tmp_path / "study")
