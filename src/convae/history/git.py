"""Where states of the repository are kept, read through git's own commands."""

import io
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from convae.errors import ConvaeError
from convae.history.lock import LOCK_FILE, REPORTS, Executions, lock_here, read_lock

EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
SUBJECT_LENGTH = 40


@dataclass(frozen=True)
class Place:
    """A state of the repository: a commit, an experiment of DVC, or the workspace."""

    name: str
    executions: Executions
    time: int  # in milliseconds since 1970
    command: str  # brings it back; empty for the workspace
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
                ["git", "archive", "--format=tar", self.commit, REPORTS], capture_output=True, check=False
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
        done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def lock_at(commit: str) -> Executions:
    """The executions that dvc.lock has at a commit; none where it can't be read, of which a line on stderr tells."""
    try:
        return read_lock(git("show", f"{commit}:./{LOCK_FILE}"))
    except ConvaeError as error:
        tqdm.write(f"commit {commit[:7]}: {error}; left out", file=sys.stderr)  # there is a bar
        return {}


def workspace(time: int) -> Place:
    """The current folder, which under `dvc exp run` belongs to an experiment, at this time.

    Raises:
        ConvaeError: its dvc.lock can't be read.
    """
    executions = lock_here()
    name = os.environ.get("DVC_EXP_NAME")
    if name:
        baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
        return Place(name, executions, time, f"dvc exp apply {name}", baseline=baseline)
    return Place("workspace", executions, time, "", baseline=git("rev-parse", "HEAD"))


def places() -> Iterator[Place]:
    """Commits of HEAD, branches and tags that changed dvc.lock or reports/, oldest first; experiments; the workspace.

    Raises:
        ConvaeError: dvc.lock in the workspace can't be read.
    """
    heads = [*filter(None, [git("rev-parse", "--verify", "--quiet", "HEAD")]), "--branches", "--tags", "--remotes"]
    form = "--format=%H%x09%ct%x09%s"
    options = ("-z", "--no-show-signature", "--full-history", "--reverse", form)
    for record in filter(None, git("log", *options, *heads, "--", str(LOCK_FILE), REPORTS).split("\0")):
        commit, seconds, subject = record.split("\t", 2)
        name = f"{commit[:7]} {subject[:SUBJECT_LENGTH]}"
        yield Place(name, lock_at(commit), int(seconds) * 1000, f"git checkout {commit[:7]} && dvc checkout", commit)
    form = "--format=%(refname)%09%(objectname)%09%(creatordate:unix)"
    for line in git("for-each-ref", "--sort=creatordate", form, "refs/exps").splitlines():
        reference, commit, seconds = line.split("\t")
        experiment = EXPERIMENT.fullmatch(reference)  # DVC keeps other things beside them
        if experiment:
            start, rest, name = experiment.groups()
            command = f"dvc exp apply {name}"
            yield Place(name, lock_at(commit), int(seconds) * 1000, command, commit, start + rest)
    yield workspace(now())
