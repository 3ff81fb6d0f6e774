"""`convae …`, for those who look at results or use an encoder."""

import argparse
import sys

from convae.errors import ConvaeError

EXAMPLES = """examples:
  convae ui                compare runs in a browser
  convae ui --port 8080    the same at another port
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
    ui = commands.add_parser("ui", help="open MLflow on the recorded runs, for this machine only")
    ui.add_argument("--port", type=int, default=5000, help="where the server listens (default: %(default)s)")
    ui.set_defaults(run=_ui)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ConvaeError as error:
        sys.exit(f"convae: {error}")


def _ui(arguments: argparse.Namespace) -> None:
    from convae.tracking.ui import open_ui

    open_ui(arguments.port)


if __name__ == "__main__":
    main()
