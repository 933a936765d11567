"""What several benchmarks share: the data, one training per run directory, scoring, and the document."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

import mri_n2n
from mri_n2n.benchmarks.subjects import SEED, TestVolume, subjects_in
from mri_n2n.checkpoint import load_network, load_tensors
from mri_n2n.errors import InputError
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import evaluate_arrays, psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.options import TrainOptions
from mri_n2n.protocol import Protocol
from mri_n2n.training import train


@dataclass(frozen=True)
class Setting:
    """How a benchmark is asked for. data: folder of volumes. output: where trainings and results are kept. docs: folder to
    write section and pictures into. minutes: of each training, where trainings are compared; of the processor over its threads."""

    data: Path | None
    output: Path
    docs: Path | None = None
    quick: bool = False
    minutes: float = 4.0


def trained(options: TrainOptions, run: Path) -> dict:
    """Train into `run`, resume it, or find it finished; returns the header of its weights, and under "made" where, when and
    by which code it began.

    InputError when `run` holds a run of another budget or other options.
    """
    checkpoint, made = run / "checkpoint.safetensors", run.with_name(f"{run.name}.made.json")
    started = checkpoint.exists()
    if not started:
        run.parent.mkdir(parents=True, exist_ok=True)
        write_json(made, made_now())
    if started and load_tensors(checkpoint)[1]["training"]["steps"] != options.steps:
        raise InputError(f"{run} holds a run of another length; give another -o")
    if not train(options, run, resume=started).finished:
        raise KeyboardInterrupt  # saved; the same benchmark goes on from there
    return load_tensors(checkpoint)[1] | {"made": json.loads(made.read_text()) if made.exists() else {}}


def made_now() -> dict[str, str]:
    """Where, when and by which code something is made: kept beside what is used again in a later run."""
    return {
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "code": code_hash(),
    }


def made_of(many: list[dict[str, str]]) -> str:
    """In words, for a document."""
    words = {f"{one['hardware']}, torch {one['torch']}, {one['date']}, code {one['code']}" for one in many if one}
    return "; ".join(sorted(words)) or "unknown"


@cache
def code_hash() -> str:
    """Of the package's sources, without the benchmarks."""
    package = Path(mri_n2n.__file__).parent
    sources = sorted(path for path in package.rglob("*.py") if "benchmarks" not in path.relative_to(package).parts)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def digest(of: object) -> str:
    """Of options, without the folder of the data: names what was made with them."""
    said = json.dumps(of, sort_keys=True, default=lambda options: asdict(options) | {"data": None})
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def write_json(path: Path, value: object) -> None:
    with atomic_output(path, force=True) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def steps_in(minutes: float, step_seconds: float, quick: bool) -> int:
    """Training steps that fit into a time."""
    return 4 if quick else max(10, int(round(60 * minutes / step_seconds, -1)))


# A whole command; the last line of its output is the most memory it held, in KiB (not ru_maxrss, which begins with that of
# the process it was started from), or 0 where the system does not tell.
PROCESS = """
import re, sys
from pathlib import Path
from mri_n2n.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
print(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1] if status.exists() else 0)
sys.exit(code)
"""


def peak_memory(command: list[str]) -> float:
    """The most memory that `mri-n2n` with these arguments held, in MiB; 0 where the system does not tell.

    Errors: InputError with the command's last line when it fails."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROCESS, *command], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"mri-n2n {command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return int(done.stdout.split()[-1]) / 1024


def score(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Of magnitude images (slices, y, x): `slice_psnr`, the mean over slices of the PSNR of values clamped to [0, 1],
    peak 1 (as Lehtinen et al. 2018); and fastMRI's `psnr` and `ssim` of the volume."""
    volume = evaluate_arrays(reference, images).volume
    return {"slice_psnr": float(psnr_per_slice(reference, images).mean()), "psnr": volume.psnr, "ssim": volume.ssim}


def reconstruct_with(weights: Path, test: TestVolume, *, flips: bool = False) -> np.ndarray:
    """Magnitudes (slices, y, x); the mean over mirror images with `flips`, else of the network alone."""
    network, _ = load_network(weights)
    return root_sum_of_squares(reconstruct_acquisition(network, test.acquisition, flips=flips)).numpy()


def zero_filled(test: TestVolume) -> np.ndarray:
    return root_sum_of_squares(ifft2c(test.acquisition.kspace)).numpy()


def comparison_options(data: Path, *, steps: int, matrix_size: int = 128, **changes) -> TrainOptions:
    """A training for comparisons: roulette 10x, seed 0, 128 x 128, the test subject left out."""
    protocol = Protocol(seed=SEED, **changes.pop("protocol", {}))
    test, validation = subjects_in(data)
    return TrainOptions(
        dataset="nifti",
        data=str(data),
        matrix_size=matrix_size,
        excluded_subjects=(test,),
        validation_subjects=(validation,),
        protocol=protocol,
        steps=steps,
        validate_every=600,
        **changes,
    )


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; numbers as given, floats with two decimals."""
    text = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *text]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def heading(question: str) -> str:
    """Title and question of a benchmark, from its docstring."""
    title, _, rest = question.strip().partition("\n")
    return f"## {title}\n\n{rest.strip()}\n\n"


def how_run(name: str, part: str | None, setting: Setting) -> str:
    """Of a section: title of the part, command, hardware, versions, date."""
    command = f"mri-n2n benchmark {name}{f' --part {part}' if part else ''}{' --data DIR' if setting.data else ''} --docs docs"
    command += f" --minutes {setting.minutes:g}" if setting.minutes != Setting.minutes else ""
    command += " --quick" if setting.quick else ""
    today = datetime.date.today().isoformat()
    title = f"### {part}\n\n" if part else ""
    quick = "**A quick run: it shows the machinery, not the result.**\n\n" if setting.quick else ""
    return (
        f"{title}{quick}`{command}`; {hardware()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"mri-n2n {mri_n2n.__version__}; seed {SEED}; {today}.\n\n"
    )


def hardware() -> str:
    """Processor model, cores used, and the GPU when there is one."""
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def write_section(
    document: Path, name: str, title: str, section: str, part: str | None = None, parts: Sequence[str] = ()
) -> None:
    """Replace the section of one benchmark in the document, or add it at the end: `title` and `section`; of a benchmark
    in parts this part of it, the others as they stand, in the order of `parts`."""
    text = document.read_text() if document.exists() else "# Benchmarks\n"
    if part:
        blocks = {one: found[0] for one in parts if (found := _marked(f"{name}: {one}").search(text))}
        blocks[part] = _block(f"{name}: {part}", section)
        section = "\n\n".join(blocks[one] for one in parts if one in blocks)
    block = _block(name, title + section)
    text = _marked(name).sub(lambda _: block, text) if _marked(name).search(text) else f"{text.rstrip()}\n\n{block}\n"
    with atomic_output(document, force=True) as temporary:
        temporary.write_text(text)


def _block(name: str, text: str) -> str:
    return f"<!-- {name} -->\n{text.rstrip()}\n<!-- end {name} -->"


def _marked(name: str) -> re.Pattern:
    return re.compile(re.escape(f"<!-- {name} -->") + ".*?" + re.escape(f"<!-- end {name} -->"), re.DOTALL)
