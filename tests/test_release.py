"""What a release states twice agrees, and what CI and containers name exists."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers import REPOSITORY
from ruamel.yaml import YAML

import convae

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
workflows = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
HOOKS = YAML(typ="safe").load(REPOSITORY / ".pre-commit-config.yaml")["repos"][0]["hooks"]
IMAGE = (REPOSITORY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
# What git ignores must stay at home, wherever it lies.
LOCAL = (
    ".dvc/cache/a",
    ".venv/lib/a.py",
    "benchmark/ladder/.dvc/tmp/a",
    "data/local/a.png",
    "data/prepared/a.npy",
    "mlflow.db",
    "models/encoder/config.json",
    "models/initial/config.json",
    "src/convae/__pycache__/a.cpython-311.pyc",
)


def text(name: str) -> str:
    return (REPOSITORY / name).read_text("utf-8")


def targets() -> set[str]:
    (names,) = re.findall(r"^\.PHONY: (.*)", text("Makefile"), re.MULTILINE)
    return set(names.split())


def tracked() -> set[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).exists()}


def test_all_files_state_the_same_version() -> None:
    citation = YAML(typ="safe").load(REPOSITORY / "CITATION.cff")
    assert citation["version"] == convae.__version__
    assert re.findall(r"^## (\d\S*)", text("CHANGELOG.md"), re.MULTILINE)[0] == convae.__version__
    for page in ("README.md", "docs/reuse.md"):
        assert re.findall(r"convae-(\S+?)-py3-none-any\.whl", text(page)) == [convae.__version__]


def test_the_licence_names_the_authors() -> None:
    (author,) = YAML(typ="safe").load(REPOSITORY / "CITATION.cff")["authors"]
    assert author["name"] in text("LICENSE")
    assert f'authors = [{{ name = "{author["name"]}" }}]' in text("pyproject.toml")


def test_the_phony_targets_are_those_that_help_lists() -> None:
    assert set(re.findall(r"^([a-z-]+):.*##", text("Makefile"), re.MULTILINE)) | {"help"} == targets()


@workflows
def test_jobs_only_call_make(workflow: Path) -> None:
    for job in YAML(typ="safe").load(workflow)["jobs"].values():
        *actions, last = job["steps"]
        assert all(step.keys() <= {"uses", "with"} for step in actions)
        assert re.match(r"make [a-z-]+$", last["run"])
        assert last["run"].split()[1] in targets()


@workflows
def test_workflows_may_only_read_and_always_end(workflow: Path) -> None:
    content = YAML(typ="safe").load(workflow)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["cancel-in-progress"] is True
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"][:-1]:
            assert re.match(r"actions/[a-z-]+@v\d+$", step["uses"])
            for name in step.get("with", {}).get("cache-dependency-path", "").split():
                assert (REPOSITORY / name).is_file()


def test_the_matrix_has_the_versions_that_the_package_claims() -> None:
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml"))
    (matrix,) = re.findall(r"python: \[(.*)\]", text(".github/workflows/ci.yml"))
    assert re.findall(r"[\d.]+", matrix) == claimed


def test_hooks_call_make() -> None:
    assert [hook["entry"].split() for hook in HOOKS] == [["make", "check"]]


def test_the_image_holds_the_lock_without_cuda() -> None:
    """The Dockerfile's own program, applied to the lock, drops what belongs to CUDA and nothing else."""
    (program,) = re.findall(r"awk '(.*?)' requirements.lock", IMAGE)
    kept = subprocess.run(
        ["awk", program, "requirements.lock"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    names = [set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE)) for lock in (text("requirements.lock"), kept)]
    dropped = {name for name in names[0] - names[1] if not name.startswith(("cuda-", "nvidia-"))}
    assert dropped == {"torch", "torchvision", "triton"}
    assert "nvidia-ml-py" in names[1]
    assert all(line.startswith("    --hash=") or "==" in line for line in kept.splitlines())
    pattern = re.findall(r"grep -oE '(.*?)' requirements.lock", IMAGE)[0]
    assert len(re.findall(pattern, text("requirements.lock"), re.MULTILINE)) == 2


def test_the_context_of_the_image_has_what_it_copies() -> None:
    copied = {name for line in re.findall(r"^COPY (.*)", IMAGE, re.MULTILINE) for name in line.split()[:-1]}
    assert copied == set(re.findall(r"^!(.*)", text(".dockerignore"), re.MULTILINE))
    assert all((REPOSITORY / name).exists() for name in copied)


def test_the_development_container_mounts_the_clone_where_the_image_expects_it() -> None:
    container = json.loads(text(".devcontainer/devcontainer.json"))
    (folder,) = re.findall(r"^WORKDIR (.*)", IMAGE, re.MULTILINE)
    assert container["workspaceFolder"] == folder
    assert f"target={folder}," in container["workspaceMount"]
    assert (REPOSITORY / ".devcontainer" / container["build"]["dockerfile"]).resolve() == REPOSITORY / "Dockerfile"


def test_the_sdist_holds_what_git_keeps_and_nothing_local(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, copy / name)
    for name in LOCAL:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if not member.isdir()}
    made = {name for name in names if name in {"PKG-INFO", "setup.cfg"} or ".egg-info/" in name}
    assert names - made == tracked() - made  # git may keep what was made, in an unpacked sdist
