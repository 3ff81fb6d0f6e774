"""Check all of params.yaml, before DVC removes the outputs of other stages to reproduce them."""

import sys
from pathlib import Path

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.files import new_file


def main() -> None:
    """Write data/validated, always with the same content, so that a valid change alone reruns no other stage."""
    load_experiment()
    with new_file(Path("data/validated")) as scratch:
        scratch.write_text("params.yaml is valid\n", "utf-8")


if __name__ == "__main__":
    try:
        main()
    except ConvaeError as error:
        sys.exit(str(error))
