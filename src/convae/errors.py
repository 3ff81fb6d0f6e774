"""The exception for errors that a user can fix."""


class ConvaeError(Exception):
    """A user's mistake. The message is one line that says what was found and what is allowed.

    Example:
        >>> from convae.encoder import load_encoder
        >>> try:
        ...     load_encoder("models")
        ... except ConvaeError as error:
        ...     print(error)
        models: not an encoder: there is no file config.json; train one with `make run`, ...
    """
