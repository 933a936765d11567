"""Where training data comes from: names, splits, scales, matrix sizes; on files true to the real ones' schema."""

import gc
import math
import tracemalloc
import warnings
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mri_n2n.datasets import default_folder, find_sources, official_ixi_split, phantom_sources
from mri_n2n.density import estimate_probability
from mri_n2n.errors import InputError, NotFoundError, UserError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.resample import crop_or_pad, resize_kspace
from mri_n2n.simulation import seeded


def write_volume(path: Path, shape=(16, 18, 6), seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 900, shape).astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.9, 0.9, 1.2, 1])), path)
    return array


def complex_normal(rng: np.random.Generator, shape) -> np.ndarray:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def write_fastmri(
    path: Path, shape=(3, 2, 20, 16), seed=0, patient="p", mask=None, padding=0, reference=(10, 10)
) -> None:
    """A file with the keys and attributes of the real ones; padding: empty lines at both ends of the last axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kspace = complex_normal(np.random.default_rng(seed), shape) * 1e-4
    if padding:
        kspace[..., :padding] = kspace[..., -padding:] = 0
    if mask is not None:
        kspace = kspace * np.asarray(mask, np.float32)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = b"<ismrmrdHeader/>"
        if mask is not None:
            file["mask"] = np.asarray(mask, np.float32)
        if reference:
            name = "reconstruction_rss" if len(shape) == 4 else "reconstruction_esc"
            file[name] = np.ones((shape[0], *reference), np.float32)
        file.attrs.update(acquisition="AXT2", max=1.0, norm=1.0, patient_id=patient)


def names(sources) -> list[str]:
    return [source.name for source in sources]


# ---- phantoms ----


def test_phantoms_follow_from_their_names_and_are_scaled():
    split = phantom_sources(32, train=2, validation=1, slices=3)
    first, again = split.train[0].load(), phantom_sources(32, slices=3).train[0].load()
    assert first.shape == (3, 1, 32, 32) and first.dtype == torch.complex64
    assert torch.equal(first, again)
    assert not torch.allclose(first, split.train[1].load()) and not torch.allclose(first[0], first[1])
    assert root_sum_of_squares(ifft2c(first)).max().item() == pytest.approx(1, abs=1e-5)
    assert ifft2c(first).imag.abs().max() < 1e-5  # real images
    assert split.train[0].slices == 3


def test_phantoms_with_coils_are_complex_and_each_coil_sees_the_same_head():
    volume = find_sources("phantom", matrix_size=33, coils=4).train[0].load()
    assert volume.shape == (8, 4, 33, 33) and ifft2c(volume).imag.abs().max() > 0.05
    coil_images = ifft2c(volume).abs()
    inside = root_sum_of_squares(ifft2c(volume)) > 0.2
    brightness = [coil_images[:, coil][inside].mean().item() for coil in range(4)]
    assert min(brightness) > 0.2 * max(brightness)  # all see it, each from its side
    with pytest.raises(UserError, match="--dataset phantom"):
        find_sources("nifti", coils=2)
    with pytest.raises(UserError, match="1 to 128"):
        find_sources("phantom", coils=0)


def test_phantom_defaults():
    split = find_sources("phantom")
    assert (len(split.train), len(split.validation)) == (40, 4)
    assert not set(names(split.train)) & set(names(split.validation))
    assert split.validation[0].load().shape == (8, 1, 128, 128)


# ---- NIfTI ----


def test_nifti_splits_by_subject_whatever_the_slices(tmp_path):
    for subject in range(1, 11):
        for visit in (1, 2):
            write_volume(tmp_path / "deep" / f"patient{subject:02}_study{visit}_T1W.nii.gz", shape=(8, 8, 3))
    split = find_sources("nifti", tmp_path)
    assert {s.subject for s in split.validation} == {"patient09", "patient10"}
    assert {s.subject for s in split.train} == {f"patient{i:02}" for i in range(1, 9)}
    assert len(split.train) == 16 and split.train[0].name == "patient01_study1_T1W" and split.train[0].slices == 3
    chosen = find_sources("nifti", tmp_path, validation_subjects=["patient01"])
    assert names(chosen.validation) == ["patient01_study1_T1W", "patient01_study2_T1W"] and len(chosen.train) == 18
    with pytest.raises(UserError, match="no subject patient99"):
        find_sources("nifti", tmp_path, validation_subjects=["patient99"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nifti_load_is_the_volume_on_one_scale(tmp_path, axis):
    array = write_volume(tmp_path / "a_T1.nii", shape=(12, 15, 7))
    write_volume(tmp_path / "b_T1.nii", shape=(12, 15, 7), seed=1)
    source = find_sources("nifti", tmp_path, axis=axis, slices=(1, 5)).train[0]
    kspace = source.load()
    # slice axis first, then the higher of the two others as y, the lower as x
    expected = np.moveaxis(array, axis, 0).swapaxes(1, 2)[1:5] / array.max()
    assert source.slices == 4 and kspace.shape == (4, 1, *expected.shape[1:])
    assert np.allclose(ifft2c(kspace)[:, 0].numpy(), expected, atol=1e-5)


def test_nifti_on_another_matrix_is_square_real_and_scaled_over_the_whole_volume(tmp_path):
    write_volume(tmp_path / "a_T1.nii.gz", shape=(20, 26, 5))
    write_volume(tmp_path / "b_T1.nii.gz", shape=(20, 26, 5))
    every = find_sources("nifti", tmp_path, matrix_size=16).train[0].load()
    some = find_sources("nifti", tmp_path, matrix_size=16, slices=(2, 4)).train[0].load()
    assert every.shape == (5, 1, 16, 16) and torch.equal(every[2:4], some)
    assert root_sum_of_squares(ifft2c(every)).max().item() == pytest.approx(1, abs=1e-5)
    assert ifft2c(every).imag.abs().max() < 1e-5


def test_subjects_from_bids_names_folders_and_a_single_one(tmp_path):
    for subject in ("sub-ann", "sub-bob"):
        write_volume(tmp_path / "bids" / subject / "anat" / f"{subject}_T1w.nii.gz", shape=(8, 8, 2))
    split = find_sources("nifti", tmp_path / "bids")
    assert [s.subject for s in split.train + split.validation] == ["sub-ann", "sub-bob"]
    for subject in ("ann", "bob", "cid"):
        write_volume(tmp_path / "folders" / subject / "T1.nii.gz", shape=(8, 8, 2))
    split = find_sources("nifti", tmp_path / "folders")
    assert [s.subject for s in split.validation] == ["cid"]
    assert len(set(names(split.train + split.validation))) == 3, "equal stems must not mean equal random draws"
    assert not any("ann" in name for name in names(split.train))
    write_volume(tmp_path / "one" / "x_1.nii.gz", shape=(8, 8, 2))
    with pytest.warns(UserWarning, match="one subject, x"):
        split = find_sources("nifti", tmp_path / "one")
    assert len(split.train) == 1 and not split.validation


def test_train_and_validation_folders_are_kept_and_leaks_reported(tmp_path):
    write_volume(tmp_path / "train" / "z_1.nii", shape=(8, 8, 2))
    write_volume(tmp_path / "val" / "a_1.nii", shape=(8, 8, 2))
    split = find_sources("nifti", tmp_path)
    assert names(split.train) == ["z_1"] and names(split.validation) == ["a_1"]
    write_volume(tmp_path / "val" / "z_2.nii", shape=(8, 8, 2))
    with pytest.warns(UserWarning, match="share subjects: z"):
        find_sources("nifti", tmp_path)


def test_bad_volumes_and_options(tmp_path, monkeypatch):
    (tmp_path / "a_1.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(InputError, match="a_1.nii.gz"):
        find_sources("nifti", tmp_path)
    (tmp_path / "a_1.nii.gz").unlink()
    write_volume(tmp_path / "a_1.nii.gz", shape=(8, 8, 2))
    with pytest.raises(InputError, match="2 slices"):
        find_sources("nifti", tmp_path, slices=(2, 5))
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4)), tmp_path / "a_1.nii.gz")
    with pytest.warns(UserWarning, match="one subject"), pytest.raises(InputError, match="a_1 has no positive"):
        find_sources("nifti", tmp_path).train[0].load()
    for bad in ({"axis": 3}, {"matrix_size": 0}, {"slices": (4, 4)}):
        with pytest.raises(UserError):
            find_sources("nifti", tmp_path, **bad)
    with pytest.raises(UserError, match="unknown dataset"):
        find_sources("mnist")


def test_default_folders_and_what_to_do_when_nothing_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_N2N_DATA", raising=False)
    assert default_folder("ixi") == Path("data/ixi")
    with pytest.raises(NotFoundError, match="python data_scripts/download_ixi.py -o data/ixi"):
        find_sources("ixi")
    monkeypatch.setenv("MRI_N2N_DATA", str(tmp_path / "elsewhere"))
    assert default_folder("ixi") == tmp_path / "elsewhere" / "ixi"
    for dataset, hint in (("fastmri", "fastmri.med.nyu.edu"), ("pairs", "mri-n2n simulate"), ("nifti", "--data")):
        with pytest.raises(NotFoundError, match=hint):
            find_sources(dataset)


# ---- IXI ----

SITES = ("Guys", "HH", "IOP")


def ixi_name(number: int, modality="T1") -> str:
    return f"IXI{number:03}-{SITES[number % 3]}-{700 + number:04}-{modality}.nii.gz"


def test_official_ixi_subjects():
    # 50 of the numbers 2..63, all of 64..73, and later ones; the archive's own gaps do not matter for the rule
    numbers = [*range(2, 51), 63, *range(64, 74), *range(74, 100)]
    train, validation, rule = official_ixi_split([Path(ixi_name(n)) for n in reversed(numbers)])
    assert [p.name for p in train] == [ixi_name(n) for n in numbers[:50]]
    assert [p.name for p in validation] == [ixi_name(n) for n in range(64, 74)]
    assert rule == "the official 50 training and 10 validation subjects"
    train, validation, rule = official_ixi_split([Path(ixi_name(n)) for n in (2, 64, 99)])
    assert (len(train), len(validation)) == (1, 1) and "1 of the 50" in rule
    assert official_ixi_split([Path(ixi_name(n)) for n in (80, 99)])[1] == []


def test_ixi_uses_its_names_and_slices(tmp_path):
    for number in (2, 12, 64):
        write_volume(tmp_path / ixi_name(number), shape=(10, 10, 30 if number == 12 else 130))
    write_volume(tmp_path / ixi_name(13, "T2"), shape=(10, 10, 130))
    write_volume(tmp_path / "other-T1.nii.gz", shape=(10, 10, 130))
    with pytest.warns(UserWarning, match="2 of the 50"):
        split = find_sources("ixi", tmp_path)
    assert [s.subject for s in split.train] == ["IXI002", "IXI012"] and [s.subject for s in split.validation] == [
        "IXI064"
    ]
    assert [s.slices for s in split.train] == [100, 5]
    assert split.train[0].load().shape == (100, 1, 10, 10)


def test_ixi_without_official_subjects_is_split_by_subject(tmp_path):
    for number in (100, 101, 102):
        write_volume(tmp_path / ixi_name(number), shape=(8, 8, 30))
    with pytest.warns(UserWarning, match="split by subject"):
        split = find_sources("ixi", tmp_path)
    assert [s.subject for s in split.validation] == ["IXI102"] and len(split.train) == 2


# ---- fastMRI ----


def test_fastmri_folders_scale_and_padding(tmp_path):
    write_fastmri(tmp_path / "multicoil_train" / "file_brain_AXT2_200_2000001.h5", padding=2)
    write_fastmri(tmp_path / "multicoil_val" / "file_brain_AXT2_200_2000002.h5", seed=1, patient="q")
    write_fastmri(tmp_path / "singlecoil_train" / "file1000001.h5", shape=(3, 20, 16))
    split = find_sources("fastmri", tmp_path)
    assert names(split.train) == ["file_brain_AXT2_200_2000001"] and names(split.validation) == [
        "file_brain_AXT2_200_2000002"
    ]
    kspace = split.train[0].load()
    assert kspace.shape == (3, 2, 20, 16) and root_sum_of_squares(ifft2c(kspace)).max().item() == pytest.approx(
        1, abs=1e-5
    )
    with h5py.File(tmp_path / "multicoil_train" / "file_brain_AXT2_200_2000001.h5") as file:
        raw = torch.from_numpy(file["kspace"][()])
    assert torch.allclose(kspace, raw / root_sum_of_squares(ifft2c(raw)).max(), atol=1e-6)
    # On another matrix, the readout oversampling goes first: the field of view is the reference's.
    image = ifft2c(find_sources("fastmri", tmp_path, matrix_size=10).train[0].load())
    expected = crop_or_pad(ifft2c(raw), 10, 10)
    assert torch.allclose(image, expected / expected.abs().square().sum(dim=1).sqrt().max(), atol=1e-5)


def test_fastmri_splits_by_patient_and_leaves_out_test_folders(tmp_path):
    for index in range(6):
        write_fastmri(tmp_path / "multicoil_train" / f"file{index}.h5", patient=f"person {index // 2}", seed=index)
    mask = np.zeros(16)
    mask[6:10] = mask[::5] = 1
    write_fastmri(tmp_path / "multicoil_test" / "file9.h5", patient="other", mask=mask, reference=None)
    split = find_sources("fastmri", tmp_path)
    assert len(split.train) == 4 and len(split.validation) == 2
    assert not {s.subject for s in split.train} & {s.subject for s in split.validation}
    assert not any("person" in s.subject for s in split.train), "patient identifiers stay in the file"


def test_fastmri_refuses_undersampled_files(tmp_path):
    mask = np.zeros(16)
    mask[6:10] = mask[::5] = 1
    write_fastmri(tmp_path / "a.h5", mask=mask)
    with pytest.warns(UserWarning, match="one subject"):
        source = find_sources("fastmri", tmp_path).train[0]
    with pytest.raises(InputError, match="undersampled"):
        source.load()


# ---- pairs ----


def write_pairs(folder: Path, subjects: int, mask_of, probability=None, shape=(2, 16, 16)) -> None:
    for subject in range(subjects):
        for repetition in (1, 2):
            mask = np.asarray(mask_of(subject, repetition), np.float32)
            kspace = 5 * complex_normal(np.random.default_rng(subject), shape) * mask
            folder.mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / f"s{subject:02}_scan_rep{repetition}.h5", "w") as file:
                file["kspace"], file["mask"] = kspace, mask
                file.attrs.update(noise_variance=0.25, simulated=True)
                if probability is not None:
                    file["probability"] = np.asarray(probability, np.float32)


def roulette(subject: int, repetition: int) -> np.ndarray:
    return draw_mask("roulette", (16, 16), 3, seeded(0, subject, repetition)).mask.numpy()


def test_pairs_are_grouped_split_and_scaled_alike(tmp_path):
    probability = draw_mask("roulette", (16, 16), 3, seeded(0)).probability.numpy()
    write_pairs(tmp_path, 5, roulette, probability)
    (tmp_path / "s04_scan_rep2.h5").unlink()
    with pytest.warns(UserWarning, match="s04_scan has a single repetition"):
        split = find_sources("pairs", tmp_path)
    assert names(split.train) == ["s00_scan", "s01_scan", "s02_scan"] and names(split.validation) == ["s03_scan"]
    pair = split.train[1].load()
    assert len(pair) == 2 and pair[0].kspace.shape == (2, 1, 16, 16)
    with h5py.File(tmp_path / "s01_scan_rep1.h5") as one, h5py.File(tmp_path / "s01_scan_rep2.h5") as two:
        raw = [torch.from_numpy(file["kspace"][()])[:, None] for file in (one, two)]
        masks = [torch.from_numpy(file["mask"][()]) for file in (one, two)]
    scale = pair[0].kspace.abs().max() / raw[0].abs().max()
    for acquisition, kspace, mask in zip(pair, raw, masks):
        assert torch.allclose(acquisition.kspace, kspace * scale, atol=1e-6)
        assert torch.equal(acquisition.mask[0, 0], mask)
        assert np.allclose(acquisition.probability[0, 0], probability)
        assert acquisition.noise_variance == pytest.approx(0.25 * scale.item() ** 2, rel=1e-5)
    joint = (raw[0] + raw[1]) / (masks[0] + masks[1]).clamp_min(1)
    assert scale.item() == pytest.approx(1 / root_sum_of_squares(ifft2c(joint)).max().item(), rel=1e-5)
    with pytest.raises(UserError, match="as they were measured"):
        find_sources("pairs", tmp_path, matrix_size=8)


def test_pairs_without_probability_get_an_estimate_from_the_training_scans(tmp_path):
    write_pairs(tmp_path, 12, roulette)
    with pytest.warns(UserWarning, match="estimated from 20 masks"):
        split = find_sources("pairs", tmp_path)
    truth = draw_mask("roulette", (16, 16), 3, seeded(0)).probability
    for source in (split.train[0], split.validation[0]):
        for acquisition in source.load():
            estimate = acquisition.probability[0, 0]
            assert (estimate[acquisition.mask[0, 0] > 0] > 0).all(), "a sample with probability 0 has infinite weight"
            assert (estimate - truth).abs().mean() < 0.1


def test_a_validation_sample_that_no_training_scan_has_still_has_a_probability(tmp_path):
    def lines(subject: int, repetition: int) -> np.ndarray:
        mask = draw_mask("random-lines", (16, 16), 2, seeded(1, subject, repetition)).mask.numpy()
        mask[:, 3] = subject >= 32  # the last fifth of 40
        return mask

    write_pairs(tmp_path, 40, lines)
    with pytest.warns(UserWarning, match="never sampled: 6.2 % of k-space, all of x = 3"):
        split = find_sources("pairs", tmp_path)
    assert (split.train[0].load()[0].probability[..., 3] == 0).all()
    assert (split.validation[0].load()[0].probability[..., 3] > 0).all()


def test_pairs_that_do_not_belong_together(tmp_path):
    write_pairs(tmp_path, 2, roulette)
    write_pairs(tmp_path / "b", 1, roulette, shape=(3, 16, 16))
    (tmp_path / "b" / "s00_scan_rep1.h5").replace(tmp_path / "s00_scan_rep1.h5")
    (tmp_path / "b" / "s00_scan_rep2.h5").unlink()
    with pytest.raises(InputError, match="differ in shape"):
        find_sources("pairs", tmp_path)


def test_pairs_with_one_mask_are_reported(tmp_path):
    write_pairs(tmp_path, 4, lambda subject, repetition: roulette(subject, 1))
    with pytest.warns(UserWarning, match="estimated"):  # each scan has a mask of its own, its repetitions the same
        source = find_sources("pairs", tmp_path).train[0]
    with pytest.warns(UserWarning, match="one mask"):
        source.load()


def test_the_probability_of_one_mask_for_all_is_that_mask(tmp_path):
    """Not smoothed, however few the scans: the centre is sampled always, and what is left out never."""
    write_pairs(tmp_path, 3, lambda subject, repetition: roulette(0, 1))
    with pytest.warns(UserWarning, match="all scans have one mask"):
        source = find_sources("scans", tmp_path).train[0]
    [scan] = source.load()
    assert torch.equal(scan.probability, (scan.mask > 0).float()) and scan.mask.mean() < 1


# ---- sampling probability ----


@pytest.mark.parametrize("kind", ["roulette", "gaussian-points", "random-lines", "gaussian-lines"])
def test_estimated_probability_is_near_the_truth(kind):
    draws = [draw_mask(kind, (64, 60), 5, seeded(3, i)) for i in range(60)]
    with pytest.warns(UserWarning):
        estimate = estimate_probability(draw.mask for draw in draws)
    truth = draws[0].probability
    assert (estimate > 0).all()
    assert estimate.mean().item() == pytest.approx(truth.mean().item(), rel=0.05)
    # 50 samples in the window: about 14 % from counting, some more from smoothing
    assert ((estimate - truth).abs() / truth).median() < 0.2
    if "lines" in kind:
        assert torch.equal(estimate, estimate[:1].expand_as(estimate))
        assert (estimate[truth == 1] == 1).all(), "the fully sampled centre is exact"


def test_estimated_probability_says_where_it_is_zero():
    masks = [draw_mask("gaussian-points", (40, 40), 3, seeded(0, i)).mask for i in range(60)]
    for mask in masks:
        mask[:, :6] = 0
        mask[:, 20] = 0
    with pytest.warns(UserWarning, match=r"never sampled: .*x = 0\.\.[345]\b.*20"):
        estimate = estimate_probability(masks)
    assert (estimate[:, :3] == 0).all() and (estimate[:, 20] == 0).all() and (estimate[:, 10:19] > 0).all()
    with pytest.raises(InputError):
        estimate_probability([torch.zeros(8, 8)])


def test_estimated_probability_of_few_masks_has_no_sample_at_zero():
    masks = [draw_mask("roulette", (32, 32), 8, seeded(5, i)).mask for i in range(2)]
    with pytest.warns(UserWarning):
        estimate = estimate_probability(masks)
    assert (estimate[(masks[0] + masks[1]) > 0] > 0).all() and (estimate <= 1).all()


# ---- matrix sizes ----


def band_limited(y: int, x: int, waves=((0, 0, 1.0), (1, 2, 0.5), (-2, 1, 0.3j), (3, -1, 0.2))) -> torch.Tensor:
    """An image made of a few low frequencies, which any matrix above 8 shows exactly; pixel n // 2 is the origin."""
    fy, fx = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (y, x))
    return sum(c * torch.exp(2j * math.pi * (ky * fy[:, None] + kx * fx[None, :])) for ky, kx, c in waves)


