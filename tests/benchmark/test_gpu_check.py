"""The check of a GPU, on a CPU and on few images."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY


@pytest.mark.slow
def test_the_check_runs_on_a_cpu(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmark.gpu_check",
        "--device=cpu",
        "--images=400",
        "--json",
        tmp_path / "found.json",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert all(row["what"] in done.stdout for row in rows)
    correct = [row for row in rows if row["met"] is not None and "images/s" not in row["what"]]
    assert len(correct) == 9
    assert all(row["met"] for row in correct), done.stdout
