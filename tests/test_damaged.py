"""Files of every format, damaged in every way that their structure suggests, through the command line: each command gives
the right data, or one line on stderr, a documented exit code, and no file."""

import gzip
import json
import os
import select
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri_n2n.acquisition import Geometry
from mri_n2n.checkpoint import build_network, save_tensors
from mri_n2n.conversion import convert
from mri_n2n.formats import write_nifti, write_scan

SHAPE = (2, 2, 10, 12)
DOCUMENTED = {0, 2, 3, 4, 5}
SECONDS = 20.0  # on a loaded machine; a command takes some hundredths
# The commands run in a process of their own: a damaged file may take the HDF5 library with it, and bombs need a limit.
WORKER = """
    import contextlib, io, json, os, resource, shutil, sys, tempfile, time
    from pathlib import Path
    import numpy as np
    from mri_n2n.cli import main
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    print("ready", file=replies, flush=True)

    def run(arguments, out, right):
        started, said = time.monotonic(), tempfile.TemporaryFile()
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)  # what the libraries in C say too
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        said.seek(0)
        written = sorted(str(path.relative_to(out)) for path in Path(out).rglob("*")) if Path(out).exists() else None
        equal = None
        if right is not None and code == 0 and arguments[0] == "convert":
            found, expected = np.load(arguments[2]), np.load(right)
            equal = found.shape == expected.shape and bool((found == expected).all())
        shutil.rmtree(out, ignore_errors=True)
        return dict(code=code, errors=said.read().decode(errors="replace"), written=written, equal=equal,
                    seconds=time.monotonic() - started)

    for line in sys.stdin:
        request = json.loads(line)
        if request["limit"]:
            virtual = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**29, resource.RLIM_INFINITY))
            continue
        print(json.dumps(run(request["arguments"], request["out"], request["right"])), file=replies, flush=True)
"""


