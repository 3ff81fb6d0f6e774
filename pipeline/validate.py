"""Check params.yaml as a whole, before DVC removes the outputs of any other stage to make them anew."""

import sys
from pathlib import Path

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.files import new_file


def main() -> None:
    """data/validated, always the same: a change that is valid reruns nothing by itself."""
    load_experiment()
    with new_file(Path("data/validated")) as scratch:
        scratch.write_text("params.yaml is valid\n", "utf-8")


if __name__ == "__main__":
    try:
        main()
    except ConvaeError as error:
        sys.exit(str(error))
