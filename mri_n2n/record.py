"""The sidecar of a result as the record of how it was made: found, read, and checked before anything is believed of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mri_n2n.choices import BASELINES, DENOISERS, SCAN_FORMATS
from mri_n2n.denoising.blind_spot import BlindSpot
from mri_n2n.denoising.cleaning import Plan
from mri_n2n.denoising.self_training import PARTS, DenoiseOptions
from mri_n2n.errors import InputError, NotFoundError
from mri_n2n.files import check_readable, one_line, stem, suffix_of

LONGEST = 2**24  # bytes of a sidecar; one of a thousand DICOM images has a hundredth of it
Check = Callable[[object], bool]


@dataclass(frozen=True)
class Record:
    """said: the sidecar. image: the file that was asked for, None for the sidecar itself. name: of the outputs, without suffix."""

    path: Path
    said: dict
    image: Path | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.said["output"]).name

    @property
    def command(self) -> str:
        return self.said["redo"]["command"]

    @property
    def options(self) -> dict:
        return self.said["redo"]["options"]

    @property
    def trained(self) -> bool:
        """Whether the images are those of a network that was trained on the scan itself."""
        return self.command == "denoise" and self.options["training"] is not None

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of the files of voxels beside NAME.h5."""
        further = [
            name for name, option in (("noise", "noise_map"), ("residual", "residual")) if self.options.get(option)
        ]
        further += ["uncertainty"] if "uncertainty" in self.said else []
        return f"{self.name}.nii.gz", *(f"{self.name}.{name}.nii.gz" for name in further)

    def plan(self) -> Plan:
        """Of `denoise`. A training has the pace and the precision of the one on record."""
        options, training = self.options, self.options["training"]
        plan = Plan(options["method"], options["noise"], noise_map=options["noise_map"], residual=options["residual"])
        if training is None:
            return plan
        spot = BlindSpot(**training["spot"] | {"span": tuple(training["spot"]["span"])})
        pace = training["pace"] and tuple(training["pace"])
        return Plan(
            plan.method,
            plan.noise,
            DenoiseOptions(**training | {"spot": spot, "pace": pace}),
            plan.noise_map,
            plan.residual,
        )


def one_of(*values: object) -> Check:
    return lambda value: any(value == one and type(value) is type(one) for one in values)


def whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def text(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def many(check: Check, least: int = 0, most: int = 10**6) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(check, value))


def plain_name(value: object) -> bool:
    """Of a file, without a folder."""
    return (
        isinstance(value, str) and value not in ("", ".", "..") and value.isprintable() and not set(value) & set("/\\")
    )


def inside(value: object) -> bool:
    """A path that stays in its folder."""
    return isinstance(value, str) and all(map(plain_name, value.split("/")))


SHA256, ANY = text("[0-9a-f]{64}"), lambda value: True
SCAN = {"format": optional(one_of(*SCAN_FORMATS)), "repetition": optional(whole(0, 2**31))}
OPTIONS = {
    "reconstruct": SCAN
    | {
        "baseline": optional(one_of(*BASELINES)),
        "regularisation": optional(number(0, math.inf)),
        "flips": optional(one_of(True, False)),
        "bids": one_of(True, False),
        "self_check": one_of(True, False),
        "uncertainty": one_of(True, False),
        "dicom": optional(SHA256),
    },
    "denoise": SCAN
    | {
        "axis": optional(whole(0, 2)),
        "part": optional(one_of("phase", "imaginary")),
        "method": one_of(*DENOISERS),
        "noise": optional(number(0, math.inf)),
        "noise_map": one_of(True, False),
        "residual": one_of(True, False),
        "training": optional(lambda value: isinstance(value, dict)),
    },
}
TRAINING = {
    "spot": lambda value: isinstance(value, dict),
    "dimensions": one_of(2, 3),
    "artefact_free": one_of(True, False),
    "channels": whole(1, 1024),
    "batch_size": whole(1, 1024),
    "learning_rate": number(0, 1),
    "average": number(0, 1),
    "minutes": optional(number(0, 10**6)),
    "steps": optional(whole(1, 10**9)),
    "precision": one_of("float32", "bfloat16"),
    "seed": whole(0, 2**63 - 1),
    "pace": optional(many(whole(0, 10**9), PARTS, PARTS)),
}
SPOT = {
    "share": number(0, 1),
    "window": optional(whole(1, 101)),
    "rule": one_of("uniform", "median"),
    "span": many(whole(0, 1023), 0, 3),
}
MACHINE = {"device": text("[a-z]+"), "gpu": ANY, "instructions": text(".*"), "threads": whole(1, 2**16)}
WEIGHTS = {"name": plain_name, "sha256": SHA256, "bundled": one_of(True, False)}


