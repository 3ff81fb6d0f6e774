import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


def convae(*arguments, cwd, **environment):
    command = [sys.executable, "-m", "convae.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_help_has_examples_and_loads_nothing_heavy(tmp_path):
    done = convae("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "examples:" in done.stdout
    code = "import sys, convae.cli; print({'torch', 'mlflow', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CONVAE_TRACKING": "off"}, "tracking is switched off"),
        ({"MLFLOW_TRACKING_URI": ""}, "is not there yet: `dvc repro` records the first runs"),
    ],
)
def test_ui_without_runs_says_why(repository, tmp_path, environment, message):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    done = convae("ui", cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_ui_over_something_that_is_no_database_says_so(repository, tmp_path):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    done = convae("ui", cwd=tmp_path, MLFLOW_TRACKING_URI="")
    assert done.returncode == 1
    assert "can't be opened: DatabaseError: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_ui_names_the_server_that_has_the_runs(repository):
    done = convae("ui", cwd=repository, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "server at http://127.0.0.1:9" in done.stdout


def test_ui_serves_the_database_on_loopback(repository, tmp_path):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "convae.cli", "ui", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        assert b"MLflow" in page
    finally:
        server.terminate()
        server.wait()
