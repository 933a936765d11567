"""Pages: what they say and hold, that they ask the network for nothing, and that they work in a browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from browser import AVAILABLE, Browser
from dicom_series import affine_ras, exact_weights, write_scan_at, write_series

import mri_n2n
from mri_n2n.acquisition import Geometry
from mri_n2n.cli import main
from mri_n2n.errors import OutputError
from mri_n2n.files import sha256_of
from mri_n2n.formats import open_scan, read_reference, read_result
from mri_n2n.fourier import ifft2c
from mri_n2n.outputs import check_target, target_of
from mri_n2n.page.build import LIMIT, page_html
from mri_n2n.page.citations import CITATIONS, references
from mri_n2n.page.contents import Difference, Layer, Page, Section, Table
from mri_n2n.page.methods import TRAINING, methods_of
from mri_n2n.page.pixels import LEVELS
from mri_n2n.pairs import PAIR_MAKERS
from mri_n2n.phantom import phantom_kspace
from mri_n2n.simulation import SimulationOptions, simulate_file

SHAPE = (5, 26, 21)  # (slice, y, x), odd ones among them


def images(seed: int = 0, shape=SHAPE, scale: float = 700.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).random(shape) ** 3).astype(np.float32)


def page(**changes) -> Page:
    layers = (Layer("zero-filled", images(1), "first"), Layer("reconstruction", images(2), "second"))
    whole = {"name": "scan", "simulated": False, "geometry": None, "layers": layers, "masks": None, "sections": ()}
    return Page(**{**whole, **changes})


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.raw: list[tuple[str, dict, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style") and self.cdata_elem:
            self.raw.append((*self.found[-1], data))


def facts_of(text: str) -> dict:
    (found,) = [data for tag, attributes, data in Elements(text).raw if attributes.get("id") == "facts"]
    return json.loads(found)


def words_of(text: str) -> str:
    """What a reader sees: without scripts, styles and tags."""
    body = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def decoded(text: str) -> tuple[dict[str, np.ndarray], dict[str, float], list[int]]:
    """Layers (slice, y, x) as a page holds them, written down independently of the encoder; their steps; the slices there are."""
    facts, volumes, steps = facts_of(text), {}, {}
    rows, columns = facts["shape"]
    for layer in facts["layers"]:
        if "slices" not in layer:
            continue
        found = []
        for packed in layer["slices"]:
            raw = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).astype(int)
            folded = (raw[: rows * columns] * 256 + raw[rows * columns :]).reshape(rows, columns)
            rest = np.where(folded % 2, -(folded + 1) // 2, folded // 2)
            q = np.zeros((rows + 1, columns + 1), int)  # with a border of zeros above and to the left
            for y in range(rows):
                for x in range(columns):
                    left, above, corner = q[y + 1, x], q[y, x + 1], q[y, x]
                    q[y + 1, x + 1] = sorted((left, above, left + above - corner))[1] + rest[y, x]
            assert q.min() >= 0 and q.max() < LEVELS[0]
            found.append(layer["low"] + layer["step"] * q[1:, 1:])
        volumes[layer["name"]], steps[layer["name"]] = np.stack(found), layer["step"]
    return volumes, steps, facts["slices"]


# ------------------------------------------------------------------------------------------------------------- one page


def test_the_pixels_are_those_of_the_images_to_half_a_step():
    signed, empty = images(3) - 100, np.zeros(SHAPE, np.float32)
    layers = (Layer("a", images(1), ""), Layer("b", signed, ""), Layer("c", empty, "", own_scale=True))
    text = page_html(page(layers=layers))
    found, steps, slices = decoded(text)
    assert slices == list(range(5)) and set(found) == {"a", "b", "c"}
    for layer in layers:
        assert np.abs(found[layer.name] - layer.images).max() <= 0.5001 * steps[layer.name], layer.name
    assert steps["a"] == pytest.approx(images(1).max() / 4095) and not found["c"].any()
    assert f"a {steps['a'] / 2:.3g}" in words_of(text) and "4096 levels" in words_of(text)
    assert [layer["kind"] for layer in facts_of(text)["layers"]] == ["image", "image", "map"]


def test_a_page_that_is_too_large_gets_coarser_and_then_loses_slices_and_says_so():
    volume = images(1, (9, 60, 50))
    whole = page(layers=(Layer("reconstruction", volume, ""),))
    fine = page_html(whole)
    held = sum(map(len, facts_of(fine)["layers"][0]["slices"]))
    limits = [len(fine) + 15_000 - held // 4, len(fine) + 15_000 - 3 * held // 4]
    coarse, fewer = (page_html(whole, limit) for limit in limits)
    assert all(len(text.encode()) < limit for limit, text in zip(limits, (coarse, fewer)))
    levels = [int(re.search(r"rounded to (\d+) levels", text)[1]) for text in (fine, coarse, fewer)]
    assert levels[0] == LEVELS[0] > levels[1] > LEVELS[-1] and levels[2] >= LEVELS[-1]
    for text in (coarse, fewer):
        volumes, steps, slices = decoded(text)
        assert np.abs(volumes["reconstruction"] - volume[slices]).max() <= 0.5001 * steps["reconstruction"]
        assert 4 in slices, "the middle slice"
    kept = facts_of(fewer)["slices"]
    assert len(facts_of(coarse)["slices"]) == 9 > len(kept) > 1 and facts_of(fewer)["count"] == 9
    assert f"{len(kept)} of the 9 slices: one in {kept[1] - kept[0]}, from slice {kept[0]} on" in words_of(fewer)
    assert "slices: one in" not in words_of(coarse) and "grey values are coarse" not in words_of(fine)
    assert facts_of(page_html(whole, 0))["slices"] == [4], "nothing is refused because of its size"
    assert LIMIT < 15_000_000


def test_a_page_asks_the_network_for_nothing():
    text = page_html(page(masks=np.ones((1, 26, 21), bool), simulated=True))
    elements = Elements(text)
    (policy,) = [a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "base-uri",
        "form-action",
    }
    assert "unsafe" not in policy
    hashed = lambda data: f"'sha256-{base64.b64encode(hashlib.sha256(data.encode()).digest()).decode()}'"  # noqa: E731
    for tag, attributes, data in elements.raw:
        if attributes.get("type") == "application/json":
            continue
        assert hashed(data) == rules[f"{tag}-src"], tag
        assert not re.search(
            r"https?:|//\w|url\(|@import|\bfetch\b|XMLHttpRequest|WebSocket|import\(",
            re.sub(r"(?m)(^|\s)//.*$", "", data),
        ), tag
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "a")
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag


@pytest.mark.parametrize(
    "bad", ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "</title></script><b>&amp;"]
)
def test_nothing_that_is_inserted_becomes_an_element(bad):
    plain, layers = (
        page_html(page()),
        (Layer(bad, images(1), bad), Layer("b", images(2), bad), Difference("d", bad, "b", bad)),
    )
    table = Table((bad, bad), ((bad, bad),) * 5, of_slices=1)
    text = page_html(
        page(
            name=bad, layers=layers, cautions=(bad,), missing=(bad,), sections=(Section(bad, (bad,), (table,), (bad,)),)
        )
    )
    added = [tag for tag, _ in Elements(text).found]
    for tag, _ in Elements(plain).found:
        added.remove(tag)
    assert set(added) <= {"section", "h2", "ul", "li", "p", "div", "table", "thead", "tbody", "tr", "th", "td"}
    assert words_of(text).count(" ".join(bad.split())) >= 8 and facts_of(text)["layers"][0]["name"] == bad
    assert len([1 for tag, *_ in Elements(text).raw if tag == "script"]) == 2


def test_images_lie_as_radiologists_view_them():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])  # x to the right, y to anterior: both are turned
    geometry = Geometry(tuple(map(tuple, affine.tolist())))
    text = page_html(page(geometry=geometry))
    found, steps, _ = decoded(text)
    assert np.abs(found["zero-filled"] - images(1)[:, ::-1, ::-1]).max() <= 0.5001 * steps["zero-filled"]
    assert facts_of(text)["edges"] == ["A", "L", "P", "R"]
    assert "Anterior at the top, patient's right at the left; slice numbers grow towards superior" in words_of(text)
    assert f"--ratio: {21 / (26 * 2):.6f}" in text, "pixels are twice as high as wide"
    unknown = page_html(page())
    assert "Orientation unknown" in words_of(unknown) and facts_of(unknown)["edges"] is None
    sagittal = Geometry(geometry.affine, slice_axis=0)
    assert facts_of(page_html(page(geometry=sagittal)))["edges"] == ["S", "P", "I", "A"]


def test_masks_of_slices_are_the_scans():
    masks = np.random.default_rng(0).random((5, 13, 11)) < 0.3
    coverage = facts_of(page_html(page(masks=masks)))["coverage"]
    for index, packed in enumerate(coverage["slices"]):
        bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8))[: 13 * 11]
        assert np.array_equal(bits.reshape(13, 11) > 0, masks[index])
    assert coverage["shares"] == pytest.approx(masks.mean(axis=(1, 2)).tolist()) and coverage["shape"] == [13, 11]
    same = facts_of(page_html(page(masks=masks[:1].repeat(5, 0))))["coverage"]
    assert len(same["slices"]) == 1 and len(same["shares"]) == 5


# ------------------------------------------------------------------------------------------------------ the two commands


def head(y: int, x: int, seed: int) -> np.ndarray:
    return ifft2c(phantom_kspace((y, x), generator=torch.Generator().manual_seed(seed)))[0].abs().numpy()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A volume of 64 x 72 x 3 acquired twice with three coils and noise, the first one reconstructed with a page."""
    folder = tmp_path_factory.mktemp("study")
    volume = np.stack([head(72, 64, i) for i in range(3)], axis=-1).transpose(1, 0, 2) * 700
    image = nibabel.Nifti1Image(volume.astype(np.float32), np.diag([1.0, 1.0, 2.5, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / "volume.nii.gz")
    options = SimulationOptions(acceleration=3, coils=3, noise=0.005, repetitions=2, mask="gaussian-lines")
    simulate_file(folder / "volume.nii.gz", folder / "scan.h5", options)
    weights = exact_weights(folder / "exact.safetensors")
    mri_n2n.reconstruct(folder / "scan_rep1.h5", folder / "out", weights=weights, report=True)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_reconstruct_writes_the_page_with_the_other_files(study):
    out = study / "out"
    assert {path.name for path in out.iterdir()} == {
        f"scan_rep1{end}" for end in (".h5", ".nii.gz", ".png", ".json", ".html")
    }
    sidecar = json.loads((out / "scan_rep1.json").read_text())
    assert sidecar["output_sha256"]["scan_rep1.html"] == sha256_of(out / "scan_rep1.html")
    text = (out / "scan_rep1.html").read_text()
    found, steps, _ = decoded(text)
    magnitude = read_result(out / "scan_rep1.h5")[0][:, ::-1, ::-1]
    assert np.abs(found["reconstruction"] - magnitude).max() <= 0.5001 * steps["reconstruction"]
    acquisition = open_scan(study / "scan_rep1.h5").read(0, 3)
    zero_filled = ifft2c(acquisition.kspace).abs().square().sum(dim=1).sqrt().numpy()[:, ::-1, ::-1]
    assert np.abs(found["zero-filled"] - zero_filled).max() <= 0.5001 * steps["zero-filled"] + 1e-4
    words = words_of(text)
    for fact in (sidecar["input"]["sha256"], sidecar["weights"]["sha256"], "exact.safetensors", sidecar["output_sha256"]["scan_rep1.h5"],
                 mri_n2n.__version__, torch.__version__, "fastmri-hdf5", "the input's own scale", f"{sidecar['measured_share']:.2%}",
                 "Research use only", "Simulated k-space", "No error estimate: give a second acquisition to mri-n2n evaluate.",
                 "There is no error map", "72 x 64 (y x x)", "1 x 1 mm (y x x), slices 2.5 mm apart"):  # fmt: skip
        assert fact in words, fact
    header = re.search(r"<header>.*?</header>", text, re.S)[0]
    assert "Research use only" in header and "Simulated k-space" in header
    coverage = facts_of(text)["coverage"]
    assert coverage["shares"][0] == pytest.approx(acquisition.mask[0].mean().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_warnings_stand_before_the_images(study, tmp_path):
    (scan,) = simulate_file(study / "volume.nii.gz", tmp_path / "scan.h5", SimulationOptions(acceleration=6, coils=3))
    (sidecar,) = mri_n2n.reconstruct(scan, tmp_path / "out", baseline="sense", report=True)
    text = (tmp_path / "out" / "scan.html").read_text()
    (said,) = sidecar["warnings"]
    assert "too small for ESPIRiT" in said and said in words_of(text)
    assert text.index("too small for ESPIRiT") < text.index("<canvas")
    assert "from low-resolution images" in words_of(text) and "Pruessmann et al., 2001" in words_of(text)


@pytest.mark.filterwarnings("ignore")
def test_no_page_unless_it_is_asked_for(study, tmp_path):
    mri_n2n.reconstruct(study / "scan_rep1.h5", tmp_path, baseline="zero-filled")
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.filterwarnings("ignore")
def test_evaluate_shows_the_estimate_and_its_interval(study, tmp_path, capsys):
    result, second = study / "out" / "scan_rep1.h5", study / "scan_rep2.h5"
    command = [
        "evaluate",
        str(result),
        "--second-acquisition",
        str(second),
        "--report",
        str(tmp_path / "page.html"),
        "--json",
    ]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    text = (tmp_path / "page.html").read_text()
    words, facts = words_of(text), facts_of(text)
    for one in (said, *said["per_slice"]):
        psnr, nmse = one["psnr"], one["nmse"]
        row = f"{psnr['value']:.2f} {psnr['low']:.2f} to {psnr['high']:.2f} {nmse['value']:.5f} {nmse['low']:.5f} to {nmse['high']:.5f}"
        assert row in words
    assert facts["ofSlices"][1] == "PSNR (dB) {value:.2f}, 95% interval {low:.2f} to {high:.2f}".format(
        **said["per_slice"][1]["psnr"]
    )
    assert [layer["name"] for layer in facts["layers"]] == [
        "zero-filled",
        "reconstruction",
    ] and "There is no error map" in words
    assert sha256_of(second) in words and "Hájek, 1964" in words and "scan_rep2" not in text
    assert str(tmp_path) not in text and str(study) not in text
    reconstructed = decoded((study / "out" / "scan_rep1.html").read_text())[0]
    for name, volume in decoded(text)[0].items():
        np.testing.assert_array_equal(volume, reconstructed[name])


@pytest.mark.filterwarnings("ignore")
def test_evaluate_shows_the_error_against_a_reference(study, tmp_path, capsys):
    result, scan = study / "out" / "scan_rep1.h5", study / "scan_rep1.h5"
    command = ["evaluate", str(result), "--reference", str(scan), "--report", str(tmp_path / "page.html")]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["volumes"][0]
    text = (tmp_path / "page.html").read_text()
    for one in (said["volume"], *said["per_slice"]):
        assert f"{one['nmse']:.5f} {one['psnr']:.2f} {one['ssim']:.4f}" in words_of(text)
    layers = facts_of(text)["layers"]
    assert [layer["name"] for layer in layers] == ["zero-filled", "reconstruction", "reference", "error"]
    assert (layers[3]["first"], layers[3]["second"]) == ("reconstruction", "reference")
    found, steps, _ = decoded(text)
    assert np.abs(found["reference"] - read_reference(scan)[:, ::-1, ::-1]).max() <= 0.5001 * steps["reference"]
    assert "Zbontar et al., 2018" in words_of(text) and "There is no error map" not in words_of(text)
    assert main(command) == 4, "it exists"
    assert main([*command, "--force"]) == 0


@pytest.mark.filterwarnings("ignore")
def test_what_lies_beside_is_believed_by_its_hash_alone(study, tmp_path, capsys):
    """A sidecar of another result says nothing, nor does another scan of the same name."""
    for name in ("scan_rep1.h5", "scan_rep1.json"):
        shutil.copy(study / "out" / name, tmp_path / name)
    (tmp_path / "raw").mkdir()
    shutil.copy(study / "scan_rep2.h5", tmp_path / "raw" / "second.h5")
    shutil.copy(study / "scan_rep2.h5", tmp_path / "raw" / "scan_rep1.h5")  # another scan of that name
    command = [
        "evaluate",
        str(tmp_path / "scan_rep1.h5"),
        "--second-acquisition",
        str(tmp_path / "raw" / "second.h5"),
        "--force",
        "--report",
    ]
    assert main([*command, str(tmp_path / "a.html")]) == 0
    text = (tmp_path / "a.html").read_text()
    assert [layer["name"] for layer in facts_of(text)["layers"]] == ["reconstruction"] and facts_of(text)[
        "coverage"
    ] is None
    assert "does not lie beside the files given" in words_of(text) and "exact.safetensors" in words_of(text)
    sidecar = json.loads((tmp_path / "scan_rep1.json").read_text())
    sidecar["output_sha256"]["scan_rep1.h5"] = "0" * 64
    for content in (json.dumps(sidecar), "{", "[]", "{}"):
        (tmp_path / "scan_rep1.json").write_text(content)
        assert main([*command, str(tmp_path / "b.html")]) == 0
        words = words_of((tmp_path / "b.html").read_text())
        assert "no sidecar of this result lies beside it" in words and "exact.safetensors" not in words
        assert "Horvitz and Thompson, 1952" in words and "Simulated k-space" in words


@pytest.mark.filterwarnings("ignore")
def test_refusals(study, tmp_path, capsys):
    result, scan = str(study / "out" / "scan_rep1.h5"), str(study / "scan_rep1.h5")
    page = str(tmp_path / "page.html")
    copied = tmp_path / "copied.html"
    shutil.copy(study / "out" / "scan_rep1.h5", copied)  # a result with the name of a page
    for words, code, said in [
        (["evaluate", str(study / "out"), "--reference", str(study), "--report", page], 2, "is a directory"),
        (["evaluate", result, "--second-acquisition", str(study), "--report", page], 2, "is a directory"),
        (["evaluate", result, "--reference", scan, "--report", str(tmp_path / "page.h5")], 2, "should end in .html"),
        (["evaluate", result, "--reference", scan, "--force"], 2, "--force is of --report"),
        (["evaluate", str(copied), "--reference", scan, "--report", str(copied), "--force"], 4, "is an input itself"),
        (
            ["evaluate", result, "--reference", scan, "--report", str(tmp_path / "none" / "page.html")],
            4,
            "no directory",
        ),
        (["evaluate", result, "--reference", str(tmp_path / "none.h5"), "--report", page], 5, "none.h5"),
    ]:
        assert main(words) == code, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
        assert sorted(tmp_path.iterdir()) == [copied]


@pytest.mark.filterwarnings("ignore")
def test_results_and_their_page_are_replaced_together(study, tmp_path, monkeypatch):
    scan, options = tmp_path / "scan.h5", {"baseline": "zero-filled"}
    shutil.copy(study / "scan_rep1.h5", scan)
    out = tmp_path / "out"

    def broken(page):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mri_n2n.outputs.page_html", broken)
        with pytest.raises(KeyboardInterrupt):
            mri_n2n.reconstruct(scan, out, report=True, **options)
    assert not out.exists(), "all or nothing"
    out.mkdir()
    (out / "scan.html").write_text("mine")
    with pytest.raises(OutputError, match="scan.html exists"):  # before anything is computed
        check_target(replace(target_of(scan, out, bids=False), report=True), [scan], False, dicom=False)
    # An earlier page beside new results would deceive.
    for report, force in ((True, False), (False, False), (False, True)):
        with pytest.raises(OutputError, match="scan.html"):
            mri_n2n.reconstruct(scan, out, report=report, force=force, **options)
        assert [path.name for path in out.iterdir()] == ["scan.html"] and (out / "scan.html").read_text() == "mine"
    mri_n2n.reconstruct(scan, out, report=True, force=True, **options)
    assert len(list(out.iterdir())) == 5 and "mine" != (out / "scan.html").read_text()


@pytest.mark.filterwarnings("ignore")
def test_nothing_identifies_the_patient(tmp_path, capsys):
    """With --dicom and --bids together, whose files have all there is to know."""
    private = tmp_path / "of_somebody"
    volume = images(0, (22, 18, 4))
    private.mkdir()
    scan = write_scan_at(private / "sub-01_T1w.h5", volume, affine_ras())

    def named(image, number):
        image.PatientName, image.PatientID, image.InstitutionName = "Surname^Forename", "ID-0815", "Some Hospital"

    source = write_series(private / "series", change=named)
    command = ["reconstruct", str(scan), "-o", str(tmp_path / "out"), "--dicom", str(source), "--bids", "--report"]
    assert main([*command, "--weights", str(exact_weights(tmp_path / "w.safetensors"))]) == 0
    assert " .html .dicom" in capsys.readouterr().out
    name = "sub-01_desc-n2n_T1w"
    text = (tmp_path / "out" / "sub-01" / "anat" / f"{name}.html").read_text()
    for identifier in (
        "Surname",
        "Forename",
        "0815",
        "Hospital",
        "19700101",
        "ACC-4711",
        "of_somebody",
        str(tmp_path),
        "/tmp",
    ):
        assert identifier not in text, identifier
    assert "<h1>sub-01_T1w</h1>" in text
    assert "*.html" in (tmp_path / "out" / ".bidsignore").read_text().splitlines()


@pytest.mark.filterwarnings("ignore")
def test_a_scan_with_a_hostile_name_is_harmless(study, tmp_path):
    name = "<script>alert(1)<!--&quot;"
    shutil.copy(study / "scan_rep1.h5", tmp_path / f"{name}.h5")
    mri_n2n.reconstruct(tmp_path / f"{name}.h5", tmp_path / "out", baseline="zero-filled", report=True)
    text = (tmp_path / "out" / f"{name}.html").read_text()
    assert name not in text and html.escape(name) in text and "<script>alert" not in text
    assert len([tag for tag, _ in Elements(text).found if tag == "script"]) == 2


# ------------------------------------------------------------------------------------------------------------- methods


def sidecar(**changes) -> dict:
    """Of a single-coil reconstruction with the bundled weights."""
    return {
        "software": {"mri-n2n": "0.1.0", "torch": "2.4", "python": "3.11"},
        "input": {"name": "scan.h5", "sha256": "0", "format": "mrd", "simulated": None},
        "slices": 3, "coils": 1, "virtual_coils": 1, "noise_whitened": False, "matrix": [64, 48], "image_matrix": [64, 48],
        "mask_source": "stored", "measured_share": 0.25, "acquired": {"y": [0, 64], "x": [0, 48]}, "combination": "none", "warnings": [],
        "weights": {"network": "unrolled", "network_options": {"cascades": 8}, "method": "noise2noise", "bundled": True},
        "options": {"flips": True},
    } | changes  # fmt: skip


def cited_by(text: str) -> set[str]:
    return {name for name, (short, _) in CITATIONS.items() if short in text}


COILS = {
    "coils": 16,
    "virtual_coils": 12,
    "combination": "sensitivity maps from the scan's own centre",
    "noise_whitened": True,
}


@pytest.mark.parametrize(
    ("changes", "wanted", "phrase"),
    [
        ({}, {"noise2noise", "cascade"}, "8 cascades"),
        (COILS, {"noise2noise", "cascade", "espirit", "compression"}, "16-coil"),
        ({"weights": None, "baseline": {"name": "zero-filled"}}, set(), "inverse Fourier transform"),
        ({**COILS, "weights": None, "baseline": {"name": "sense"}}, {"sense", "espirit", "compression"}, "SENSE"),
        (
            {"weights": None, "baseline": {"name": "tv", "regularisation": 0.004, "chosen_by": "given"}},
            {"tv", "sparse", "admm"},
            "was set to 0.004",
        ),
        (
            {
                "weights": None,
                "baseline": {"name": "wavelet", "regularisation": 0.01, "chosen_by": "error of held-out samples"},
            },
            {"sparse", "daubechies", "cycle-spinning", "admm"},
            "held out",
        ),
        ({"acquired": {"y": [0, 64], "x": [0, 24]}}, {"noise2noise", "cascade"}, "acceleration factor of 2.0"),
        ({"image_matrix": [32, 48]}, {"noise2noise", "cascade"}, "cropped to 32 x 48"),
        ({"input": {"simulated": True}}, {"noise2noise", "cascade"}, "simulated from images, not measured"),
        (
            {"denoise": {"method": "n2v2", "steps": 300}, "measured_share": 1.0},
            {"noise2void"},
            "fully sampled single-coil",
        ),
    ],
)
def test_methods_say_and_cite_what_was_done(changes, wanted, phrase):
    text = methods_of(sidecar(**changes))
    assert cited_by(text) == wanted and phrase in text and "  " not in text and text.endswith(".")
    assert len(references(text)) == len(wanted)


def test_every_training_method_has_its_words():
    assert set(TRAINING) == set(PAIR_MAKERS) - {"noise2void"}
    for name in TRAINING:
        text = methods_of(sidecar(weights=sidecar()["weights"] | {"method": name, "bundled": False}))
        assert ("without fully sampled references" in text) == (not name.startswith("supervised")) and TRAINING[
            name
        ] in text


# ------------------------------------------------------------------------------------------------------------ a browser


@pytest.fixture(scope="module")
def browser():
    if not AVAILABLE:
        pytest.skip("needs chromium and chromedriver")
    with Browser() as found:
        found.size(1280, 800)
        yield found


SHOWN = "document.getElementById('stage').dataset.slice"
PIXELS = "return Array.from(document.getElementById(arguments[0]).getContext('2d').getImageData(0, 0, {x}, {y}).data)"


def pixels(browser: Browser, canvas: str, y: int, x: int) -> np.ndarray:
    return np.array(browser.run(PIXELS.format(x=x, y=y), canvas), np.uint8).reshape(y, x, 4)


def grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((image - low) / (high - low) * 255, 0, 255)


@pytest.fixture
def opened(browser, tmp_path) -> tuple[Browser, Page]:
    """A page with everything, opened in its middle slice."""
    layers = (Layer("zero-filled", images(1), "one"), Layer("reconstruction", images(2), "two"), Layer("reference", images(3), "three"),
              Difference("error", "reconstruction", "reference", "four"), Layer("uncertainty", images(4, scale=5.0), "five", own_scale=True))  # fmt: skip
    table = Table(("slice", "NMSE"), tuple((str(i), f"0.{i}") for i in range(5)), of_slices=1)
    masks = np.random.default_rng(0).random((5, 13, 11)) < 0.3
    whole = page(
        layers=layers, masks=masks, sections=(Section("Error", tables=(table,)),), cautions=("look",), simulated=True
    )
    (tmp_path / "page.html").write_text(page_html(whole), encoding="utf-8")
    browser.size(1280, 800)
    browser.open(tmp_path / "page.html")
    browser.until(f"{SHOWN} === '2'")
    yield browser, whole
    # that reading pixels is slow is said of these tests
    assert [one for one in browser.complaints() if "willReadFrequently" not in one] == []


def test_the_browser_shows_the_images(opened):
    browser, whole = opened
    low, high = facts_of(page_html(whole))["window"]
    for canvas, layer in (("left", whole.layers[0]), ("right", whole.layers[1])):
        found = pixels(browser, canvas, 26, 21)
        assert (
            np.abs(found[..., 0] - grey(layer.images[2], low, high)).max()
            <= 0.51 + 255 * layer.images.max() / 8190 / high
        )
        assert (found[..., :3] == found[..., :1]).all() and (found[..., 3] == 255).all()
    mask = pixels(browser, "mask", 13, 11)
    assert np.array_equal(mask[..., 0] > 0, whole.masks[2])
    assert browser.run("return document.querySelector('tr.current th').textContent") == "2"


def test_scrolling_changes_the_slice_and_nothing_jumps(opened):
    browser, whole = opened
    place = "return JSON.stringify([...document.querySelectorAll('.viewer *')].map((e) => e.getBoundingClientRect()))"
    origin = {"type": "css", "element-6066-11e4-a52e-4f735466cecf": browser.call(
        "POST", browser.session + "/element", {"using": "css selector", "value": "#stage"})["element-6066-11e4-a52e-4f735466cecf"]}  # fmt: skip
    before = browser.run(place)
    turn = {"type": "scroll", "x": 0, "y": 0, "deltaX": 0, "deltaY": 120, "duration": 0, "origin": origin}
    browser.act({"type": "wheel", "id": "wheel", "actions": [turn]})
    browser.until(f"{SHOWN} === '3'")
    assert browser.run("return scrollY") == 0 and browser.run(place) == before
    key = lambda value: {
        "type": "key",
        "id": "keys",
        "actions": [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}],
    }  # noqa: E731
    browser.act(key("\ue013"))  # the arrow up, as the stage has the focus
    browser.until(f"{SHOWN} === '2'")
    browser.act(key("\ue010"))  # the end
    browser.until(f"{SHOWN} === '4'")
    browser.run("const s = document.getElementById('slice'); s.value = 0; s.dispatchEvent(new Event('input'))")
    browser.until(f"{SHOWN} === '0'")
    high = facts_of(page_html(whole))["window"][1]
    found = pixels(browser, "right", 26, 21)[..., 0]
    assert np.abs(found - grey(whole.layers[1].images[0], 0, high)).max() < 1
    assert browser.run("return document.getElementById('of-slice').textContent") == "NMSE 0.0"
    browser.until("document.getElementById('mask').dataset.slice === '0'")
    assert np.array_equal(pixels(browser, "mask", 13, 11)[..., 0] > 0, whole.masks[0])


def drag(browser: Browser, element: str, across: int, down: int) -> None:
    """From the middle of an element."""
    box = browser.run("const b = document.getElementById(arguments[0]).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]", element)  # fmt: skip
    x, y = map(round, box)
    move = lambda x, y: {"type": "pointerMove", "x": x, "y": y, "duration": 0, "origin": "viewport"}  # noqa: E731
    actions = [
        move(x, y),
        {"type": "pointerDown", "button": 0},
        move(x + across, y + down),
        {"type": "pointerUp", "button": 0},
    ]
    browser.act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions})


