"""Where states of the repository are kept, read through git's own commands."""

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from convae.tracking.lock import LOCK_FILE, Executions, read_lock

EXPERIMENTS = "refs/exps/"
# What DVC keeps beside the experiments: those under way, queued and failed.
INTERNAL = ("refs/exps/exec/", "refs/exps/celery/", "refs/exps/stash", "refs/exps/tasks/")
SUBJECT_LENGTH = 40


@dataclass(frozen=True)
class Place:
    """A state of the repository: a commit, an experiment of DVC, or the workspace."""

    name: str
    executions: Executions
    time: int  # in milliseconds since 1970
    command: str  # brings it back; empty where nothing does
    commit: str = ""  # empty for the workspace
    baseline: str = ""  # the commit that an experiment's parameters are told apart from

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder with what git keeps of the stages' outputs."""
        if not self.commit:
            yield Path()
            return
        with TemporaryDirectory() as folder:
            packed = subprocess.run(
                ["git", "archive", "--format=tar", self.commit, "reports"], capture_output=True, check=False
            )
            if packed.returncode == 0:  # otherwise there is no such folder
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                    archive.extractall(folder, filter="data")
            yield Path(folder)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def git(*arguments: str) -> str:
    """What git prints; nothing where there is no git, no repository or no such thing."""
    # Without optional locks: DVC may be at work in the same repository.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()


def lock_at(commit: str) -> Executions:
    """The executions that dvc.lock has at a commit."""
    return read_lock(git("show", f"{commit}:./{LOCK_FILE}"))


def workspace(time: int) -> Place:
    """The current folder, which under `dvc exp run` belongs to an experiment, at this time."""
    executions = read_lock(LOCK_FILE.read_text("utf-8") if LOCK_FILE.exists() else "")
    name = os.environ.get("DVC_EXP_NAME")
    if name:
        baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
        return Place(name, executions, time, f"dvc exp apply {name}", baseline=baseline)
    return Place("workspace", executions, time, "", baseline=git("rev-parse", "HEAD"))


def places() -> Iterator[Place]:
    """Every commit of branches and tags that changed dvc.lock, oldest first; DVC's experiments; the workspace."""
    history = ("--full-history", "--reverse", "--branches", "--tags", "--remotes", "--", str(LOCK_FILE))
    for line in git("log", "--format=%H%x09%ct%x09%s", *history).splitlines():
        commit, seconds, subject = line.split("\t", 2)
        name = f"{commit[:7]} {subject[:SUBJECT_LENGTH]}"
        yield Place(name, lock_at(commit), int(seconds) * 1000, f"git checkout {commit[:7]} && dvc checkout", commit)
    form = "--format=%(refname)%09%(objectname)%09%(creatordate:unix)"
    for line in git("for-each-ref", "--sort=creatordate", form, EXPERIMENTS.rstrip("/")).splitlines():
        reference, commit, seconds = line.split("\t")
        if not reference.startswith(INTERNAL):
            start, rest, name = reference.removeprefix(EXPERIMENTS).split("/", 2)
            command = f"dvc exp apply {name}"
            yield Place(name, lock_at(commit), int(seconds) * 1000, command, commit, start + rest)
    yield workspace(now())
