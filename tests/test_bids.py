"""Results as a BIDS data set of derivatives: names, description, sidecar, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import affine_ras, exact_weights, write_scan_at, write_series

import mri_n2n
from mri_n2n.bids import DESCRIPTION, place
from mri_n2n.cli import main
from mri_n2n.errors import OptionError, OutputError

SUFFIXES = (".h5", ".json", ".nii.gz", ".png")
VOLUME = np.random.default_rng(0).random((8, 10, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return exact_weights(tmp_path_factory.mktemp("weights") / "exact.safetensors")


@pytest.fixture
def scan(tmp_path) -> Path:
    return write_scan_at(tmp_path / "sub-01_T1w.h5", VOLUME, affine_ras())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(place: str, *suffixes: str) -> set[str]:
    return {f"{place}{suffix}" for suffix in suffixes or SUFFIXES} | {"dataset_description.json", ".bidsignore"}


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sub-01_T1w", "sub-01/anat/sub-01_desc-n2n_T1w"),
        ("sub-A7_ses-pre_T2w", "sub-A7/ses-pre/anat/sub-A7_ses-pre_desc-n2n_T2w"),
        ("sub-01_acq-3d_run-02_FLAIR", "sub-01/anat/sub-01_acq-3d_run-02_desc-n2n_FLAIR"),
        ("sub-01_ses-1_ce-gd_rec-x_run-1_echo-2_T2starw", "sub-01/ses-1/anat/sub-01_ses-1_ce-gd_rec-x_run-1_echo-2_desc-n2n_T2starw"),
    ],
)  # fmt: skip
def test_names(name, wanted):
    folder, found = place(name)
    assert (folder / found).as_posix() == wanted


@pytest.mark.parametrize(
    "name",
    ["scan", "T1w", "sub-01", "sub-01_", "sub-_T1w", "sub-01_T1", "sub-01_bold", "sub-01_PDT2", "sub-01_T1w_x", "01_T1w", "ses-1_T1w",
     "ses-1_sub-01_T1w", "sub-01_run-1_acq-a_T1w", "sub-01_sub-02_T1w", "sub-01_foo-1_T1w", "sub-01_desc-x_T1w",
     "sub-01_run-a_T1w", "sub-0.1_T1w", "sub-01_acq_T1w", "sub-ä_T1w", "sub-01_run-²_T1w", "sub-01\n_T1w", ""],
)  # fmt: skip
def test_other_names_are_usage_errors(name):
    with pytest.raises(OptionError, match=r"sub-01_ses-02_run-1_T1w\.h5") as caught:
        place(name)
    assert "\n" not in str(caught.value)


def test_one_other_name_among_several_writes_nothing(scan, weights, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    scan.rename(folder / scan.name)
    (folder / "scan.h5").write_bytes((folder / scan.name).read_bytes())
    words = ["reconstruct", folder, "-o", tmp_path / "out", "--weights", weights, "--bids"]
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert "'scan'" in said and "sub-01_ses-02_run-1_T1w.h5" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- what is written


def test_a_data_set_of_derivatives(scan, weights, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["reconstruct", scan, "-o", out, "--weights", weights, "--bids"]
    assert main([str(word) for word in words]) == 0
    place = "sub-01/anat/sub-01_desc-n2n_T1w"
    assert str(out / place) in capsys.readouterr().out
    assert set(tree(out)) == results(place)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["Name"] and description["BIDSVersion"]
    (software,) = description["GeneratedBy"]
    assert software["Name"] == "mri-n2n" and software["Version"] == mri_n2n.__version__
    sidecar = json.loads((out / f"{place}.json").read_text())
    assert sidecar["Sources"] == ["sub-01_T1w.h5"] and sidecar["SkullStripped"] is False
    assert "research use only" in sidecar["Description"] and "simulated" in sidecar["Description"]
    assert sidecar["output"] == place
    mri_n2n.reconstruct(scan, tmp_path / "plain", weights=weights)
    plain = json.loads((tmp_path / "plain" / "sub-01_T1w.json").read_text())
    assert set(sidecar) - set(plain) == {"Sources", "SkullStripped", "Description"} and not set(plain) - set(sidecar)
    assert sidecar["redo"]["options"].pop("bids") is True and plain["redo"]["options"].pop("bids") is False
    for name in set(plain) - {"output", "output_sha256", "seconds"}:
        assert sidecar[name] == plain[name], name
    np.testing.assert_array_equal(
        nibabel.load(out / f"{place}.nii.gz").get_fdata(),
        nibabel.load(tmp_path / "plain/sub-01_T1w.nii.gz").get_fdata(),
    )
    for content in tree(out).values():
        assert str(tmp_path).encode() not in content


def test_what_bids_has_no_names_for_is_ignored(scan, weights, tmp_path):
    """By git's own reading of the patterns, which .bidsignore shares."""
    out = tmp_path / "out"
    series = write_series(tmp_path / "series", slices=3, size=(10, 8))
    mri_n2n.reconstruct(scan, out, weights=weights, bids=True, dicom=series)
    (out / ".gitignore").write_text((out / ".bidsignore").read_text())
    subprocess.run(["git", "init", "-q"], cwd=out, check=True)
    kept = subprocess.run(
        ["git", "ls-files", "-o", "--exclude-standard"], cwd=out, capture_output=True, text=True
    ).stdout
    place = "sub-01/anat/sub-01_desc-n2n_T1w"
    assert set(kept.split()) - {".gitignore"} == results(place, ".nii.gz", ".json")
    assert (out / f"{place}.dicom" / "0003.dcm").is_file()
    written = json.loads((out / f"{place}.json").read_text())["output_sha256"]
    assert "sub-01_desc-n2n_T1w.dicom/0003.dcm" in written