class Worker:
    """Runs commands one after the other; a crash is the failure of the test that asked."""

    def __init__(self) -> None:
        self.process = None

    def ask(self, arguments: list[str], out: Path, right: Path | None, limit: bool = False) -> dict:
        request = {"arguments": arguments, "out": str(out), "right": right and str(right), "limit": limit}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        in_time = limit or select.select([self.process.stdout], [], [], SECONDS)[0]
        if not in_time:
            self.process.kill()
        answer = "{}" if limit else self.process.stdout.readline()
        if not answer:
            self.process.wait()
            code, self.process = self.process.returncode, None
            pytest.fail(f"mri-n2n {' '.join(arguments)}: {f'died with {code}' if in_time else 'takes for ever'}")
        return json.loads(answer)

    def start(self) -> bool:
        """Whether it had to be started."""
        if self.process is not None:
            return False
        command = [sys.executable, "-c", textwrap.dedent(WORKER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        return True


@dataclass(frozen=True)
class Bench:
    """Where damaged files are made and tried: good ones to begin with, and small weights."""

    folder: Path
    good: dict[str, Path]
    samples: Path
    worker: Worker

    def started(self) -> "Bench":
        if self.worker.start():
            self.tried(self.good["h5"], self.samples, must=True)
            self.worker.ask([], self.folder, None, limit=True)  # all is loaded: from here on half a GiB more
        return self

    def commands(self, path: Path) -> list[list[str]]:
        out = self.folder / "out"
        if path.name.endswith((".nii", ".nii.gz")):
            return [["info", str(path)], ["simulate", str(path), "-o", str(out / "scan.h5")]]
        if path.suffix == ".safetensors":
            weights = ["reconstruct", str(self.good["h5"]), "-o", str(out), "--weights", str(path)]
            return [["info", str(path)], weights]
        weights = str(self.good["safetensors"])
        return [
            ["info", str(path)],
            ["reconstruct", str(path), "-o", str(out), "--weights", weights],
            ["convert", str(path), str(out / "samples.npy"), "--lossy"],
        ]

    def tried(self, path: Path, right: Path | None = None, *, must: bool | None = None, commands=None) -> list[str]:
        """What the commands say of a file, "" where they succeed. must: that they all succeed, or all refuse."""
        said, beside = [], sorted(path.parent.iterdir())
        for arguments in commands or self.commands(path):
            out = self.folder / "out"
            if arguments[0] in ("convert", "simulate"):
                out.mkdir(exist_ok=True)
            found = self.worker.ask(arguments, out, right)
            lines = [line for line in found["errors"].splitlines() if not line.startswith("mri-n2n: warning:")]
            what = f"{arguments[0]} {path.name}: {found}"
            assert found["code"] in DOCUMENTED and found["seconds"] < SECONDS, what
            if found["code"]:
                assert len(lines) == 1 and lines[0].startswith("mri-n2n: error: ") and len(lines[0]) < 900, what
                assert found["written"] in (None, []), what
            else:
                assert lines == [] and found["equal"] is not False, what
                number = {"info": None, "reconstruct": 4, "convert": 1, "simulate": 1}[arguments[0]]
                assert number is None or len(found["written"]) == number, what
            assert must is None or must == (found["code"] == 0), what
            said.append(lines[0] if found["code"] else "")
        assert sorted(path.parent.iterdir()) == beside
        return said

    def write(self, suffix: str, content: bytes) -> Path:
        folder = self.folder / "case"
        folder.mkdir(exist_ok=True)
        (folder / f"damaged{suffix}").write_bytes(content)
        return folder / f"damaged{suffix}"


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    lines = np.arange(SHAPE[-1]) % 4 != 1
    kspace = ((rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)) * lines).astype(np.complex64)
    np.save(folder / "samples.npy", kspace)
    good = {name: folder / f"good.{name}" for name in ("h5", "mrd", "cfl", "npy", "nii", "nii.gz", "safetensors")}
    good["hdr"] = good["cfl"].with_suffix(".hdr")
    geometry = Geometry(((0.0, -1.5, 0, 9), (0.9, 0, 0, 0), (0, 0, 3.0, 5), (0, 0, 0, 1.0)), 2, 1, 2, "mm")
    reference = rng.random((2, 10, 12)).astype(np.float32)
    attributes = {"noise_variance": 0.5, "simulated": True}
    planes = {"mask": lines, "probability": lines * 0.5 + 0.5, "reference": reference}
    write_scan(good["h5"], kspace, SHAPE, **planes, geometry=geometry, attributes=attributes)
    for name in ("mrd", "cfl", "npy"):
        convert(good["h5"], good[name], lossy=True)
    for name in ("nii", "nii.gz"):
        write_nifti(good[name], rng.random((3, 40, 36)).astype(np.float32), geometry)
    options = {"cascades": 1, "channels": 1, "levels": 1}
    header = {"network": "unrolled", "network_options": options, "training": {"protocol": {}}}
    save_tensors(good["safetensors"], build_network("unrolled", options).state_dict(), header)
    worker = Worker()
    yield Bench(folder, good, folder / "samples.npy", worker)
    if worker.process is not None:
        worker.process.stdin.close()
        assert worker.process.wait(timeout=30) == 0
        worker.process.stdout.close()


@pytest.fixture
def bench(whole_bench):
    for path in (whole_bench.folder / "case").glob("*"):
        path.unlink()
    return whole_bench.started()


RAW = ("h5", "mrd", "npy", "cfl")
ALL = (*RAW, "hdr", "nii", "nii.gz", "safetensors")


@pytest.mark.parametrize("name", [name for name in ALL if name != "hdr"])
def test_the_undamaged_file_is_read(name, bench):
    bench.tried(bench.good[name], bench.samples, must=True)


# ---------------------------------------------------------------------------------------- cut off, and filled with zeros


def hdf5_boundaries(path: Path) -> set[int]:
    """Of superblock, object headers, trees, heaps, tables of symbols, chunks and data: where they begin and end."""
    content, found = path.read_bytes(), {8, 24, 96}
    for signature in (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"BTHD", b"<?xml", b"</ismrmrd"):
        at = content.find(signature)
        while at >= 0:
            found |= {at, at + len(signature), at + 16}
            at = content.find(signature, at + 1)

    def visit(_: str, item: h5py.HLObject) -> None:
        found.add(h5py.h5o.get_info(item.id).addr)
        if not isinstance(item, h5py.Dataset):
            return
        if item.chunks:
            for number in range(item.id.get_num_chunks()):
                chunk = item.id.get_chunk_info(number)
                found.update({chunk.byte_offset, chunk.byte_offset + 372, chunk.byte_offset + chunk.size})
        elif item.id.get_offset():
            found.update({item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()})

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def boundaries(name: str, path: Path) -> set[int]:
    content = path.read_bytes()
    if name in ("h5", "mrd"):
        return hdf5_boundaries(path)
    if name == "npy":
        data = 10 + struct.unpack_from("<H", content, 8)[0]
        return {6, 8, 10, data, data + SHAPE[2] * SHAPE[3] * 8, len(content) - 8}
    if name == "hdr":
        return {number for number, letter in enumerate(content) if letter in b" \n"}
    if name == "cfl":
        return {8, 8 * SHAPE[2], 8 * SHAPE[2] * SHAPE[3], len(content) // 2}
    if (
        name == "nii"
    ):  # fields: dim, intent, datatype, pixdim, vox_offset, scale, texts, codes, rows of the sform, magic
        return {4, 40, 56, 70, 76, 108, 112, 120, 123, 148, 252, 256, 280, 296, 312, 328, 344, 348, 352, 352 + 5760}
    if name == "nii.gz":  # gzip's header, data, checksum and length
        return {2, 3, 10, 11, len(content) // 3, len(content) // 2, len(content) - 8, len(content) - 4}
    header = 8 + struct.unpack_from("<Q", content)[0]
    return {8, header, (header + len(content)) // 2}


@pytest.mark.parametrize("name", ALL)
def test_files_that_end_too_early(name, bench):
    """Cut at every boundary of the structure, and a byte before and after."""
    path = bench.good[name]
    content = path.read_bytes()
    at = {edge + offset for edge in {0, len(content), *boundaries(name, path)} for offset in (-1, 0, 1)}
    assert len(at) > 8
    for number, end in enumerate(sorted(end for end in at if 0 <= end < len(content))):
        if name in ("cfl", "hdr"):
            other = {"cfl": "hdr", "hdr": "cfl"}[name]
            bench.write(f".{other}", bench.good[other].read_bytes())
        damaged = bench.write(f".{name}", content[:end])
        # A header of BART with fewer sizes, or without the last line break, is one; its samples say whether it fits.
        commands = bench.commands(damaged)
        commands = commands if number % 12 == 0 else [commands[number % len(commands)]]
        bench.tried(damaged, bench.samples, must=None if name == "hdr" else False, commands=commands)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("cfl", "hdr")])
def test_files_whose_end_was_never_written(name, bench):
    """Of full length, but zeros from a boundary on, as a copy that broke off leaves them. Samples alone may be zero."""
    path = bench.good[name]
    content = path.read_bytes()
    for end in sorted({0, *boundaries(name, path)})[:: 2 if name == "mrd" else 1]:
        damaged = bench.write(f".{name}", content[:end].ljust(len(content), b"\0"))
        bench.tried(damaged, commands=bench.commands(damaged)[:: 1 if name in ("npy", "nii") else 2])


@pytest.mark.parametrize("name", RAW)
def test_more_bytes_than_there_should_be(name, bench):
    for more in (b"\0", b"more" * 1000):
        if name == "cfl":
            bench.write(".hdr", bench.good["hdr"].read_bytes())
        bench.tried(bench.write(f".{name}", bench.good[name].read_bytes() + more), bench.samples)


@pytest.mark.parametrize(("name", "number"), [("h5", 40), ("mrd", 50), ("npy", 30), ("hdr", 20), ("nii", 40), ("nii.gz", 20), ("safetensors", 30)])  # fmt: skip
def test_single_bytes_of_the_structure_overwritten(name, number, bench):
    """Without checksums not every change can be found, but none may end otherwise than in a result or one line."""
    path, rng = bench.good[name], np.random.default_rng(1)
    content = path.read_bytes()
    structure = np.ones(len(content), bool)
    if name == "h5":
        with h5py.File(path) as file:
            for one in ("kspace", "mask", "probability", "reconstruction_rss"):
                start = file[one].id.get_offset()
                structure[start : start + file[one].id.get_storage_size()] = False
    elif name == "mrd":  # most of the file are samples in heaps and empty rows of a chunk
        structure[:] = np.frombuffer(content, np.uint8) != 0
        with h5py.File(path) as file:
            chunk = file["dataset/data"].id.get_chunk_info(0)
            used = chunk.byte_offset + 372 * len(file["dataset/data"])
        structure[used:] = False
        structure[content.index(b"GCOL") + 600 :] &= np.arange(len(content) - content.index(b"GCOL") - 600) % 50 == 0
        structure[content.index(b"<?xml") :][:1500] = True
    else:
        structure[{"npy": 140, "nii": 352}.get(name, 4000) :] = False
    for position in rng.choice(np.flatnonzero(structure), number):
        damaged = bytearray(content)
        damaged[position] = (damaged[position] ^ (1 << rng.integers(8))) if rng.random() < 0.6 else rng.integers(256)
        if name == "hdr":
            bench.write(".cfl", bench.good["cfl"].read_bytes())
        made = bench.write(f".{name}", bytes(damaged))
        commands = bench.commands(made)
        bench.tried(made, commands=commands[:: 1 if name == "npy" else 2])


# ------------------------------------------------------------------------------------------------ types, ranks, emptiness


def scan_with(path: Path, kspace: object, **options) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=kspace, **options)
    return path


RANKS = [(), (10,), (10, 12), (2, 10, 12), SHAPE, (1, *SHAPE), (1, 1, *SHAPE)]
EMPTY = [(0,), (0, 12), (10, 0), (0, 10, 12), (2, 10, 0), (0, 2, 10, 12), (2, 0, 10, 12), (2, 2, 0, 12), (2, 2, 10, 0)]


@pytest.mark.parametrize("name", ["h5", "npy"])
def test_types_and_ranks(name, bench):
    samples = np.load(bench.samples)
    right = bench.folder / "right.npy"

    def save(array: np.ndarray) -> Path:
        path = bench.write(f".{name}", b"")
        if name == "npy":
            np.save(path, array, allow_pickle=True)
            return path
        return scan_with(path, array)

    for dtype in ("<c8", ">c8", "<c16", ">c16", "c32" if np.dtype(np.clongdouble).itemsize == 32 else "c16"):
        bench.tried(save(samples.astype(dtype)), bench.samples, must=True)
    for dtype in ("i1", "u8", "f2", ">f4", "f8", "g", "?", "S4", "V8"):
        bench.tried(save(np.abs(samples).astype(dtype) if dtype != "V8" else np.zeros(SHAPE, "V8")), must=False)
    bench.tried(save(np.zeros(SHAPE, [("r", "f4"), ("i", "f4")])), must=False)
    if name == "npy":
        bench.tried(save(np.full(SHAPE, None, object)), must=False)
        bench.tried(save(np.zeros(SHAPE, "M8[s]")), must=False)
        bench.tried(save(np.zeros(SHAPE, "U3")), must=False)
    else:
        bench.tried(save(np.full(SHAPE, "text", h5py.string_dtype())), must=False)
        bench.tried(save(np.zeros(SHAPE, h5py.enum_dtype({"a": 0}))), must=False)
        bench.tried(
            save(np.zeros((2, 2), np.dtype(("c8", (10, 12))))), right=None
        )  # an array type is more axes to numpy
    for shape in RANKS:
        array = np.resize(samples, shape)
        np.save(right, array.reshape(((1,) * (4 - len(shape)) + shape) if name == "npy" else (*shape[:1], 1, *shape[1:])) if len(shape) in (2, 3) else array)  # fmt: skip
        allowed = {"npy": (2, 4), "h5": (3, 4)}[name]
        bench.tried(save(array), right, must=len(shape) in allowed)
    for shape in EMPTY:
        bench.tried(save(np.zeros(shape, np.complex64)), must=False)


def test_orders_and_versions_of_npy(bench):
    samples = np.load(bench.samples)
    for version in ((1, 0), (2, 0), (3, 0)):
        path = bench.write(".npy", b"")
        with open(path, "wb") as file:
            np.lib.format.write_array(file, samples, version)
        bench.tried(path, bench.samples, must=True)
    np.save(path, np.asfortranarray(samples))
    bench.tried(path, bench.samples, must=True)


def npy(header: str | bytes, version: bytes = b"\x01\x00", data: bytes = bytes(64), length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version[:1] == b"\x01" else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + version + size + header + data


HEADER = "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "content",
    [
        npy(HEADER.format(descr="'<c8'", shape=shape))
        for shape in (
            "(1099511627776, 8, 8)", "(4611686018427387904, 4, 4)", "(1" + "0" * 300 + ", 8)", "(-1, 8)", "(-2, -4)",
            "(2.0, 4)", "('a', 8)", "8", "()", "(True, 8)", "[2, 4]", "(1, 1, 1000000, 1000000)", "(None, 8)", "(1, 1, 2, 4, 1)",
        )
    ]
    + [
        npy(HEADER.format(descr=descr, shape="(2, 4)"))
        for descr in ("'|O'", "'O'", "'nonsense'", "'<c8000'", "[('a', '<c8')]", "[('a', '|O')]", "('<c8', (2,))", "None", "3", "[" * 90 + "]" * 90)
    ]
    + [
        npy("{'descr': '<c8'}"), npy("(" * 9000), npy("[" * 200 + "]" * 200), npy("\0" * 90), npy(b"\xff" * 90), npy("{" + "1:1," * 2000 + "}"),
        npy("'" * 3), npy("{'descr': '<c8', 'fortran_order': 7, 'shape': (2, 4)}"), npy("9**9**9"), npy("x" * 100000, b"\x02\x00"),
        npy("", b"\x02\x00", length=2**32 - 1), npy("", b"\x03\x00", length=2**31), npy("", b"\x09\x09"), npy("", length=65535), npy("1\\\n"), npy("{'a': b'"),
    ],
)  # fmt: skip
def test_headers_of_npy_that_lie(content, bench):
    bench.tried(bench.write(".npy", content), must=False)


def test_no_pickle_is_opened(bench):
    """The object would make a file when it is loaded."""
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(bench.folder / "opened"),)

    array = npy(HEADER.format(descr="'|O'", shape="(2, 4)"), data=pickle.dumps(Evil()))
    for suffix in (".npy", ".h5", ".cfl", ".nii", ".safetensors"):
        for content in (array, pickle.dumps(Evil())):
            bench.tried(bench.write(suffix, content), must=False)
    assert not (bench.folder / "opened").exists()


