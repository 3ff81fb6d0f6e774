"""Trials of a study vary the same parameters in the same way and run committed code."""

import json
import subprocess
import sys

import pytest
from helpers import NO_POSTGRES, postgres
from optuna.trial import TrialState

from convae.errors import ConvaeError
from convae.params import load_params
from convae.search.settings import SearchSettings, Values
from convae.search.study import open_study
from convae.search.trial import base_of_workspace

WORKER = """\
import json, sys
from pathlib import Path
from convae.params import load_params
from convae.search.settings import SearchSettings
from convae.search.study import open_study
settings = SearchSettings.model_validate(json.loads(sys.argv[1]))
study = open_study(Path("search.yaml"), settings, load_params(Path(sys.argv[2])), "HEAD")
for _ in range(2):
    trial = study.ask()
    study.tell(trial, trial.suggest_categorical("train.batch_size", ["32", "64"]) == "64")
"""
SEARCH = {
    "study": "small",
    "storage": None,
    "trials": 3,
    "pruning": None,
    "space": {"train.batch_size": {"choices": [32, 64]}},
}


@pytest.fixture
def search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "search.yaml"


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments], check=True)


def test_a_study_resumes_only_with_the_same_search(search, experiment):
    settings = SearchSettings.model_validate(SEARCH)
    open_study(search, settings, experiment(), "HEAD").enqueue_trial({"train.batch_size": "32"})
    assert len(open_study(search, settings, experiment(), "HEAD").trials) == 1
    with pytest.raises(ConvaeError, match=r"study small began with params.yaml.train.epochs = 3, now 4"):
        open_study(search, settings, experiment(train={"epochs": 4}), "HEAD")
    wider = settings.model_copy(update={"space": {"train.batch_size": Values(choices=[32, 64, 128])}})
    with pytest.raises(ConvaeError, match=r"space.train.batch_size.choices = \[32, 64\], now \[32, 64, 128\]"):
        open_study(search, wider, experiment(), "HEAD")
    other = wider.model_copy(update={"study": "wider"})
    assert open_study(search, other, experiment(train={"epochs": 4}), "HEAD").trials == []


def test_a_study_resumes_only_with_the_same_code(search, experiment):
    def commit(name):
        path = search.parent / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        git("add", name)
        git("commit", "--quiet", "--message", name)

    settings = SearchSettings.model_validate(SEARCH)
    git("init", "--quiet")
    commit("src/code.py")
    open_study(search, settings, experiment(), "HEAD")
    commit("README.md")
    open_study(search, settings, experiment(), "HEAD")
    commit("src/more.py")
    with pytest.raises(ConvaeError, match=r"study small began with code\.src = "):
        open_study(search, settings, experiment(), "HEAD")


def test_an_invalid_storage_is_refused_in_one_line(search, experiment):
    search.with_name("search.db").write_text("no database at all, but long enough to look like a header of one" * 9)
    with pytest.raises(ConvaeError, match=r"search.yaml: storage: ") as refusal:
        open_study(search, SearchSettings.model_validate(SEARCH), experiment(), "HEAD")
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(NO_POSTGRES, reason="Debian's package postgresql is missing")
@pytest.mark.slow
def test_machines_that_start_together_share_a_study_on_postgresql(search, repository):
    with postgres() as storage:
        settings = SEARCH | {"storage": storage}
        workers = []
        for name in ("one", "two", "three"):  # each machine has its own folder
            (folder := search.with_name(name)).mkdir()
            arguments = [json.dumps(settings), str(repository / "params.yaml")]
            workers.append(subprocess.Popen([sys.executable, "-c", WORKER, *arguments], cwd=folder))
        assert [worker.wait() for worker in workers] == [0, 0, 0]
        params = load_params(repository / "params.yaml")
        study = open_study(search, SearchSettings.model_validate(settings), params, "HEAD")
        assert [trial.number for trial in study.trials] == list(range(6))
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_trials_run_the_committed_code(search, experiment):
    with pytest.raises(ConvaeError, match="there is no commit"):
        base_of_workspace(experiment(), search)
    code = search.with_name("code.py")
    for path in (code, search, search.with_name("params.yaml")):
        path.write_text("before\n")
    git("init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    git("add", "--all")
    git("commit", "--quiet", "--message", "Begin")
    code.write_text("after\n")
    with pytest.raises(ConvaeError, match=r"code.py has uncommitted changes"):
        base_of_workspace(experiment(), search)
    code.write_text("before\n")
    search.write_text("after\n")
    search.with_name("params.yaml").write_text("after\n")
    assert base_of_workspace(experiment(), search).params == b"after\n"
