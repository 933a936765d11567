"""The run directory: what a training keeps on disk, and how it is taken up again. Every file is complete or absent."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from mri_n2n.checkpoint import load_tensors, optimizer_tensors, save_tensors
from mri_n2n.errors import InputError, NotFoundError, OutputError
from mri_n2n.files import atomic_output, one_line

FILES = ("weights.safetensors", "checkpoint.safetensors", "log.jsonl", "example.png", "curve.png", "run.json")
# Options that a resumed run may change: where and how long, not what.
MAY_CHANGE = {"epochs", "steps", "minutes", "quiet", "device", "data", "init", "validate_every", "patience"}
# Options that stay out of the weights, which travel further than the data they come from: paths, subject names and their hash.
PRIVATE = {"data", "init", "validation_subjects", "excluded_subjects", "sources_sha256"}
# What the checkpoint's header says of the selection of weights, and theirs does not.
STATE = {"kept", "since"}


def check_unused(run: Path) -> None:
    """OutputError when `run` holds a run already."""
    if run.exists() and not run.is_dir():
        raise OutputError(f"{run} is a file; give another -o")
    if (run / "checkpoint.safetensors").exists():
        raise OutputError(f"{run} already holds a run; give --resume to continue it, or another -o")
    taken = [name for name in FILES if os.path.lexists(run / name)]
    if taken:
        raise OutputError(f"{run} already holds {', '.join(taken)}, and no checkpoint to resume; give another -o")


def read_checkpoint(run: Path, options: dict, data: dict) -> tuple[dict[str, Tensor], dict]:
    """Tensors and header of an interrupted run. Errors: NotFoundError; InputError when it had other options or data."""
    if not (run / "checkpoint.safetensors").exists():
        raise NotFoundError(f"{run} holds no run to resume; leave out --resume to start one")
    tensors, header = load_tensors(run / "checkpoint.safetensors")
    if not {"training", "step", "seconds", "loss", "quality", *data} <= set(header):
        raise InputError(f"{run / 'checkpoint.safetensors'} is no checkpoint of this version of mri-n2n train")
    before, now = {"shards": 1} | header["training"], json.loads(json.dumps(options))
    changed = sorted(key for key in now if key not in MAY_CHANGE and before.get(key) != now[key])
    if "protocol" in changed and isinstance(before.get("protocol"), dict):  # its parts are what was given
        was, is_now = before["protocol"], now["protocol"]
        changed += sorted(key for key in {*was, *is_now} if was.get(key) != is_now.get(key))
        changed.remove("protocol")
    if now["init"] and not header.get("init_sha256"):
        raise InputError(f"{run} did not begin with --init; leave it out to resume")
    if changed:
        raise InputError(
            f"{run} was trained with other options ({', '.join(changed)}); "
            f"resume with the same ones (see {run / 'run.json'})"
        )
    if any(header[name] != data[name] for name in data):
        counts = [name for name in data if isinstance(data[name], int) and header[name] != data[name]]
        told = "; ".join(f"{name} {header[name]} then, {data[name]} now" for name in counts) or "other names or slices"
        raise InputError(f"{run} began with other files ({told}); give the same --data, or start a new run")
    return tensors, header


def saved_options(run: Path) -> dict:
    """Those of an interrupted run; none where there is none."""
    checkpoint = run / "checkpoint.safetensors"
    return load_tensors(checkpoint)[1]["training"] if checkpoint.exists() else {}


def start_run(run: Path, options: dict, step: int) -> None:
    """Make the run directory, with its options and a log that ends at `step`. OutputError when it cannot be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write the run directory {run}: {error.strerror}") from None
    write_options(run, options)
    kept = [entry for entry in read_log(run) if entry["step"] <= step] if step else []
    write_log(run, kept)


def write_options(run: Path, facts: dict) -> None:
    """Write run.json."""
    with atomic_output(run / "run.json", force=True) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def save_run(
    run: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    header: dict,
    kept: dict[str, Tensor],
    standing: dict[str, Tensor],
) -> None:
    """Write weights.safetensors, the weights `kept`, and checkpoint.safetensors, the checkpoint last: a run that it calls finished has its weights.

    kept: as `header["kept"]` says, which the weights' header holds in place of where training is. standing: see `selection.to_tensors`.
    """
    without = lambda facts: {name: value for name, value in facts.items() if name not in PRIVATE}  # noqa: E731
    public = {**without(header), "training": without(header["training"]), **header["kept"]}
    save_tensors(
        run / "weights.safetensors", kept, {name: value for name, value in public.items() if name not in STATE}
    )
    tensors = {
        f"{prefix}.{name}": value
        for prefix, state in (
            ("network", network.state_dict()),
            ("average", average.state_dict()),
            ("kept", kept),
            ("standing", standing),
        )
        for name, value in state.items()
    }
    save_tensors(run / "checkpoint.safetensors", {**tensors, **optimizer_tensors(optimizer)}, header)


def read_log(run: Path) -> list[dict]:
    """The entries of log.jsonl, oldest first. Errors: InputError."""
    path = run / "log.jsonl"
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if not all(isinstance(entry["step"], int) for entry in entries):
            raise ValueError("a step that is no number")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); move it away and resume without it") from None
    return entries


def write_log(run: Path, entries: list[dict]) -> None:
    """Write log.jsonl, one JSON object a line."""
    with atomic_output(run / "log.jsonl", force=True) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def discard_run(run: Path) -> None:
    """Remove what a run wrote that ended before its first checkpoint."""
    for name in FILES:
        (run / name).unlink(missing_ok=True)
    with suppress(OSError):  # the directory stays when it holds something else
        run.rmdir()
