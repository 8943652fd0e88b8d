"""The one exception that a person is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: the thing, the value received, what to do. Entry points print it and exit with status 1;
    nobody below them catches it.
    """


class UsageError(UserError):
    """A command line that cannot be understood; entry points exit with status 2."""
