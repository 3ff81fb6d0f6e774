"""A moved or copied repository: artifacts and published models move along; the old folder is left alone."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from helpers import REPOSITORY, ROWS, STAGES, recorded
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from recorded import record

from convae.params import load_params
from convae.tracking.fetch import downloaded
from convae.tracking.moving import COLUMNS
from convae.tracking.moving import REPOSITORY as REPOSITORY_TAG
from convae.tracking.records import COMMAND, KEY, NOTE, Records, this_repository
from convae.tracking.registry import CLASSIFIER, CONTENT, ENCODER, _register
from convae.tracking.store import known_store, open_store
from convae.tracking.sync import sync
from convae.tracking.wording import GONE


def publish(client: MlflowClient, name: str, run_id: str, words: str) -> None:
    """A version of a model with these words as its content."""
    model = Path(words.replace(" ", "-"))
    (model / "data/model").mkdir(parents=True)
    (model / "data/model/weights").write_text(words)
    (model / "MLmodel").write_text("flavors: {}\n")
    _register(client, name, model, run_id, "card", {CONTENT: words})


@pytest.fixture
def store(workspace: Path) -> Path:
    """The workspace with a recorded stage, its artifacts, and a published model."""
    record(uri())
    client = client_here()
    (train,) = recorded(client)
    publish(client, CLASSIFIER, train.info.run_id, "published")
    return workspace


def addresses(database: Path) -> set[str]:
    """The content of the database, except where MLflow would put runs of its default experiment."""
    columns = ("artifact_location FROM experiments WHERE experiment_id > 0", "artifact_uri FROM runs")
    columns += ("artifact_location FROM logged_models", "source FROM model_versions")
    columns += ("storage_location FROM model_versions",)
    with closing(sqlite3.connect(database)) as connection:
        return {row[0] for column in columns for row in connection.execute(f"SELECT {column}")}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def convae(*arguments: str) -> str:
    """The output of a command in a fresh process."""
    command = "import sys; from convae.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_whole(folder: Path) -> None:
    """Check that artifacts and the published model load from this folder."""
    client = client_here()
    local = Path(client.download_artifacts(recorded(client)[0].info.run_id, "training.csv"))
    assert local.read_bytes() == (folder / "reports/training.csv").read_bytes()
    for version in client.search_model_versions():
        with downloaded(f"models:/{version.name}/{version.version}") as model:
            assert (model / "weights").read_text() == version.tags[CONTENT]
    start = f"{(folder / 'mlartifacts').as_uri()}/"
    assert all(f"{address}/".startswith(start) for address in addresses(folder / "mlflow.db"))


def record_more(folder: Path) -> None:
    """Record another stage, and another model in the existing run."""
    (folder / "data/prepared/train/images.npy").write_text("others")
    record(uri())
    client = client_here()
    earlier, later = recorded(client)
    publish(client, ENCODER, earlier.info.run_id, "published later")
    assert (folder / "mlartifacts" / later.info.run_id / "artifacts/training.csv").exists()


def uri() -> str:
    """The store's address for the repository in the current folder."""
    return known_store(load_params(REPOSITORY / "params.yaml").tracking)


def client_here() -> MlflowClient:
    """A client like that of a new process: MLflow caches the addresses of runs in memory."""
    _artifact_repos_cache.clear()
    return MlflowClient(uri())


@pytest.mark.parametrize("name", ["moved", "100%25 #1; größer?"])
def test_a_moved_repository_keeps_everything_and_leaves_the_old_folder_absent(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = store.with_name(name)
    store.rename(moved)
    monkeypatch.chdir(moved)
    assert "Added 0 stage runs" in convae("sync")
    check_whole(moved)
    record_more(moved)
    check_whole(moved)
    back = moved.rename(store)
    monkeypatch.chdir(back)
    open_store(uri(), ROWS, STAGES)
    check_whole(back)
    assert not moved.exists()


def test_a_model_loads_first_thing_in_a_moved_repository(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = store.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    with downloaded(f"models:/{CLASSIFIER}/1") as model:
        assert (model / "weights").read_text() == "published"
    assert not store.exists()


def test_a_copy_never_writes_into_the_original(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = store.with_name("copy")
    subprocess.run(["cp", "-r", store, copy], check=True)
    before = listing(store)
    monkeypatch.chdir(copy)
    assert "Added 0 stage runs" in convae("sync")
    check_whole(copy)
    record_more(copy)
    assert listing(store) == before
    shutil.rmtree(store)
    check_whole(copy)
    assert not store.exists()


def test_a_database_copied_alone_never_writes_into_the_original(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = store.with_name("copy")
    subprocess.run(["cp", "-r", store, copy], check=True)
    shutil.rmtree(copy / "mlartifacts")
    before = listing(store)
    monkeypatch.chdir(copy)
    open_store(uri(), STAGES)
    record_more(copy)
    assert listing(store) == before


def test_artifacts_elsewhere_keep_their_address_and_new_ones_are_next_to_the_database(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a database elsewhere whose artifacts are in the repository, or one shared by several repositories."""
    (store / "kept").mkdir()
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        if Path(name).exists():
            Path(name).rename(f"kept/{name.replace('mlflow', 'runs')}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///kept/runs.db")
    client, (experiment,) = open_store(uri(), STAGES)
    (train,) = recorded(client)
    assert train.info.artifact_uri == f"{store.as_uri()}/mlartifacts/{train.info.run_id}/artifacts"
    assert client.list_artifacts(train.info.run_id)
    added = client.create_run(experiment)
    assert added.info.artifact_uri == f"{store.as_uri()}/kept/mlartifacts/{added.info.run_id}/artifacts"


def test_artifacts_on_an_unmounted_disk_keep_their_address(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = store.with_name("disk")
    with closing(sqlite3.connect(store / "mlflow.db")) as connection, connection:
        for table, column in COLUMNS:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(store), f"{mounted}/projects/a")
            )
    shutil.rmtree(store / "mlartifacts")
    client, _ = open_store(uri(), STAGES)
    assert {run.info.artifact_uri.startswith(f"file://{mounted}/projects/a/") for run in recorded(client)} == {True}


def test_other_peoples_folders_are_left_alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_here()
    others = [
        "file:///data/figures",
        "s3://team/mlartifacts",
        "file:///data/mlartifacts",
        "mlflow-artifacts:/mlartifacts",
    ]
    made = [client.create_experiment(str(index), location) for index, location in enumerate(others)]
    monkeypatch.chdir(store.rename(store.with_name("moved")))
    client, _ = open_store(uri(), ROWS, STAGES)
    assert [client.get_experiment(number).artifact_location for number in made] == others


def test_an_unreachable_row_is_recognised_after_a_move(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(uri(), ROWS)
    tags = {KEY: "gone", REPOSITORY_TAG: this_repository(), COMMAND: "dvc exp apply gone", NOTE: "Restore it"}
    row = records.client.create_run(records.rows, tags=tags).info.run_id
    monkeypatch.chdir(store.rename(store.with_name("moved")))
    moved = Records(uri(), ROWS)
    sync(moved)
    assert moved.client.get_run(row).data.tags[COMMAND] == GONE


def test_a_link_to_the_repository_is_the_same_repository(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = store.with_name("link")
    link.symlink_to(store)
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{link}/mlflow.db")
    record_more(store)
    check_whole(store)
    link.unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    check_whole(store)
