"""The data scripts, run as a user runs them, against a local server and small trees true to the real ones."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mri_n2n.datasets import find_sources

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))

import download_ixi  # noqa: E402
import prepare_fastmri  # noqa: E402
import prepare_ixi  # noqa: E402


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download_ixi.time, "sleep", lambda seconds: None)


class Server:
    """A file server on 127.0.0.1 that supports Range and If-Range; it can drop connections and change its file."""

    def __init__(self) -> None:
        self.content, self.tag, self.cut, self.ranges, self.requests = b"", '"1"', [], True, []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/IXI-T1.tar"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append(asked)
        if handler.path != "/IXI-T1.tar":
            handler.send_error(404)
            return
        start = 0
        if asked and self.ranges and handler.headers.get("If-Range", self.tag) == self.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.content)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        if self.tag:
            handler.send_header("ETag", self.tag)
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cut.pop(0)] if self.cut else body)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def run(server: Server, folder: Path, *more: str) -> int:
    return download_ixi.main(["-o", str(folder), "--url", server.url, "--quiet", *more])


NAMES = ("IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz")


@pytest.fixture
def archive() -> bytes:
    return tar_of(*((name, np.random.default_rng(i).bytes(40_000)) for i, name in enumerate(NAMES)))


# ---- download ----


def test_download_records_verifies_and_unpacks(server, archive, tmp_path, capsys):
    server.content = archive
    assert run(server, tmp_path) == 0
    assert (tmp_path / "IXI-T1.tar").read_bytes() == archive
    record = json.loads((tmp_path / "IXI-T1.tar.json").read_text())
    assert record == {"url": server.url, "size": len(archive), "sha256": hashlib.sha256(archive).hexdigest()}
    assert (tmp_path / NAMES[1]).read_bytes() == np.random.default_rng(1).bytes(40_000)
    assert record["sha256"] in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "IXI-T1.tar", "IXI-T1.tar.json"])
    # A second call asks the server for nothing and unpacks nothing, but does verify.
    asked = len(server.requests)
    assert run(server, tmp_path) == 0 and len(server.requests) == asked
    assert "0 files unpacked, 2 were there already" in capsys.readouterr().out


def test_dropped_connections_are_resumed_where_they_stopped(server, archive, tmp_path):
    server.content, server.cut = archive, [10_000, 20_000]
    assert run(server, tmp_path) == 0
    assert server.requests == [None, "bytes=10000-", "bytes=30000-"]
    assert (tmp_path / "IXI-T1.tar").read_bytes() == archive


def test_an_interrupted_download_goes_on_in_the_next_call(server, archive, tmp_path, capsys):
    server.content, server.cut = archive, [10_000, 5_000, 0, 0, 0]
    assert run(server, tmp_path) == 5
    assert "15,000 bytes are kept" in capsys.readouterr().err
    assert (tmp_path / "IXI-T1.tar.part").read_bytes() == archive[:15_000]
    assert not (tmp_path / "IXI-T1.tar").exists() and not (tmp_path / NAMES[0]).exists()
    assert run(server, tmp_path) == 0
    assert server.requests[-1] == "bytes=15000-" and (tmp_path / "IXI-T1.tar").read_bytes() == archive


def test_a_kill_between_the_last_byte_and_the_rename_is_mended(server, archive, tmp_path):
    server.content = archive
    assert download_ixi.fetch(server.url, tmp_path / "IXI-T1.tar.part", True)
    assert run(server, tmp_path) == 0 and (tmp_path / "IXI-T1.tar").read_bytes() == archive


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_on_the_server_is_never_mixed(server, archive, tmp_path, ranges):
    server.content, server.cut = b"x" * 50_000, [20_000, 0, 0, 0, 0]
    assert run(server, tmp_path) == 5
    server.content, server.tag, server.ranges = archive, '"2"', ranges
    assert run(server, tmp_path) == 0
    assert (tmp_path / "IXI-T1.tar").read_bytes() == archive


def test_bytes_of_unknown_version_are_not_resumed(server, archive, tmp_path):
    server.content, server.tag = archive, ""
    (tmp_path / "IXI-T1.tar.part").write_bytes(b"y" * 9_000)
    assert run(server, tmp_path) == 0
    assert server.requests == [None] and (tmp_path / "IXI-T1.tar").read_bytes() == archive


def test_a_changed_archive_is_a_checksum_error(server, archive, tmp_path, capsys):
    server.content = archive
    assert run(server, tmp_path, "--no-extract") == 0
    changed = bytearray(archive)
    changed[700] ^= 1
    (tmp_path / "IXI-T1.tar").write_bytes(changed)
    assert run(server, tmp_path) == 3
    error = capsys.readouterr().err
    assert "checksum error" in error and error.count("\n") == 1
    assert not (tmp_path / NAMES[0]).exists()
    # Downloaded once more, it has to be what it was the first time.
    (tmp_path / "IXI-T1.tar").unlink()
    server.content = bytes(changed)
    assert run(server, tmp_path) == 3
    assert "not the file recorded" in capsys.readouterr().err and not (tmp_path / "IXI-T1.tar").exists()
    assert run(server, tmp_path) == 3, "still wrong, whatever is kept of it"
    server.content, server.tag = archive, '"3"'
    assert run(server, tmp_path) == 0, "the right file, in a version of its own, replaces what was kept"


def test_wrong_addresses_end_in_one_line(server, tmp_path, capsys):
    where = ["-o", str(tmp_path), "--quiet", "--url"]
    assert download_ixi.main([*where, server.url + "x"]) == 5
    assert download_ixi.main([*where, "file:///etc/passwd"]) == 2
    server.close()
    assert download_ixi.main([*where, server.url]) == 5
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "404" in errors[0] and all(line.startswith("error: ") for line in errors)


def test_an_output_that_cannot_be_written(server, archive, tmp_path, capsys):
    server.content = archive
    (tmp_path / "file").write_text("in the way")
    assert run(server, tmp_path / "file") == 4
    assert capsys.readouterr().err.count("\n") == 1


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "evil",
    [
        ("../outside.txt", b"x"),
        ("/tmp/mri-n2n-absolute.txt", b"x"),
        ("a/../../outside.txt", b"x"),
        ("a\\b", b"x"),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, NAMES[0]),
        special("pipe", tarfile.FIFOTYPE),
        special("device", tarfile.CHRTYPE),
        (NAMES[0], b"again"),
    ],
    ids=lambda member: getattr(member, "name", None) or member[0],
)
def test_a_malicious_archive_writes_nothing(server, tmp_path, capsys, evil):
    server.content = tar_of((NAMES[0], b"good"), evil)
    folder = tmp_path / "deep" / "ixi"
    assert run(server, folder) == 3
    assert "nothing was unpacked" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["IXI-T1.tar", "IXI-T1.tar.json"]
    assert not Path("/tmp/mri-n2n-absolute.txt").exists()


def test_unpacking_does_not_follow_links_that_are_there(server, tmp_path):
    server.content = tar_of(("sub/a.nii.gz", b"data"))
    outside, folder = tmp_path / "outside", tmp_path / "ixi"
    outside.mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(outside)
    assert run(server, folder) == 4 and not list(outside.iterdir())


@pytest.mark.parametrize("content", [b"no tar archive" * 100, b""], ids=["text", "empty"])
def test_an_archive_that_is_none(server, tmp_path, capsys, content):
    server.content = content
    assert run(server, tmp_path) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_truncated_archive(server, archive, tmp_path):
    server.content = archive[:60_000]
    assert run(server, tmp_path) == 3


# ---- prepare IXI ----


def write_ixi(folder: Path, number: int, slices: int = 130, modality: str = "T1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"IXI{number:03}-{('Guys', 'HH', 'IOP')[number % 3]}-{700 + number:04}-{modality}.nii.gz"
    array = np.random.default_rng(number).integers(1, 900, (8, 8, slices)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def test_prepare_ixi_lays_out_the_official_subjects(tmp_path, capsys):
    source, output = tmp_path / "ixi", tmp_path / "prepared"
    numbers = [*range(2, 51), 63, *range(64, 74), 80]
    paths = [write_ixi(source, number, slices=27) for number in numbers]
    write_ixi(source, 2, modality="T2")
    before = {path: path.read_bytes() for path in paths}
    assert prepare_ixi.main([str(source), "-o", str(output)]) == 0
    assert "train: 50 volumes, 100 slices" in capsys.readouterr().out
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rule"] == "the official 50 training and 10 validation subjects"
    assert len(manifest["subjects"]["validation"]) == 10 and "IXI080" not in str(manifest["volumes"])
    assert manifest["volumes"][0] == {
        "name": paths[0].name, "part": "train", "subject": "IXI002", "shape": [27, 8, 8], "slices_used": 2,
        "maximum": manifest["volumes"][0]["maximum"], "bytes": len(before[paths[0]]),
    }  # fmt: skip
    assert str(tmp_path) not in (output / "manifest.json").read_text()
    split = find_sources("ixi", output)
    assert (len(split.train), len(split.validation)) == (50, 10) and split.train[0].load().shape == (2, 1, 8, 8)
    assert {path: path.read_bytes() for path in paths} == before and len(list(source.iterdir())) == 62
    # Links are relative: source and tree can move together.
    moved = tmp_path / "moved"
    moved.mkdir()
    source.rename(moved / "ixi")
    output.rename(moved / "prepared")
    assert find_sources("ixi", moved / "prepared").train[0].slices == 2


def test_prepare_ixi_with_few_volumes_and_all_of_them(tmp_path, capsys):
    for number in (100, 101, 102, 103, 104, 105):
        write_ixi(tmp_path / "ixi", number, slices=30)
    assert prepare_ixi.main([str(tmp_path / "ixi"), "-o", str(tmp_path / "a"), "--copy"]) == 0
    assert "by subject" in capsys.readouterr().out
    copies = sorted((tmp_path / "a" / "validation").iterdir())
    assert [path.name[:6] for path in copies] == ["IXI105"] and not copies[0].is_symlink()
    write_ixi(tmp_path / "ixi", 2, slices=30)
    write_ixi(tmp_path / "ixi", 64, slices=30)
    assert prepare_ixi.main([str(tmp_path / "ixi"), "-o", str(tmp_path / "b")]) == 0
    assert "1 of the 50 official" in capsys.readouterr().out
    assert prepare_ixi.main([str(tmp_path / "ixi"), "-o", str(tmp_path / "c"), "--all"]) == 0
    assert "train: 6 volumes" in capsys.readouterr().out


def test_prepare_ixi_refuses_and_leaves_nothing(tmp_path, capsys):
    source = tmp_path / "ixi"
    run = lambda output, *more: prepare_ixi.main([str(source), "-o", str(output), *more])  # noqa: E731
    assert run(tmp_path / "a") == 5
    source.mkdir()
    assert run(tmp_path / "a") == 5
    for number in (2, 3, 64):
        write_ixi(source, number)
    assert run(source / "inside") == 2
    bad = write_ixi(source, 4)
    bad.write_bytes(bad.read_bytes()[:3000])
    short = write_ixi(source, 5, slices=20)
    assert run(tmp_path / "a") == 3
    error = capsys.readouterr().err
    assert bad.name in error and short.name in error and "2 of 5 volumes" in error
    assert [path.name for path in tmp_path.iterdir()] == ["ixi"]
    bad.unlink()
    short.unlink()
    assert run(tmp_path / "a") == 0 and run(tmp_path / "a") == 4 and run(tmp_path / "a", "--force") == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert run(tmp_path / "mine", "--force") == 4 and (tmp_path / "mine" / "thesis.txt").exists()
    write_ixi(source / "again", 2)
    assert run(tmp_path / "b") == 3 and not (tmp_path / "b").exists()


# ---- prepare fastMRI ----


def write_fastmri(
    path: Path, *, coils: int | None, slices: int = 2, mask: bool = False, reference: bool = True, patient="p"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    shape = (slices, 20, 16) if coils is None else (slices, coils, 20, 16)
    kspace = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    with h5py.File(path, "w") as file:
        if mask:
            lines = np.zeros(16, np.float32)
            lines[6:10] = lines[::4] = 1
            kspace *= lines
            file["mask"] = lines
            file.attrs.update(acceleration=4, num_low_frequency=4)
        file["kspace"] = kspace
        file["ismrmrd_header"] = b'<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'
        if reference:
            file["reconstruction_esc" if coils is None else "reconstruction_rss"] = np.ones(
                (slices, 10, 10), np.float32
            )
            file.attrs.update(max=0.5, norm=3.0)
        file.attrs.update(acquisition="CORPD_FBK", patient_id=patient)
    return path


def test_prepare_fastmri_reports_every_file_and_the_split(tmp_path, capsys):
    data = tmp_path / "fastmri"
    write_fastmri(data / "multicoil_train" / "file1000001.h5", coils=3, patient="Jane Doe")
    write_fastmri(data / "multicoil_val" / "file1000002.h5", coils=3, slices=3, patient="Joe Public")
    write_fastmri(data / "multicoil_test" / "file1000003.h5", coils=3, mask=True, reference=False)
    write_fastmri(data / "singlecoil_train" / "file1000001.h5", coils=None)
    before = {path: path.read_bytes() for path in data.rglob("*.h5")}
    assert prepare_fastmri.main([str(data), "-o", str(tmp_path / "m.json"), "--read"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "multicoil_test/file1000003.h5  kspace 2x3x20x16 complex64  mask 16  no reference  CORPD_FBK" in lines
    assert (
        "singlecoil_train/file1000001.h5  kspace 2x20x16 complex64  no mask  reconstruction_esc 2x10x10  CORPD_FBK"
        in lines
    )
    manifest = json.loads((tmp_path / "m.json").read_text())
    assert manifest["split"]["train"] == ["file1000001"] and manifest["split"]["validation"] == ["file1000002"]
    by_name = {file["name"]: file for file in manifest["files"]}
    assert by_name["multicoil_val/file1000002.h5"]["reference"] == {"reconstruction_rss": [3, 10, 10]}
    assert by_name["multicoil_test/file1000003.h5"]["acceleration"] == 4
    text = (tmp_path / "m.json").read_text()
    assert "Jane" not in text and str(tmp_path) not in text
    assert {path: path.read_bytes() for path in data.rglob("*.h5")} == before
    assert prepare_fastmri.main([str(data), "-o", str(tmp_path / "m.json")]) == 4
    assert prepare_fastmri.main([str(data), "-o", str(tmp_path / "m.json"), "--force"]) == 0


def test_prepare_fastmri_inside_one_folder_and_test_files_only(tmp_path, capsys):
    data = tmp_path / "singlecoil_val"
    for index in range(3):
        write_fastmri(data / f"file{index}.h5", coils=None, patient=f"person {index}")
    assert prepare_fastmri.main([str(data)]) == 0
    assert "3 files; training 2, validation 1: by subject" in capsys.readouterr().out
    write_fastmri(tmp_path / "b" / "singlecoil_test" / "file9.h5", coils=None, mask=True, reference=False)
    assert prepare_fastmri.main([str(tmp_path / "b")]) == 0
    assert "training 0, validation 0" in capsys.readouterr().out


def test_prepare_fastmri_names_what_is_wrong(tmp_path, capsys):
    data = tmp_path / "fastmri"
    assert prepare_fastmri.main([str(data)]) == 5
    write_fastmri(data / "multicoil_train" / "no_reference.h5", coils=2, reference=False)
    write_fastmri(data / "multicoil_test" / "no_mask.h5", coils=2, reference=False)
    write_fastmri(data / "singlecoil_val" / "coils.h5", coils=2)
    damaged = write_fastmri(data / "multicoil_val" / "damaged.h5", coils=2)
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert prepare_fastmri.main([str(data), "-o", str(tmp_path / "m.json")]) == 3
    error = capsys.readouterr().err
    for name in (
        "no_reference.h5: multicoil_train promises reconstruction_rss",
        "no_mask.h5",
        "coils.h5",
        "damaged.h5",
    ):
        assert name in error
    assert "4 files have problems" in error and not (tmp_path / "m.json").exists()


# ---- as commands ----


@pytest.mark.parametrize("script", ["download_ixi", "prepare_ixi", "prepare_fastmri"])
def test_help_is_quick_and_documents_the_exit_codes(script):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(SCRIPTS / (script + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "Exit codes" in result.stdout and result.stdout.endswith("False\n")
    if script != "prepare_fastmri":
        assert "CC BY-SA 3.0" in " ".join(result.stdout.split())


def test_a_script_run_as_a_command_exits_with_its_code(server, tmp_path):
    command = [sys.executable, str(SCRIPTS / "download_ixi.py"), "-o", str(tmp_path), "--url", server.url + "x"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 5 and result.stderr.startswith("error: the server answered 404")
