"""What the documents say is so: commands parse and run, links and names exist, exit codes agree."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from dicom_series import write_series

from mri_n2n import cli, errors
from mri_n2n.arguments import EXIT_CODES, parser
from mri_n2n.checkpoint import build_network, save_tensors
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.phantom import phantom_kspace
from mri_n2n.simulation import SimulationOptions, simulate_file

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mri_n2n"
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(PACKAGE / "weights").glob("*.md")]
)
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_blocks(text: str) -> list[str]:
    """Indented and fenced blocks, each as one string."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^|\n)\n((?:    .+\n?)+)", rest)
    return fenced + indented


def shell_commands(text: str) -> list[str]:
    """The commands of the blocks, one each, `&&` taken apart and lines that end in a backslash joined."""
    lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("#")[0].split("&&") if part.strip()]


def our_commands(text: str) -> list[list[str]]:
    """Arguments of the `mri-n2n ...` commands in blocks, and of those in running text that are more than a name."""
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if len(code.split()) > 2]
    found = [command for command in shell_commands(text) + inline if command.startswith("mri-n2n ")]
    return [[word for word in shlex.split(command)[1:] if word != "..."] for command in found]


def test_there_are_documents_and_commands():
    commands = our_commands((ROOT / "README.md").read_text())
    assert len(DOCUMENTS) >= 3 and len(commands) >= 9
    assert {words[0] for words in commands} >= {"demo", "simulate", "train", "reconstruct", "evaluate", "info"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_parses(path):
    for words in our_commands(path.read_text()):
        try:
            options = parser().parse_args(words)
            if words[0] == "train":
                cli.train_options_from(options)
        except SystemExit:
            pytest.fail(f"{path.name}: mri-n2n {' '.join(words)}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_scripts_and_options_in_running_text_exist(path):
    text = path.read_text()
    for command in shell_commands(text):
        if match := re.match(r"python\d? (\S+\.py)(.*)", command):
            script = ROOT / match[1]
            assert script.is_file(), command
            for option in re.findall(r"(?<!\w)--?[a-z][\w-]*", match[2]):
                assert f'"{option}"' in script.read_text(), f"{command}: no option {option}"
    (commands,) = (action for action in parser()._actions if action.choices)
    known = {option for sub in commands.choices.values() for action in sub._actions for option in action.option_strings}
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith("--"):
            assert code.split()[0] in known, f"{path.name}: `{code}`"
        if match := re.fullmatch(r"mri-n2n (\w[\w-]*).*", code):
            assert match[1] in commands.choices, f"{path.name}: `{code}`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_internal_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        linked = path if not file else path.parent / file
        assert linked.exists(), f"{path.name} links {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name} links {target}"


def resolves(dotted: str) -> bool:
    """Whether `module.name` (below mri_n2n) exists."""
    parts = dotted.removeprefix("mri_n2n.").split(".")
    for cut in range(len(parts), 0, -1):
        if ".".join(parts[:cut]) in MODULES or ".".join([*parts[:cut], "__init__"]) in MODULES:
            found = import_module(".".join(["mri_n2n", *parts[:cut]]))
            for part in parts[cut:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_modules_functions_and_files_exist(path):
    text = path.read_text()
    named = re.findall(r"`([^`\n]+)`", text)
    if path.name == "CONTRIBUTING.md":  # the picture of the data's way stands in a block
        named += re.findall(r"[\w/]+\.py\b|[\w]+/(?= )", "\n".join(code_blocks(text)))
    for name in named:
        if re.fullmatch(r"[\w/]+\.py", name):
            assert any((folder / name).is_file() for folder in (ROOT, PACKAGE)), f"{path.name}: {name}"
        elif re.fullmatch(r"[\w/]+/", name) and not name.isupper():
            assert any((folder / name).is_dir() for folder in (ROOT, PACKAGE)), f"{path.name}: {name}"
        elif re.fullmatch(r"[a-z_]\w*(\.\w+)+", name) and (
            name.split(".")[0] in {*MODULES, "mri_n2n"} | {m.split(".")[0] for m in MODULES}
        ):
            if not re.search(r"\.(h5|json|jsonl|png|gz|safetensors|md|toml)$", name):
                assert resolves(name), f"{path.name}: {name}"


def test_the_tables_of_contributing_name_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, module in re.findall(r"`(\w+)\.py`: [^|]*?`([A-Z_]{4,})`", text):
        assert hasattr(import_module(f"mri_n2n.{name}"), module), f"{name}.{module}"


def test_exit_codes_agree():
    path = ROOT / "docs" / "files.md"
    if not path.is_file():
        pytest.skip("docs/files.md is not written yet")
    documented = {int(code) for code in re.findall(r"^\|\s*`?(\d{1,3})`?\s*\|", path.read_text(), re.M)}
    raised = {
        error.exit_code for error in (errors.UserError, errors.InputError, errors.OutputError, errors.NotFoundError)
    }
    assert documented >= raised | {0, 1, 130}
    for text in (EXIT_CODES, errors.__doc__):
        codes = {
            int(code)
            for code in re.findall(r"(?:^|[:;])\s*(\d{1,3}) [a-z]", " ".join(text.partition("odes:")[2].split()))
        }
        assert codes == documented, text


# ------------------------------------------------------------------------------------------------- and they really run


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    options = {"cascades": 1, "channels": 8, "levels": 2}
    save_tensors(
        path, build_network("unrolled", options).state_dict(), {"network": "unrolled", "network_options": options}
    )
    return path


@pytest.fixture
def desk(tmp_path, tiny_weights, monkeypatch) -> Path:
    """A directory with everything that the README's commands name, tiny; small weights stand for the bundled ones."""
    monkeypatch.chdir(tmp_path)
    for module in ("checkpoint", "inference"):
        monkeypatch.setattr(f"mri_n2n.{module}.BUNDLED", tiny_weights)
    monkeypatch.delenv("MRI_N2N_DATA", raising=False)
    images = [
        ifft2c(phantom_kspace((24, 20), generator=torch.Generator().manual_seed(i)))[0].abs().numpy() for i in range(3)
    ]
    image = nibabel.Nifti1Image(np.stack(images).transpose(2, 1, 0), np.eye(4))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "VOLUME.nii.gz")
    for folder, names in {
        "VOLUMES": ("ann_T1", "bob_T1"),
        "data/ixi": ("IXI002-Guys-0828-T1", "IXI064-Guys-0743-T1"),
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            deep = np.concatenate([image.get_fdata(dtype=np.float32)] * 9, axis=2)  # slices 25 to 124 are used of ixi
            whole = nibabel.Nifti1Image(deep if "IXI" in name else image.get_fdata(dtype=np.float32), np.eye(4))
            nibabel.save(whole, tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "STUDY").mkdir()
    for name in ("ann", "bob"):
        simulate_file(
            tmp_path / "VOLUME.nii.gz",
            tmp_path / "STUDY" / f"{name}.h5",
            SimulationOptions(acceleration=3, repetitions=2),
        )
    for name in ("scan.h5", "sub-01_T1w.h5"):
        simulate_file(tmp_path / "VOLUME.nii.gz", tmp_path / name, SimulationOptions(acceleration=4))
    write_series(
        tmp_path / "SERIES", slices=3, rotation=np.diag([-1.0, -1.0, 1.0]), origin=np.zeros(3), pixel_spacing=(1, 1),
        slice_spacing=1, size=(24, 20),
    )  # fmt: skip
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_command_of_the_readme_runs(desk, capsys):
    """In their order, trainings cut to one step of a small network; the demo has a test of its own."""
    for words in our_commands((ROOT / "README.md").read_text()):
        if words[0] in ("demo", "benchmark") or "NAME" in words:
            continue
        if words[0] == "train":
            words = [*words, "--steps", "1", "--channels", "12", "--batch-size", "2", "--device", "cpu"]
            if "--matrix-size" in words:
                words[words.index("--matrix-size") + 1] = "24"
            if "--acceleration" in words:
                words[words.index("--acceleration") + 1] = "2:3"
        if "-o" in words:  # a reader runs each of them once
            output = desk / words[words.index("-o") + 1]
            shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        assert cli.main(words) == 0, f"{words}: {capsys.readouterr().err}"
    written = {path.name for path in (desk / "results").iterdir()}
    documented = set(re.findall(r"\| `results/(scan\.[\w.]+)` \|", (ROOT / "README.md").read_text()))
    assert written == documented
    assert len(list((desk / "with-dicom" / "scan.dicom").iterdir())) == 3
    text = (ROOT / "README.md").read_text()
    (named,) = re.findall(r"`(derivatives/[\w./-]+)`", text)
    assert (desk / named).is_file()
    assert all(f"`{path.name}`" in text for path in (desk / "runs" / "study").iterdir())


def test_the_python_of_the_readme_runs(desk, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    with h5py.File(desk / "scan.h5") as file:
        names = {"kspace": file["kspace"][()], "mask": file["mask"][()], "images": file["reconstruction_esc"][()]}
    exec(compile(block, "README.md", "exec"), names)
    assert names["image"].shape == names["kspace"].shape and (desk / "results" / "scan.h5").is_file()
    found = fft2c(torch.from_numpy(names["image"])).numpy()
    at = np.broadcast_to(names["mask"] > 0, found.shape)
    np.testing.assert_allclose(found[at], names["kspace"][at], atol=1e-5 * np.abs(found).max())
    assert "psnr" in capsys.readouterr().out


def test_what_the_documents_speak_of():
    """Of the project, and not of the machine or the people that made it."""
    for path in DOCUMENTS:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", path.read_text()), path.name