def read_record(image: Path) -> Record:
    """The record of NAME.h5, NAME.nii.gz or NAME.json.

    Errors: NotFoundError without a sidecar; InputError for another file, a sidecar that is damaged, that contradicts itself, or is of a
    version that did not write what is needed.
    """
    is_sidecar = image.suffix.lower() == ".json"
    if not is_sidecar and suffix_of(image) not in (".h5", ".nii.gz"):
        raise InputError(f"{one_line(image)} is no result; expected NAME.h5, NAME.nii.gz or NAME.json of one")
    path = image if is_sidecar else image.with_name(f"{stem(image)}.json")
    if not path.exists() and not is_sidecar:
        raise NotFoundError(f"no {one_line(path)}, the record of how {image.name} was made")
    try:
        with open(check_readable(path), "rb") as file:
            said = json.loads(file.read(LONGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{one_line(path)} is no readable sidecar (JSON): {one_line(error, 120)}") from None
    if not isinstance(said, dict):
        raise InputError(f"{one_line(path)} is no sidecar of a result: it holds no JSON object")
    record = Record(path, said, None if is_sidecar else image)
    _check(record)
    return record


def _check(record: Record) -> None:
    said, path = record.said, record.path
    part = lambda value: isinstance(value, dict)  # noqa: E731
    needed = {
        "software": part,
        "input": part,
        "output": inside,
        "output_sha256": lambda value: part(value) and all(inside(name) and SHA256(one) for name, one in value.items()),
        "weights": optional(part),
        "redo": part,
    }
    if missing := [key for key in needed if key not in said]:
        version = said["software"].get("mri-n2n") if part(said.get("software")) else None
        by = f"mri-n2n {one_line(version, 40)}, or was changed" if version else "an unknown program"
        raise InputError(
            f"{one_line(path)} lacks {', '.join(missing)}, needed to make the image again; it was written by {by}"
        )
    _check_part(path, "", said, needed, others=True)
    _check_part(path, "software.", said["software"], {"mri-n2n": ANY, "torch": ANY, "python": ANY}, others=True)
    if said["weights"] is not None:
        _check_part(path, "weights.", said["weights"], WEIGHTS, others=True)
    redo = said["redo"]
    parts = {"command": one_of(*OPTIONS), "options": part, "machine": part, "files": many(part, 1, 2)}
    _check_part(path, "redo.", redo, parts)
    _check_part(path, "redo.options.", redo["options"], OPTIONS[record.command])
    _check_part(path, "redo.machine.", redo["machine"], MACHINE)
    for file in redo["files"]:
        _check_part(path, "redo.files.", file, {"name": plain_name, "sha256": SHA256})
    if record.trained:
        training = redo["options"]["training"]
        _check_part(path, "redo.options.training.", training, TRAINING)
        _check_part(path, "redo.options.training.spot.", training["spot"], SPOT)
    if unnamed := [name for name in (f"{record.name}.h5", *record.volumes) if name not in said["output_sha256"]]:
        raise InputError(f"{one_line(path)} has no SHA-256 of {', '.join(unnamed)}; it was changed")
    if record.image is not None and record.image.name not in said["output_sha256"]:
        raise InputError(f"{one_line(path)} is the record of {record.name}, and says nothing of {record.image.name}")
    if said["weights"] is None and record.command == "reconstruct" and record.options["baseline"] is None:
        raise InputError(f"{one_line(path)} names neither weights nor a baseline; it was changed")


def _check_part(path: Path, where: str, said: dict, checks: dict[str, Check], others: bool = False) -> None:
    """InputError for what is missing, is not as it can be, or, unless `others`, is not known."""
    if missing := [f"{where}{key}" for key in checks if key not in said]:
        raise InputError(f"{one_line(path)} lacks {', '.join(missing)}, needed to make the image again")
    if wrong := [key for key, check in checks.items() if not check(said[key])]:
        value = said[wrong[0]]
        shown = "that: a name or a SHA-256 in it is none" if wrong[0] == "output_sha256" else f"{value!r:.80}"
        raise InputError(f"{one_line(path)} is damaged: {where}{wrong[0]} cannot be {shown}")
    if not others and (unknown := [f"{where}{key}" for key in said if key not in checks]):
        raise InputError(f"{one_line(path)} has {one_line(', '.join(unknown), 120)}, which this version does not know")
