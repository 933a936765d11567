"""Damaged HDF5 files are tried out in a child process first: the HDF5 library, which reads them, crashes or never returns on
some, in texts and other values of variable length above all, and would take the whole program with it."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np

from mri_n2n.errors import InputError
from mri_n2n.files import one_line

# A child may take so long, and longer for large files. Seconds of its own work: a slow disk is no damage.
SECONDS, BYTES_PER_SECOND = 1, 20_000_000
ROWS_AT_ONCE = 64


def survives(path: Path) -> None:
    """Returns when a file's structure could be read in a child process. Errors: InputError when the child died of it.

    What the library refuses in an orderly way is left to the reader. Once per process and file; only on Linux, where a
    process can be doubled at any time.
    """
    if sys.platform != "linux":
        return
    about = path.stat()
    if not _survives(os.path.realpath(path), about.st_size, about.st_mtime_ns, about.st_ino):
        raise InputError(f"{one_line(path)} is damaged so badly that the HDF5 library fails on it; fetch it again")


@lru_cache(maxsize=4096)
def _survives(path: str, size: int, *_: int) -> bool:
    seconds = SECONDS + size // BYTES_PER_SECOND
    import resource  # not on every system; here, as a child must not wait for the import lock

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # on doubling a process with threads: ours are idle
        try:
            child = os.fork()
        except OSError:  # no memory or no process left: nothing is known of the file
            return True
    if not child:
        try:
            _quietly(resource, seconds)
            _read(path, size)
        finally:
            os._exit(0)
    try:
        ends = time.monotonic() + 20 * seconds  # a child that waits instead of working says nothing of the file
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                child = 0
                # Killed from outside, as when memory runs short, it says nothing of the file.
                return not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
            if time.monotonic() > ends:
                return True
            time.sleep(0.0005)
    except ChildProcessError:  # who started us has children's ends ignored: nobody can tell how this one ended
        child = 0
        return True
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _quietly(resource: ModuleType, seconds: int) -> None:
    """The child dies of any signal at once, leaves no core, and says nothing."""
    faulthandler.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))  # SIGXCPU comes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _read(path: str, size: int) -> None:
    """Attributes, types, indices of chunks, and values of variable length, which the readouts of MRD are; no arrays of
    numbers."""

    def visit(_: str, item: h5py.HLObject) -> None:
        for name in item.attrs:
            with suppress(Exception):
                item.attrs[name]
        with suppress(Exception):
            if isinstance(item, h5py.Dataset):
                _read_dataset(item, size)

    with suppress(Exception), h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)


def _read_dataset(dataset: h5py.Dataset, size: int) -> None:
    if dataset.is_virtual or dataset.id.get_create_plist().get_external_count() or not dataset.size:
        return
    if dataset.chunks:
        dataset.id.get_num_chunks()
    dtype = dataset.dtype
    variable = [name for name in dtype.names or () if dtype[name].hasobject]
    if not (dtype.hasobject and dataset.size * dtype.itemsize <= 200 * size):
        return  # plain numbers, which the reader unpacks once it has checked their size
    if dataset.ndim != 1:
        dataset[()]
        return
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        rows = dataset[start : start + ROWS_AT_ONCE]
        for name in variable:
            np.size(rows[name])
