"""Scratch copies of the repository, in which the real DVC runs the real stages."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from helpers import REPOSITORY

SMALL = (
    "data.dataset=digits",
    "train.epochs=2",
    "train.threads=1",
    "train.accelerator=cpu",
    "model.layers.0.filters=8",
    "model.layers.1.filters=16",
    "model.layers.1.input.whitening.components=64",
    "features.code.components=32",
)


@dataclass
class Clone:
    """A copy of the working tree, committed to a git repository of its own."""

    folder: Path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, with this environment's Python first on the path."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._variables() | environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def start(self, *command: str, log: IO[str] | None = None, **environment: str) -> "subprocess.Popen[str]":
        """Start a command there in its own process group; output goes to `log`, or else stdout to a pipe."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._variables() | environment,
            stdout=log or subprocess.PIPE,
            stderr=log or subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def set(self, *changes: str) -> None:
        """Change params.yaml as `dvc exp run -S` does, without running anything."""
        from dvc.utils.hydra import apply_overrides

        apply_overrides(self.folder / "params.yaml", list(changes))

    def _variables(self) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
        return variables | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"}

    def copy(self, folder: Path) -> "Clone":
        """Copy the clone, including files that git ignores.

        `cp` does the copying: if this process has the database open, closing a second handle would drop SQLite's locks.
        """
        subprocess.run(["cp", "-a", self.folder, folder], check=True)
        return Clone(folder)

    def commit(self, message: str) -> None:
        """Commit all changes."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.folder / name).read_bytes()


def make_clone(folder: Path, *changes: str, history: bool = True) -> Clone:
    """Make a fresh copy with these changes to params.yaml; with `history=False`, without the committed results."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    # A clone starts with an empty ladder, so that `convae sync` has nothing to record for it.
    shutil.rmtree(folder / "benchmark/ladder/cells", ignore_errors=True)
    for name in ("benchmark/ladder/dvc.lock", "reports/ladder.json"):
        (folder / name).unlink(missing_ok=True)
    result = Clone(folder)
    if not history:
        (folder / "dvc.lock").unlink()
        shutil.rmtree(folder / "reports")
    result.set(*changes)
    result.run("git", "init", "--quiet")
    result.run("git", "config", "user.name", "Test")
    result.run("git", "config", "user.email", "test@example.org")
    result.commit("A small experiment")
    return result
