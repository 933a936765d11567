"""Errors a user can act on: the command line prints their one line and exits with their code.

Exit codes: 0 done; 1 internal error (a bug: run again with --debug); 2 wrong usage; 3 input that cannot be read or
does not fit; 4 output that exists or cannot be written; 5 data or weights not found; 6 some of
several scans failed; 7 a result that is not what its record says (verify); 8 warnings under
--strict; 130 interrupted (Ctrl-C, SIGTERM, SIGHUP).
"""


class UserError(Exception):
    """Says what was expected, what came, and what to do, in one line."""

    exit_code = 2


class OptionError(UserError, ValueError):
    """An argument outside its range; a ValueError for those who call from Python."""


class InputError(UserError):
    exit_code = 3


class OutputError(UserError):
    exit_code = 4


class NotFoundError(UserError):
    exit_code = 5


class VerificationError(UserError):
    """A file, scan or weights that are not those of the record."""

    exit_code = 7


class PartialError(UserError):
    """Some of several scans failed; `done` holds what the others gave."""

    exit_code = 6

    def __init__(self, message: str, done: list) -> None:
        super().__init__(message)
        self.done = done
