"""Files that are complete or absent: temporary name, fsync, rename. And what is asked of every file that is read."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError

# Why a write can fail that is no bug of ours: disk full, quota, file size limit, bad or read-only medium, long name.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENAMETOOLONG)
# What the names of raw scans end in, of BART's pairs those of the samples, and those of volumes.
RAW, VOLUMES = (".h5", ".hdf5", ".mrd", ".cfl", ".npy"), (".nii.gz", ".nii")
_ASIDE = ".replaced"  # the end of the name under which a folder waits until another has taken its place


@contextmanager
def atomic_output(path: Path | str, force: bool) -> Iterator[Path]:
    """Yields an empty temporary file in the directory of `path`, which becomes `path` when the block ends well.

    Any exception, Ctrl-C included, removes it and leaves `path` as it was. A process that is killed outright can leave
    the hidden temporary file (.NAME.*.partial, never `path` itself); the next write of the same file removes it.
    OutputError: `path` exists and not `force`; its directory is missing or cannot be written; the disk is full.
    """
    path = Path(path)
    check_free(path, force)
    _remove_leftovers(path)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        # Not tempfile: its files are private to the user, and stay so after the rename.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise OutputError(f"cannot write {one_line(path)}: {error.strerror}; choose another place for it") from None
    try:
        yield temporary
        _sync(temporary)
        check_free(path, force)  # somebody else may have been faster
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        reason = _write_failure(error)
        if reason is None or isinstance(error, UserError):
            raise
        raise OutputError(f"cannot write {one_line(path)}: {reason}; nothing was kept") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_outputs(directory: Path, name: str, force: bool) -> Iterator[Path]:
    """Yields a hidden folder in `directory` (made when missing), whose content moves there when the block ends well.

    Files of the same names are replaced, folders too, if `force`, the .json last: where it is, the rest is. Any exception removes the
    hidden folder, and the directories that were made. A killed process can leave it; the next outputs of `name` remove it.
    A folder cannot be replaced in one step: the earlier one is set aside until the other is in its place, and
    `restore_folder` puts back what a killed process left there.
    OutputError: something of these names is there and not `force`, as when another process was faster; the directory
    cannot be made or written; the disk is full.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    folder = directory / f"{_prefix(directory / name)}{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(directory / name)
            folder.mkdir()
        except OSError as error:
            reason = "it is no directory" if directory.exists() and not directory.is_dir() else error.strerror
            raise OutputError(f"cannot write into {one_line(directory)}: {reason}") from None
        yield folder
        files = sorted(folder.iterdir(), key=lambda file: (file.suffix == ".json", file.is_file()))
        for file in (inner for inner in sorted(folder.rglob("*")) if inner.is_file()):
            _sync(file)
        if taken := [file.name for file in files if not force and os.path.lexists(directory / file.name)]:
            raise OutputError(f"{one_line(directory / taken[0])} exists; give --force to replace it, or another output")
        for file in files:
            _replace_folder(file, directory / file.name) if file.is_dir() else os.replace(file, directory / file.name)
        _sync(directory)
    except Exception as error:
        reason = _write_failure(error)
        if reason is None or isinstance(error, UserError):
            raise
        raise OutputError(f"cannot write into {one_line(directory)}: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a directory that holds something stays
            for empty in made:
                empty.rmdir()


def _replace_folder(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; an earlier folder there goes only when this is done."""
    aside = target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}{_ASIDE}")
    try:
        if target.is_dir():
            os.rename(target, aside)
        os.rename(folder, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Put back the folder that a killed process set aside for another, unless that has come; then remove it."""
    with suppress(OSError):
        for aside in target.parent.iterdir():
            if _of_the_dead(aside, target, _ASIDE):
                shutil.rmtree(aside) if target.exists() else os.rename(aside, target)


def suffix_of(path: Path) -> str:
    """The known suffix of a file's name in lower case, "" without one."""
    known = (
        suffix for suffix in (*RAW, *VOLUMES, ".hdr") if path.name.lower().endswith(suffix) and path.name[0] != "."
    )
    return next(known, "")


def stem(path: Path) -> str:
    """The name of a file without its known suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def check_readable(path: Path | str) -> Path:
    """`path` when it is a regular file that can be opened. Errors: NotFoundError, InputError."""
    path = Path(path)
    if not path.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path.name):
        raise InputError(f"the name of {path.name.encode(errors='replace').decode()} is not UTF-8; rename the file")
    if not os.path.exists(path):
        raise NotFoundError(f"no file {one_line(path)}")
    if not os.path.isfile(path):  # a pipe would block for ever
        kind = "a directory" if os.path.isdir(path) else "no regular file"
        raise InputError(f"{one_line(path)} is {kind}; expected a file")
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise InputError(f"{one_line(path)} cannot be read: {error.strerror}") from None


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Errors: NotFoundError, InputError."""
    with open(check_readable(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> str:
    """SHA-256 of the sorted SHA-256 of several files: the same whatever they are called."""
    return hashlib.sha256("".join(sorted(map(sha256_of, paths))).encode()).hexdigest()


def one_line(value: object, length: int = 300) -> str:
    """Text of an error or a path without line breaks, not longer than `length`."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def check_free(path: Path, force: bool) -> None:
    """OutputError when `path` exists and not `force`, is a directory, or is to lie in a directory that is not there."""
    if os.path.isdir(path):
        raise OutputError(f"{one_line(path)} is a directory; give a file name to write to")
    if os.path.lexists(path) and not force:
        raise OutputError(f"{one_line(path)} exists; give --force to replace it, or another output")
    if not os.path.isdir(path.parent):
        raise OutputError(f"cannot write {one_line(path)}: no directory {one_line(path.parent)}; make it first")


def _prefix(path: Path) -> str:
    # Names are limited to 255 bytes: a long one is cut, and told from others by a hash.
    name = path.name if len(path.name.encode()) < 120 else hashlib.sha256(path.name.encode()).hexdigest()[:16]
    return f".{name}.{socket.gethostname()[:40]}-"


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for `path` of processes of this machine that are no longer alive."""
    with suppress(OSError):
        for file in path.parent.iterdir():
            with suppress(OSError):
                if _of_the_dead(file, path, ".partial"):
                    shutil.rmtree(file) if file.is_dir() else file.unlink()


def _of_the_dead(file: Path, path: Path, suffix: str) -> bool:
    """Whether `file` is a hidden file for `path` of a process of this machine that is no longer alive."""
    prefix = _prefix(path)
    if not (file.name.startswith(prefix) and file.name.endswith(suffix)):
        return False
    process = file.name[len(prefix) :].partition("-")[0]
    return process.isdecimal() and not _alive(int(process))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system on which this cannot be done
            raise
    finally:
        os.close(descriptor)


def _write_failure(error: BaseException | None) -> str | None:
    """Why the disk refused, looked for in the whole chain of errors: libraries hide it below theirs, or in the text."""
    while error is not None:
        for number in _WRITE_ERRORS:
            said = f"os error {number})" in str(error) or f"errno = {number}," in str(error)  # safetensors; HDF5
            if said or getattr(error, "errno", None) == number:
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None
