"""What surrounds a run: code, versions, process."""

import os
import platform
import socket
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import psutil

PACKAGES = ("convae", "dvc", "mlflow", "numpy", "pytorch-lightning", "scikit-learn", "torch")


def context_tags(stage: str) -> dict[str, str]:
    """Tags that say of a stage's run which code ran in which process.

    Host, process id and start time together tell later whether a run that never ended can still be going on.
    """
    process = psutil.Process()
    return {
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        **({"dvc.experiment": os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}),
        "process.host": socket.gethostname(),
        "process.pid": str(process.pid),
        "process.started": f"{process.create_time():.2f}",
        **_versions(),
        **_git(),
    }


def _versions() -> dict[str, str]:
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            tags[f"version.{package}"] = version(package)
    return tags


def _git() -> dict[str, str]:
    """The commit, and whether anything but the stages' own outputs differs from it; without git nothing."""
    try:
        commit = _call_git("rev-parse", "HEAD")
        changes = _call_git("status", "--porcelain", "--untracked-files=no", ":!dvc.lock", ":!reports")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if changes else "false"}


def _call_git(*arguments: str) -> str:
    # Without optional locks: DVC may be at work in the same repository.
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
