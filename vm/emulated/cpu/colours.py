"""Page colours: which page numbers, modulo the engine's smallest TLB, the parts of the address space use.

The engine's TLB is direct mapped. Pages of one colour push each other out, each time at the price of a fill; worse,
a page that is pushed out and filled again is counted wrong (accel/tcg/cputlb.c: entries of the victim TLB are
subtracted twice), the count of used entries falls below zero, and the TLB doubles at every flush until a flush takes
a tenth of a second (measured). So what is used together has colours of its own.

    0       KUSER_SHARED_DATA (fixed by Windows)
    1       mailbox
    2..9    trap stubs
    10..13  KPCR, exported variables
    14..31  images
    32..47  kernel stacks
    48..63  pool
"""

from __future__ import annotations

COLOURS = 64
"""CPU_TLB_DYN_MIN_BITS is 6: the smallest TLB has 64 entries."""
POOL_COLOUR = 48
