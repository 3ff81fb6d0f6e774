"""`convae …`, for those who look at results or use an encoder."""

import argparse
import sys
from pathlib import Path

from convae.errors import ConvaeError

EXAMPLES = """examples:
  convae ui                        compare experiments in a browser
  convae ui --port 8080            the same at another port
  convae sync                      after `git pull`, `dvc exp pull` or runs without MLflow
  convae lineage models/encoder    the data, code, parameters and runs that an encoder is from
"""


def main() -> None:
    """Parse the command line and run one command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="convae",
        description="Convolutional autoencoders: features learned without labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    ui = commands.add_parser("ui", help="sync, then open MLflow on the experiments, for this machine only")
    ui.add_argument("--port", type=int, default=5000, help="where the server listens (default: %(default)s)")
    ui.set_defaults(run=_ui)
    sync = commands.add_parser("sync", help="give MLflow the runs it lacks, from every dvc.lock that git knows")
    sync.set_defaults(run=_sync)
    lineage = commands.add_parser("lineage", help="say where something that a stage wrote is from")
    lineage.add_argument("path", type=Path, help="a file or folder such as models/encoder, here or copied elsewhere")
    lineage.set_defaults(run=_lineage)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ConvaeError as error:
        sys.exit(f"convae: {error}")


def _ui(arguments: argparse.Namespace) -> None:
    from convae.tracking.ui import open_ui

    open_ui(arguments.port)


def _sync(arguments: argparse.Namespace) -> None:
    from convae.tracking.ui import synchronise

    synchronise()


def _lineage(arguments: argparse.Namespace) -> None:
    from convae.tracking.ui import print_lineage

    print_lineage(arguments.path)


if __name__ == "__main__":
    main()
