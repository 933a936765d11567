"""`convert` when the disk is full or the process is killed: one line and exit code 4, nothing left, nothing lost."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mri_n2n.cli import main
from mri_n2n.conversion import ROOM, convert
from mri_n2n.formats import open_scan, write_scan

SHAPE = (40, 3, 32, 30)
# The limit holds for the process; SIGXFSZ, which would kill it, is ignored, as it is on a full disk.
LIMITED = """
    import resource, signal, sys
    from mri_n2n.cli import main
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in map(int, sys.argv[1].split(",")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for target in sys.argv[3:]:
            code = main(["convert", sys.argv[2], target, "--lossy", "--force"])
            print(code, limit, target, flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "scan.h5"
    rng = np.random.default_rng(0)
    kspace = (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)).astype(np.complex64)
    write_scan(path, iter(kspace), SHAPE, mask=np.ones(30), attributes={"noise_variance": 1.0})
    return path


@pytest.mark.parametrize("existing", [False, True])
def test_a_limit_on_file_size(source, existing, tmp_path):
    """At the first bytes, within the structure, in the middle, near the end: what was there before is there after."""
    targets = [tmp_path / suffix[1:] / f"scan{suffix}" for suffix in ROOM]
    for target in targets:
        target.parent.mkdir()
        if existing:
            target.write_bytes(b"mine")
            if target.suffix == ".cfl":
                target.with_suffix(".hdr").write_bytes(b"mine too")
    limits = "10,700,2500,100000,880000"
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), limits, str(source), *map(str, targets)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = done.stdout.splitlines()
    assert len(codes) == 20 and all(line.startswith("4 ") for line in codes), done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 20 and all(line.startswith("mri-n2n: error: cannot write") for line in lines), done.stderr
    assert all("File too large" in line and "nothing was kept" in line for line in lines)
    for target in targets:
        left = {path.name: path.read_bytes() for path in target.parent.iterdir()}
        expected = {target.name: b"mine"} | ({"scan.hdr": b"mine too"} if target.suffix == ".cfl" else {})
        assert left == (expected if existing else {})


def test_a_full_disk(source, tmp_path):
    """A really full file system, where a private one can be mounted."""
    mount = f'mount -t tmpfs -o size=512k none {tmp_path} && exec "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("needs unprivileged mounts")
    targets = [tmp_path / f"scan{suffix}" for suffix in ROOM]
    script = textwrap.dedent(LIMITED) + "import os\nprint(os.listdir(os.path.dirname(sys.argv[3])))\n"
    command = [sys.executable, "-c", script, str(2**40), str(source), *map(str, targets)]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", *command], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]" and [line[0] for line in done.stdout.splitlines()[:-1]] == ["4"] * 4
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all("No space left" in line for line in lines), done.stderr


@pytest.mark.parametrize("suffix", ROOM)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_in_the_middle(source, how, suffix, tmp_path):
    """Nothing by the target's name; what an outright kill leaves is hidden, and goes with the next write."""
    script = """
        import sys, time
        from mri_n2n import conversion
        from mri_n2n.cli import main
        opened = conversion.open_scan
        def slow(*arguments):
            scan, reads = opened(*arguments), []
            def read(start, stop):
                reads.append(start)
                if start == 20 and len(reads) > 20 and reads.count(20) >= int(sys.argv[3]):
                    print("half", flush=True)
                    time.sleep(60)
                return scan.read(start, stop)
            from dataclasses import replace
            return replace(scan, read=read)
        conversion.open_scan = slow
        sys.exit(main(["convert", sys.argv[1], sys.argv[2], "--lossy"]))
    """
    target = tmp_path / f"scan{suffix}"
    passes = 3 if suffix == ".h5" else 1  # mask and probability are gathered first
    command = [sys.executable, "-c", textwrap.dedent(script), str(source), str(target), str(passes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n", process.stderr.read()
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".scan") and partial.name.endswith(".partial")
    process.send_signal(how)
    said = process.communicate(timeout=120)[1]
    if how == signal.SIGTERM:
        assert process.returncode == 130 and said == "mri-n2n: interrupted; no file is half-written\n"
        assert list(tmp_path.iterdir()) == []
    else:
        assert not target.exists() and partial.exists()
    convert(source, target, lossy=True)
    expected = ["scan.cfl", "scan.hdr"] if suffix == ".cfl" else [target.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert open_scan(target).shape == SHAPE


@pytest.mark.parametrize("suffix", ROOM)
def test_an_input_that_breaks_off_leaves_nothing(source, suffix, tmp_path, capsys):
    """A slice is found to be damaged only while the output is being written: the mask is stored, and not looked for."""
    broken = tmp_path / "in" / "broken.h5"
    broken.parent.mkdir()
    kspace = np.ones((3, 1, 8, 8), np.complex64)
    kspace[2, 0, 3, 3] = np.nan
    write_scan(broken, kspace, kspace.shape, mask=np.ones(8), attributes={})
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"scan{suffix}"
    for force in (False, True):
        if force:
            target.write_bytes(b"mine")
        assert main(["convert", str(broken), str(target), "--lossy", *["--force"] * force]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mri-n2n: error: ") and "first in slice 2;" in line
        assert [path.name for path in target.parent.iterdir()] == ([target.name] if force else [])
    assert target.read_bytes() == b"mine"
    cut = tmp_path / "in" / "cut.h5"
    cut.write_bytes(source.read_bytes()[: os.path.getsize(source) // 2])
    assert main(["convert", str(cut), str(target), "--lossy", "--force"]) == 3
    assert target.read_bytes() == b"mine" and "truncated" in capsys.readouterr().err
