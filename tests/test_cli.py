import os
import socket
import subprocess
import sys
import urllib.request
from importlib import import_module

import psutil
import pytest
from helpers import free_port, wait_for

from convae import __version__
from convae.cli import _parser


def convae(*arguments, cwd, input="", **environment):
    command = [sys.executable, "-m", "convae.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, input=input, capture_output=True, text=True, timeout=600
    )


def test_help_has_examples_and_loads_nothing_heavy(tmp_path):
    done = convae("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "examples:" in done.stdout
    code = "import sys, convae.cli; print({'torch', 'mlflow', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_every_command_leads_to_a_function():
    parser, names = _parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    assert list(commands) == names
    for command in commands.values():
        module, _, function = command.get_default("command").partition(":")
        assert callable(getattr(import_module(f"convae.{module}"), function))


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("clasify", "did you mean 'classify'?"),
        ("feature", "did you mean 'features'?"),
        ("xyz", "the commands are check"),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(tmp_path, typed, advice):
    done = convae(typed, "photo.png", cwd=tmp_path)
    assert done.returncode == 2
    assert f"convae: error: no command '{typed}'; {advice}" in done.stderr


def test_version_and_python_m_work(tmp_path):
    assert convae("--version", cwd=tmp_path).stdout == f"convae {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "convae", "--version"], capture_output=True, text=True)
    assert done.stdout == f"convae {__version__}\n"


def test_completion_finds_lazily_loaded_names():
    code = "import convae, sys; print(sorted(set(convae.__all__) - set(dir(convae))), 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[] False\n"


@pytest.mark.parametrize("command", [("ui", "--port", "0"), ("sync",)], ids=["ui", "sync"])
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CONVAE_TRACKING": "off"}, "tracking is switched off"),
        ({"MLFLOW_TRACKING_URI": ""}, "the MLflow store can't be used: "),
        ({"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"}, "the MLflow store can't be used: "),
    ],
    ids=["off", "no database", "no server"],
)
def test_a_missing_store_is_reported_in_one_line(repository, tmp_path, command, environment, message):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    done = convae(*command, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_a_taken_port_is_reported_at_once(repository, tmp_path):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = convae("ui", "--port", port, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"convae: port {port} can't be used (")
    assert done.stderr.endswith("); choose another with --port\n")
    assert not (tmp_path / "mlflow.db").exists()


def fetched(address):
    try:
        return urllib.request.urlopen(address, timeout=5).read()
    except OSError:
        return b""


@pytest.mark.slow
def test_ui_serves_the_database_on_loopback(repository, tmp_path):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    (tmp_path / "mlflow.db").touch()
    port = free_port()
    command = [sys.executable, "-m", "convae.cli", "ui", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: b"MLflow" in fetched(f"http://127.0.0.1:{port}"))
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        sockets = [one for process in processes for one in process.net_connections() if one.status == "LISTEN"]
        assert {one.laddr.ip for one in sockets} == {"127.0.0.1"}
    finally:
        server.terminate()
        server.wait()
