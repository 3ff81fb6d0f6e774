"""Uploading to and loading from the Hugging Face Hub, with its own client and a server that answers as the Hub does."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from saved_models import save_models

from convae import load_encoder, load_image_classifier

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One model repository, `owner/name`."""

    files: dict[str, bytes]

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        page = f"http://{self.headers['Host']}/owner/name"
        if not self.headers["Authorization"]:
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.answer({"url": page})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": files})
        else:  # a commit
            for part in map(json.loads, body.splitlines()):
                if part["key"] == "deletedFile":
                    del self.files[part["value"]["path"]]
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{page}/commit/{COMMIT}"})

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        name = place.partition("/resolve/")[2].partition("/")[2]
        if not place.startswith(("/owner/name", "/api/models/owner/name")):
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif name in self.files:
            content = self.files[name]
            self.answer(content, X_Repo_Commit=COMMIT, ETag=hashlib.sha1(content).hexdigest())
        elif "/tree/" in place:
            tree = [
                {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
                for name, content in self.files.items()
            ]
            self.answer(tree)
        else:
            about = {"id": "owner/name", "sha": COMMIT, "tags": [], "siblings": [{"rfilename": n} for n in self.files]}
            self.answer(about)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    handler = type("OneHub", (Hub,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.files = handler.files
        Thread(target=server.serve_forever, daemon=True).start()
        # Its client reads these when it is imported, so commands run in processes of their own.
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.chdir(tmp_path)
        save_models()
        yield server
        server.shutdown()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


# The models of these tests have no lineage: no pipeline has made them.
PUSH = """
import sys
from pathlib import Path
from convae import ConvaeError, hub
from convae.history.git import Place
hub.find_producer = lambda path: (Place("here", {}, 0, "", "1234567" + 33 * "0"), None)
try:
    hub.push(sys.argv[1], Path("models"))
except ConvaeError as error:
    sys.exit(str(error))
"""
LOAD = """
import sys
import numpy as np
from convae import load_encoder, load_image_classifier
images = np.load("images.npy")
np.save("features.npy", load_encoder(sys.argv[1]).features(images))
np.save("scores.npy", load_image_classifier(sys.argv[1]).scores(images))
"""


def test_a_model_is_uploaded_with_a_card_loaded_again_and_then_kept(hub):
    pushed = run("-c", PUSH, "hf://owner/name")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"http://127.0.0.1:{hub.server_address[1]}/owner/name"
    local = {path.relative_to("models").as_posix(): path.read_bytes() for path in Path("models").rglob("*.*")}
    assert {name: hub.files[name] for name in local} == local
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.library_name, card.data.datasets) == ("convae", ["digits"])
    assert card.data.eval_results[0].metric_value == 0.5
    assert "commit `1234567`" in card.text

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    np.save("images.npy", images)
    for offline in (False, True):
        if offline:
            hub.files.clear()
            hub.shutdown()
            hub.server_close()
        loaded = run("-c", LOAD, "hf://owner/name")
        assert loaded.returncode == 0, loaded.stderr
        np.testing.assert_array_equal(np.load("features.npy"), load_encoder("models/encoder").features(images))
        np.testing.assert_array_equal(np.load("scores.npy"), load_image_classifier("models").scores(images))
        Path("features.npy").unlink()


@pytest.mark.parametrize(
    ("code", "address", "words"),
    [
        (PUSH, "hf://name", "hf://owner/name is needed"),
        (PUSH, "https://host/model.tar", "hf://owner/name is needed"),
        (LOAD, "hf://owner/other", "Repository Not Found"),
        (LOAD, "hf://a b/c", "Repo id must use alphanumeric"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(hub, code, address, words):
    np.save("images.npy", np.zeros((1, 8, 8), np.uint8))
    said = run("-c", code, address).stderr.strip().splitlines()[-1]
    assert address in said
    assert words in said


def test_parts_of_an_earlier_model_are_removed(hub):
    assert run("-c", PUSH, "hf://owner/name").returncode == 0
    hub.files["notes.txt"] = b"mine"
    Path("models/reference").mkdir()
    Path("models/reference/features.safetensors").write_bytes(b"of training images")
    shutil.rmtree("models/classifier")
    pushed = run("-c", PUSH, "hf://owner/name")
    assert pushed.returncode == 0, pushed.stderr
    assert sorted(hub.files) == ["README.md", "encoder/config.json", "encoder/model.safetensors", "notes.txt"]


def test_without_the_hub_the_reason_is_told(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for code in (PUSH, LOAD):
        np.save("images.npy", np.zeros((1, 8, 8), np.uint8))
        said = run("-c", code, "hf://owner/name").stderr.strip().splitlines()[-1]
        assert "hf://owner/name: " in said


def test_without_a_token_the_remedy_is_told(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert "hf auth login" in run("-c", PUSH, "hf://owner/name").stderr
    assert not hub.files
