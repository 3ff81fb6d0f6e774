"""docs/scale.md: its parameters exist, its example learns."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers import REPOSITORY

from convae.files import save_array
from convae.params import load_params

PAGE = (REPOSITORY / "docs/scale.md").read_text("utf-8")


def test_the_incremental_classifier_in_the_docs_learns(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    labels = np.random.default_rng(0).integers(0, 3, 4500)
    features = np.random.default_rng(1).standard_normal((4500, 8)).astype(np.float32)
    features[np.arange(4500), labels] += 4
    (tmp_path / "data/features").mkdir(parents=True)
    save_array(tmp_path / "data/features/train.npy", features)
    save_array(tmp_path / "data/features/train_labels.npy", labels)
    command = [sys.executable, "-c", f"{example}\nprint(classifier.score(x, y))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.95


def test_the_parameters_in_the_docs_exist() -> None:
    params = load_params(REPOSITORY / "params.yaml").model_dump()
    for section, key in re.findall(r"`(data|features|train)\.(\w+)[:`]", PAGE):
        assert key in params[section]
