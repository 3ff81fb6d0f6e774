"""A team as in docs/team.md: one person computes and pushes, a colleague pulls the results without computing."""

import os
import re
import subprocess
from urllib.request import urlopen

import pytest
from clones import Clone
from helpers import NO_POSTGRES, REPOSITORY, ROWS, STAGES, mlflow_server, postgres, recorded, s3_server, with_name
from mlflow import MlflowClient

from convae import load_encoder
from convae.history.lock import read_lock

NAME = "mlflow.example.org"
DOCUMENT = REPOSITORY / "docs/team.md"
pytestmark = pytest.mark.slow


def commands(title):
    """The lines of the block in docs/team.md that begins with this comment."""
    (block,) = re.findall(rf"```sh\n# {title}\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL)
    return block.splitlines()


def run(clone, lines, places):
    """Run commands of the document with local addresses and return their output."""
    printed = []
    for line in lines:
        for there, here in places.items():
            line = line.replace(there, here)
        environment = {"PYTHONPATH": places["PYTHONPATH"], "MLFLOW_TRACKING_URI": places["https://mlflow.example.org"]}
        printed.append(clone.run("sh", "-c", line, **environment).stdout)
    return printed


@pytest.mark.skipif(NO_POSTGRES, reason="Debian's package postgresql is missing")
def test_a_colleague_gets_encoder_and_rows_without_computing(clone, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "team")
    mine, colleague = clone(history=False), Clone(tmp_path)
    bare = tmp_path / "convae.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", mine.folder, bare], check=True)
    mine.run("git", "remote", "add", "origin", str(bare))
    mine.run("git", "push", "--quiet", "--set-upstream", "origin", "HEAD")
    with s3_server(tmp_path, "team") as storage, postgres() as database:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", storage)
        (hosts,) = re.findall(r"(--allowed-hosts) '(\S+)'", "\n".join(commands("on the server")))
        options = " ".join(hosts).replace(NAME, f"{NAME}:{{port}}")
        with mlflow_server(tmp_path, database, "s3://team/mlflow", options) as (numeric, _):
            address = numeric.replace("127.0.0.1", "localhost")
            places = {
                "https://storage.example.org": storage,
                "git@example.org:convae.git": str(bare),
                "https://mlflow.example.org": numeric.replace("127.0.0.1", NAME),
                "PYTHONPATH": f"src{os.pathsep}{with_name(tmp_path, NAME)}",
            }
            run(mine, commands("in the repository")[1:], places)
            run(mine, commands("who computes"), places)
            client = MlflowClient(address)
            before = {name: len(recorded(client, name)) for name in (STAGES, ROWS)}
            assert before == {STAGES: 6 + 2, ROWS: 2}

            get, _, *lines = commands("a colleague")
            run(colleague, [get], places)
            colleague = Clone(tmp_path / "convae")
            printed = run(colleague, lines, places)
            assert not any("Running stage" in text for text in printed)
            assert sum("Data and pipelines are up to date" in text for text in printed) == 2
            assert printed[-1] == "Added 0 stage runs and 0 experiments; existing ones are unchanged.\n"
            assert {name: len(recorded(client, name)) for name in before} == before
            assert b"report.html" in urlopen(f"{storage}/team?prefix=mlflow/").read()
            names = {run.info.run_name.partition(":")[0].split(" ", 1)[-1] for run in recorded(client, ROWS)}
            assert names == {"First results", "ridge"}
    assert len({load_encoder(one.folder / "models/encoder").sha256 for one in (mine, colleague)}) == 1
    for name in ("models/classifier/classifier.json", "reports/metrics.json", "dvc.lock"):
        assert colleague.read(name) == mine.read(name)


def test_a_conflict_in_dvc_lock_is_resolved_as_documented(finished, monkeypatch):
    monkeypatch.setenv("CONVAE_TRACKING", "off")

    def compute(message, *changes):
        finished.set(*changes)
        finished.run("dvc", "repro")
        finished.commit(message)

    finished.run("git", "switch", "--quiet", "--create", "side")
    compute("On the side", "classifier.kind=ridge")
    finished.run("git", "switch", "--quiet", "-")
    compute("Meanwhile", "features.grid=2")
    assert finished.run("git", "merge", "side", check=False).returncode
    assert b"<<<<<<<" in finished.read("dvc.lock")

    (row,) = re.findall(
        r"^\| a merge ends with a conflict in `dvc.lock` \|(.*)", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    lines = re.findall(r"`((?:git|dvc) [^`]+)`", row.partition(";")[0])
    assert lines[:2] == ["git checkout --theirs params.yaml dvc.lock reports", "dvc repro"]
    for line in lines:
        finished.run(*line.split())
    assert "up to date" in finished.run("dvc", "status").stdout
    assert not finished.run("git", "status", "--porcelain").stdout
    assert not finished.run("git", "grep", "-l", "^<<<<<<< ", check=False).stdout
    locked = read_lock(finished.read("dvc.lock").decode())
    assert (locked["features"].params["features.grid"], locked["evaluate"].params["classifier.kind"]) == (2, "ridge")
    assert "<<<<<<<" not in finished.read("reports/metrics.json").decode()
