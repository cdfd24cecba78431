"""Processes: identity, token, handles, user half of the address space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.kernel.objects import HandleTable

if TYPE_CHECKING:
    from vm.emulated.cpu.memory import PageTable
    from vm.emulated.kernel.security import Token
    from vm.emulated.kernel.threads import KThread

SYSTEM_PROCESS_ID = 4


class KProcess:
    """One process. `address` is its EPROCESS, whose first bytes are a dispatcher header."""

    __slots__ = (
        "address",
        "create_time",
        "exited",
        "handles",
        "id",
        "image",
        "threads",
        "token",
        "user_next",
        "user_pages",
    )

    def __init__(self, *, process_id: int, image: str, address: int, token: Token, create_time: int) -> None:
        self.id = process_id
        self.image = image
        self.address = address
        self.token = token
        self.create_time = create_time
        self.handles = HandleTable(kernel=process_id == SYSTEM_PROCESS_ID)
        self.threads: dict[int, KThread] = {}
        self.user_pages: PageTable = {}
        self.user_next = 0x0000_0100_0000_0000
        """Next free user address for buffers that the model lends to a callback."""
        self.exited = False

    @property
    def is_system(self) -> bool:
        return self.id == SYSTEM_PROCESS_ID

    def __repr__(self) -> str:
        return f"<KProcess {self.id} {self.image!r}>"
