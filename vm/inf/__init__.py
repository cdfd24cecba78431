"""INF files: what is written in them, and what Windows does when it installs them. A leaf that every room may use.

Whether an INF is as a minifilter's should be is not decided here: see `harness.inf`.
"""

from vm.inf.document import Entry, Field, Inf, Section
from vm.inf.parser import decode, parse, read

__all__ = ["Entry", "Field", "Inf", "Section", "decode", "parse", "read"]
