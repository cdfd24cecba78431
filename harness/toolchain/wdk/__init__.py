"""Toolchain `wdk`: MSBuild with the Windows Driver Kit, on Windows."""

from harness.toolchain.wdk.examine import examine
from harness.toolchain.wdk.kit import ROUTES, Kit
from harness.toolchain.wdk.locate import locate
from harness.toolchain.wdk.provider import Provider, ToolResult, WindowsProvider

__all__ = ["ROUTES", "Kit", "Provider", "ToolResult", "WindowsProvider", "examine", "locate"]
