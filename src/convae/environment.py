"""The hardware and software that a result's rounding depends on."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "pytorch-lightning", "scikit-learn", "numpy", "scipy", "skops", "pandas", "matplotlib")
PACKAGES = tuple(sorted((*LIBRARIES, "pillow", "pyarrow", "safetensors", "torchvision")))


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each package; None if it is not installed.

    Example:
        >>> versions(["no-such-package"])
        {'no-such-package': None}
    """
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def environment() -> dict[str, Any]:
    """Processor, instruction set that PyTorch uses, GPU and versions; nothing that identifies one machine.

    Example:
        >>> list(environment())
        ['system', 'processor', 'instructions', 'gpu', 'python', 'packages']
    """
    import torch

    return {
        "system": platform.system(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, platform.processor() may be empty or name only the architecture
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
