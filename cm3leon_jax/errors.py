"""How a command can end other than well, with its exit code (1 is left to faults of ours)."""

MISTAKE = 2
RESTART = 75


class UserError(Exception):
    """A mistake in what the user gave: says in one line what is wrong, where, and how to mend it (exit code 2)."""


class RestartError(Exception):
    """The same command is worth starting again: says in one line why (exit code 75)."""
