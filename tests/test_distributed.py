"""Several processes train together: what each reads, and that their update is that of one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.checkpoint import load_tensors
from mri_n2n.device import choose_device
from mri_n2n.distributed import Processes, joined, shared_out, told
from mri_n2n.errors import UserError
from mri_n2n.options import TrainOptions
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol
from mri_n2n.sources import Source
from mri_n2n.training import shared


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


COMMAND = (
    "train --dataset phantom --matrix-size 32 --channels 4 --cascades 1 --batch-size 4 --device cpu --precision float32 "
    "--average 0 --mask gaussian-points"
).split()


def sources(read: list, slices=(5, 2, 3, 4)) -> list[Source]:
    """Of so many slices, 24 x 20; what is loaded goes into `read`."""

    def load(number: int, count: int):
        read.append(number)
        return torch.stack([phantom_kspace((24, 20), generator=draw(10 * number + i)) for i in range(count)])

    return [Source(f"v{i}", f"s{i}", n, partial(load, i, n)) for i, n in enumerate(slices)]


PROTOCOL = Protocol(method="noise2noise", acceleration=(3.0, 3.0))


def test_files_are_shared_out_evenly():
    assert shared_out([5, 2, 3, 4], 2) == [[0, 1], [2, 3]] and shared_out([5, 2, 3, 4], 1) == [[0, 1, 2, 3]]
    sizes = [(7 * i) % 23 + 1 for i in range(40)]
    parts = shared_out(sizes, 6)
    assert sorted(sum(parts, [])) == list(range(40))
    loads = [sum(sizes[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= 2
    with pytest.raises(UserError, match="3 shards need as many files"):
        shared_out([5, 2], 3)


def test_processes_make_the_parts_of_one_batch_from_their_own_files():
    """Whatever the number of processes, from any step on, and where the files of one are at an end before those of the other."""
    unequal = (9, 2, 1, 3)  # shards of 9 and 6 slices, of which a step takes 2
    assert steps_per_epoch(sources([], unequal), 4, 2) == 5
    whole = list(islice(training_batches(sources([], unequal), PROTOCOL, 4, 0, 2), 12))
    read: tuple[list, list] = ([], [])
    parts = [training_batches(sources(read[i], unequal), PROTOCOL, 4, 0, 2, Processes(i, 2)) for i in range(2)]
    parts = [list(islice(part, 12)) for part in parts]
    assert set(read[0]) == {0} and set(read[1]) == {1, 2, 3}
    assert [sum(len(pair.input.kspace) for pair in batch) for batch in parts[1][:5]] == [2, 2, 2, 0, 0]
    for batch, *own in zip(whole, *parts):
        together = torch.cat([pair.target for one in own for pair in one])
        assert torch.equal(together, torch.cat([pair.target for pair in batch]))
    later = islice(training_batches(sources([], unequal), PROTOCOL, 4, 7, 2, Processes(1, 2)), 5)
    for batch, expected in zip(later, parts[1][7:], strict=True):
        assert [pair.target.tolist() for pair in batch] == [pair.target.tolist() for pair in expected]


def test_one_shard_shows_every_slice_once():
    batches = islice(training_batches(sources([]), PROTOCOL, 4), 4)
    assert [sum(len(pair.input.kspace) for pair in batch) for batch in batches] == [4, 4, 4, 2]


def test_who_this_process_is(monkeypatch):
    monkeypatch.delenv("RANK", raising=False), monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert told() == Processes(0, 1)
    for rank, count in (("2", "2"), ("x", "2"), ("-1", "2"), ("0", "")):
        monkeypatch.setenv("RANK", rank), monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(UserError, match="no torchrun"):
            told()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    """Which one is asked for; here there is none, and the error names it."""
    if torch.cuda.device_count() > 1:
        pytest.skip("here process 1 has one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cuda"):
        for rank, says in (("1", "cuda:1"), ("2", "process 2 of this machine has no GPU of its own; there are 2")):
            monkeypatch.setenv("LOCAL_RANK", rank)
            with pytest.raises(UserError, match=says):
                choose_device(device)


@pytest.mark.parametrize(
    ("device", "share", "backend"), [("cuda:0", True, "gloo"), ("cuda:0", False, "nccl"), ("cpu", False, "gloo")]
)
def test_processes_that_share_a_gpu_are_joined_by_gloo(monkeypatch, device, share, backend):
    """NCCL refuses two processes on one GPU. Only what is asked of PyTorch is seen here, where there is no GPU."""
    asked = []
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(index))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: asked.append(name))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with joined(torch.device(device), share_gpu=share) as processes:
        assert processes.count == 2
    assert asked == ([0] if device.startswith("cuda") else []) + [backend]


def test_batch_and_shards_that_are_not_given():
    options, cpu = TrainOptions("phantom", steps=1), torch.device("cpu")
    found = shared(options, {}, cpu, Processes(1, 3))
    assert (found.batch_size, found.shards, found.quiet) == (6, 3, True)
    found = shared(options, {"batch_size": 8, "shards": 4}, cpu, Processes(0, 2))  # a run goes on with fewer processes
    assert (found.batch_size, found.shards, found.quiet) == (8, 4, False)
    for changed, says in (
        ({"shards": 3}, "multiple of the 2 processes"),
        ({"shards": 2, "batch_size": 5}, "multiple of it"),
    ):
        with pytest.raises(UserError, match=says):
            shared(replace(options, **changed), {}, cpu, Processes(0, 2))
    with pytest.raises(UserError, match="began with --shards 2, which it keeps"):
        shared(replace(options, shards=4), {"batch_size": 8, "shards": 2}, cpu, Processes(0, 2))


def in_two_processes(rank: int, folder: str) -> None:
    """Sums over one slice and over three; parameters that nobody or one of them reached."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(folder, "port").read_text()
    )
    with joined(torch.device("cpu")) as processes:
        both, one, nobody = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
        both.grad = torch.tensor([6.0, 12.0]) if rank else torch.tensor([1.0, 2.0])
        one.grad = torch.tensor([12.0, 24.0]) if rank else None
        loss = processes.mean_gradient([both, one, nobody], 6.0 if rank else 1.0, 3 if rank else 1)
        told_by_first = processes.agree(rank + 5.0, 7.0)
        torch.save((both.grad, one.grad, nobody.grad, loss, told_by_first), Path(folder, f"{rank}.pt"))


