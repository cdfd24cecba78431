"""Symbols and line numbers of a driver from its PDB, read with the standard library only."""

from vm.emulated.image.pdb.reader import read_symbols
from vm.emulated.image.pdb.symbols import Function, InlineFrame, LineRow, Location, Symbols

__all__ = ["Function", "InlineFrame", "LineRow", "Location", "Symbols", "read_symbols"]
