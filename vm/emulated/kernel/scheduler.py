"""The scheduler: continues the top frame of one thread after the other, preempts, parks and wakes.

Every thread runs as if it had a processor of its own, but only one at a time and for a slice that a seeded generator
chooses, so a schedule is repeated exactly from its seed. That a thread holds a spin lock does not stop others, as on a
machine with many processors; whoever wants the lock spins, that is, is parked until it is free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from vm.emulated.cpu.engine import Context, Engine, Stop, StopKind
from vm.emulated.cpu.memory import MemoryFaultError
from vm.emulated.exports.declare import Export
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.threads import (
    HIGH_LEVEL,
    PASSIVE_LEVEL,
    TERMINATING,
    TIMED_OUT,
    Block,
    Call,
    GuestFrame,
    KThread,
    Model,
    ModelFrame,
    ThreadState,
    Wait,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def _nothing(_registers: tuple[int, ...]) -> None:
    """Handler of the address that driver code returns to."""


_NO_TRAP = (_nothing, None, True, -1, 0, 0)


@dataclass(frozen=True, slots=True)
class Preemption:
    """Bounds of a slice: it ends after so many instructions, or after so many exports called, whichever is first."""

    instructions: tuple[int, int] = (400, 12_000)
    exports: tuple[int, int] = (2, 60)


class Scheduler:
    """Runs threads of one kernel. Not thread-safe: only the processor thread may use it."""

    def __init__(self, kernel: Kernel, *, seed: int, preemption: Preemption) -> None:
        self.kernel = kernel
        self.engine: Engine = kernel.engine
        self.seed = seed
        self.preemption = preemption
        self._random = random.Random(seed)
        self.ready: list[KThread] = []
        self.current: KThread | None = None
        self._loaded: KThread | None = None
        self.traps: list[tuple[Any, Any, bool, int, int, int]] = [_NO_TRAP]
        """By index: handler of the registers, export, whether it is a generator, IRQL bounds, where to run on."""
        self.return_address, index = self.engine.add_trap()
        self.traps.append(
            (_nothing, None, True, HIGH_LEVEL, PASSIVE_LEVEL, self.engine.resume_address(index))
        )
        self.switches = 0
        self.calls = 0
        """Exports called by drivers since the start."""
        self.instructions_limit = 200_000_000
        """Instructions a thread may execute without calling an export before it counts as hung."""
        self._spinning: dict[int, int] = {}
        self.on_call: Callable[[KThread, Export, tuple[int, ...], Any], None] | None = None

    # Traps for exports

    def add_export(self, export: Export) -> int:
        """Address of a stub that runs `export`."""
        address, index = self.engine.add_trap()
        assert index == len(self.traps)
        resume = self.engine.resume_address(index)
        self.traps.append(
            (export.bind(self.kernel), export, export.is_model, export.irql, export.minimum, resume)
        )
        return address

    # Making threads ready

    def make_ready(self, thread: KThread) -> None:
        """Queue a thread."""
        thread.state = ThreadState.READY
        self.ready.append(thread)

    def push_model(
        self,
        thread: KThread,
        generator: Model,
        name: str,
        on_done: Callable[[Any, BaseException | None], None] | None = None,
    ) -> None:
        """Give an idle or new thread a generator to run."""
        thread.frames.append(ModelFrame(generator, name, on_done=on_done))
        self.make_ready(thread)

    def wake(self, thread: KThread, value: Any) -> bool:
        """End the thread's `Block` with `value`; False if it is not blocked (any more)."""
        if thread.state is not ThreadState.WAITING or thread.block is None:
            return False
        if thread.timer is not None:
            self.kernel.clock.cancel(thread.timer)
            thread.timer = None
        thread.block = None
        frame = thread.frames[-1]
        assert isinstance(frame, ModelFrame)
        frame.value = value
        self.make_ready(thread)
        return True

    def terminate(self, thread: KThread) -> None:
        """Mark a thread as terminating; a killable block ends at once, everything else runs to its end."""
        thread.terminating = True
        block = thread.block
        if block is not None and block.killable:
            if block.on_cancel:
                block.on_cancel()
            self.wake(thread, TERMINATING)
        elif block is None:
            self.kernel.dispatcher.interrupt(thread)

    # Running

    def run_until_idle(self, *, stop: Callable[[], bool] | None = None) -> None:
        """Run ready threads and due timers until nothing is ready, or `stop()` says so between two slices."""
        clock = self.kernel.clock
        while True:
            clock.expire()
            if not self.ready or (stop is not None and stop()):
                return
            self.run_slice()

    def run_slice(self) -> None:
        """Run one ready thread for one slice."""
        ready = self.ready
        index = self._random.randrange(len(ready)) if len(ready) > 1 else 0
        thread = ready.pop(index)
        self._run(thread)

    def _run(self, thread: KThread) -> None:
        self.current = thread
        thread.state = ThreadState.RUNNING
        self._switch_to(thread)
        bounds = self.preemption
        slice_exports = self._random.randint(*bounds.exports)
        try:
            while thread.state is ThreadState.RUNNING:
                if not thread.frames:
                    self.kernel.thread_finished(thread)
                    break
                frame = thread.frames[-1]
                if isinstance(frame, GuestFrame):
                    slice_exports = self._run_guest(thread, frame, slice_exports)
                else:
                    self._run_model(thread, frame)
        except Bugcheck as error:
            self.kernel.crash(error, thread)
        finally:
            thread.irql = self.engine.irql
            self.current = None

    def _switch_to(self, thread: KThread) -> None:
        engine = self.engine
        engine.irql = thread.irql
        loaded = self._loaded
        self.kernel.set_current(thread)
        if loaded is thread:
            return
        self.switches += 1
        if loaded is not None and loaded.guest_frame() is not None:
            if loaded.context is None:
                loaded.context = Context(engine)
            engine.save(loaded.context)
            loaded.context_valid = True
        if thread.context_valid and thread.context is not None:
            engine.restore(thread.context)
            thread.context_valid = False
        self._loaded = thread

    def forget(self, thread: KThread) -> None:
        """The thread has ended: its registers are nobody's."""
        if self._loaded is thread:
            self._loaded = None

    # Driver code

    def _run_guest(self, thread: KThread, frame: GuestFrame, budget: int) -> int:
        engine = self.engine
        if budget <= 0:  # spent in exports that are generators
            self._preempt(thread)
            return budget
        if frame.reset_rsp:
            frame.reset_rsp = False
            engine.set("rsp", frame.rsp)
        if frame.result is not None:
            engine.set_result(frame.result)
            frame.result = None
        pc = frame.pc
        run = engine.run
        traps = self.traps
        low, high = self.preemption.instructions
        quantum = self._random.randint(low, high)
        on_call = self.on_call
        while True:
            stop = run(pc, quantum)
            if isinstance(stop, Stop):
                return self._stopped(thread, frame, stop, quantum, budget)
            handler, export, is_model, highest, lowest, resume = traps[stop[5]]
            frame.rsp = stop[4]
            frame.pc = resume
            irql = engine.irql
            if irql > highest or irql < lowest:
                engine.acknowledge()
                self._irql_violation(export, stop, irql)
            self.calls += 1
            try:
                value = handler(stop)
            except MemoryFaultError as fault:
                engine.acknowledge()
                self._model_fault(thread, export.name, fault)
                return budget
            except GuestException as error:
                engine.acknowledge()
                self.kernel.exceptions.raise_from_export(thread, error)
                return budget
            except BaseException:
                engine.acknowledge()
                raise
            if is_model or value.__class__ is GeneratorType:
                # A plain export may decide at the call that it has to block: it returns a generator.
                engine.acknowledge()
                if export is None:
                    self._returned(thread, frame)
                    return budget
                thread.frames.append(ModelFrame(value, export.name, export=export))
                if on_call is not None:
                    on_call(thread, export, stop, None)
                return budget - 1
            if on_call is not None:
                on_call(thread, export, stop, value)
            budget -= 1
            if budget <= 0 or thread.frames[-1] is not frame:
                engine.acknowledge()
                frame.result = (value or 0) & _MASK
                if budget <= 0 and thread.frames[-1] is frame:
                    self._preempt(thread)
                return budget
            engine.set_result(value or 0)
            pc = resume

    def _stopped(self, thread: KThread, frame: GuestFrame, stop: Stop, quantum: int, budget: int) -> int:
        """Driver code stopped for another reason than a call of an export."""
        if stop.kind is StopKind.QUANTUM and self.engine.in_stub(stop.pc):
            # The mailbox is one for all threads: the preemption waits until the stub is done, one way or the other.
            frame.pc = stop.pc
            frame.result = None
            return self._run_guest(thread, frame, max(budget, 1))
        if self.engine.in_stub(frame.pc):
            self._spinning.pop(
                thread.id, None
            )  # it has called an export since the last time: it does not hang
        frame.pc = stop.pc
        if stop.kind is StopKind.QUANTUM:
            self.kernel.clock.advance(quantum // 100)
            self._check_hang(thread, stop.pc, quantum)
            self._preempt(thread)
        else:
            self.kernel.exceptions.processor_stop(thread, frame, stop)
        return budget

    def _check_hang(self, thread: KThread, pc: int, executed: int) -> None:
        spun = self._spinning.get(thread.id, 0) + executed
        self._spinning[thread.id] = spun
        if spun > self.instructions_limit:
            raise Bugcheck(
                bc.DPC_WATCHDOG_VIOLATION,
                1,
                spun,
                pc,
                rule=f"thread '{thread.name}' executed {spun:,} instructions without calling the kernel: it hangs",
            )

    def _preempt(self, thread: KThread) -> None:
        thread.irql = self.engine.irql
        self.make_ready(thread)

    def _returned(self, thread: KThread, frame: GuestFrame) -> None:
        value = self.engine.get("rax")
        self.calls -= 1  # a return is no call
        thread.frames.pop()
        self._spinning.pop(thread.id, None)
        self.kernel.driver_returned(thread, frame)
        if thread.frames:
            below = thread.frames[-1]
            assert isinstance(below, ModelFrame), "driver code is always called by a frame of the model"
            below.value = value

    def _irql_violation(self, export: Export, registers: tuple[int, ...], irql: int) -> None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0022,
            irql,
            export.irql,
            self.kernel.memory.u64(registers[4]),
            rule=f"{export.name} was called at IRQL {irql}; it may be called at IRQL {export.minimum} to {export.irql}",
        )

    def _model_fault(self, thread: KThread, name: str, fault: MemoryFaultError) -> None:
        self.kernel.exceptions.model_fault(thread, name, fault)

    # The model's code

    def _run_model(self, thread: KThread, frame: ModelFrame) -> None:
        error, frame.error = frame.error, None
        value, frame.value = frame.value, None
        try:
            effect = frame.generator.throw(error) if error is not None else frame.generator.send(value)
        except StopIteration as stop:
            self._finished(thread, frame, stop.value)
            return
        except MemoryFaultError as fault:
            thread.frames.pop()
            if thread.guest_frame() is None:
                self._failed(frame, fault)
                return
            self._model_fault(thread, frame.name, fault)
            return
        except GuestException as raised:
            thread.frames.pop()
            if thread.guest_frame() is None:
                self._failed(frame, raised)
                return
            self.kernel.exceptions.raise_from_export(thread, raised)
            return
        if effect.__class__ is Call:
            self.begin_call(thread, effect)
        elif effect.__class__ is Block:
            self.park(thread, effect)
        else:
            assert isinstance(effect, Wait), effect
            self.kernel.dispatcher.begin_wait(thread, effect)

    def _failed(self, frame: ModelFrame, error: Exception) -> None:
        if frame.on_done is None:
            raise error
        frame.on_done(None, error)

    def _finished(self, thread: KThread, frame: ModelFrame, value: Any) -> None:
        if thread.frames[-1] is frame:
            thread.frames.pop()
        if frame.on_done is not None:
            frame.on_done(value, None)
        if self.on_call is not None and frame.export is not None:
            self.on_call(thread, frame.export, (), value)
        if not thread.frames:
            return
        below = thread.frames[-1]
        if isinstance(below, GuestFrame):
            below.result = (value or 0) & _MASK
        else:
            below.value = value

    def begin_call(self, thread: KThread, call: Call) -> None:
        """Push a frame of driver code: the x64 calling convention with shadow space and arguments on the stack."""
        below = thread.guest_frame()
        arguments = call.arguments
        extra = arguments[4:]
        top = (below.rsp if below is not None else thread.stack_base) - 0x28 - 8 * len(extra)
        rsp = (top & ~0xF) - 8
        if rsp < thread.stack_limit + 0x200:
            raise Bugcheck(
                bc.UNEXPECTED_KERNEL_MODE_TRAP,
                8,
                rsp,
                rule=f"the kernel stack of thread '{thread.name}' overflowed",
            )
        memory = self.kernel.memory
        memory.put64(rsp, self.return_address)
        for position, value in enumerate(extra):
            memory.put64(rsp + 0x28 + 8 * position, value)
        if below is not None:
            below.reset_rsp = True
        first = (*arguments[:4], 0, 0, 0, 0)
        self.engine.start_call(rsp, first[0] & _MASK, first[1] & _MASK, first[2] & _MASK, first[3] & _MASK)
        thread.frames.append(GuestFrame(call.address, rsp, call.name))
        self.kernel.driver_called(thread, call)

    def park(self, thread: KThread, block: Block) -> None:
        """Block the running thread."""
        if block.killable and thread.terminating:
            if block.on_cancel:
                block.on_cancel()
            thread.frames[-1].value = TERMINATING  # type: ignore[union-attr]  # a model frame yields
            return
        thread.block = block
        thread.state = ThreadState.WAITING
        if block.timeout is not None:
            clock = self.kernel.clock

            def expired() -> None:
                thread.timer = None
                if block.on_cancel:
                    block.on_cancel()
                self.wake(thread, TIMED_OUT)

            thread.timer = clock.at(clock.interrupt_time + block.timeout, expired)
