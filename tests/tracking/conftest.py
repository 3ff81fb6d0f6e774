"""A small repository with DVC in which one stage is recorded."""

from recorded import (  # noqa: F401
    client,
    fresh,
    params,
    plain_environment,
    start_stage,
    templates,
    workspace,
)
