"""The summary that `make run` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convae.files import write_json

HEALTH = {"filters": [], "effective_rank": 9.0, "copying": None}
TEST = {
    "accuracy": 0.99,
    "accuracy_low": 0.96,
    "accuracy_high": 0.997,
    "majority_accuracy": 0.99,
    "balanced_accuracy": 0.5,
    "worst_recall": 0.0,
    "worst_class": "猫\n",
    "never_found": ["猫\n"],
}
COPIES = {
    "duplicates": {"test": {"images": 3, "parts": {"train": 3}}, "validation": {"images": 0, "parts": {"train": 0}}},
    "near_duplicates": {part: {"looked_at": 20, "images": 0} for part in ("test", "validation")},
    "two_classes": {"images": 0},
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_concerns_are_printed_on_any_terminal(repository: Path, tmp_path: Path, labelled: bool, encoding: str) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "data/prepared").mkdir(parents=True)
    write_json(tmp_path / "reports/metrics.json", {"test": TEST if labelled else {}, "features": {}, "health": HEALTH})
    counts = {"cat": 20, "猫\n": 0} if labelled else None
    parts = {
        part: {"images": 20, "levels": [0, 255], "images_per_class": counts}
        for part in ("train", "validation", "test", "unlabelled")
    }
    about = {"parts": parts, "cropped": 0.0, "dim": 0, "rejected": [], **COPIES}
    write_json(tmp_path / "data/prepared/description.json", about)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.summary"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository), "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode(encoding).splitlines()
    name = "猫\\n" if encoding == "utf-8" else "\\u732b\\n"
    doubtful = [line.removeprefix("concern").strip() for line in lines if line.startswith("concern")]
    assert any(line.startswith("Test images that another part has too, pixel for pixel: 3 of 20") for line in doubtful)
    assert lines[-2:] == ["report          reports/report.html", "compare runs    make ui"]
    if not labelled:
        assert "no labels, so no accuracy" in lines
        assert len(doubtful) == 1
        return
    for line in (
        "test accuracy   99.00%   (95 % interval 96.00% to 99.70%)",
        "balanced        50.00%   (mean recall of the classes)",
        f"worst class     0.00%   (recall of {name})",
        "commonest       99.00%   (accuracy of always guessing the commonest class)",
    ):
        assert line in lines
    starts = (
        "The accuracy is no higher",
        f"No test image of '{name}' is rec",
        f"No validation image of '{name}' (1 of 2",
    )
    for start in starts:
        assert any(line.startswith(start) for line in doubtful)
