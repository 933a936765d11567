"""The process: its settings, made by the command line only, or for a while, never on import; and whether somebody watches."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def progress_shown(quiet: bool) -> bool:
    """Whether progress goes to stderr: a terminal, and not told to be quiet."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def tune_process() -> None:
    """Keep freed memory in the process (Linux with glibc; elsewhere nothing is done).

    Every large tensor is otherwise a fresh mapping, and training spends its time in page faults; peak memory rises by
    about a third. Must run before the first large tensor.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_mmap_max, m_trim_threshold = -4, -1  # glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
    except (OSError, AttributeError):  # another C library: slower, nothing else
        return


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """As many threads within tensors, where the machine has them; afterwards as before."""
    import torch  # not with the command line, whose --help answers at once

    before = torch.get_num_threads()
    torch.set_num_threads(count if 1 <= count <= (os.cpu_count() or 1) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