@pytest.mark.parametrize("sizes", ["", "0", "10", "10 12", "10 12 1", "10 12 1 4", "10 12 2 2", "10 1 12 2 " + "1 " * 9 + "2", "1 10 12 2 " + "1 " * 9 + "2",
    "10 12 1 1 2 2", "4294967296 4294967296", "9" * 4000, "10 12 1 2 1 1 1 1 1 1 1 1 1 2 1 1 1", "1e1 12", "10 12 -1 -2", "١٠ 12", "10,12", "2147483647 2147483647 1 2147483647"])  # fmt: skip
def test_sizes_of_bart(sizes, bench):
    right = sizes.startswith(("10 1 12", "1 10 12", "10 12 1 4"))
    bench.write(".hdr", f"# Dimensions\n{sizes}\n".encode())
    samples = None if sizes == "10 12 1 4" else bench.samples  # as well four coils as two of two slices
    bench.tried(bench.write(".cfl", bench.good["cfl"].read_bytes()), samples, must=right)


@pytest.mark.parametrize("header", ["# Dimensions", "# Dimensions\n", "# Dimensions\n\n10 12 1 2\n", "# Dimensions\r\n{0}\r\n", "# Dimensions\n{0}\n# Files\n >/etc/passwd\n", "# Command\nphantom\n# Dimensions\n{0}\n",
    "# Dimensions\n{0}", "# Dimensions \n{0}\n", "\ufeff# Dimensions\n{0}\n", "# Dimensions\n" + "1 " * 10**6])  # fmt: skip
