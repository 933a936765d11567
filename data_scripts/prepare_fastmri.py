"""Check a fastMRI directory: what every file holds, whether its folder's promises are kept, and who trains on what.

Prints one line per file and writes a manifest with the split that `mri-n2n train --dataset fastmri` uses.
The files are only read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError

# Coils, purpose, later editions of the test sets, and the test sets that were published in full afterwards.
FOLDERS = re.compile(r"(singlecoil|multicoil)_(train|val|test|challenge)(_v2)?(_full)?")


def find_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name of its fastMRI folder, or "" elsewhere; path) of every *.h5 below `folder`, sorted."""
    for path in sorted(path for path in folder.rglob("*.h5") if path.is_file() and not path.name.startswith(".")):
        parts = (folder.resolve() / path.relative_to(folder)).parts[:-1]
        yield next((part for part in reversed(parts) if FOLDERS.fullmatch(part)), ""), path


def describe(path: Path, part: str, *, read: bool) -> tuple[dict, list[str]]:
    """(schema of a file, what is wrong with it). k-space itself is read slice by slice, and only with `read`."""
    import h5py

    from mri_n2n.datasets import patient
    from mri_n2n.formats import open_scan

    try:
        scan = open_scan(path)
        with h5py.File(path, "r") as file:
            schema = {
                "kspace": list(file["kspace"].shape),
                "dtype": str(file["kspace"].dtype),
                "mask": list(file["mask"].shape) if "mask" in file else None,
                "reference": {key: list(file[key].shape) for key in sorted(file) if key.startswith("reconstruction_")},
                "header": "ismrmrd_header" in file,
                "acquisition": text(file.attrs.get("acquisition")),
                "acceleration": number(file.attrs.get("acceleration")),
                "maximum": number(file.attrs.get("max")),
            }
        schema["subject"] = patient(path)
        problems = broken_promises(part, schema)
        if read:
            for i in range(scan.shape[0]):
                scan.read(i, i + 1)
    except InputError as error:
        return {}, [str(error)]
    return schema, problems


def broken_promises(part: str, schema: dict) -> list[str]:
    """What a file's schema lacks for the fastMRI folder it lies in."""
    problems = []
    match = FOLDERS.fullmatch(part)
    coils, purpose = (match[1], match[2]) if match else ("", "")
    rank, name = (
        len(schema["kspace"]),
        {"singlecoil": "reconstruction_esc", "multicoil": "reconstruction_rss"}.get(coils),
    )
    if coils and rank != {"singlecoil": 3, "multicoil": 4}[coils]:
        problems.append(f"{part} promises kspace of rank {3 if coils == 'singlecoil' else 4}, found {schema['kspace']}")
    if purpose in ("train", "val") and name not in schema["reference"]:
        problems.append(f"{part} promises {name}, which is missing")
    if purpose in ("test", "challenge") and schema["mask"] is None and not match[4]:
        problems.append(f"{part} promises a mask, which is missing")
    for key, shape in schema["reference"].items():
        if len(shape) != 3 or shape[0] != schema["kspace"][0]:
            problems.append(f"{key} {shape} does not fit kspace {schema['kspace']}: slices differ")
    return problems


def text(value: object) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)


def number(value: object) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def line(name: str, schema: dict) -> str:
    """One line on one file."""
    reference = ", ".join(f"{key} {size(shape)}" for key, shape in schema["reference"].items()) or "no reference"
    mask = f"mask {size(schema['mask'])}" if schema["mask"] else "no mask"
    kspace = f"kspace {size(schema['kspace'])} {schema['dtype']}"
    return "  ".join(filter(None, (name, kspace, mask, reference, schema["acquisition"])))


def size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def split_of(folder: Path) -> dict:
    """Names for training and validation, exactly as training will find them."""
    from mri_n2n.datasets import find_sources

    try:
        split = find_sources("fastmri", folder)
    except NotFoundError:
        return {"rule": "no fully sampled files to train on", "train": [], "validation": []}
    return {
        "rule": split.rule,
        "train": [s.name for s in split.train],
        "validation": [s.name for s in split.validation],
    }


def prepare(folder: Path, manifest: Path | None, *, read: bool, force: bool) -> int:
    """Check all files, print what they hold, write the manifest; returns the number of files with problems."""
    if not folder.is_dir():
        raise NotFoundError(
            f"no directory {folder}; register at https://fastmri.med.nyu.edu, download and unpack there"
        )
    if manifest is not None and manifest.exists() and not force:
        raise OutputError(f"{manifest} exists; choose another -o, or give --force to replace it")
    files, bad = [], 0
    for part, path in find_files(folder):
        name = path.relative_to(folder).as_posix()
        schema, problems = describe(path, part, read=read)
        if schema:
            print(line(name, schema))
        for problem in problems:
            print(f"problem: {name}: {problem}", file=sys.stderr)
        bad += bool(problems)
        files.append({"name": name, "folder": part, **schema, "problems": len(problems)})
    if not files:
        raise NotFoundError(
            f"no files *.h5 in {folder}; expected fastMRI folders such as {folder / 'multicoil_train'} "
            "(register at https://fastmri.med.nyu.edu, download and unpack there)"
        )
    if bad:
        return bad
    split = split_of(folder)
    print(f"{len(files)} files; training {len(split['train'])}, validation {len(split['validation'])}: {split['rule']}")
    if manifest is not None:
        from mri_n2n.files import atomic_output

        content = {"kind": "mri-n2n fastMRI manifest", "split": split, "files": files}
        with atomic_output(manifest, force) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        print(f"written: {manifest}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_fastmri.py",
        description="Check a fastMRI directory (singlecoil_train, multicoil_val, multicoil_test ... or any folder of "
        "its *.h5 files): print what every file holds, and write a manifest with the split that mri-n2n train uses. "
        "fastMRI data is available from https://fastmri.med.nyu.edu after registration, under its own terms of use.",
        epilog="Exit codes: 0 done; 2 wrong usage; 3 a file cannot be read or does not fit its folder (no manifest is "
        "written); 4 output exists or cannot be written; 5 no files found.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the manifest (JSON); default: print only")
    parser.add_argument("--read", action="store_true", help="read all k-space too, to find damaged samples; takes long")
    parser.add_argument("--force", action="store_true", help="replace the manifest")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        bad = prepare(options.folder, options.output, read=options.read, force=options.force)
        if bad:
            raise InputError(f"{bad} files have problems (named above); no manifest was written")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
