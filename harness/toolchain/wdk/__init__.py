"""Toolchain `wdk`: MSBuild with the Windows Driver Kit, on Windows."""
