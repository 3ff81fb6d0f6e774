"""Measure how much time tracking adds to each stage of a small pipeline on the embedded digits.

`python -m benchmark.tracking` clones the last commit into a scratch folder and runs every stage there in turn: with
tracking off, with SQLite, and with servers that cannot be used: one refuses the connection, one answers 500, one never
answers. It prints medians and maxima of wall time in seconds.
"""

import argparse
import socket
import statistics
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from dvc.utils.hydra import apply_overrides

from benchmark.speed.measuring import REPOSITORY, command

STAGES = ("download", "prepare", "train", "features", "evaluate", "report")
SMALL = ("data.dataset=digits", "train.epochs=2", "model.layers.0.filters=8", "train.threads=1")


class _Failing(BaseHTTPRequestHandler):
    """Answers every request with 500."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    """Print one line per stage: its seconds without tracking, and what each kind of tracking adds."""
    parser = argparse.ArgumentParser(description="Wall time that tracking adds to each stage of the digits pipeline.")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each stage and kind (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="stages to run (default: all)")
    arguments = parser.parse_args()
    failing = ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    Thread(target=failing.serve_forever, daemon=True).start()
    with TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        ports = {"refusing": 9, "500": failing.server_port, "silent": silent.getsockname()[1]}  # nothing listens on 9
        kinds = {"off": {"CONVAE_TRACKING": "off"}, "SQLite": {}}
        kinds |= {kind: {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"} for kind, port in ports.items()}
        folder = Path(scratch) / "convae"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
        apply_overrides(folder / "params.yaml", list(SMALL))
        command(["dvc", "repro", "--quiet"], folder)  # the outputs from which each stage starts
        print(f"{'stage':10}{'off':>8}" + "".join(f"{f'+ {kind}':>14}" for kind in list(kinds)[1:]))
        for stage in arguments.stages:
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(arguments.repetitions):
                for kind, environment in kinds.items():
                    words = [sys.executable, "-m", f"pipeline.{stage}"]
                    seconds[kind].append(command(words, folder, **environment))
            off = statistics.median(seconds.pop("off"))
            added = [(statistics.median(values) - off, max(values) - off) for values in seconds.values()]
            columns = "".join(f"{middle:8.2f} ({most:.1f})" for middle, most in added)
            print(f"{stage:10}{off:8.2f}{columns}", flush=True)


if __name__ == "__main__":
    main()
