"""Errors a user can act on: the command line prints their one line and exits with their code.

Exit codes: 0 done; 1 internal error (a bug: run again with --debug); 2 wrong usage; 3 input that cannot be read or
does not fit; 4 output that exists or cannot be written; 5 data or weights not found; 130 interrupted (Ctrl-C, SIGTERM, SIGHUP).
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
