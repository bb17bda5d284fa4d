"""The one error that a user can cause and mend."""


class UserError(Exception):
    """A mistake in what the user gave: says in one line what is wrong, where, and how to mend it (exit code 2)."""
