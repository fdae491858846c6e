"""Where times were taken: processor, threads, instruction set, versions."""

from __future__ import annotations

import contextlib
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contenders import all_threads
from benchmarks.rotation import last_level_cache_bytes

PACKAGES = ("softmaxloss", "torch", "jax", "optax", "scikit-learn", "scipy", "numpy")


def facts() -> dict[str, Any]:
    import softmaxloss

    return {
        "processor": _processor(),
        "threads": all_threads(),
        "instruction_set": softmaxloss.show_config("dicts")["instruction_set"],
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }


def busy(seconds: float = 0.2) -> float:
    """Give the share of the processors' time that other programs take while this one sleeps."""
    before = _processor_ticks()
    time.sleep(seconds)
    idle, total = (after - start for after, start in zip(_processor_ticks(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _processor_ticks() -> tuple[int, int]:
    """Give the idle and the total time since the system's start: proc(5), /proc/stat."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
