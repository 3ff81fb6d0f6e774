"""A worker whose trials fail and one that is interrupted, with the real DVC and a trivial stage."""

import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from helpers import wait_for

from convae.history.git import git as read
from convae.params import load_params
from convae.search.trial import Trial, base_of_workspace

SEARCH = """\
study: small
storage: null
trials: 9
pruning: null
space: {train.batch_size: {choices: [32, 64]}}
"""
WORKER = [sys.executable, "-m", "convae.cli", "search", "search.yaml"]


@pytest.fixture
def pipeline(repository, tmp_path, monkeypatch):
    """`pipeline(command)`: a repository as the current folder whose one stage runs this command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(repository / "src"))

    def make(command):
        Path("params.yaml").write_bytes((repository / "params.yaml").read_bytes())
        Path("search.yaml").write_text(SEARCH)
        Path("dvc.yaml").write_text(f"stages:\n  only:\n    cmd: {command}\n")
        git("init", "--quiet")
        git("config", "user.name", "Test")
        git("config", "user.email", "test@example.org")
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
        git("add", "--all")
        git("commit", "--quiet", "--message", "Begin")

    return make


def git(*arguments):
    subprocess.run(["git", *arguments], check=True)


def states():
    """The states of the trials."""
    return [trial.state.name for trial in optuna.load_study(study_name="small", storage="sqlite:///search.db").trials]


def test_three_failures_in_succession_end_a_worker(pipeline):
    pipeline("echo no luck; exit 1")
    done = subprocess.run(WORKER, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [f"convae: experiment small-{n} failed; see .convae/search/small-{n}.log" for n in range(3)]
    assert done.stderr.splitlines() == lines
    assert states() == ["FAIL"] * 3
    assert "no luck" in Path(".convae/search/small-2.log").read_text()
    assert not Path(".convae/search/small-2").exists()


def test_ctrl_c_ends_the_stage_and_the_trial_can_be_resumed(pipeline, tmp_path):
    began, ended = tmp_path / "began", tmp_path / "ended"
    pipeline(f"trap 'touch {ended}' INT; touch {began}; sleep 600 & wait")
    with subprocess.Popen(WORKER, stderr=subprocess.PIPE, text=True, start_new_session=True) as worker:
        wait_for(began.exists)
        worker.send_signal(signal.SIGINT)
        assert worker.communicate()[1] == "convae: interrupted\n"
    assert worker.returncode == 130
    assert ended.exists()
    assert states() == ["RUNNING"]
    assert Path(".convae/search/small-0").is_dir()


def test_a_trial_is_stopped_even_if_the_worker_ignores_ctrl_c(pipeline, tmp_path):
    began, ended = tmp_path / "began", tmp_path / "ended"
    pipeline(f"trap 'touch {ended}' INT; touch {began}; sleep 600 & wait")

    def watch():
        if began.exists():
            raise optuna.TrialPruned

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(optuna.TrialPruned):
            Trial("trial", base_of_workspace(load_params(), Path("search.yaml")), {}).run(watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.exists()


def test_pictures_that_git_does_not_track_stay_out_of_the_trials_commit(pipeline):
    pipeline("ls pictures > reports/list.txt")
    Path("reports").mkdir()
    Path("reports/list.txt").touch()
    Path("pictures").mkdir()
    Path("pictures/me.png").touch()
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("root: data/local", "root: pictures"))
    git("add", "reports")
    git("commit", "--quiet", "--message", "A list")
    commit = Trial("trial", base_of_workspace(load_params(), Path("search.yaml")), {}).run(lambda: None)
    assert read("show", f"{commit}:reports/list.txt") == "me.png"
    names = read("ls-tree", "-r", "--name-only", commit).split()
    assert {"dvc.lock", "params.yaml"} <= {*names}
    assert "pictures/me.png" not in names


def test_a_killed_workers_trial_resumes_unless_the_repository_was_moved(pipeline, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    pipeline("true")

    def prepare():
        Trial("trial", base_of_workspace(load_params(), Path("search.yaml")), {})._prepare()

    prepare()
    begun = Path(".convae/search/trial/begun")
    begun.touch()
    prepare()
    assert begun.exists()
    moved = repository.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    prepare()
    assert not begun.exists()
    config = Path(".convae/search/trial/.dvc/config.local").read_text()
    assert str(moved / ".dvc/cache") in config
    assert not repository.exists()
