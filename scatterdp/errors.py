"""The errors a user can meet.

Each message is one sentence that names the argument, its value and the remedy. Entry points print it
without a traceback and leave with exit code 2 (see :mod:`scatterdp.exits`).
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave, or the machine they gave it to, does not fit; the message says what would."""


class ConfigError(UserError):
    """A flag or argument is out of range, unknown, or contradicts another."""


class DatasetError(UserError):
    """A data set is missing, unreadable, damaged or not what it claims to be."""


class CacheError(UserError):
    """A feature cache is missing, damaged, of another configuration, or cannot be written."""


class CacheLockedError(CacheError):
    """Another live process is writing the feature cache."""


class RunLockedError(UserError):
    """Another live process is running the run."""


class BudgetError(UserError):
    """The privacy budget cannot be met."""


class ProcessLostError(UserError):
    """Another process of the same run has ended before its time."""