def test_headers_of_bart(header, bench):
    """Sections of other names, which name files too, are left alone."""
    sizes = bench.good["hdr"].read_text().splitlines()[1]
    bench.write(".hdr", header.replace("{0}", sizes).encode())
    bench.tried(bench.write(".cfl", bench.good["cfl"].read_bytes()), bench.samples)


@pytest.mark.parametrize("rank", range(8))
def test_ranks_of_nifti(rank, bench):
    content = bytearray(bench.good["nii"].read_bytes())
    struct.pack_into("<8h", content, 40, rank, *([36, 40, 3][:rank] + [1] * (7 - min(rank, 3))))
    bench.tried(bench.write(".nii", bytes(content)), must=rank in (3, 4, 5, 6, 7))


@pytest.mark.parametrize("code", [0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, -1, 32767])  # fmt: skip
def test_types_of_nifti(code, bench):
    content = bytearray(bench.good["nii"].read_bytes())
    bits = {2: 8, 256: 8, 4: 16, 512: 16, 8: 32, 16: 32, 768: 32, 64: 64, 1024: 64, 1280: 64}.get(code, 128)
    struct.pack_into("<2h", content, 70, code, bits)
    bench.tried(bench.write(".nii", bytes(content) + bytes(bits * 600)))


# ----------------------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (1, 1, 1024, 1024)}, {"chunks": (1, 1, 1024, 1024), "compression": 9}]
)
def test_declared_terabytes(options, bench):
    for shape in ((2000, 1000, 1024, 1024), (1, 64, 1024, 1024), (2**31, 2**20, 1024, 1024)):
        path = bench.write(".h5", b"")
        with h5py.File(path, "w") as file:
            file.create_dataset("kspace", shape, "c8", **options)
        bench.tried(path, must=False)
        with h5py.File(path, "w") as file:
            file["kspace"] = np.load(bench.samples)
            file.create_dataset("mask", shape[1:], "f4", **(options | ({"chunks": (1, 1024, 1024)} if options else {})))
        bench.tried(path, must=False)


