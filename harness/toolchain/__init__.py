"""Toolchains: from a driver's sources to an image, its symbols and its stamped INF."""

from harness.toolchain.source import (
    ARCHITECTURES,
    BuildResult,
    Configuration,
    DriverSource,
    ToolchainVersions,
    directory_name,
)
from harness.toolchain.zig import build, cross_compile, default_cache

__all__ = [
    "ARCHITECTURES",
    "BuildResult",
    "Configuration",
    "DriverSource",
    "ToolchainVersions",
    "build",
    "cross_compile",
    "default_cache",
    "directory_name",
]
