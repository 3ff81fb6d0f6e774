"""The fixtures of a small repository with DVC in which one stage is recorded."""

from recorded import *  # noqa: F403