def test_chunks_that_unpack_to_much(bench):
    path = bench.write(".h5", b"")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("kspace", (4, 1, 2560, 2560), "c8", chunks=(4, 1, 2560, 2560), compression=9)
        packed = zlib.compress(bytes(4 * 2560 * 2560 * 8), 1)
        data.id.write_direct_chunk((0, 0, 0, 0), packed)
    bench.tried(path, must=False)
    with h5py.File(path, "w") as file:  # unpacks to more than the chunk has
        data = file.create_dataset("kspace", SHAPE, "c8", chunks=SHAPE, compression=9)
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(2**28), 1))
    bench.tried(path, must=False)


ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
LAUGHS = f'<?xml version="1.0"{{}}?><!DOCTYPE x [<!ENTITY l0 "lol">{ENTITIES}]><ismrmrdHeader><encoding>&l11;</encoding></ismrmrdHeader>'
XMLS = {
    "laughs": LAUGHS.format("").encode(), "laughs in UTF-16": LAUGHS.format(' encoding="utf-16"').encode("utf-16"),
    "a file": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
    "deep": b"<a>" * 30000, "deep and closed": b"<a>" * 30000 + b"</a>" * 30000, "wide": b"<a " + b"b" * 10**5 + b"='1'/>",
    "long": b"<a>" + b"x" * 2**21 + b"</a>", "unknown encoding": b'<?xml version="1.0" encoding="rot13"?><a/>',
    "empty": b"", "no text": b"\xff\xfe\x00", "only a declaration": b'<?xml version="1.0"?>',
}  # fmt: skip


