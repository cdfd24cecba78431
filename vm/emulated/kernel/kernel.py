"""The kernel of one boot: puts the rooms together and offers the operations that exports and fltmgr are written in."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

from vm.emulated.cpu.engine import Engine
from vm.emulated.cpu.memory import Access, Memory
from vm.emulated.exports.declare import Export
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel import dpc, loader, security
from vm.emulated.kernel.bugcheck import Bugcheck, bugcheck_name
from vm.emulated.kernel.clock import Clock
from vm.emulated.kernel.dispatcher import Dispatcher, ObjectType
from vm.emulated.kernel.exceptions import Exceptions
from vm.emulated.kernel.loader import LoadedDriver
from vm.emulated.kernel.objects import HandleTable, ObjectManager
from vm.emulated.kernel.pool import Pool
from vm.emulated.kernel.processes import SYSTEM_PROCESS_ID, KProcess
from vm.emulated.kernel.scheduler import Preemption, Scheduler
from vm.emulated.kernel.stack import stack_trace
from vm.emulated.kernel.threads import (
    KERNEL_MODE,
    PASSIVE_LEVEL,
    USER_MODE,
    Call,
    GuestFrame,
    KThread,
    Model,
    ThreadState,
)
from vm.emulated.registry import Registry
from vm.machine import CrashReport, Violation

KPCR = 0xFFFF_F802_0000_A000
SHARED_DATA = 0xFFFF_F780_0000_0000
"""KUSER_SHARED_DATA: fixed address, read by inlined KeQuerySystemTime and KeQueryTickCount."""
STACKS = 0xFFFF_A000_0002_0000
STACK_SIZE = 0x6000
"""KERNEL_STACK_SIZE on x64."""
DATA_EXPORTS = 0xFFFF_F803_0000_D000
TICK = 156_250
"""Units of 100 ns per clock tick (15.625 ms)."""


class MachineCrashedError(Exception):
    """The kernel has bugchecked and runs nothing any more."""


class Kernel:
    """One running kernel.

    Args:
        exports: what drivers may import, by (lower-case dll, name).
        seed: of the schedule; the same seed, image and inputs give the same run to the instruction.
        preemption: bounds of the slices; None runs every thread until it blocks.
        clock: virtual by default.
        memory_bytes: size of the RAM.
        registry: registry to use; a new empty one by default.
    """

    def __init__(
        self,
        exports: dict[tuple[str, str], Export],
        *,
        seed: int = 1,
        preemption: Preemption | None = None,
        clock: Clock | None = None,
        memory_bytes: int = 256 << 20,
        registry: Registry | None = None,
    ) -> None:
        self.memory = Memory(memory_bytes)
        self.engine = Engine(self.memory)
        self.clock = clock or Clock()
        self.engine.timestamp = lambda: self.clock.interrupt_time * 300
        self.registry = registry or Registry()
        self.drivers: list[LoadedDriver] = []
        self.violations: list[Violation] = []
        self.crash_report: CrashReport | None = None
        self.debug_lines: list[str] = []
        self.on_debug: Callable[[str], None] | None = None
        self._exports = exports
        self._stubs: dict[tuple[str, str], int] = {}
        self._data: dict[tuple[str, str], int] = {}
        self._free_stacks: list[int] = []
        self._stacks: dict[int, KThread] = {}
        self._next_stack = STACKS
        self._thread_ids = itertools.count(8, 4)
        self._map_fixed_pages()
        self.pool = Pool(self)
        self.objects = ObjectManager(self)
        self._type_objects: dict[str, int] = {}
        self.dispatcher = Dispatcher(self)
        self.exceptions = Exceptions(self)
        self.scheduler = Scheduler(self, seed=seed, preemption=preemption or Preemption())
        self.processes: dict[int, KProcess] = {}
        self.system = self.create_process(SYSTEM_PROCESS_ID, "System", security.SYSTEM_TOKEN)
        self.threads: dict[int, KThread] = {}
        self.free_checks: list[Callable[[int, int, str], None]] = []
        """Called with (begin, end, what) before memory is freed; each may bugcheck because something in it is in use."""
        self.dpc_threads: dict[int, int] = {}
        """Address of a thread that runs, or will run, a DPC -> address of the KDPC."""
        self.services: dict[str, Any] = {}
        """State of rooms above the kernel (the Filter Manager), by name."""
        self._call_irql: dict[int, list[int]] = {}

    def _map_fixed_pages(self) -> None:
        memory = self.memory
        memory.map(KPCR, 0x3000, Access.READ_WRITE)
        memory.put64(KPCR + 0x18, KPCR)  # Self
        memory.put64(KPCR + 0x20, KPCR + 0x180)  # CurrentPrcb
        self._current_slot = memory.physical(KPCR + 0x188)
        self.engine.set("gs_base", KPCR)
        memory.map(SHARED_DATA, 0x1000, Access.READ)
        self._shared = memory.physical(SHARED_DATA)
        ram = memory.ram
        struct.pack_into("<I", ram, self._shared + 0x4, 0x0FA0_0000)  # TickCountMultiplier
        struct.pack_into("<I", ram, self._shared + 0x260, 26100)  # NtBuildNumber
        struct.pack_into("<II", ram, self._shared + 0x26C, 10, 0)  # NtMajorVersion, NtMinorVersion
        memory.map(DATA_EXPORTS, 0x1000, Access.READ_WRITE)
        self._data_next = DATA_EXPORTS
        self.update_time()

    # Time

    def update_time(self) -> None:
        """Write the clock into KUSER_SHARED_DATA."""
        interrupt = self.clock.interrupt_time
        system = self.clock.system_time
        ram = self.memory.ram
        base = self._shared
        _TIME.pack_into(ram, base + 0x08, interrupt & 0xFFFF_FFFF, interrupt >> 32, interrupt >> 32)
        _TIME.pack_into(ram, base + 0x14, system & 0xFFFF_FFFF, system >> 32, system >> 32)
        ticks = interrupt // TICK
        _TIME.pack_into(ram, base + 0x320, ticks & 0xFFFF_FFFF, ticks >> 32, ticks >> 32)

    # Exports and imports

    def known_exports(self) -> set[tuple[str, str]]:
        """(dll, name) of everything a driver may import, functions and data."""
        return set(self._exports) | set(DATA_NAMES)

    def resolve_import(self, dll: str, name: str) -> int:
        """Address for an import slot: a stub for a function, the variable itself for data."""
        key = (dll, name)
        if key in DATA_NAMES:
            return self._data_export(key)
        address = self._stubs.get(key)
        if address is None:
            address = self._stubs[key] = self.scheduler.add_export(self._exports[key])
        return address

    def routine(self, dll: str, name: str) -> int | None:
        """Address of an export for MmGetSystemRoutineAddress and FltGetRoutineAddress; None if nobody declares it."""
        return self.resolve_import(dll, name) if (dll, name) in self._exports else None

    def python_function(self, export: Export) -> int:
        """An address that, called by driver code or through `Call`, runs a function of Python: for tests and tools."""
        return self.scheduler.add_export(export)

    def _data_export(self, key: tuple[str, str]) -> int:
        address = self._data.get(key)
        if address is None:
            size, value = DATA_NAMES[key]
            if key[1] in OBJECT_TYPE_NAMES:
                value = self.type_object(OBJECT_TYPE_NAMES[key[1]])
            elif key[1] == "PsInitialSystemProcess":
                value = self.system.address
            elif key[1] == "SeExports":
                value = self.pool.allocate(len(security.exports_image(0)), "SeEx", owner="nt")
                self.memory.write(value, security.exports_image(value))
            address = self._data_next
            self._data_next += 16
            self._data[key] = address
            self.memory.write(address, value.to_bytes(size, "little"))
        return address

    def set_data_export(self, name: str, value: int) -> None:
        """Fill a variable that ntoskrnl exports, for example the address behind PsProcessType."""
        self.memory.put64(self._data_export(("ntoskrnl.exe", name)), value)

    def type_object(self, kind: str) -> int:
        """Address of the OBJECT_TYPE of objects of this kind; opaque, one per kind."""
        address = self._type_objects.get(kind)
        if address is None:
            item = self.objects.create("Type", kind)
            item.permanent = True
            address = self._type_objects[kind] = item.address
        return address

    # Processes and threads

    @property
    def current(self) -> KThread:
        """The running thread."""
        thread = self.scheduler.current
        assert thread is not None, "no emulated thread is running"
        return thread

    def create_process(self, process_id: int, image: str, token: security.Token) -> KProcess:
        """A new process without threads; its EPROCESS is a dispatcher object."""
        address = self.pool.allocate(0x200, "Proc", owner="nt")
        self.dispatcher.initialize(address, ObjectType.PROCESS, 0)
        process = KProcess(
            process_id=process_id,
            image=image,
            address=address,
            token=token,
            create_time=self.clock.system_time,
        )
        item = self.objects.create(
            "Process", process, address=address, on_delete=lambda: self.pool.free(address, "Proc")
        )
        item.references = 1
        self.processes[address] = process
        return process

    def end_process(self, process: KProcess) -> None:
        """The process is gone: its object is signalled and lives while it is referenced."""
        process.exited = True
        self.dispatcher.signal_forever(process.address)
        self.processes.pop(process.address, None)
        self.objects.dereference(self.objects.get(process.address))

    def create_thread(
        self, process: KProcess, name: str, *, thread_id: int | None = None, system: bool = True
    ) -> KThread:
        """A new thread with a kernel stack and no frames; push a frame to make it run."""
        if thread_id is None:
            thread_id = next(self._thread_ids)
        base = self._allocate_stack()
        address = self.pool.allocate(0x200, "Thre", owner="nt")
        self.dispatcher.initialize(address, ObjectType.THREAD, 0)
        thread = KThread(
            thread_id=thread_id,
            address=address,
            process=process,
            name=name,
            stack_base=base + STACK_SIZE,
            stack_limit=base,
        )
        thread.is_system = system
        thread.previous_mode = KERNEL_MODE if system else USER_MODE
        thread.state = ThreadState.IDLE
        self._stacks[base] = thread
        item = self.objects.create(
            "Thread", thread, address=address, on_delete=lambda: self.pool.free(address, "Thre")
        )
        item.references = 1
        process.threads[address] = thread
        self.threads[address] = thread
        return thread

    def start_system_thread(self, generator: Model, name: str, process: KProcess | None = None) -> KThread:
        """A system thread that runs a generator of the model."""
        thread = self.create_thread(process or self.system, name)
        self.scheduler.push_model(thread, generator, name)
        return thread

    def thread_finished(self, thread: KThread) -> None:
        """The last frame has returned: a user thread is idle again, a system thread ends."""
        if thread.owned:
            kind, address = thread.owned[-1]
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x37,
                address,
                thread.address,
                rule=f"thread '{thread.name}' leaves the kernel while it still holds a {kind} ({address:#x})",
            )
        if self.engine.irql != PASSIVE_LEVEL:
            raise Bugcheck(
                bc.IRQL_UNEXPECTED_VALUE,
                self.engine.irql,
                rule=f"thread '{thread.name}' leaves the kernel at IRQL {self.engine.irql}",
            )
        if thread.critical_region:
            raise Bugcheck(
                bc.APC_INDEX_MISMATCH,
                thread.critical_region,
                rule=f"thread '{thread.name}' leaves the kernel inside a critical region (KeEnterCriticalRegion without KeLeaveCriticalRegion)",
            )
        if not thread.is_system and not thread.terminating:
            thread.state = ThreadState.IDLE
            return
        self.end_thread(thread)

    def end_thread(self, thread: KThread) -> None:
        """The thread is gone: its object is signalled, its stack can be used again."""
        if thread.state is ThreadState.TERMINATED:
            return
        thread.state = ThreadState.TERMINATED
        thread.frames.clear()
        self.scheduler.forget(thread)
        thread.process.threads.pop(thread.address, None)
        self.threads.pop(thread.address, None)
        self._stacks.pop(thread.stack_limit, None)
        self._free_stacks.append(thread.stack_limit)
        self.dispatcher.signal_forever(thread.address)
        self.objects.dereference(self.objects.get(thread.address))

    def set_current(self, thread: KThread) -> None:
        """Called at every thread switch: what the processor and inlined code see of the current thread."""
        _QUAD.pack_into(self.memory.ram, self._current_slot, thread.address)
        self.memory.switch_user(thread.process.user_pages)
        self.update_time()

    def token_of(self, thread: KThread) -> security.Token:
        """The token that counts for access checks: the impersonated one, else the process's."""
        return thread.impersonation.token if thread.impersonation is not None else thread.process.token

    def handle_table(self, thread: KThread, *, kernel: bool) -> HandleTable:
        """Where handles of this thread go: the system process's table for kernel handles, else the process's own."""
        return self.system.handles if kernel else thread.process.handles

    def _allocate_stack(self) -> int:
        if self._free_stacks:
            return self._free_stacks.pop()
        base = self._next_stack + 0x1000  # the page below stays unmapped: an overflow faults
        # Two stacks in the colours that are theirs (see cpu/colours.py), the next ones 64 pages further.
        self._next_stack += 0x8000 if not (self._next_stack - STACKS) % 0x4_0000 else 0x3_8000
        self.memory.map(base, STACK_SIZE, Access.READ_WRITE)
        return base

    def stack_owner(self, address: int) -> KThread | None:
        """The thread whose guard page contains `address`."""
        for base, thread in self._stacks.items():
            if base - 0x1000 <= address < base:
                return thread
        return None

    # Running

    def run(self, generator: Model, name: str = "request", process: KProcess | None = None) -> Any:
        """Run a generator on a new system thread until it is done, with everything else that becomes ready.

        A virtual clock jumps to the next timer when nothing is ready.

        Raises:
            MachineCrashedError: the machine bugchecked.
            DeadlockError: nothing is ready, no timer is pending, and it is not done.
        """
        outcome: list[tuple[Any, BaseException | None]] = []
        thread = self.create_thread(process or self.system, name)
        self.scheduler.push_model(
            thread, generator, name, on_done=lambda value, error: outcome.append((value, error))
        )
        while not outcome:
            self.check_alive()
            self.scheduler.run_until_idle(stop=lambda: bool(outcome))
            if outcome or self.crash_report is not None:
                continue
            if not self.clock.jump() and not self.scheduler.ready:
                raise DeadlockError(self)
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def run_until_idle(self) -> None:
        """Run everything that is ready; timers that are not due yet stay pending."""
        self.check_alive()
        self.scheduler.run_until_idle()
        self.check_alive()

    def check_alive(self) -> None:
        if self.crash_report is not None:
            raise MachineCrashedError(f"{self.crash_report.name}: {self.crash_report.rule}")

    def crash(self, error: Bugcheck, thread: KThread) -> None:
        """Stop the machine; the first bugcheck is the one that counts."""
        if self.crash_report is not None:
            return
        self.crash_report = CrashReport(
            code=error.code,
            name=bugcheck_name(error.code),
            parameters=error.parameters,
            rule=error.rule,
            stack=tuple(stack_trace(self, thread)),
        )
        self.scheduler.ready.clear()
        thread.state = ThreadState.TERMINATED

    def violate(self, rule: str, message: str, driver: str) -> None:
        """Record a broken rule that does not stop the machine."""
        thread = self.scheduler.current
        stack = tuple(stack_trace(self, thread)) if thread is not None else ()
        self.violations.append(Violation(rule, message, driver, stack))

    def queue_dpc(self, address: int, argument1: int | None = None, argument2: int | None = None) -> bool:
        """Queue a KDPC, to run at DISPATCH_LEVEL in a thread of its own (as on another processor); False if it is queued.

        Without arguments those of the latest KeInsertQueueDpc stay, as for the DPC of a timer.
        """
        return dpc.queue(self, address, argument1, argument2)

    # Drivers

    def load_driver(self, data: bytes, name: str, *, symbols: Any = None) -> LoadedDriver:
        """Map an image and register it; its entry point has not run yet."""
        driver = loader.map_image(self, data, name, symbols=symbols)
        self.drivers.append(driver)
        return driver

    def unload_image(self, driver: LoadedDriver) -> None:
        """Take the image away and check what the driver left behind."""
        leaks = self.pool.owned_by(driver.name)
        if leaks:
            sample = ", ".join(
                f"{block.size} bytes '{block.tag}' from {self.describe(block.site)}" for block in leaks[:5]
            )
            total = sum(block.size for block in leaks)
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x62,
                driver.base,
                0,
                len(leaks),
                rule=f"the driver '{driver.name}' was unloaded without freeing {len(leaks)} pool blocks ({total} bytes): {sample}",
            )
        for thread in list(self.threads.values()):
            for frame in thread.frames:
                if isinstance(frame, GuestFrame) and driver.base <= frame.entry < driver.end:
                    raise Bugcheck(
                        bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS,
                        frame.entry,
                        0,
                        frame.pc,
                        0,
                        rule=f"the driver '{driver.name}' was unloaded while thread '{thread.name}' still runs {self.describe(frame.entry)}",
                    )
        loader.unmap_image(self, driver)

    def image_of(self, address: int) -> LoadedDriver | None:
        """The loaded driver that contains `address`."""
        for driver in self.drivers:
            if driver.base <= address < driver.end and not driver.unloaded:
                return driver
        return None

    def unloaded_image(self, address: int) -> str | None:
        """Name of the unloaded driver that once contained `address`."""
        return next((d.name for d in self.drivers if d.unloaded and d.base <= address < d.end), None)

    def caller_driver(self) -> LoadedDriver | None:
        """The driver whose code called the running export."""
        thread = self.scheduler.current
        frame = thread.guest_frame() if thread is not None else None
        return self.image_of(self.memory.u64(frame.rsp)) if frame is not None else None

    def caller(self) -> tuple[str, int]:
        """(name of the calling driver, return address) of the running export; ("nt", 0) when the model calls itself."""
        thread = self.scheduler.current
        frame = thread.guest_frame() if thread is not None else None
        if frame is None:
            return "nt", 0
        site = self.memory.u64(frame.rsp)
        driver = self.image_of(site)
        return (driver.name if driver is not None else "nt"), site

    def describe(self, address: int, *, is_return: bool = False) -> str:
        """An address as 'driver!Function+0x12 (file.c:34)', as far as symbols are known.

        Args:
            is_return: it is a return address; the line is then that of the call before it.
        """
        for driver in self.drivers:
            if driver.base <= address < driver.end:
                rva = address - driver.base
                location = driver.symbols.lookup(rva - is_return) if driver.symbols is not None else None
                if location is None or location.function is None:
                    return f"{driver.name}+{rva:#x}"
                text = f"{driver.name}!{location.function}+{location.offset + is_return:#x}"
                return (
                    f"{text} ({location.file.replace(chr(92), '/').rpartition('/')[2]}:{location.line})"
                    if location.file
                    else text
                )
        return f"{address:#x}"

    # Rules

    def driver_called(self, thread: KThread, call: Call) -> None:
        """The model calls driver code: remember the IRQL, to check that it comes back at the same one."""
        self._call_irql.setdefault(thread.id, []).append(self.engine.irql)

    def driver_returned(self, thread: KThread, frame: GuestFrame) -> None:
        """Driver code has returned to the model."""
        expected = self._call_irql[thread.id].pop()
        # An export that is called directly, as tests and tools do, may change the IRQL: that is its business.
        if self.engine.irql != expected and not Engine.in_stub(frame.entry):
            raise Bugcheck(
                bc.IRQL_UNEXPECTED_VALUE,
                expected,
                self.engine.irql,
                frame.entry,
                0,
                rule=f"{frame.name or self.describe(frame.entry)} was called at IRQL {expected} and returned at IRQL {self.engine.irql}",
            )

    def forget_call(self, thread: KThread) -> None:
        """A frame of driver code is dropped without returning (a thread ends itself, or an exception unwinds it)."""
        self._call_irql[thread.id].pop()

    def check_free(self, begin: int, end: int, what: str) -> None:
        """Bugcheck if memory that is being freed still holds something in use."""
        address = self.dispatcher.waited_in(begin, end)
        if address is not None:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0xD0,
                address,
                begin,
                rule=f"{what} was freed while a thread waits for the dispatcher object at {address:#x} inside it",
            )
        timer = self.dispatcher.timer_in(begin, end)
        if timer is not None:
            raise Bugcheck(
                0xC7,
                0,
                timer,
                begin,
                end,
                rule=f"{what} was freed while it holds an active timer ({timer:#x})",
            )
        queued = dpc.queued_in(self, begin, end)
        if queued is not None:
            raise Bugcheck(
                bc.TIMER_OR_DPC_INVALID,
                1,
                queued,
                begin,
                end,
                rule=f"{what} was freed while it holds a queued DPC ({queued:#x})",
            )
        for thread in self.threads.values():
            for kind, held in thread.owned:
                if begin <= held < end:
                    raise Bugcheck(
                        bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                        0xD1,
                        held,
                        begin,
                        rule=f"{what} was freed while thread '{thread.name}' holds the {kind} at {held:#x} inside it",
                    )

        for check in self.free_checks:
            check(begin, end, what)

    # Debug output

    def debug_print(self, text: str) -> None:
        """A line of DbgPrint."""
        self.debug_lines.append(text)
        if self.on_debug is not None:
            self.on_debug(text)

    def close(self) -> None:
        """Release the engine and the RAM."""
        self.threads.clear()
        self.engine.close()