def test_the_divider_moves(opened):
    browser, _ = opened
    clip = "return getComputedStyle(document.getElementById('left')).clipPath"
    line = "const l = document.getElementById('line').getBoundingClientRect(), s = document.getElementById('stage').getBoundingClientRect(); return (l.x + 1 - s.x) / s.width"
    assert browser.run(clip) == "inset(0px 50% 0px 0px)" and browser.run(line) == pytest.approx(0.5, abs=0.01)
    browser.run("const s = document.getElementById('divider'); s.value = 25; s.dispatchEvent(new Event('input'))")
    assert browser.run(clip) == "inset(0px 75% 0px 0px)" and browser.run(line) == pytest.approx(0.25, abs=0.01)
    window = browser.run("return document.getElementById('width').value")
    drag(browser, "grip", 60, 0)
    assert browser.run(line) > 0.3 and browser.run("return document.getElementById('width').value") == window


def test_the_window_changes_pixels_and_is_reset(opened):
    browser, whole = opened
    before = pixels(browser, "right", 26, 21)
    field = (
        "const f = document.getElementById(arguments[0]); f.value = arguments[1]; f.dispatchEvent(new Event('change'))"
    )
    browser.run(field, "level", 300)
    browser.run(field, "width", 200)
    found = pixels(browser, "right", 26, 21)[..., 0]
    assert np.abs(found - grey(whole.layers[1].images[2], 200, 400)).max() < 1, "in the file's units"
    browser.run(field, "width", -5)
    assert browser.run("return document.getElementById('width').value") == "200"
    drag(browser, "readout", 0, 0)
    browser.run(
        "document.getElementById('divider').value = 0; document.getElementById('divider').dispatchEvent(new Event('input'))"
    )
    drag(browser, "stage", 80, 40)
    assert float(browser.run("return document.getElementById('width').value")) > 200
    assert float(browser.run("return document.getElementById('level').value")) > 300
    assert "reconstruction" in browser.run("return document.getElementById('readout').textContent")
    browser.run("document.getElementById('reset').click()")
    assert np.array_equal(pixels(browser, "right", 26, 21), before)


