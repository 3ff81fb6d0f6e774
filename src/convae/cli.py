"""`convae …`, for those who look at results or use an encoder."""

import argparse
import os
import sys
from pathlib import Path

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
    ui.set_defaults(run=open_ui)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ConvaeError as error:
        sys.exit(f"convae: {error}")


def open_ui(arguments: argparse.Namespace) -> None:
    """Become MLflow's server over the store that params.yaml and the environment name, or say which server has it."""
    from convae.params import load_params
    from convae.tracking.store import SETTINGS, SQLITE, import_mlflow, open_store, store_uri

    tracking = load_params().tracking
    uri = store_uri(tracking)
    if uri is None:
        raise ConvaeError("tracking is switched off, by CONVAE_TRACKING or tracking.enabled")
    if uri.startswith(("http://", "https://")):
        print(f"The runs are recorded by the server at {uri}: open it in a browser.")
        return
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise ConvaeError(f"{uri.removeprefix(SQLITE)} is not there yet: `dvc repro` records the first runs")
    import_mlflow()
    _, experiment = open_store(uri, f"{tracking.experiment}-stages")
    address = f"http://127.0.0.1:{arguments.port}/#/experiments/{experiment}/runs"
    print(f"Compare runs at {address} (Ctrl-C ends it).", flush=True)
    server = ["mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(arguments.port)]
    os.environ.update(SETTINGS)
    os.execv(sys.executable, [sys.executable, "-m", *server])


if __name__ == "__main__":
    main()
