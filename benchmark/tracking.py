"""Measure how much time tracking adds to each stage of a small pipeline on the embedded digits.

`python -m benchmark.tracking` clones the last commit into a scratch folder and runs every stage there in turn: with
tracking off, with SQLite, and with servers that cannot be used. These refuse the connection, answer 403 or 500,
answer after four seconds or byte by byte, or never answer. It prints medians and maxima of wall time in seconds.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from dvc.utils.hydra import apply_overrides

from benchmark.speed.measuring import REPOSITORY, command

STAGES = ("download", "prepare", "train", "features", "evaluate", "report")
SMALL = ("data.dataset=digits", "train.epochs=2", "model.layers.0.filters=8", "train.threads=1")


@contextmanager
def bad_server(status: int, first: float = 0, each: float = 0) -> Iterator[str]:
    """Run a server that waits `first` seconds, answers `status` and sends 20 bytes, each after `each` seconds.

    Yields:
        Its address.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(first)
            self.send_response(status)
            self.send_header("Content-Length", "20")
            self.end_headers()
            for _ in range(20):
                time.sleep(each)
                self.wfile.write(b".")

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client hung up
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def main() -> None:
    """Print one line per stage: its seconds without tracking, and what each kind of tracking adds."""
    parser = argparse.ArgumentParser(description="Wall time that tracking adds to each stage of the digits pipeline.")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each stage and kind (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="stages to run (default: all)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch, ExitStack() as servers:
        addresses = {
            "refusing": "http://127.0.0.1:9",  # the discard port, on which nothing listens
            "403": servers.enter_context(bad_server(403)),
            "500": servers.enter_context(bad_server(500)),
            "slow": servers.enter_context(bad_server(500, first=4)),
            "trickling": servers.enter_context(bad_server(200, each=1)),
            "silent": servers.enter_context(silent_server()),
        }
        kinds = {"off": {"CONVAE_TRACKING": "off"}, "SQLite": {}}
        kinds |= {kind: {"MLFLOW_TRACKING_URI": address} for kind, address in addresses.items()}
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
            print(
                f"{stage:10}{off:8.2f}" + "".join(f"{middle:8.2f} ({most:.1f})" for middle, most in added), flush=True
            )


if __name__ == "__main__":
    main()