def test_gradients_are_means_over_the_slices_of_all(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    torch.multiprocessing.spawn(in_two_processes, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        both, one, nobody, loss, told_by_first = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert both.tolist() == [1.75, 3.5] and one.tolist() == [3.0, 6.0] and nobody is None
        assert loss == 1.75 and told_by_first == (5.0, 7.0)


def torchrun(*command: str, program: tuple[str, ...] = ("-m", "mri_n2n"), **options) -> subprocess.Popen:
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*runner, *program, *command], env=environment, start_new_session=True, **options)


def test_the_updates_of_two_processes_are_those_of_one(tmp_path):
    """In float32 to 1e-5 of their length, with three slices of each shard in a step: Adam's moments, the weights, and Adam's update, which
    divides by the size of each gradient and so shows rounding of gradients that are next to zero."""
    more = ["--batch-size", "6", "--steps", "2"]
    one = [sys.executable, "-m", "mri_n2n", *COMMAND, *more, "--shards", "2", "-o", str(tmp_path / "one")]
    alone = subprocess.Popen(one, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert torchrun(*COMMAND, *more, "-o", str(tmp_path / "two")).wait(100) == 0 and alone.wait(100) == 0
    (first, facts), (second, other) = runs = [
        load_tensors(tmp_path / run / "checkpoint.safetensors") for run in ("one", "two")
    ]
    assert (facts["processes"], other["processes"]) == (1, 2) and facts["training"]["shards"] == 2
    assert other["loss"] == pytest.approx(facts["loss"], rel=1e-5) and first.keys() == second.keys()
    for tensors, _ in runs:
        for name in [name for name in tensors if name.endswith(".exp_avg")]:
            tensors[f"update of {name}"] = tensors[name] / (tensors[f"{name}_sq"].sqrt() + 1e-12)
    for kind in ("exp_avg", "network", "update"):
        names = [name for name in first if kind in name]
        left, right = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (first, second))
        assert torch.linalg.vector_norm(left - right) <= 1e-5 * torch.linalg.vector_norm(left) > 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="lists its threads")
def test_threads_that_join_processes_end_with_the_training(tmp_path):
    """One of them that frees its last sum while the interpreter ends would abort it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom mri_n2n.cli import main\ncode = main(sys.argv[1:])\n"
        "names = [(thread / 'comm').read_text() for thread in Path('/proc/self/task').iterdir()]\n"
        "sys.exit(code or any('gloo' in name for name in names))\n"
    )
    assert torchrun(*COMMAND, "--steps", "1", "-o", str(tmp_path / "run"), program=(str(program),)).wait(100) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_two_processes_that_are_stopped_save_and_go_on_alone(tmp_path):
    run = tmp_path / "run"
    process = torchrun(*COMMAND, "--steps", "100000", "-o", str(run), stderr=subprocess.DEVNULL)
    for _ in range(600):
        if (run / "run.json").exists():
            break
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    _, header = load_tensors(run / "checkpoint.safetensors")
    assert header["step"] > 0
    more = [*COMMAND, "--steps", str(header["step"] + 2), "--resume", "-o", str(run)]
    assert (
        subprocess.run([sys.executable, "-m", "mri_n2n", *more], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        == 0
    )
    assert load_tensors(run / "checkpoint.safetensors")[1]["step"] == header["step"] + 2