@pytest.mark.parametrize("kind", XMLS)
def test_xml_of_all_kinds(kind, bench):
    """In MRD it is needed; in fastMRI's layout nothing depends on it."""
    xml = XMLS[kind]
    path = bench.write(".mrd", bench.good["mrd"].read_bytes())
    with h5py.File(path, "r+") as file:
        del file["dataset/xml"]
        file.create_dataset("dataset/xml", (1,), h5py.string_dtype("ascii"))
        file["dataset/xml"][0] = xml.replace(b"\0", b"") if "UTF-16" not in kind else b""
        if b"\0" in xml:
            del file["dataset/xml"]
            file["dataset/xml"] = np.array([xml + b" "], f"S{len(xml) + 1}")
    for line in bench.tried(path, must=False):
        assert "declares entities" in line or kind not in (
            "laughs",
            "laughs in UTF-16",
            "a file",
            "long",
        )  # not even parsed
    path = bench.write(".h5", bench.good["h5"].read_bytes())
    with h5py.File(path, "r+") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = np.bytes_(xml + b" ")
    bench.tried(path, bench.samples, must=True)


def change_rows(path: Path, change, rows: int | None = None) -> None:
    """Change the packed rows of a table of readouts, 372 bytes each; rows: how many of them the table has afterwards."""
    with h5py.File(path, "r+") as file:
        data = file["dataset/data"]
        per_chunk = data.chunks[0]
        raw = bytearray(data.id.read_direct_chunk((0,))[1])
        change(raw)
        if rows:
            data.resize(rows, axis=0)
        for start in range(0, len(data), per_chunk):
            data.id.write_direct_chunk((start,), bytes(raw))


def test_enormous_tables_of_readouts(bench):
    for rows in (10**6, 10**9, 10**15):
        path = bench.write(".mrd", bench.good["mrd"].read_bytes())
        with h5py.File(path, "r+") as file:
            file["dataset/data"].resize(rows, axis=0)
        bench.tried(path, must=False)


