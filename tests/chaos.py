"""Interrupt the pipeline at random moments in many ways: the next `dvc repro` must end as if undisturbed.

On the embedded digits, each of the six stages is stopped in each of ten ways, and each time dvc.lock must equal that of
an undisturbed run. With `--dataset fashion_mnist`, the shipped experiment's training is stopped repeatedly before it
may finish. The printed seed reproduces all random choices.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
from clones import SMALL, Clone, make_clone
from ruamel.yaml import YAML

STAGES = ("download", "prepare", "train", "features", "evaluate", "report")
FULL_DISK = "full disk"
WAYS = [
    *(f"{sent} of {target}" for sent, target in product(("SIGKILL", "SIGTERM", "SIGINT"), ("stage", "dvc", "group"))),
    FULL_DISK,
]
EXPERIMENT = (*SMALL, "train.epochs=20", "train.checkpoint_minutes=0.001")
DISK = 1 << 30  # bytes; the disk that gets filled
BALLAST = "ballast"
PATIENCE = 600  # seconds before a run counts as hanging


@dataclass(frozen=True)
class Disturbance:
    """How to stop a stage, and when, as a fraction of its duration."""

    stage: str
    way: str
    moment: float

    def __str__(self) -> str:
        return f"{self.stage:<9} {self.way:<16} after {self.moment:4.0%}"


def draw(count: int, seed: int) -> list[Disturbance]:
    """Draw `count` disturbances in random order, evenly distributed over stages and ways."""
    generator = random.Random(seed)
    pairs = list(product(STAGES, WAYS))
    generator.shuffle(pairs)
    return [Disturbance(*pairs[index % len(pairs)], generator.uniform(0, 0.95)) for index in range(count)]


def run_undisturbed(clone: Clone, *command: str) -> dict[str, float]:
    """Run from scratch and return the seconds that each stage took."""
    durations = {}
    dvc = clone.start(*command)
    while dvc.poll() is None:
        for stage in STAGES:
            process = find_stage(dvc.pid, stage)
            if process:
                start = time.monotonic()
                with suppress(psutil.NoSuchProcess):
                    process.wait()
                durations[stage] = time.monotonic() - start
        time.sleep(0.01)
    assert dvc.returncode == 0, dvc.communicate()[0]
    dvc.communicate()
    return durations


def find_stage(dvc: int, stage: str) -> psutil.Process | None:
    """The process that DVC started for a stage, not its shell or recorder."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(dvc).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[-2:] == ["-m", f"pipeline.{stage}"]:
                    return process
    return None


def forget(clone: Clone, first: str) -> None:
    """Return the workspace to the state before a stage ran, and clear DVC's memory of it."""
    yaml = YAML()
    path = clone.folder / "dvc.lock"
    content = yaml.load(path)
    for stage in STAGES[STAGES.index(first) :]:
        for out in content["stages"].pop(stage, {}).get("outs", []):
            remove(clone.folder / out["path"])
    yaml.dump(content, path)
    remove(clone.folder / ".dvc/cache/runs")


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def stop(
    clone: Clone,
    disturbance: Disturbance,
    durations: dict[str, float],
    *command: str,
    begun: Callable[[float], bool] = lambda start: True,
) -> str:
    """Start DVC, disturb it at the given moment after `begun`, and return its output."""
    dvc = clone.start(*command)
    start = time.time()
    stage = None
    while stage is None and dvc.poll() is None:
        stage = find_stage(dvc.pid, disturbance.stage)
        time.sleep(0.01)
    if stage:
        while stage.is_running() and not begun(start):
            time.sleep(0.01)
        time.sleep(disturbance.moment * durations[disturbance.stage])
        strike(clone.folder, disturbance.way, stage, dvc)
    printed = dvc.communicate(timeout=PATIENCE)[0]
    remove(clone.folder / BALLAST)
    return printed


def strike(folder: Path, way: str, stage: psutil.Process, dvc: "subprocess.Popen[str]") -> None:
    """Send a signal or fill the disk; the target may just have ended."""
    if way == FULL_DISK:
        fill(folder)
        return
    sent, _, target = way.split()
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if target == "group":
            os.killpg(dvc.pid, signal.Signals[sent])
        else:
            {"stage": stage, "dvc": dvc}[target].send_signal(signal.Signals[sent])


def fill(folder: Path) -> None:
    """Fill the disk."""
    with suppress(OSError), (folder / BALLAST).open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 16))


def whole(clone: Clone) -> str:
    """Describe how the workspace differs from an undisturbed one; empty if it does not."""
    left = left_behind(clone)
    if left:
        return f"left behind: {left}"
    status = clone.run("dvc", "status", check=False).stdout
    return "" if "up to date" in status else status


def left_behind(clone: Clone) -> str:
    """Left-over checkpoints and half-written files."""
    left = [*clone.folder.glob(".convae/checkpoints/*"), *clone.folder.rglob("*.partial")]
    return ", ".join(str(path.relative_to(clone.folder)) for path in left)


