"""Results as a BIDS data set of derivatives (bids-specification.readthedocs.io): names, description, what validators ignore."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import mri_n2n
from mri_n2n.errors import OptionError, OutputError
from mri_n2n.files import atomic_output, one_line

VERSION = "1.10.0"
# Entities that anatomical images may have, in the order of the specification, and the suffixes of weighted images.
ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "chunk")
NUMBERED = ("run", "echo", "chunk")
SUFFIXES = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "angio")
# One wildcard each: a validator was seen to overlook names under patterns with two.
IGNORED = ("*.h5", "*.png", "*.html", "*.dicom/")
DESCRIPTION = {
    "Name": "MRI reconstructions by mri-n2n",
    "BIDSVersion": VERSION,
    "DatasetType": "derivative",
    "GeneratedBy": [
        {"Name": "mri-n2n", "Version": mri_n2n.__version__, "Description": "MRI reconstruction; research use only"}
    ],
}


def place(stem: str) -> tuple[Path, str]:
    """(folder, name) of the derivative of a raw scan: sub-01_ses-a_T1w -> sub-01/ses-a/anat, sub-01_ses-a_desc-n2n_T1w.

    Errors: OptionError for a name that is not BIDS's of an anatomical image.
    """
    *pairs, suffix = stem.split("_")
    entities = dict(pair.partition("-")[::2] for pair in pairs)
    order = [ENTITIES.index(key) for key in entities if key in ENTITIES]
    labels = all(re.fullmatch("[0-9]+" if key in NUMBERED else "[0-9A-Za-z]+", entities[key]) for key in entities)
    known = len(order) == len(pairs) and order == sorted(order) and order[:1] == [0]
    if not (known and labels and suffix in SUFFIXES):
        raise OptionError(
            f"--bids needs scans with BIDS names such as sub-01_ses-02_run-1_T1w.h5 (entities {', '.join(ENTITIES)} in "
            f"this order; suffix {', '.join(SUFFIXES)}); got {one_line(stem)!r}"
        )
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    return Path(f"sub-{entities['sub']}", *session, "anat"), "_".join([*pairs, "desc-n2n", suffix])


def check_dataset(root: Path) -> None:
    """OutputError when `root` is a BIDS data set that is not one of derivatives."""
    path = root / "dataset_description.json"
    if not os.path.lexists(path):
        return
    try:
        kind = json.loads(path.read_bytes()).get("DatasetType", "raw")  # the specification's default
    except (OSError, ValueError, AttributeError, RecursionError):
        raise OutputError(
            f"{one_line(path)} cannot be read as a JSON object; repair it, or choose another -o"
        ) from None
    if kind != "derivative":
        raise OutputError(
            f"{one_line(path)} says DatasetType {one_line(kind, 40)!r}, not 'derivative'; choose another -o"
        )


def make_dataset(root: Path) -> None:
    """Make `root` a data set of derivatives where it is none; an existing description is kept. Errors: OutputError.

    Several processes may do so at once: whoever comes later keeps what is there.
    """
    path = root / "dataset_description.json"
    if not os.path.lexists(path):
        _create(path, json.dumps(DESCRIPTION, indent=2) + "\n")
    check_dataset(root)
    ignore = root / ".bidsignore"
    lines = ignore.read_text().splitlines() if ignore.is_file() else []
    if missing := [line for line in IGNORED if line not in lines]:
        with atomic_output(ignore, force=True) as temporary:
            temporary.write_text("\n".join([*lines, *missing]) + "\n")


def _create(path: Path, text: str) -> None:
    """Write a file, complete, unless somebody else was faster. Errors: OutputError."""
    try:
        with atomic_output(path, force=False) as temporary:
            temporary.write_text(text)
    except OutputError:
        if not path.exists():
            raise


def fields(name: str, simulated: bool | None) -> dict:
    """What BIDS asks of the sidecar of a derivative. name: of the scan's file, which lies in no BIDS data set."""
    of = "simulated k-space" if simulated else "k-space"
    return {
        "Description": f"Magnitude image reconstructed from {of} by mri-n2n {mri_n2n.__version__}; research use only",
        "Sources": [name],
        "SkullStripped": False,
    }
