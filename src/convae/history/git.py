"""States of the repository, read with git commands."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from tqdm import tqdm

from convae.errors import ConvaeError
from convae.history.lock import LOCK_FILE, REPORTS, Executions, lock_here, read_lock

EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
SUBJECT_LENGTH = 40


@dataclass(frozen=True)
class Place:
    """A state of the repository: a commit, a DVC experiment, or the workspace."""

    name: str
    executions: Executions
    time: int  # milliseconds since 1970
    command: str  # restores this state; empty for the workspace
    commit: str = ""  # empty for the workspace
    baseline: str = ""  # the commit that an experiment's parameters are compared with

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder with the outputs in reports/ as of this state: a temporary copy, or the current folder."""
        if not self.commit:
            yield Path()
            return
        with TemporaryDirectory() as folder:
            # Not as tar, whose safe extraction Python 3.11 has only from 3.11.4 on; Debian 12 ships 3.11.2.
            packed = subprocess.run(
                ["git", "archive", "--format=zip", self.commit, REPORTS], capture_output=True, check=False
            )
            if packed.returncode == 0:  # otherwise the commit has no reports/
                ZipFile(io.BytesIO(packed.stdout)).extractall(folder)
            yield Path(folder)


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def git(*arguments: str) -> str:
    """Return what a git command prints, without surrounding whitespace; empty if it fails or git is missing.

    Example:
        >>> git("no-such-command")
        ''
    """
    # Without optional locks, so that DVC can work in the same repository at the same time.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def lock_at(commit: str) -> Executions:
    """Return the executions in a commit's dvc.lock; none, and a line on stderr, if it can't be read."""
    try:
        return read_lock(git("show", f"{commit}:./{LOCK_FILE}"))
    except ConvaeError as error:
        tqdm.write(f"commit {commit[:7]}: {error}; skipped", file=sys.stderr)  # not print: a progress bar may be shown
        return {}


def workspace(time: int) -> Place:
    """Return the state of the current folder at `time`; under `dvc exp run` it is that of an experiment.

    Raises:
        ConvaeError: dvc.lock can't be read.
    """
    executions = lock_here()
    name = os.environ.get("DVC_EXP_NAME")
    if name:
        baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
        return Place(name, executions, time, f"dvc exp apply {name}", baseline=baseline)
    return Place("workspace", executions, time, "", baseline=git("rev-parse", "HEAD"))


def places() -> Iterator[Place]:
    """Yield every recorded state: first commits, then DVC's experiments, each oldest first, and last the workspace.

    Commits are those of HEAD, branches and tags that changed dvc.lock or reports/.

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
        experiment = EXPERIMENT.fullmatch(reference)  # DVC keeps other references there too
        if experiment:
            start, rest, name = experiment.groups()
            command = f"dvc exp apply {name}"
            yield Place(name, lock_at(commit), int(seconds) * 1000, command, commit, start + rest)
    yield workspace(now())
