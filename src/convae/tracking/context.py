"""What surrounds a run: code, versions, process."""

import getpass
import os
import platform
import socket
from pathlib import Path

import psutil

from convae.environment import PACKAGES, versions
from convae.history.git import git


def process_tags() -> dict[str, str]:
    """Who and where; process id and start time tell later whether a run that never ended can still be going on."""
    process = psutil.Process()
    try:
        user = {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # nobody knows a name for this user id, as in many containers
        user = {}
    return {
        **user,
        "process.host": this_host(),
        "process.pid": str(process.pid),
        "process.started": f"{process.create_time():.2f}",
    }


def this_host() -> str:
    """The name of this machine and, where Linux tells, of the space that its process ids belong to."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space.readlink()}" if space.is_symlink() else socket.gethostname()


def context_tags() -> dict[str, str]:
    """Which code runs, and in which of DVC's experiments."""
    name = os.environ.get("DVC_EXP_NAME")
    return {**({"dvc.experiment": name} if name else {}), **_versions(), **_git()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **versions((*PACKAGES, "convae", "dvc", "mlflow"))}
    return {f"version.{name}": number for name, number in found.items() if number}


def _git() -> dict[str, str]:
    """The commit, and whether anything but the stages' own outputs differs from it; without git nothing."""
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changes = git("status", "--porcelain", "--untracked-files=no", ":!dvc.lock", ":!reports")
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if changes else "false"}
