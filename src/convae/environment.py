"""What surrounds a computation and may change the last bits of its results."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pytorch-lightning",
    "safetensors",
    "scikit-learn",
    "scipy",
    "skops",
    "torch",
    "torchvision",
)


def environment() -> dict[str, Any]:
    """Processor, what PyTorch makes of it, GPU, and versions; nothing that tells one machine from its like."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "system": platform.system(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": packages,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