@pytest.mark.parametrize("old", [16, 17, 24])
@pytest.mark.parametrize("new", [12, 13, 16, 17, 20, 25])
def test_resizing_keeps_intensities_and_the_centre(old, new):
    resized = ifft2c(resize_kspace(fft2c(band_limited(old, old)), new))
    assert torch.allclose(resized, band_limited(new, new), atol=1e-10)


@pytest.mark.parametrize("shape", [(16, 12), (15, 12), (12, 15), (11, 16), (16, 16)])
@pytest.mark.parametrize("size", [9, 10, 13, 15, 16, 20])
def test_real_images_stay_real_and_rectangles_become_squares(shape, size):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=shape)).to(torch.complex128)
    resized = ifft2c(resize_kspace(fft2c(image), size))
    assert resized.shape == (size, size) and resized.imag.abs().max() < 1e-12
    full = max(shape)
    assert resized.mean().real.item() == pytest.approx(image.sum().real.item() / full**2, abs=1e-12)
    if size == full:
        assert torch.allclose(resized, crop_or_pad(image, full, full), atol=1e-12)


@pytest.mark.parametrize("old", [11, 12])
def test_filling_interpolates_up_to_the_edge_of_k_space(old):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(old, old))).to(torch.complex128)
    resized = ifft2c(resize_kspace(fft2c(image), 2 * old))
    first = old % 2  # the centre pixel old // 2 comes to lie at old
    assert torch.allclose(resized[first::2, first::2], image, atol=1e-12)


def test_padding_keeps_the_centre_pixel():
    for old in (4, 5):
        for new in (2, 3, 7, 8):
            image = torch.zeros(old, old)
            image[old // 2, old // 2] = 1
            assert crop_or_pad(image, new, new)[new // 2, new // 2] == 1


# ---- memory ----


def test_finding_sources_holds_no_data(tmp_path):
    for index in range(12):
        write_volume(tmp_path / f"s{index:02}_T1.nii", shape=(64, 64, 40))  # 0.3 MB each
    find_sources("nifti", tmp_path)  # warm imports and caches
    tracemalloc.start()
    split = find_sources("nifti", tmp_path)
    gc.collect()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(split.train) == 10 and held < 0.3e6


def test_names_do_not_depend_on_where_the_data_lies(tmp_path):
    for root in ("here", "there"):
        for name in ("a_1", "b_1"):
            write_volume(tmp_path / root / "x" / f"{name}.nii", shape=(8, 8, 2))
            write_volume(tmp_path / root / "y" / f"{name}.nii", shape=(8, 8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here, there = (find_sources("nifti", tmp_path / root) for root in ("here", "there"))
    assert names(here.train) == names(there.train) and len(set(names(here.train))) == 2
