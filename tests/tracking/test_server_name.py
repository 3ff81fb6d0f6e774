"""An MLflow server addressed by name, as in docs/team.md: refused unless it was started with that name."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers import REPOSITORY, mlflow_server, recorded, with_name
from mlflow import MlflowClient

NAME = "mlflow.example.org"
STAGE = "from convae.stages.runner import run_stage\nrun_stage('train', lambda params, run: None)"
COMMAND = "import sys; from convae.cli import main; sys.argv[0] = 'convae'; sys.exit(main())"
LOAD = """
from convae.encoder import load_encoder
from convae.errors import ConvaeError
try:
    load_encoder("models:/convae-encoder@champion")
except ConvaeError as error:
    print(error)
"""


@pytest.fixture
def call(fresh: Path, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`call(address, code, *arguments)` runs Python with the server at this address."""
    environment = os.environ | {"PYTHONPATH": with_name(tmp_path, NAME)}

    def call(address: str, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment | {"MLFLOW_TRACKING_URI": address},
        )

    return call


@contextmanager
def server(folder: Path, options: str = "") -> Iterator[tuple[str, str]]:
    """The server's own address, and that by the name."""
    with mlflow_server(folder, options=options) as (address, _):
        yield address.replace("127.0.0.1", "localhost"), address.replace("127.0.0.1", NAME)


@pytest.mark.slow
def test_a_refused_name_is_one_line_that_says_what_to_do(
    call: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    with server(tmp_path) as (_, address):
        name = urlsplit(address).netloc
        words = (
            f"the server does not answer to the name {name} (403, Invalid Host header); start it with "
            f"`mlflow server --allowed-hosts {name}`, see docs/team.md"
        )
        secret = address.replace("//", "//user:secret@")
        stage = call(secret, STAGE)
        assert stage.stderr == f"train: no longer recorded in MLflow ({words}); results are unaffected\n"
        assert stage.returncode == 0
        for command in ("sync", "ui"):
            done = call(secret, COMMAND, command)
            assert (done.stdout, done.stderr, done.returncode) == ("", f"convae: {words}\n", 1)
        assert call(secret, LOAD).stdout == f"{words}\n"


@pytest.mark.slow
def test_with_the_documented_options_the_server_answers_programs_and_browsers(
    call: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    page = (REPOSITORY / "docs/team.md").read_text("utf-8")
    options = " ".join(re.findall(r"--(?:allowed-hosts|cors-allowed-origins) \S+", page))
    assert f"https://{NAME}" in options  # behind a proxy with a certificate
    options = options.replace(f"https://{NAME}", f"http://{NAME}").replace(NAME, f"{NAME}:{{port}}")
    with server(tmp_path, options.replace("'", "")) as (own, address):
        stage = call(address, STAGE)
        assert (stage.stderr, stage.returncode) == ("", 0)
        assert "Added 0 stage runs" in call(address, COMMAND, "sync").stdout
        assert [run.info.status for run in recorded(MlflowClient(own))] == ["FINISHED"]
        for origin, status in ((address, 200), ("http://elsewhere.example.org", 403)):
            with closing(HTTPConnection(urlsplit(own).netloc)) as browser:
                headers = {"Host": urlsplit(address).netloc, "Origin": origin, "Content-Type": "application/json"}
                browser.request("POST", "/ajax-api/2.0/mlflow/experiments/search", '{"max_results": 1}', headers)
                assert browser.getresponse().status == status
