"""The files of a data set: which there are, what they are called, and whose they are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mri_n2n.errors import InputError
from mri_n2n.files import stem


def files_in(folder: Path, patterns: Sequence[str], splits: Sequence[tuple[str, str]]) -> tuple[list[Path], list[Path]]:
    """(train, validation) files of the first pair of subfolders that both exist, else (all files, [])."""

    def matching(where: Path) -> list[Path]:
        try:
            found = {path for pattern in patterns for path in where.rglob(pattern) if not path.name.startswith(".")}
        except OSError as error:
            raise InputError(f"{error.filename or where} cannot be read: {error.strerror}") from None
        return sorted((path for path in found if path.is_file()), key=lambda path: (path.name, path))

    if folder.is_file():
        return [folder], []
    for train, validation in splits:
        if (folder / train).is_dir() and (folder / validation).is_dir():
            return matching(folder / train), matching(folder / validation)
    return matching(folder), []


def unique_names(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """The stem of each file; with a few digits of its place in the folder where several files share one."""
    count = Counter(stem(path) for path in paths)

    def name(path: Path) -> str:
        name = stem(path)
        if count[name] == 1:
            return name
        return f"{name}-{hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest()[:8]}"

    return {path: name(path) for path in paths}


def subjects_of(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """Whose each file is: a BIDS `sub-XX` in its name or folders; else the file name up to its first '_' or '-'.

    Where all file names begin alike and lie in different folders (ann/T1.nii, bob/T1.nii), the folder.
    """

    def bids(path: Path) -> str | None:
        parts = reversed(path.relative_to(folder).parts) if path != folder else (path.name,)
        found = (re.match(r"sub-[A-Za-z0-9]+", part) for part in parts)
        return next((match[0] for match in found if match), None)

    subjects = {path: bids(path) or re.split(r"[_-]", stem(path))[0] for path in paths}
    folders = {path: path.relative_to(folder).parts[0] for path in paths if path.parent != folder and path != folder}
    if len(set(subjects.values())) == 1 and len(folders) == len(paths) and len(set(folders.values())) > 1:
        return folders
    return subjects
