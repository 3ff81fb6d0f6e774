"""One trial of a search: a DVC experiment, run in its own clone so that trials can run in parallel."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from convae.errors import ConvaeError
from convae.files import new_folder
from convae.history.git import git
from convae.history.verify import DOWNLOADS, link_folders
from convae.params import PARAMS_FILE, Params
from convae.search.settings import change
from convae.tracking.store import store_root

FOLDER = Path(".convae/search")
WATCH_SECONDS = 1.0
LOCAL_CONFIG = Path(".dvc/config.local")
# Runs DVC so that it and its stage end when the worker is killed. It restores SIGINT, which prunes a trial: a worker
# that a script started with `&` ignores that signal, and its children would inherit this.
DVC = (
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from convae.stages.runner import end_group_with_parent; end_group_with_parent(); "
    "from dvc.cli import main; sys.exit(main(sys.argv[1:]))",
)


class FailedError(ConvaeError):
    """An experiment ended without a result."""


@dataclass(frozen=True)
class Base:
    """The starting point of a worker's trials.

    Attributes:
        commit: the hash of the commit that holds the code.
        params: the bytes of params.yaml.
        cache: the folder of DVC's cache, which all trials share.
        folders: folders that stages read but git may not track.
    """

    commit: str
    params: bytes
    cache: str
    folders: list[str]


def base_of_workspace(params: Params, search: Path) -> Base:
    """Return the current commit and parameters.

    Raises:
        ConvaeError: there is no commit, or the code differs from it.
    """
    commit = git("rev-parse", "HEAD")
    if not commit:
        raise ConvaeError("there is no commit for a search to start from")
    others = {PARAMS_FILE.resolve(), search.resolve()}
    names = git("diff", "--name-only", "--relative", "HEAD", "--", ".", ":!*dvc.lock", ":!reports").splitlines()
    changed = [name for name in names if Path(name).resolve() not in others]
    if changed:
        raise ConvaeError(f"{changed[0]} has uncommitted changes, but trials run committed code; commit it first")
    cache = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=True)
    folders = [params.data.root, params.model.initialize_from, DOWNLOADS]
    return Base(commit, PARAMS_FILE.read_bytes(), cache.stdout.strip(), folders)


class Trial:
    """The experiment `name`: `base` with `changes`, which are values by key of params.yaml.

    Attributes:
        folder: the clone in which it runs.
        log: the file with the output of its stages.
    """

    def __init__(self, name: str, base: Base, changes: Mapping[str, Any]) -> None:
        self.name = name
        self._base = base
        self._changes = changes
        self.folder = FOLDER / name
        self.log = FOLDER / f"{name}.log"

    def run(self, watch: Callable[[], None]) -> str:
        """Run the experiment and return its commit.

        An experiment that was killed on this machine resumes in the folder that it left; a finished one is not rerun.

        Args:
            watch: called every `WATCH_SECONDS`; an exception from it stops the experiment like Ctrl-C.

        Raises:
            FailedError: a stage failed, or a different experiment with this name exists.
        """
        commit = self._base.commit
        reference = f"refs/exps/{commit[:2]}/{commit[2:]}/{self.name}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        with FileLock(FOLDER / f"{self.name}.lock"), self.log.open("ab") as log:
            self._prepare()
            if not self._is_saved(reference):
                self._execute(log, *DVC, "repro", watch=watch)
                self._execute(log, "git", "add", "--all", "--", str(PARAMS_FILE), "dvc.lock", "reports")
                self._execute(log, *DVC, "exp", "save", "--force", "--name", self.name)
                self._execute(log, "git", "push", "--quiet", "origin", reference)
        return git("rev-parse", reference)

    def discard(self) -> None:
        """Remove everything but the log of an experiment that will not be resumed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self) -> None:
        """Make a clone with the parameters of this trial, or reuse what a killed worker left.

        A clone made before this repository was moved or copied is replaced: it would push its result to the old folder.
        """
        known = (self.folder / ".git").is_dir()
        inside = ("-C", str(self.folder))
        origin = git(*inside, "remote", "get-url", "origin")
        if not known or git(*inside, "rev-parse", "HEAD") != self._base.commit or Path(origin).resolve() != Path.cwd():
            with new_folder(self.folder) as scratch:
                _clone(scratch, self._base)
        (self.folder / PARAMS_FILE).write_bytes(self._base.params)
        change(self.folder / PARAMS_FILE, self._changes)

    def _is_saved(self, reference: str) -> bool:
        if not git("for-each-ref", reference):
            return False
        if git("show", f"{reference}:./{PARAMS_FILE}") != (self.folder / PARAMS_FILE).read_text("utf-8").strip():
            raise FailedError(f"a different experiment {self.name} exists; choose another study name, or remove it")
        return True

    def _execute(self, log: BinaryIO, *command: str, watch: Callable[[], None] = lambda: None) -> None:
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the worker only, which then stops the trial
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WATCH_SECONDS)
                    break
                watch()
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        if process.returncode:
            raise FailedError(f"experiment {self.name} failed; see {self.log}")

    def _environment(self) -> dict[str, str]:
        """As `dvc exp run` sets it in its temporary clones, so that runs are recorded in the main repository."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "DVC_ROOT": str(store_root()),
            "DVC_EXP_NAME": self.name,
            "DVC_EXP_BASELINE_REV": self._base.commit,
        }


def _clone(folder: Path, base: Base) -> None:
    identity = [f"--config=user.{key}={git('config', f'user.{key}')}" for key in ("name", "email")]
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", *identity, ".", str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", base.commit], cwd=folder, check=True)
    if LOCAL_CONFIG.exists():
        shutil.copy2(LOCAL_CONFIG, folder / LOCAL_CONFIG)
    subprocess.run([sys.executable, "-m", "dvc", "cache", "dir", "--local", base.cache], cwd=folder, check=True)
    link_folders(folder, base.folders)
