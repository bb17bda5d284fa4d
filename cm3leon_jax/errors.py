"""How a command can end other than well, with its exit code (1 is left to faults of ours)."""

from cm3leon_jax.terminal import visible

EXIT_USER_ERROR = 2
EXIT_RESTART = 75


# Most characters of a message: a name that a damaged file holds may be as long as the file.
_LONGEST = 1400


class UserError(Exception):
    """A mistake in what the user gave: says in one line what is wrong, where, and how to mend it (exit code 2)."""

    def __init__(self, message: str) -> None:
        """Keeps what a file holds, and the message repeats, from breaking the line or steering the terminal."""
        line = visible(message)
        half = _LONGEST // 2
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}")


class NotFinite(UserError):
    """A state that was to be saved holds an infinity or what is no number; says which array."""


class FailedSave(UserError):
    """A checkpoint that cannot be written; threads that wait for it would keep the process from ending by itself."""


class RestartError(Exception):
    """The same command is worth starting again: says in one line why (exit code 75)."""
