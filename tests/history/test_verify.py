"""The verdict of `convae verify` on the outputs of a rerun."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from convae.errors import ConvaeError
from convae.history import verify
from convae.history.lock import Execution, path_md5

OUTPUTS = {
    "prepare": ["data/prepared/train.npy"],
    "features": ["data/features", "models/encoder"],
    "evaluate": ["reports/metrics.json", "models/classifier"],
}


def write(
    folder: Path, shift: float = 0.0, accuracy: float = 0.9, error: float = 0.02, numpy: str = "2.4"
) -> dict[str, Execution]:
    """Write slightly shifted outputs of three stages and return their entries in dvc.lock."""
    for name in ("data/prepared", "data/features", "models/encoder", "models/classifier", "reports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / "data/prepared/train.npy", np.arange(4))
    np.save(folder / "data/features/train.npy", np.linspace(-1, 1, 6) + shift)
    np.save(folder / "models/encoder/weights.npy", np.ones(3) + shift)
    metrics = {"accuracy": accuracy, "accuracy_low": accuracy - 0.005, "accuracy_high": accuracy + 0.005}
    metrics |= {"log_loss": shift, "linear_reconstruction_mse": error}
    (folder / "models/classifier/classifier.skops").write_text(f"{shift}")
    (folder / "reports/metrics.json").write_text(json.dumps({"test": metrics}))
    (folder / "reports/environment.json").write_text(json.dumps({"packages": {"numpy": numpy}}))
    return {
        stage: Execution(
            stage,
            {"seed": 0, "train.threads": 2},
            {"src/convae/models": "1", "data/raw": "2"},
            {path: path_md5(folder / path) for path in paths},
        )
        for stage, paths in OUTPUTS.items()
    }


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_identical_bits_are_identical_and_other_versions_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"), numpy="2.5")
    assert verify.report(before, after, Path("again")) == "identical"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:5]] == ["identical"] * 5
    assert lines[5:] == ["environment: numpy: 2.4 before, 2.5 now", "verdict: identical"]


def test_small_deviations_are_reported_and_tolerated(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"), shift=0.001, accuracy=0.902)
    threads = {name: replace(one, params={"seed": 0, "train.threads": 1}) for name, one in after.items()}
    assert verify.report(before, threads, Path("again")) == "equal within tolerance"
    text = capsys.readouterr().out
    assert "data/features                    differs by at most 0.001 of the largest magnitude\n" in text
    assert "reports/metrics.json             differs by at most 0.002 (test.accuracy" in text
    assert "models/classifier                differs\n" in text
    assert "parameters: train.threads: 2 before, 1 now\n" in text


def test_other_filters_that_are_as_good_are_tolerated(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"), shift=1.5, accuracy=0.904, error=0.0205)
    assert verify.report(before, after, Path("again")) == "equal within tolerance"
    text = capsys.readouterr().out
    assert "models/encoder                   differs by at most 1.5 of the largest magnitude\n" in text
    tolerance = "test accuracy in its 95 % interval, reconstruction errors within 5 %"
    assert text.endswith(f"verdict: equal within tolerance ({tolerance})\n")


@pytest.mark.parametrize(
    "changes",
    [{"accuracy": 0.89}, {"error": 0.022}, {"error": 0.0}, {"shift": np.nan}, {"shift": np.inf}],
    ids=["accuracy", "error", "no error", "not a number", "infinity"],
)
def test_large_deviations_are_different(changes: dict[str, float]) -> None:
    assert verify.report(write(Path()), write(Path("again"), **changes), Path("again")) == "different"


def test_close_results_of_other_parameters_are_different(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"), shift=0.001)
    other = {name: replace(one, params={**one.params, "seed": 1}) for name, one in after.items()}
    assert verify.report(before, other, Path("again")) == "different"
    assert "parameters: seed: 0 before, 1 now\n" in capsys.readouterr().out


def test_other_images_are_different_even_within_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"))
    outputs = {"data/prepared/train.npy": "another"}
    code = {"src/convae/models": "3", "data/raw": "4"}
    after["prepare"] = replace(after["prepare"], outputs=outputs, inputs=code)
    assert verify.report(before, after, Path("again")) == "different"
    text = capsys.readouterr().out
    assert "data/prepared/train.npy          differs\n" in text
    assert "code: src/convae/models has changed\n" in text
    assert "data/raw has" not in text


def test_without_the_earlier_files_the_metrics_decide(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"), shift=0.001)
    for name in ("models/encoder/weights.npy", "data/features/train.npy", "reports/environment.json"):
        Path(name).unlink()
    assert verify.report(before, after, Path("again")) == "equal within tolerance"
    text = capsys.readouterr().out
    assert text.count("this workspace lacks the original to compare with") == 2
    assert "environment: unknown, because there is no reports/environment.json" in text


def test_without_the_earlier_metrics_nothing_is_equal() -> None:
    before, after = write(Path()), write(Path("again"), shift=0.001)
    Path("reports/metrics.json").unlink()
    assert verify.report(before, after, Path("again")) == "different"


def test_metrics_may_differ_in_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(Path()), write(Path("again"))
    metrics = json.loads(Path("reports/metrics.json").read_text())
    for folder, word, execution in ((Path(), "Shirt", before), (Path("again"), "Coat", after)):
        metrics["test"]["worst_class"] = word
        path = folder / "reports/metrics.json"
        path.write_text(json.dumps(metrics))
        execution["evaluate"].outputs["reports/metrics.json"] = path_md5(path)
    assert verify.report(before, after, Path("again")) == "equal within tolerance"
    assert "reports/metrics.json             differs in words only\n" in capsys.readouterr().out


def test_without_labels_the_errors_decide() -> None:
    before, after = write(Path()), write(Path("again"), shift=1.5)
    for folder, error in ((Path(), 0.0), (Path("again"), 1e-6)):
        metrics = {"test": {"linear_reconstruction_mse": error}}
        (folder / "reports/metrics.json").write_text(json.dumps(metrics))
    outputs = before["evaluate"].outputs | {"reports/metrics.json": path_md5(Path("reports/metrics.json"))}
    before["evaluate"] = replace(before["evaluate"], outputs=outputs)
    assert verify.report(before, after, Path("again")) == "equal within tolerance"


def test_the_rerun_shares_downloads_except_partial_ones(tmp_path: Path) -> None:
    for name in (".dvc/config", "data/downloads/whole.gz", "data/downloads/half.gz.part", "data/local/known.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("earlier")
    Path("data/downloads/all").symlink_to(".")
    Path("data/local/link.png").symlink_to("known.png")
    Path(".gitignore").write_text("/data/downloads\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    verify.copy_workspace(Path("scratch"), ["data/local", "data/downloads", "data/downloads"])
    with Path("scratch/data/downloads/half.gz.part").open("a") as stream:  # as the next download does
        stream.write(", and more")
    assert Path("data/downloads/half.gz.part").read_text() == "earlier"
    assert Path("scratch/data/downloads/whole.gz").samefile("data/downloads/whole.gz")
    assert Path("scratch/data/downloads/all").is_symlink()
    assert not Path("scratch/data/local/known.png").samefile("data/local/known.png")
    assert Path("scratch/data/local/link.png").read_text() == "earlier"


def test_a_concurrent_verify_is_refused(workspace: Path) -> None:
    lock = workspace / ".convae/verify.lock"
    Path("dvc.lock").write_text("schema: '2.0'\n")
    subprocess.run(["git", "add", "--force", "dvc.lock"], check=True)
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock), pytest.raises(ConvaeError, match="another `convae verify` is running in this folder"):
        verify.verify()
    assert not (workspace / ".convae/verify").exists()