class DeadlockError(Exception):
    """Nothing can run any more although something has not finished; the message lists who waits for what."""

    def __init__(self, kernel: Kernel) -> None:
        waiting = [
            f"'{t.name}' in {t.block.reason if t.block else 'a wait for ' + ', '.join(map(hex, t.wait_objects))}"
            for t in kernel.threads.values()
            if t.state is ThreadState.WAITING
        ]
        super().__init__(
            "nothing is ready and no timer is pending; waiting: " + ("; ".join(waiting) or "nobody")
        )


OBJECT_TYPE_NAMES = {
    "PsProcessType": "Process",
    "PsThreadType": "Thread",
    "ExEventObjectType": "Event",
    "ExSemaphoreObjectType": "Semaphore",
    "IoFileObjectType": "File",
    "IoDriverObjectType": "Driver",
    "IoDeviceObjectType": "Device",
    "SeTokenObjectType": "Token",
    "CmKeyObjectType": "Key",
}
"""Exported variables that hold a POBJECT_TYPE, and the kind of object it stands for."""

DATA_NAMES: dict[tuple[str, str], tuple[int, int]] = {
    ("ntoskrnl.exe", "NtBuildNumber"): (4, 26100),
    ("ntoskrnl.exe", "MmHighestUserAddress"): (8, 0x0000_7FFF_FFFE_FFFF),
    ("ntoskrnl.exe", "MmSystemRangeStart"): (8, 0xFFFF_8000_0000_0000),
    ("ntoskrnl.exe", "MmUserProbeAddress"): (8, 0x0000_7FFF_FFFF_0000),
    ("ntoskrnl.exe", "KeNumberProcessors"): (1, 1),
    **{("ntoskrnl.exe", name): (8, 0) for name in OBJECT_TYPE_NAMES},
    ("ntoskrnl.exe", "PsInitialSystemProcess"): (8, 0),
    ("ntoskrnl.exe", "SeExports"): (8, 0),
    ("ntoskrnl.exe", "InitSafeBootMode"): (4, 0),
    ("ntoskrnl.exe", "KdDebuggerEnabled"): (1, 0),
    ("ntoskrnl.exe", "KdDebuggerNotPresent"): (1, 1),
}
"""Variables that ntoskrnl exports: size in bytes and initial value."""

_QUAD = struct.Struct("<Q")
_TIME = struct.Struct("<III")