def test_errors_and_other_maps_are_in_colours_of_their_own(opened):
    browser, whole = opened
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    assert browser.run("return document.getElementById('scale-fields').hidden") is True
    browser.run(choose, "layer-left", "error")
    browser.until(
        "!document.getElementById('scale-fields').hidden && document.getElementById('name-left').textContent === 'error'"
    )
    browser.run(choose, "scale", 500)
    found = pixels(browser, "left", 26, 21).astype(int)
    error = whole.layers[1].images[2] - whole.layers[2].images[2]
    clear = np.abs(error) > 20
    assert np.array_equal((found[..., 0] > found[..., 2])[clear], (error > 0)[clear]), "orange above, blue below"
    above = clear & (error > 0)
    assert np.abs(found[..., 0] - 255 * np.clip(error / 500, 0, 1))[above].max() < 2
    browser.run(choose, "layer-left", "uncertainty")
    browser.until("document.getElementById('scale-legend').textContent.includes('uncertainty')")
    browser.until(f"{SHOWN} === '2'")
    assert float(browser.run("return document.getElementById('scale').value")) == pytest.approx(
        whole.layers[4].images.max(), rel=1e-3
    )


@pytest.mark.parametrize("width", [1280, 420, 320])
def test_it_fits_the_window_and_says_what_it_is_for_while_scrolling(opened, width):
    browser, _ = opened
    browser.size(width, 800)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.run("scrollTo(0, document.body.scrollHeight)")
    assert browser.run("return scrollY") > 0
    for text in ("Research use only", "Simulated k-space"):
        shown = "const e = [...document.querySelectorAll('header strong')].find((e) => e.textContent === arguments[0]).getBoundingClientRect(); return e.top >= 0 && e.bottom < 100 && e.left >= 0 && e.right <= innerWidth"
        assert browser.run(shown, text)
    unlabelled = "return [...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
    assert browser.run(unlabelled) == 0
