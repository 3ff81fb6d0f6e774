"""The one exception that a user is meant to read."""


class ConvaeError(Exception):
    """Something the user can mend; the message is one line that says what was found and what is allowed."""
