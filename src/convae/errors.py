"""The exception for errors that a user can fix."""


class ConvaeError(Exception):
    """A user's mistake. The message is one line that says what was found and what is allowed."""
