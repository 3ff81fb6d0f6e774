"""Helpers shared by several tests: waiting, queries of MLflow, and servers."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from filelock import FileLock

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).parents[1]
DAY = 24 * 3600  # seconds
STAGES = "convae-stages"
ROWS = "convae"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")
POSTGRES = REPOSITORY / "tests/postgres.sh"
NO_POSTGRES = subprocess.run([POSTGRES, "find"], capture_output=True, check=False).returncode != 0


@cache
def _state() -> str:
    """Hash of the interpreter and of every file of the repository, apart from those that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256(sys.version.encode())
    for path in (REPOSITORY / name for name in sorted(filter(None, names))):
        if path.is_file():
            digest.update(f"{path} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Create a folder once; all workers and later runs share it, until a file of the repository changes."""
    home = REPOSITORY / ".pytest_cache/made"
    folder = home / _state() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        made = folder.with_suffix(".made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for old in home.iterdir():  # of another state of the repository
                if time.time() - old.stat().st_mtime > DAY:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            make(folder)
            made.touch()
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds} s"
        time.sleep(0.1)


def recorded(client: "MlflowClient", experiment: str = STAGES) -> "list[Run]":
    """The runs of an experiment, oldest first; empty if it does not exist yet."""
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["start_time"])) if found else []


def content(client: "MlflowClient", experiment: str) -> list[tuple[object, ...]]:
    """Everything in an experiment's runs that `convae sync` can rebuild, sorted."""
    return sorted(
        (
            run.data.tags["convae.key"],
            run.info.run_name,
            sorted(run.data.params.items()),
            [
                (name, [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name)])
                for name in sorted(run.data.metrics)
                if name != "duration_seconds" and not name.startswith("system/")
            ],
            sorted((item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs),
            sorted(item.path for item in client.list_artifacts(run.info.run_id)),
            [len(models) for models in (run.inputs.model_inputs, run.outputs.model_outputs)],
            sorted(
                (model.name, sorted((metric.key, metric.value, metric.dataset_name) for metric in model.metrics or []))
                for model in client.search_logged_models(
                    [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
                )
            ),
        )
        for run in recorded(client, experiment)
    )


def kill_with_recorder(stage: "subprocess.Popen[str]", client: "MlflowClient") -> None:
    """Once a stage has recorded a metric, kill its recorder and then the stage, so that the run stays open."""
    wait_for(lambda: any(run.data.metrics for run in recorded(client)))
    (recorder,) = psutil.Process(stage.pid).children()
    recorder.kill()
    stage.kill()
    stage.wait()


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def failing_server(status: int) -> Iterator[str]:
    """The address of a server that answers every request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def mlflow_server(
    folder: Path, store: str = "sqlite:///server.db", artifacts: str = "artifacts", options: str = ""
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address and the process of an MLflow server that keeps artifacts in a folder or at an address.

    `{port}` in `options` stands for the port that it listens on.
    """
    port = free_port()
    options = f"--host 127.0.0.1 --port {port} --workers 1 --artifacts-destination {artifacts} {options}"
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": store}
    log = folder / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options.format(port=port).split()],
            cwd=folder,
            env=os.environ | settings,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            urlopen(f"{address}/health", timeout=5).close()
        except (URLError, ConnectionError, TimeoutError):
            return False
        return True

    try:
        wait_for(answers)
        yield address, server
    finally:
        stop(server)


def with_name(folder: Path, name: str) -> str:
    """A PYTHONPATH that makes `name` resolve to this machine."""
    source = f"""\
import socket
ask = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **others: ask("127.0.0.1" if host == {name!r} else host, *more, **others)
"""
    (folder / "resolver").mkdir()
    (folder / "resolver/sitecustomize.py").write_text(source)
    return f"{folder / 'resolver'}{os.pathsep}{REPOSITORY / 'src'}"


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """The address of an S3 store with an empty bucket that accepts any credentials."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def is_made() -> bool:
        try:
            return bool(urlopen(Request(f"{address}/{bucket}", method="PUT"), timeout=5).status == 200)
        except OSError:
            return False

    try:
        wait_for(is_made)
        yield address
    finally:
        stop(server)


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty PostgreSQL database on its own server."""
    port = str(free_port())
    started = subprocess.run([POSTGRES, "start", port], stdout=subprocess.PIPE, text=True, check=True)
    folder = started.stdout.strip()
    try:
        yield f"postgresql+psycopg2://convae@127.0.0.1:{port}/convae"
    finally:
        subprocess.run([POSTGRES, "stop", folder], check=True)


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Kill a server with all its processes."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def epochs(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of a training's history at the ends of epochs."""
    return [row for row in history if "validation_loss" in row]
