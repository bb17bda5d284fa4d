"""The ways in which a command ends other than well, and their exit codes; 1 means an internal error."""

from cm3leon_jax.terminal import visible

EXIT_USER_ERROR = 2
EXIT_RESTART = 75

# A damaged file may hold a name as long as the file.
_MAX_CHARACTERS = 1400


class UserError(Exception):
    """A mistake in what the user gave; says in one line what is wrong, where, and how to fix it (exit code 2)."""

    def __init__(self, message: str) -> None:
        """Keeps the message on one line, whatever it quotes."""
        line, half = visible(message), _MAX_CHARACTERS // 2
        super().__init__(line if len(line) <= _MAX_CHARACTERS else f"{line[:half]} ... {line[-half:]}")


class NotFinite(UserError):
    """A state to be saved has an array with NaN or infinity; says which."""


class FailedSave(UserError):
    """A checkpoint cannot be written; threads that wait for it would keep the process from ending by itself."""


class RestartError(Exception):
    """The same command is worth starting again; says in one line why (exit code 75)."""