def test_sessions_directories_skipping_and_force(weights, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("sub-01_ses-a_T1w.h5", "sub-01_ses-b_T1w.h5", "sub-02_T2w.h5"):
        write_scan_at(folder / name, VOLUME, affine_ras())
    places = ["sub-01/ses-a/anat/sub-01_ses-a_desc-n2n_T1w", "sub-01/ses-b/anat/sub-01_ses-b_desc-n2n_T1w", "sub-02/anat/sub-02_desc-n2n_T2w"]  # fmt: skip
    (done,) = mri_n2n.reconstruct(folder / "sub-01_ses-b_T1w.h5", out, weights=weights, bids=True)
    before = (out / f"{places[1]}.json").stat().st_mtime_ns
    sidecars = mri_n2n.reconstruct(folder, out, weights=weights, bids=True, skip_existing=True)
    assert [sidecar["output"] for sidecar in sidecars] == [places[0], places[2]]
    assert (out / f"{places[1]}.json").stat().st_mtime_ns == before
    assert set(tree(out)) == {name for one in places for name in results(one)}
    with pytest.raises(OutputError, match="--force"):
        mri_n2n.reconstruct(folder, out, weights=weights, bids=True)
    assert len(mri_n2n.reconstruct(folder, out, weights=weights, bids=True, force=True)) == 3


def test_two_scans_of_one_bids_name_are_refused(scan, weights, tmp_path):
    (tmp_path / "sub-01_T1w.hdf5").write_bytes(scan.read_bytes())
    with pytest.raises(OutputError, match="sub-01/anat/sub-01_desc-n2n_T1w.h5"):
        mri_n2n.reconstruct([scan, tmp_path / "sub-01_T1w.hdf5"], tmp_path / "out", weights=weights, bids=True)
    assert not (tmp_path / "out").exists()


def test_a_scan_that_fails_leaves_no_data_set(weights, tmp_path):
    scan = write_scan_at(tmp_path / "sub-01_T1w.h5", VOLUME * np.float32(np.inf), affine_ras())
    with pytest.raises(mri_n2n.errors.InputError):
        mri_n2n.reconstruct(scan, tmp_path / "out", weights=weights, bids=True)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- an existing data set


@pytest.mark.parametrize(
    "text",
    ['{"Name": "raw", "BIDSVersion": "1.9.0"}', '{"Name": "raw", "DatasetType": "raw"}', "[]", "not JSON", "", "[" * 100_000,
     '{"DatasetType": ["derivative"]}', "\xff"],
)  # fmt: skip
def test_an_existing_data_set_that_is_no_derivative_is_left_alone(text, scan, weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_bytes(text.encode("latin-1"))
    before = tree(out)
    for force in (False, True):
        with pytest.raises(OutputError, match="dataset_description.json.*another -o"):
            mri_n2n.reconstruct(scan, out, weights=weights, bids=True, force=force)
    assert tree(out) == before


def test_an_existing_derivative_is_kept(scan, weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    text = json.dumps(
        {"Name": "mine", "BIDSVersion": "1.8.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}
    )
    (out / "dataset_description.json").write_text(text)
    (out / ".bidsignore").write_text("mine/\n*.h5")
    mri_n2n.reconstruct(scan, out, weights=weights, bids=True)
    assert (out / "dataset_description.json").read_text() == text
    ignored = (out / ".bidsignore").read_text().splitlines()
    assert ignored[:2] == ["mine/", "*.h5"] and len(ignored) == len(set(ignored)) == 5


def test_processes_share_scans_and_make_one_data_set(weights, tmp_path):
    """As torchrun starts them."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(4):
        write_scan_at(folder / f"sub-{number}_T1w.h5", VOLUME, affine_ras())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m",
               "mri_n2n", "reconstruct", folder, "-o", out, "--weights", weights, "--bids"]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    places = [f"sub-{number}/anat/sub-{number}_desc-n2n_T1w" for number in range(4)]
    assert set(tree(out)) == {name for one in places for name in results(one)}
    assert json.loads((out / "dataset_description.json").read_text()) == DESCRIPTION


def test_many_at_once_make_one_description(tmp_path):
    """Four processes, thirty data sets, begun together."""
    code = """
import sys
from pathlib import Path
from mri_n2n.bids import make_dataset
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    root = Path(sys.argv[1], str(number))
    root.mkdir(exist_ok=True)
    make_dataset(root)
"""
    command, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 4
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    for number in range(30):
        assert set(tree(tmp_path / str(number))) == {"dataset_description.json", ".bidsignore"}
        assert json.loads((tmp_path / str(number) / "dataset_description.json").read_text()) == DESCRIPTION
