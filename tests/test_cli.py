"""The command line: help without torch, one clear line and a documented code for whatever is wrong, JSON for machines."""

import gzip
import json
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

import mri_n2n
from mri_n2n import cli
from mri_n2n.arguments import MASKS, parser
from mri_n2n.checkpoint import BUNDLED, build_network, load_network, save_tensors
from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError
from mri_n2n.masks import draw_mask

ROOT = Path(__file__).parent.parent
COMMANDS = ("demo", "simulate", "train", "reconstruct", "denoise", "evaluate", "verify", "info", "convert", "benchmark")


def random_kspace(*shape: int) -> np.ndarray:
    pair = np.random.default_rng(0).standard_normal((2, *shape))
    return (pair[0] + 1j * pair[1]).astype(np.complex64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    options = {"cascades": 1, "channels": 8, "levels": 2}
    save_tensors(
        path, build_network("unrolled", options).state_dict(), {"network": "unrolled", "network_options": options}
    )
    return path


def good_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = random_kspace(3, 16, 20)
        file["reconstruction_esc"] = np.abs(random_kspace(3, 16, 20))
        file["mask"] = np.ones(20, np.float32)
    return path


def good_volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.abs(random_kspace(20, 16, 3)), np.eye(4)), path)
    return path


def good_result(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["reconstruction"] = np.abs(random_kspace(3, 16, 20))
    return path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(arguments: list, code: int, folder: Path, capsys, says: str = "") -> str:
    """The command ends with this code and one line on stderr, prints no result and leaves the folder as it was."""
    before = everything(folder)
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("mri-n2n: error: "), said.err
    assert len(said.err) < 800 and says in said.err, said.err
    assert everything(folder) == before
    return said.err


# ------------------------------------------------------------------------------------------------------------ help


def test_help_and_import_need_no_torch():
    """One process for all: every --help, the version, and the package itself."""
    script = textwrap.dedent("""
        import contextlib, io, json, sys
        import mri_n2n
        from mri_n2n import cli
        said = {}
        for arguments in [["--help"], ["--version"], *([command, "--help"] for command in sys.argv[1:])]:
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    cli.main(arguments)
            except SystemExit as stop:
                assert stop.code == 0, arguments
            said[" ".join(arguments)] = out.getvalue()
        heavy = {"torch", "numpy", "fastmri", "h5py", "nibabel", "scipy"} & set(sys.modules)
        print(json.dumps([said, sorted(heavy), mri_n2n.__all__]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    said, heavy, names = json.loads(done.stdout)
    assert heavy == []
    assert said["--version"].strip() == f"mri-n2n {mri_n2n.__version__}"
    assert all(command in said["--help"] for command in COMMANDS)
    codes = {0, 1, 2, 3, 4, 5, 6, 7, 130}
    for command, text in said.items():
        if command != "--version":
            words = " ".join(text.split())
            assert all(f" {code} " in words.partition("exit codes:")[2] for code in codes), command
            assert "Research use only" in words
    assert names == mri_n2n.__all__


def test_every_command_is_tested_here():
    (commands,) = (action for action in parser()._actions if action.choices)
    assert tuple(commands.choices) == COMMANDS


@pytest.mark.parametrize("name", mri_n2n.__all__)
def test_every_name_of_the_package_can_be_had(name):
    assert getattr(mri_n2n, name) is not None


def test_the_verbs_are_those_of_the_command_line():
    assert {"simulate", "train", "reconstruct", "evaluate", "verify", "info"} <= set(mri_n2n.__all__)
    with pytest.raises(AttributeError, match="transmogrify"):
        mri_n2n.transmogrify  # noqa: B018


@pytest.mark.parametrize("verb", ["simulate", "train", "reconstruct", "evaluate", "verify", "info"])
def test_verbs_stay_verbs_whatever_was_imported(verb):
    """No module bears the name of a verb: importing it would take the verb's place in the package."""
    assert find_spec(f"mri_n2n.{verb}") is None
    assert callable(getattr(mri_n2n, verb))


def test_masks_and_datasets_are_those_of_the_modules():
    """The command line names them itself, so as not to import torch for --help."""
    from mri_n2n import masks
    from mri_n2n.datasets import DATASETS
    from mri_n2n.networks import NETWORKS
    from mri_n2n.pairs import PAIR_MAKERS

    assert MASKS == tuple(masks.MASKS)
    (commands,) = (action for action in parser()._actions if action.choices)
    choices = {action.dest: action.choices for action in commands.choices["train"]._actions}
    assert set(choices["dataset"]) == set(DATASETS) and set(choices["network"]) == set(NETWORKS)
    assert set(choices["method"]) == {"auto", *PAIR_MAKERS}


# ----------------------------------------------------------------------------------------- wrong usage, wrong options


@pytest.mark.parametrize(
    "wrong",
    [[], ["fly"], ["info"], ["train", "--dataset", "phantom"], ["train", "--dataset", "moon", "-o", "x"], ["simulate", "v.nii", "--mask", "dots", "-o", "x"],
     ["train", "--dataset", "phantom", "-o", "x", "--steps", "1", "--epochs", "1"], ["reconstruct", "-o", "x"], ["evaluate", "a.h5"],
     ["reconstruct", "a.h5", "-o", ""], ["info", ""]],
)  # fmt: skip
def test_wrong_usage_is_code_2(wrong, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(wrong)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and len(said.err.splitlines()) == 1 and "error:" in said.err
    assert everything(tmp_path) == {}


TRAIN = ["train", "--dataset", "phantom", "--matrix-size", "24", "--channels", "8", "--device", "cpu", "--quiet", "-o"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--steps", "0"], ["--epochs", "0"], ["--minutes", "0"], ["--minutes", "nan"], ["--steps", "-1"],
        ["--batch-size", "0"], ["--learning-rate", "0"], ["--learning-rate", "nan"],
        ["--acceleration", "fast"], ["--acceleration", "0.5"], ["--acceleration", "12:4"], ["--acceleration", "nan"],
        ["--acceleration", "4:inf"], ["--acceleration", "1000"],
        ["--mask", "dots"], ["--mask", "roulette,"], ["--noise", "-1"], ["--noise", "nan"], ["--phase", "2"],
        ["--cascades", "0"], ["--channels", "0"], ["--channels", "-8"], ["--matrix-size", "2"],
        ["--network", "unet", "--cascades", "3"], ["--method", "noise2noise-2018", "--network", "unrolled"],
        ["--acceleration", "4:"], ["--mask", ""], ["--matrix-size", "100000"],
        ["--device", "toaster"], ["--validation-subjects", "ann"],
        ["--noise", "0.05:0"], ["--noise", "0:loud"], ["--noise", "0:inf"], ["--average", "1"], ["--average", "-0.1"],
        ["--average", "nan"], ["--weight-cap", "0"], ["--weight-cap", "nan"], ["--input-share", "0"], ["--input-share", "1"],
        ["--extra-noise", "0"], ["--extra-noise", "inf"], ["--coils", "0"], ["--coils", "1,4"], ["--coils", "many"],
        ["--acquisitions", "1", "--method", "noise2noise"], ["--acquisitions", "1", "--exchange"],
        ["--exchange", "--method", "ssdu"], ["--center-gaps", "0.1", "--method", "ssdu"], ["--center-gaps", "1.5"], ["--center-gaps", "0.1", "--network", "unet"], ["--center-gaps", "0.1", "--mask", "gaussian-lines"], ["--exchange", "--method", "supervised"],
        ["--network", "unet", "--method", "equivariant"], ["--network", "unet", "--method", "robust-multi-operator"],
        ["--network", "fastmri-unet", "--cascades", "2"], ["--network", "fastmri-varnet", "--consistency", "soft"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_training_options_that_make_no_sense(wrong, tmp_path, capsys, monkeypatch):
    """All are refused before anything is written or trained."""
    monkeypatch.setattr(import_module("mri_n2n.training"), "training_step", lambda *_: pytest.fail("it trains"))
    budget = [] if wrong[0] in ("--epochs", "--minutes", "--steps") else ["--steps", "1"]
    refused([*TRAIN, tmp_path / "run", *budget, *wrong], 2, tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--weight-cap 3 --method ssdu", "--weight-cap is of"),
        ("--input-share 0.4 --method noise2noise", "--input-share is of"),
        ("--extra-noise 2 --method k-weighted-ssdu", "--extra-noise is of"),
        ("--checkpointing --network fastmri-unet", "--checkpointing is of"),
        ("--one-mask", "--one-mask goes with"),
        ("--one-mask --acquisitions 1 --mask roulette,gaussian-lines", "--one-mask goes with"),
        ("--one-mask --acquisitions 1 --acceleration 4:8", "--one-mask goes with"),
        ("--one-mask --acquisitions 1 --pairs redrawn", "--one-mask goes with"),
        ("--one-mask --acquisitions 1 --method multi-operator", "needs different masks"),
        ("--one-mask --acquisitions 1 --method robust-multi-operator", "needs different masks"),
    ],
)
def test_options_of_other_methods_are_refused(options, says, tmp_path, capsys):
    refused([*TRAIN, tmp_path / "run", "--steps", "1", *options.split()], 2, tmp_path, capsys, says)


@pytest.mark.parametrize(
    "wrong",
    [["--acceleration", "0"], ["--acceleration", "nan"], ["--acceleration", "1000"], ["--coils", "0"], ["--noise", "-1"], ["--noise", "nan"],
     ["--noise", "inf"], ["--repetitions", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_simulation_options_that_make_no_sense(wrong, tmp_path, capsys):
    refused(["simulate", good_volume(tmp_path / "v.nii"), "-o", tmp_path / "s.h5", *wrong], 2, tmp_path, capsys)


def test_debug_shows_where(tmp_path):
    with pytest.raises(NotFoundError):
        cli.main(["info", str(tmp_path / "nothing"), "--debug"])


def test_an_internal_error_is_code_1_and_one_line(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(import_module("mri_n2n.inspection"), "describe", broken)
    assert cli.main(["info", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ZeroDivisionError: two lines" in said and "--debug" in said


def test_ctrl_c_while_modules_are_imported_is_not_lost(tmp_path, capsys, monkeypatch):
    """Extension modules swallow exceptions that come up while they are imported: the signal has to wait."""
    (tmp_path / "deaf_module.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.05)\nexcept BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.MODULES, "info", "deaf_module")
    monkeypatch.setitem(cli.COMMANDS, "info", lambda options: pytest.fail("it went on"))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for what runs in its background
    try:
        assert cli.main(["info", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("\n") == 1


def test_every_command_names_its_module():
    assert set(cli.MODULES) == set(cli.COMMANDS)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_one_line_and_no_bug(error, tmp_path, capsys, monkeypatch):
    def fails(options):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", fails)
    assert cli.main(["info", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not enough memory" in said and "--batch-size" in said


def test_ctrl_c_is_code_130(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("mri_n2n.inspection"), "describe", interrupted)
    assert cli.main(["info", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_within_a_late_import_is_code_130_too(tmp_path):
    """Imports run text, as `dataclass` does; an interrupt there is one that `python -m` remembers."""
    (tmp_path / "late.py").write_text(
        "import sys\nfrom mri_n2n import cli, inspection\n"
        "inspection.describe = lambda *_, **__: exec('raise KeyboardInterrupt')\nsys.exit(cli.main(['info', '.']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "late"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr, done.stderr


def test_exit_codes_are_those_of_the_errors():
    assert (UserError.exit_code, InputError.exit_code, OutputError.exit_code, NotFoundError.exit_code) == (2, 3, 4, 5)


# --------------------------------------------------------------------------------------------------- bad input: scans


def replace(file: h5py.File, name: str, value) -> None:
    if name in file:
        del file[name]
    file[name] = value


def spoil_scan(kind: str, path: Path) -> None:
    good_scan(path)
    content = path.read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
            return
        case "empty":
            path.write_bytes(b"")
            return
        case "text":
            path.write_text("kspace\n" * 100)
            return
        case "pickle":
            path.write_bytes(pickle.dumps({"kspace": [1, 2, 3]}))
            return
    with h5py.File(path, "r+") as file:
        match kind:
            case "external link":
                replace(file, "kspace", h5py.ExternalLink("other.h5", "kspace"))
            case "soft link":
                file["elsewhere"] = random_kspace(3, 16, 20)
                replace(file, "kspace", h5py.SoftLink("/elsewhere"))
            case "external storage":
                secret = path.with_name("secret")
                secret.write_bytes(bytes(range(256)) * 100)
                del file["kspace"]
                file.create_dataset("kspace", (3, 16, 20), "c8", external=[(str(secret), 0, 3 * 16 * 20 * 8)])
            case "virtual":
                layout = h5py.VirtualLayout((3, 16, 20), "c8")
                layout[...] = h5py.VirtualSource("other.h5", "kspace", (3, 16, 20))
                del file["kspace"]
                file.create_virtual_dataset("kspace", layout)
            case "logical bomb":
                del file["kspace"]
                file.create_dataset("kspace", (1000, 2000, 2000, 1000), "c8", chunks=(1, 1, 64, 64))
            case "chunk bomb":
                del file["kspace"]
                bomb = file.create_dataset(
                    "kspace", (1, 4096, 4096), "c8", chunks=(1, 4096, 4096), compression="gzip", compression_opts=9
                )
                bomb[...] = 0
            case "NaN":
                file["kspace"][2, 3, 4] = np.nan
            case "infinite":
                file["kspace"][2, 3, 4] = np.inf
            case "zero":
                file["kspace"][...] = 0
            case "mask width":
                replace(file, "mask", np.ones(21))
            case "mask rank":
                replace(file, "mask", np.ones((3, 1, 16, 20)))
            case "rank":
                replace(file, "kspace", random_kspace(16, 20))
            case "real":
                replace(file, "kspace", np.ones((3, 16, 20)))
            case "no kspace":
                del file["kspace"], file["reconstruction_esc"]


SCANS = [
    "truncated", "empty", "text", "pickle", "external link", "soft link", "external storage", "virtual", "logical bomb",
    "chunk bomb", "NaN", "infinite", "zero", "mask width", "mask rank", "rank", "real", "no kspace",
]  # fmt: skip


@pytest.mark.parametrize("kind", SCANS)
def test_bad_scans(kind, weights, tmp_path, capsys):
    """In every command that reads the k-space of a scan."""
    bad = tmp_path / "data" / "ann_bad.h5"
    spoil_scan(kind, good_scan(bad))
    good_scan(tmp_path / "data" / "bob_good.h5")
    output = tmp_path / "out"
    refused(["reconstruct", bad, "-o", output, "--weights", weights, "--device", "cpu"], 3, tmp_path, capsys, bad.name)
    train = [
        "train",
        "--dataset",
        "fastmri",
        "--method",
        "noise2noise",
        "--data",
        bad.parent,
        "--steps",
        "1",
        "--channels",
        "8",
        "--cascades",
        "1",
        "--device",
        "cpu",
    ]
    refused([*train, "-o", output], 3, tmp_path, capsys, "ann_bad")
    if kind not in ("NaN", "infinite", "zero"):  # info looks at the middle slice, evaluate at the reference
        refused(["info", bad], 3, tmp_path, capsys, bad.name)
    if kind in ("truncated", "empty", "text", "pickle", "no kspace"):
        refused(["evaluate", good_result(tmp_path / "r.h5"), "--reference", bad], 3, tmp_path, capsys, bad.name)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "external link", "no kspace"])
def test_bad_repetitions(kind, tmp_path, capsys):
    good_scan(tmp_path / "data" / "ann_rep1.h5")
    spoil_scan(kind, good_scan(tmp_path / "data" / "ann_rep2.h5"))
    train = ["train", "--dataset", "pairs", "--data", tmp_path / "data", "--steps", "1", "-o", tmp_path / "run"]
    refused(train, 3, tmp_path, capsys, "ann_rep2.h5")


# ------------------------------------------------------------------------------------------------- bad input: volumes


def spoil_volume(kind: str, path: Path) -> None:
    good_volume(path)
    content = bytearray(path.read_bytes())
    match kind:
        case "truncated":
            content = content[:-100]
        case "truncated gzip":
            content = gzip.compress(bytes(content))[:-50]
        case "empty":
            content = b""
        case "text":
            content = b"no volume\n" * 100
        case "negative dims":
            content[42:44] = struct.pack("<h", -20)
        case "enormous dims":
            content[42:48] = struct.pack("<3h", 32767, 32767, 32767)
        case "NaN slope":
            content[112:116] = struct.pack("<f", np.nan)
        case "NaN voxels":
            content[-40:-36] = struct.pack("<f", np.nan)
        case "two axes":
            content[40:48] = struct.pack("<4h", 2, 20, 48, 1)
    path.write_bytes(bytes(content))


VOLUMES = [
    "truncated",
    "truncated gzip",
    "empty",
    "text",
    "negative dims",
    "enormous dims",
    "NaN slope",
    "NaN voxels",
    "two axes",
]


@pytest.mark.parametrize("kind", VOLUMES)
def test_bad_volumes(kind, tmp_path, capsys):
    bad = tmp_path / "data" / "ann_bad.nii"
    spoil_volume(kind, good_volume(bad))
    good_volume(tmp_path / "data" / "bob_good.nii")
    good_result(tmp_path / "r.h5")
    refused(["simulate", bad, "-o", tmp_path / "s.h5"], 3, tmp_path, capsys, bad.name)
    refused(["info", bad], 3, tmp_path, capsys, bad.name)
    refused(["evaluate", tmp_path / "r.h5", "--reference", bad], 3, tmp_path, capsys, bad.name)
    train = [
        "train",
        "--dataset",
        "nifti",
        "--method",
        "noise2noise",
        "--data",
        bad.parent,
        "--steps",
        "1",
        "--channels",
        "8",
        "--cascades",
        "1",
        "--device",
        "cpu",
    ]
    refused([*train, "-o", tmp_path / "run"], 3, tmp_path, capsys, "ann_bad")


def test_big_endian_files_are_read(weights, tmp_path, capsys):
    """The one row that is no fault: other byte orders give the same images."""
    for order in "<>":
        with h5py.File(tmp_path / f"scan{ord(order)}.h5", "w") as file:
            file["kspace"] = random_kspace(2, 16, 20).astype(f"{order}c8")
        arguments = [
            "reconstruct",
            tmp_path / f"scan{ord(order)}.h5",
            "-o",
            tmp_path / "out",
            "--weights",
            weights,
            "--device",
            "cpu",
        ]
        assert cli.main(list(map(str, arguments))) == 0
    with (
        h5py.File(tmp_path / "out" / f"scan{ord('<')}.h5") as little,
        h5py.File(tmp_path / "out" / f"scan{ord('>')}.h5") as big,
    ):
        np.testing.assert_array_equal(little["image"][()], big["image"][()])


# ------------------------------------------------------------------------- weights, places, and things that are missing


@pytest.mark.parametrize(
    "kind", ["pickle", "torch.save", "text", "empty", "a scan", "no protocol", "no header", "not finite"]
)
def test_bad_weights(kind, tmp_path, capsys):
    scan, bad = good_scan(tmp_path / "scan.h5"), tmp_path / "bad.safetensors"
    match kind:
        case "pickle":
            bad.write_bytes(pickle.dumps({"network": "unrolled"}))
        case "torch.save":
            torch.save({"a": torch.zeros(3)}, bad)
        case "text" | "empty":
            bad.write_text("text" * 100 * (kind == "text"))
        case "a scan":
            good_scan(bad)
        case "not finite":
            network, header = load_network(BUNDLED)
            spoiled = {name: torch.full_like(value, torch.nan) for name, value in network.state_dict().items()}
            save_tensors(bad, spoiled, header)
            refused(["reconstruct", scan, "-o", tmp_path / "out", "--weights", bad], 3, tmp_path, capsys, "not finite")
            return
        case "no protocol" | "no header":
            network, header = load_network(BUNDLED)
            save_tensors(bad, network.state_dict(), header | {"training": {"protocol": None}} if "pro" in kind else [])
    refused(["reconstruct", scan, "-o", tmp_path / "out", "--weights", bad], 3, tmp_path, capsys, bad.name)
    refused(["info", bad], 3, tmp_path, capsys, bad.name)


def test_what_is_not_there_is_code_5(weights, tmp_path, capsys, monkeypatch):
    scan, nothing = good_scan(tmp_path / "scan.h5"), tmp_path / "nothing.h5"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_N2N_DATA", raising=False)
    refused(["reconstruct", nothing, "-o", "out", "--weights", weights], 5, tmp_path, capsys, "nothing.h5")
    refused(["reconstruct", scan, "-o", "out", "--weights", "no run"], 5, tmp_path, capsys, "no run")
    refused(["info", nothing], 5, tmp_path, capsys, "nothing.h5")
    refused(["evaluate", nothing, "--reference", scan], 5, tmp_path, capsys, "nothing.h5")
    refused(["simulate", nothing, "-o", "s.h5"], 5, tmp_path, capsys, "nothing.h5")
    refused(["train", "--dataset", "nifti", "--data", "nowhere", "-o", "run"], 5, tmp_path, capsys, "nowhere")
    refused(
        ["train", "--dataset", "ixi", "-o", "run"],
        5,
        tmp_path,
        capsys,
        "python data_scripts/download_ixi.py -o data/ixi",
    )
    refused([*TRAIN, "run", "--steps", "1", "--resume"], 5, tmp_path, capsys, "run")


def test_what_is_there_already_is_code_4(weights, tmp_path, capsys):
    scan, volume = good_scan(tmp_path / "scan.h5"), good_volume(tmp_path / "v.nii.gz")
    (tmp_path / "file").write_text("a file")
    refused(["simulate", volume, "-o", scan], 4, tmp_path, capsys, "--force")
    refused(["simulate", volume, "-o", volume], 4, tmp_path, capsys)
    refused(["simulate", volume, "-o", tmp_path / "no directory" / "s.h5"], 4, tmp_path, capsys)
    refused(["reconstruct", scan, "-o", tmp_path, "--force", "--weights", weights], 4, tmp_path, capsys, "input")
    refused(["reconstruct", scan, "-o", tmp_path / "file", "--weights", weights], 4, tmp_path, capsys)
    refused([*TRAIN, tmp_path / "file", "--steps", "1"], 4, tmp_path, capsys)


def test_force_does_not_let_simulate_write_over_its_volume(tmp_path, capsys):
    volume = good_volume(tmp_path / "v.nii.gz")
    refused(["simulate", volume, "-o", volume, "--force"], 4, tmp_path, capsys)


def test_warnings_are_one_line_each(tmp_path, monkeypatch):
    """Not Python's two, with a source line that means nothing to a user."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    good_volume(tmp_path / "data" / "ann_T1.nii")
    arguments = ["train", "--dataset", "nifti", "--data", tmp_path / "data", "--steps", "1", "--channels", "8", "--cascades", "1",
                 "--device", "cpu", "-o", tmp_path / "run"]  # fmt: skip
    with pytest.warns(UserWarning, match="one subject") as caught:
        assert cli.main(list(map(str, arguments))) == 0
    for warning in caught:
        said = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
        assert said.startswith("mri-n2n: warning: ") and said.count("\n") == 1 and said.endswith("\n")


# ------------------------------------------------------------------------------------------------------ what it prints


def run(arguments: list, capsys) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""  # no terminal, no progress
    return said.out


def test_the_whole_chain_and_its_json(tmp_path, capsys):
    volume, scan, results = good_volume(tmp_path / "v.nii.gz"), tmp_path / "scan.h5", tmp_path / "results"
    assert "simulated" in run(["simulate", volume, "-o", scan, "--acceleration", "3"], capsys)
    trained = run([*TRAIN, tmp_path / "run", "--steps", "2", "--acceleration", "3", "--cascades", "1"], capsys)
    assert str(tmp_path / "run" / "weights.safetensors") in trained and "2 steps" in trained and "dB" in trained

    (sidecar,) = json.loads(run(["reconstruct", scan, "-o", results, "--weights", tmp_path / "run", "--json"], capsys))
    assert sidecar == json.loads((results / "scan.json").read_text())
    said = run(["reconstruct", scan, "-o", results, "--weights", tmp_path / "run", "--force"], capsys)
    assert str(results / "scan") in said and "3 slices" in said

    scores = json.loads(run(["evaluate", results / "scan.h5", "--reference", scan, "--json"], capsys))
    (one,) = scores["volumes"]
    assert len(one["per_slice"]) == 3 and one["simulated"] is True and np.isfinite(one["volume"]["psnr"])
    table = run(["evaluate", results, "--reference", scan], capsys)
    assert f"{one['volume']['psnr']:.2f}" in table and "peak" in table

    kinds = []
    for path in (
        scan,
        volume,
        results / "scan.h5",
        results / "scan.nii.gz",
        tmp_path / "run",
        tmp_path / "run" / "weights.safetensors",
    ):
        facts = json.loads(run(["info", path, "--json"], capsys))
        kinds.append(facts["kind"].split(" (")[0])
        for key, value in zip(facts, run(["info", path], capsys).splitlines()):
            assert value.startswith(key)
        assert str(tmp_path) not in json.dumps(facts)
    assert kinds == [
        "raw scan",
        "NIfTI magnitude volume",
        "reconstruction",
        "NIfTI magnitude volume",
        "weights",
        "weights",
    ]
    facts = json.loads(run(["info", scan, "--json"], capsys))
    assert (
        facts["coils"] == 1
        and facts["slices"] == 3
        and "reference" not in facts["missing"]
        and facts["simulated"].startswith("yes")
    )


def test_repetitions_are_written_and_named(tmp_path, capsys):
    volume = good_volume(tmp_path / "v.nii.gz")
    said = run(
        ["simulate", volume, "-o", tmp_path / "s.h5", "--repetitions", "2", "--acceleration", "3", "--no-reference"],
        capsys,
    )
    names = [Path(line.split(" (")[0]).name for line in said.splitlines()]
    assert names == ["s_rep1.h5", "s_rep2.h5"] and not (tmp_path / "s.h5").exists()
    with h5py.File(tmp_path / "s_rep1.h5") as one, h5py.File(tmp_path / "s_rep2.h5") as two:
        assert not np.array_equal(one["mask"][()], two["mask"][()]) and "reconstruction_esc" not in one
    refused(
        ["evaluate", tmp_path / "s_rep2.h5", "--reference", tmp_path / "s_rep1.h5"], 3, tmp_path, capsys, "reference"
    )


def test_odd_places_and_numbers_end_in_one_line(tmp_path, capsys):
    volume, scan = good_volume(tmp_path / "v.nii.gz"), tmp_path / "s.h5"
    run(["simulate", volume, "-o", scan, "--acceleration", "3"], capsys)
    huge, train = "9" * 25, ["train", "--dataset", "phantom", "--steps", "1", "-o", tmp_path / "run"]
    refused(["demo", "-o", volume], 4, tmp_path, capsys, "is a file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s.h5").symlink_to("nowhere")
    refused(["reconstruct", scan, "-o", tmp_path / "out"], 4, tmp_path, capsys, "--force")
    refused(["simulate", volume, "-o", tmp_path / ("x" * 300 + ".h5")], 4, tmp_path, capsys, "too long")
    refused(["simulate", volume, "-o", tmp_path / "t.nii.gz"], 2, tmp_path, capsys, ".h5")
    refused(["simulate", volume, "-o", tmp_path / "t.h5", "--seed", huge], 2, tmp_path, capsys, "--seed")
    refused(["simulate", volume, "-o", tmp_path / "t.h5", "--noise", "1e300"], 2, tmp_path, capsys, "--noise")
    refused(["simulate", volume, "-o", tmp_path / "t.h5", "--coils", "100000"], 2, tmp_path, capsys, "--coils")
    refused([*train, "--seed", huge], 2, tmp_path, capsys, "--seed")
    refused([*train, "--data", tmp_path], 2, tmp_path, capsys, "--data")
    refused(["reconstruct", scan, "-o", tmp_path / "r", "--device", "meta"], 2, tmp_path, capsys, "meta")
    refused(["info", tmp_path], 5, tmp_path, capsys, "without weights")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path):
    volume = good_volume(tmp_path / "v.nii.gz")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "mri_n2n", "info", str(volume)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 4 and ended.stderr.count("\n") == 1 and "No space left" in ended.stderr, ended.stderr


def test_info_tells_a_checkpoint_from_weights(tmp_path, capsys):
    run(
        [
            "train",
            "--dataset",
            "phantom",
            "--matrix-size",
            "24",
            "--acceleration",
            "3",
            "--steps",
            "1",
            "--channels",
            "8",
            "--quiet",
            "-o",
            tmp_path / "run",
        ],
        capsys,
    )
    told = {
        name: json.loads(run(["info", tmp_path / "run" / f"{name}.safetensors", "--json"], capsys))
        for name in ("weights", "checkpoint")
    }
    assert told["weights"]["commands"] == "reconstruct --weights" and told["checkpoint"]["commands"] == "train --resume"
    assert (
        told["weights"]["method"] == "noise2noise"
        and told["weights"]["acquisitions"] == "simulated, twice of each slice"
        and told["weights"]["acceleration"] == [3, 3]
    )


def options_of(*arguments: str):
    return cli.train_options_from(parser().parse_args(["train", "--dataset", "phantom", "-o", "run", *arguments]))


def test_defaults_of_training_and_of_the_recipe():
    default, recipe = options_of(), options_of("--method", "noise2noise-2018")
    assert (default.network, default.protocol.pairs, default.batch_size, default.epochs) == (
        None,  # auto has not chosen yet
        "fixed",
        None,
        50,
    )
    assert options_of("--method", "noise2noise").network == "unrolled"
    assert (recipe.network, recipe.protocol.pairs, recipe.batch_size, recipe.epochs) == ("unet", "redrawn", None, 300)
    assert (
        default.learning_rate == recipe.learning_rate == 1e-3
        and default.protocol.acceleration == (10.0, 10.0)
        and recipe.protocol.masks == ("roulette",)
    )
    generator = torch.Generator().manual_seed(0)
    edge = draw_mask("roulette", (255, 255), recipe.protocol.acceleration[0], generator).probability[0, 127].item()
    assert abs(edge - 0.025) < 1e-4  # the paper's p_edge
    assert (default.protocol.method, default.average, recipe.average) == ("auto", 0.999, 0.0)
    assert (
        default.network_options == options_of("--noise", "0.05").network_options == {}
    )  # soft, which without noise is hard
    assert options_of("--consistency", "hard").network_options == {"consistency": "hard"}
    assert default.protocol.noise == (0, 0) and options_of("--noise", "0.05").protocol.noise == (0.05, 0.05)
    assert options_of("--noise", "0:0.05").protocol.noise == (0, 0.05)
    assert options_of("--mask", "all").protocol.masks == MASKS and options_of(
        "--acceleration", "4:12"
    ).protocol.acceleration == (4.0, 12.0)
    assert options_of("--minutes", "3").epochs is None and options_of("--pairs", "redrawn").protocol.pairs == "redrawn"
    assert options_of("--exclude-subjects", "a,b").excluded_subjects == ("a", "b")


@pytest.mark.parametrize("dataset", ["pairs", "scans", "m4raw"])
def test_measured_scans_take_no_simulation_options(dataset):
    wrong = [["--noise", "0"], ["--phase", "0.5"], ["--acquisitions", "1"], ["--coils", "4"], ["--one-mask"]]
    wrong += [["--pairs", "fixed"]] if dataset != "m4raw" else []  # whose full scans are undersampled
    wrong += [["--mask", "roulette"], ["--acceleration", "4"]] if dataset == "scans" else []
    for given in wrong:
        with pytest.raises(UserError, match=given[0]):
            cli.train_options_from(parser().parse_args(["train", "--dataset", dataset, "-o", "run", *given]))


def test_measured_scans_have_no_clean_targets_and_single_ones_no_pairs(tmp_path, capsys):
    good_scan(tmp_path / "data" / "ann.h5")
    for method in ("supervised", "noise2noise"):
        train = ["train", "--dataset", "scans", "--data", tmp_path / "data", "--method", method, "--steps", "1"]
        refused([*train, "-o", tmp_path / "run"], 2, tmp_path, capsys, method)


def test_the_demo_does_the_whole_job(tmp_path, capsys):
    """Shortened to one step; the time it is given in use is no part of this test."""
    from mri_n2n.demo import demo

    text = demo(tmp_path / "demo", quiet=True, minutes=1e-4)
    assert "zero-filled" in text and "PSNR" in text and "simulated" in text
    named = [Path(word) for word in text.split() if word.startswith(str(tmp_path))]
    assert {path.suffix for path in named} == {".png", ".h5", ".gz", ".safetensors"} and all(
        path.is_file() for path in named
    )
    refused(["demo", "-o", tmp_path / "demo"], 4, tmp_path, capsys, "--force")
    assert demo(tmp_path / "demo", quiet=True, minutes=1e-4, force=True).splitlines()[1] == text.splitlines()[1]


@pytest.mark.parametrize("stage", ["train", "reconstruct_files"])
def test_an_interrupted_demo_leaves_nothing_of_its_own(stage, tmp_path, monkeypatch):
    import mri_n2n.demo as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "notes.txt").write_text("mine")
    before = everything(tmp_path)
    monkeypatch.setattr(module, stage, interrupted)
    for folder in (tmp_path, tmp_path / "demo"):
        with pytest.raises(KeyboardInterrupt):
            module.demo(folder, quiet=True, minutes=1e-4)
    assert everything(tmp_path) == before
