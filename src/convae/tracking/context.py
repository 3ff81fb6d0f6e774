"""The context of a run: code, versions, process."""

import getpass
import os
import platform
import socket
from pathlib import Path

import psutil

from convae.environment import PACKAGES, versions
from convae.history.git import git

USER, EXPERIMENT = "mlflow.user", "dvc.experiment"


def process_tags() -> dict[str, str]:
    """Return tags for the process.

    Process id and start time show later whether a run that never ended can still be running: ids alone may be reused.
    """
    process = psutil.Process()
    started = f"{process.create_time():.2f}"
    return {"process.host": this_host(), "process.pid": str(process.pid), "process.started": started}


def user_tags() -> dict[str, str]:
    """Return a tag for the user, unless this user id has no name, as in many containers."""
    try:
        return {USER: getpass.getuser()}
    except (KeyError, OSError):
        return {}


def this_host() -> str:
    """Return the name of this machine and, on Linux, of its process-id namespace: containers can share a host name."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space.readlink()}" if space.is_symlink() else socket.gethostname()


def context_tags() -> dict[str, str]:
    """Return tags for the code, package versions and DVC experiment."""
    name = os.environ.get("DVC_EXP_NAME")
    experiment = {EXPERIMENT: name} if name else {}
    found = {"python": platform.python_version(), **versions((*PACKAGES, "convae", "dvc", "mlflow"))}
    return experiment | {f"version.{name}": number for name, number in found.items() if number} | _git()


def _git() -> dict[str, str]:
    """Return tags for the commit and whether anything but the stages' outputs differs from it; none without git."""
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changes = git("status", "--porcelain", "--untracked-files=no", ":!dvc.lock", ":!reports")
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if changes else "false"}
