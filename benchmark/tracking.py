"""What tracking adds to each stage of a small pipeline on the embedded digits, side by side in one run.

`python -m benchmark.tracking` clones the last commit into a scratch folder, runs every stage there in turn with
tracking off, into SQLite, and with a server that refuses or never answers, and prints medians of wall time in seconds.
"""

import argparse
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.utils.hydra import apply_overrides

from benchmark.speed.measuring import REPOSITORY, command

STAGES = ("download", "prepare", "train", "features", "evaluate", "report")
SMALL = ("data.dataset=digits", "train.epochs=2", "model.layers.0.filters=8", "train.threads=1")


def main() -> None:
    """Print one line for each stage."""
    parser = argparse.ArgumentParser(description="Wall time that tracking adds to each stage of the digits pipeline.")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each stage and kind (default: %(default)s)")
    repetitions = parser.parse_args().repetitions
    with TemporaryDirectory() as scratch, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        kinds = {
            "off": {"CONVAE_TRACKING": "off"},
            "SQLite": {},
            "refusing": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
            "silent": {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        }
        folder = Path(scratch) / "convae"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
        apply_overrides(folder / "params.yaml", list(SMALL))
        command(["dvc", "repro", "--quiet"], folder)
        print(f"{'stage':10}{'off':>8}" + "".join(f"{f'+ {kind}':>12}" for kind in list(kinds)[1:]))
        for stage in STAGES:
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(repetitions):
                for kind, environment in kinds.items():
                    words = [sys.executable, "-m", f"pipeline.{stage}"]
                    seconds[kind].append(command(words, folder, **environment))
            off, *others = (statistics.median(values) for values in seconds.values())
            print(f"{stage:10}{off:8.2f}" + "".join(f"{other - off:12.2f}" for other in others), flush=True)


if __name__ == "__main__":
    main()