def stop_every_stage(clone: Clone, disturbances: list[Disturbance]) -> list[Disturbance]:
    """Disturb the pipeline on the digits and return the disturbances that it did not recover from."""
    durations = run_undisturbed(clone, "dvc", "repro")
    print("undisturbed:", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in durations.items()), flush=True)
    lock = clone.read("dvc.lock")
    failed = []
    for number, disturbance in enumerate(disturbances, 1):
        forget(clone, disturbance.stage)
        start = time.monotonic()
        stop(clone, disturbance, durations, "dvc", "repro")
        again = clone.run("dvc", "repro", check=False)
        wrong = again.stdout + again.stderr if again.returncode else whole(clone)
        if not wrong and clone.read("dvc.lock") != lock:
            wrong = "another dvc.lock"
        print(
            f"{number:3}/{len(disturbances)} {disturbance}: {wrong or 'as undisturbed'}, "
            f"{time.monotonic() - start:.0f} s; {began(again.stdout)}",
            flush=True,
        )
        if wrong:
            failed.append(disturbance)
            (clone.folder / "dvc.lock").write_bytes(lock)
            clone.run("dvc", "repro", "--force")
    return failed


def stop_in_turn(
    clone: Clone,
    disturbances: list[Disturbance],
    durations: dict[str, float],
    *command: str,
    begun: Callable[[float], bool] = lambda start: True,
) -> str:
    """Stop a command repeatedly, let it finish, and describe what it left behind; empty if nothing."""
    for number, disturbance in enumerate(disturbances, 1):
        printed = stop(clone, disturbance, durations, *command, begun=begun)
        print(f"{number:3}/{len(disturbances)} {disturbance}: {began(printed)}; {age(clone)}", flush=True)
    print(f"the rest: {began(clone.run(*command).stdout)}", flush=True)
    left = left_behind(clone)
    return f"left behind: {left}" if left else ""


def stop_training(clone: Clone, count: int, seed: int) -> str:
    """Stop the shipped experiment's training `count` times and describe what is wrong afterwards."""
    clone.run("dvc", "repro", "prepare")
    durations = run_undisturbed(clone, "dvc", "repro", "train")
    print(f"undisturbed: {durations['train']:.1f} s", flush=True)
    lock = clone.read("dvc.lock")
    forget(clone, "train")
    generator = random.Random(seed)
    # DVC ignores SIGINT and relies on the stage receiving it too: sent to DVC alone, it stops nothing.
    ways = [way for way in WAYS if way not in (FULL_DISK, "SIGINT of dvc")]
    # Stop soon after the first new checkpoint, or training would finish before the last disturbance.
    disturbances = [Disturbance("train", generator.choice(ways), generator.uniform(0, 0.04)) for _ in range(count)]
    repro = ("dvc", "repro", "train")
    wrong = stop_in_turn(
        clone, disturbances, durations, *repro, begun=lambda start: max(checkpoint_times(clone), default=0) > start
    )
    return wrong or ("" if clone.read("dvc.lock") == lock else "another dvc.lock")


def began(printed: str) -> str:
    """Where training started, according to its output."""
    resumed = re.search("resuming epoch .*", printed)
    return resumed[0] if resumed else "from the beginning" if "Running stage 'train'" in printed else "no training"


def age(clone: Clone) -> str:
    """Age of the last checkpoint."""
    saved = checkpoint_times(clone)
    return f"last checkpoint {time.time() - max(saved):.1f} s ago" if saved else "no checkpoint"


def checkpoint_times(clone: Clone) -> list[float]:
    """Modification times of the existing checkpoints."""
    return [path.stat().st_mtime for path in clone.folder.glob(".convae/checkpoints/*/*/last.ckpt")]


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A folder on a small separate disk; None without the right to mount one."""
    folder = Path(tempfile.mkdtemp(prefix="convae-chaos-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Command line of `make chaos`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["digits", "fashion_mnist"], default="digits")
    parser.add_argument("--kills", type=int, help="how often (60 on the digits, 10 on Fashion-MNIST)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of what is random")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    print(f"seed {options.seed}", flush=True)
    if options.dataset == "fashion_mnist":
        with tempfile.TemporaryDirectory(prefix="convae-chaos-") as folder:
            clone = make_clone(Path(folder) / "convae", "train.checkpoint_minutes=0.003", history=False)
            wrong = stop_training(clone, options.kills or 10, options.seed)
        print(wrong or "it ended with the same bits")
        sys.exit(1 if wrong else 0)
    disturbances = draw(options.kills or 60, options.seed)
    with small_disk() as disk, tempfile.TemporaryDirectory(prefix="convae-chaos-") as folder:
        if disk is None:
            print("nobody may mount a disk here: it is not filled up", flush=True)
            disturbances = [one for one in disturbances if one.way != FULL_DISK]
        clone = make_clone((disk or Path(folder)) / "convae", *EXPERIMENT, history=False)
        failed = stop_every_stage(clone, disturbances)
    print(f"{len(disturbances) - len(failed)} of {len(disturbances)} ended as undisturbed (seed {options.seed})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
