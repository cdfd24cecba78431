"""Toolchains: from a driver's sources to an image, its symbols and its stamped INF."""

from harness.toolchain.source import BuildResult, Configuration, DriverSource, ToolchainVersions
from harness.toolchain.zig import build, cross_compile, default_cache

__all__ = [
    "BuildResult",
    "Configuration",
    "DriverSource",
    "ToolchainVersions",
    "build",
    "cross_compile",
    "default_cache",
]