def test_many_readouts_that_share_one_place(bench):
    """A readout of a megabyte, to which 20000 rows point: 20 GiB of samples in a few megabytes."""
    path = bench.write(".mrd", bench.good["mrd"].read_bytes())
    with h5py.File(path, "r+") as file:
        data = file["dataset/data"]
        row = data[0]
        row["data"] = np.zeros(2 * 2 * 65000, np.float32)
        row["head"]["number_of_samples"] = 65000
        data[0] = row
        text = file["dataset/xml"][0].decode().replace("<x>10</x>", "<x>32000</x>")
        file["dataset/xml"][0] = text

    def repeat(raw: bytearray) -> None:
        raw[:] = bytes(raw[:372]) * (len(raw) // 372)

    change_rows(path, repeat, rows=20000)
    bench.tried(path, must=False)


def test_readouts_longer_than_their_headers_say(bench):
    path = bench.write(".mrd", bench.good["mrd"].read_bytes())
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][0]
        row["data"] = np.zeros(2 * 10**6, np.float32)
        file["dataset/data"][0] = row
    change_rows(path, lambda raw: raw.__setitem__(slice(None), bytes(raw[:372]) * (len(raw) // 372)))
    bench.tried(path, must=False)


def test_lengths_in_the_rows_that_the_heap_does_not_have(bench):
    """The length of a readout stands in its row, apart from the place it is at."""
    for length in (0, 1, 39, 41, 10**5, 2**31, 2**32 - 1):
        path = bench.write(".mrd", bench.good["mrd"].read_bytes())
        change_rows(path, lambda raw: struct.pack_into("<I", raw, 356, length))  # noqa: B023
        bench.tried(path, must=False)
    for field, value in ((360, 2**62), (360, 1), (368, 9999)):  # where its heap is, and which of its objects it is
        path = bench.write(".mrd", bench.good["mrd"].read_bytes())
        change_rows(path, lambda raw: struct.pack_into("<Q" if field == 360 else "<I", raw, field, value))  # noqa: B023
        bench.tried(path, must=False)


@pytest.mark.parametrize(("old", "new"), [("<x>10</x><y>12</y>", "<x>32000</x><y>32000</y>"), ("<x>10</x><y>12</y>", "<x>9999999999</x><y>12</y>"),
    ("<x>10</x><y>12</y>", "<x>-10</x><y>12</y>"), ("<x>10</x><y>12</y>", "<x>0</x><y>12</y>"), ("<maximum>11</maximum><center>6</center>", "<center>-5000</center>"),
    ("fieldOfView_mm", "fieldOfView_inch"), ("<trajectory>", "<trajectory><trajectory/>"), ("</encoding>", "</encoding><userParameters><a/><b><name/></b></userParameters>")])  # fmt: skip
def test_matrices_that_mrd_declares(old, new, bench):
    path = bench.write(".mrd", bench.good["mrd"].read_bytes())
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new)
    bench.tried(path, bench.samples, must="userParameters" in new)


def readouts(path: Path, head: object, data: object) -> None:
    with h5py.File(path, "r+") as file:
        rows = len(file["dataset/data"])
        del file["dataset/data"]
        file.create_dataset(
            "dataset/data", (rows,), np.dtype([("head", head), ("traj", "f4"), ("data", data)]), chunks=(8,)
        )
        file["dataset/data"][0] = file["dataset/data"][0]


def test_tables_that_are_no_readouts(bench):
    from mri_n2n.formats.mrd import HEAD

    vlen, short = h5py.vlen_dtype(np.float32), np.dtype([(name, HEAD[name]) for name in HEAD.names if name != "flags"])
    text = np.dtype([(name, "S9" if name == "flags" else HEAD[name]) for name in HEAD.names])
    flat = np.dtype([(name, "<u4" if name == "idx" else HEAD[name]) for name in HEAD.names])
    for head, data in [(HEAD, "f4"), (HEAD, ("f4", (40,))), (HEAD, h5py.vlen_dtype(np.float64)), (HEAD, h5py.string_dtype()), (HEAD, "S8"),
                       (HEAD, h5py.vlen_dtype(np.dtype(">f4"))), (short, vlen), (text, vlen), (flat, vlen), ("f4", vlen)]:  # fmt: skip
        path = bench.write(".mrd", bench.good["mrd"].read_bytes())
        readouts(path, head, data)
        bench.tried(path, must=False)
    for value in (np.zeros(5), np.zeros((3, 3)), "text", h5py.Empty("f4")):
        with h5py.File(path, "r+") as file:
            del file["dataset/data"]
            file["dataset/data"] = value
        bench.tried(path, must=False)


def test_gzip_bombs(bench):
    """Zeros without end behind a small volume, and a header that declares what gzip could just unpack."""
    volume = bytearray(bench.good["nii"].read_bytes())
    zeros = gzip.compress(bytes(2**27), 9)
    bench.tried(bench.write(".nii.gz", gzip.compress(bytes(volume)) + zeros * 4), must=False)
    struct.pack_into("<4h", volume, 40, 3, 4000, 4000, 60)
    bench.tried(bench.write(".nii.gz", gzip.compress(bytes(volume[:352])) + zeros), must=False)
    for suffix in (".npy", ".h5", ".mrd", ".cfl"):
        bench.tried(bench.write(suffix, zeros), must=False)


def test_files_that_are_large_and_empty(bench):
    """Sparse: a terabyte of zeros that takes no disk."""
    sizes = (" ".join(map(str, (2**14, 2**14, 1, 64))), 8 * 2**34)
    bench.write(".hdr", f"# Dimensions\n{sizes[0]}\n".encode())
    path = bench.write(".cfl", b"")
    os.truncate(path, sizes[1])
    bench.tried(path, must=False)
    path = bench.write(".npy", npy(HEADER.format(descr="'<c8'", shape="(64, 16384, 16384)").replace("(64", "(1, 64")))
    os.truncate(path, sizes[1] + 128)
    bench.tried(path, must=False)


# ----------------------------------------------------------------------------------------------------------------- links


def test_links_to_files_are_followed_and_dangling_ones_named(bench):
    folder = bench.folder / "case"
    folder.mkdir(exist_ok=True)
    for name in (*RAW, "hdr"):
        (folder / f"link.{name}").symlink_to(bench.good[name])
    for name in RAW:
        bench.tried(folder / f"link.{name}", bench.samples, must=True)
        (folder / f"broken.{name}").symlink_to(folder / "nowhere")
        for line in bench.tried(folder / f"broken.{name}", must=False):
            assert "no file" in line
        (folder / f"round.{name}").symlink_to(folder / f"round.{name}")
        bench.tried(folder / f"round.{name}", must=False)
    (folder / "lonely.cfl").symlink_to(bench.good["cfl"])
    bench.tried(folder / "lonely.cfl", must=False)
    (folder / "lonely.hdr").symlink_to(folder / "nowhere")
    bench.tried(folder / "lonely.cfl", must=False)
    (folder / "pair.cfl").symlink_to(folder / "nowhere")
    (folder / "pair.hdr").symlink_to(bench.good["hdr"])
    bench.tried(folder / "pair.cfl", must=False)
    bench.tried(folder / "pair.hdr", must=False)


@pytest.mark.parametrize("name", ["data", "xml"])
@pytest.mark.parametrize("kind", ["external", "soft", "dangling", "external storage", "group", "virtual", "named type"])
def test_mrd_that_points_elsewhere(name, kind, bench):
    path, where = bench.write(".mrd", bench.good["mrd"].read_bytes()), f"dataset/{name}"
    (bench.folder / "case" / "secret").write_bytes(b"<secret/>" * 1000)
    with h5py.File(path, "r+") as file:
        file.move(where, "kept")
        if kind == "external":
            file[where] = h5py.ExternalLink(str(bench.good["mrd"]), where)
        elif kind in ("soft", "dangling"):
            file[where] = h5py.SoftLink("/kept" if kind == "soft" else "/nowhere")
        elif kind == "external storage":
            file.create_dataset(where, (1,), "S9000", external=[(str(bench.folder / "case" / "secret"), 0, 9000)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((1,), "S9")
            layout[:] = h5py.VirtualSource(str(bench.good["mrd"]), where, (1,))
            file.create_virtual_dataset(where, layout)
        elif kind == "group":
            file.create_group(where)
        else:
            file[where] = np.dtype("f4")
    for line in bench.tried(path, must=False):
        assert "secret/" not in line


def test_a_group_that_is_a_link(bench):
    path = bench.write(".mrd", b"")
    with h5py.File(path, "w") as file:
        file["dataset"] = h5py.ExternalLink(str(bench.good["mrd"]), "dataset")
    bench.tried(path, must=False)
    with h5py.File(path, "w") as file:  # a group within itself
        group = file.create_group("dataset")
        group["xml"], group["data"] = group, group
    bench.tried(path, must=False)


# --------------------------------------------------------------------------------------------------------------- weights


WRONG = [None, 7, -1.5, "text", [], [1, "a"], {}, {"a": 1}, True, 10**400, [[[]]], float("nan")]


@pytest.mark.parametrize("key", ["network", "network_options", "training", "protocol", "masks", "acceleration", "seconds", "step", "flips", "parameters", "dataset", "noise", "pair", "extra_noise", "correction"])  # fmt: skip
def test_headers_of_weights_with_values_of_wrong_types(key, bench):
    options = {"cascades": 1, "channels": 1, "levels": 1}
    tensors = build_network("unrolled", options).state_dict()
    for value in WRONG:
        header = {"network": "unrolled", "network_options": options, "training": {"protocol": {}}}
        if key == "protocol":
            header["training"]["protocol"] = value
        elif key in ("masks", "acceleration", "flips", "noise", "pair"):
            header["training"]["protocol"][key] = value
        elif key in ("extra_noise", "correction"):
            header["training"]["protocol"] |= {"method": "robust-ssdu", "pair": {key: value}}
        elif key == "dataset":
            header["training"]["dataset"] = value
        else:
            header[key] = value
        path = bench.write(".safetensors", b"")
        save_tensors(path, tensors, header)
        only_shown = key in ("parameters", "dataset", "step", "noise", "masks", "seconds") and value is not None
        bench.tried(path, commands=bench.commands(path)[: 1 if only_shown else 2])


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def test_safetensors_that_lie(bench):
    ours = {"format": "mri-n2n weights 1"}
    deep = json.dumps({"__metadata__": ours | {"header": '{"training":' + "[" * 10**5 + "]" * 10**5 + "}"}}).encode()
    huge = {
        "__metadata__": ours | {"header": "{}"},
        "a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    }
    for content in (
        safetensors(b"{}"), safetensors(b"", length=2**63), safetensors(b"[" * 10**5), safetensors(deep), safetensors(json.dumps(huge).encode()),
        safetensors(json.dumps({"__metadata__": ours}).encode()), safetensors(json.dumps({"__metadata__": {"a": 1}}).encode()),
        *(safetensors(json.dumps({"__metadata__": ours | {"header": header}}).encode()) for header in ("", "[]", "null", "7", "{", '"a"', "1" + "0" * 5000, "{}", '{"network": "unrolled", "network_options": {}}')),
    ):  # fmt: skip
        bench.tried(
            bench.write(".safetensors", content),
            commands=bench.commands(bench.folder / "case" / "damaged.safetensors")[1:],
            must=False,
        )
        bench.tried(bench.folder / "case" / "damaged.safetensors")
    for options in ({"cascades": 10**9}, {"channels": 10**9}, {"levels": -1}, {"levels": 1.5}, {"cascades": "3"}, {"nonsense": 1}, {"channels": 4096, "levels": 10, "cascades": 100}, {"channels": None}):  # fmt: skip
        header = json.dumps({"network": "unrolled", "network_options": options})
        content = safetensors(json.dumps({"__metadata__": ours | {"header": header}}).encode())
        path = bench.write(".safetensors", content)
        bench.tried(path, commands=bench.commands(path)[1:], must=False)
