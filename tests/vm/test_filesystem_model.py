"""Random sequences of file operations against the simplest model that can be: a dictionary of paths."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vm.emulated.fltmgr import file_links
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_nodes import CLUSTER_BYTES, Open
from vm.emulated.fltmgr.filesystem import FileSystem, OpenRequest
from vm.emulated.kernel.objects import StatusError

ALL = n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE | n.DELETE
NAMES = st.sampled_from(["a", "A", "Long name.ä"])
DIRECTORIES = st.sampled_from(["", "", "\\D", "\\d\\E"])


def key(path: str) -> str:
    return path.upper()


class FilesAgainstDictionary(RuleBasedStateMachine):
    """What exists, with which contents, must always agree."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = FileSystem(lambda: 1, capacity_bytes=1 << 16)
        self.files: dict[str, bytes] = {}
        self.directories: set[str] = {""}

    def _open(self, path: str, disposition: int, options: int = 0) -> Open | None:
        try:
            return self.fs.open(OpenRequest(path, ALL, 7, disposition, options))[0]
        except StatusError:
            return None

    def _end(self, opened: Open) -> None:
        self.fs.cleanup(opened)
        self.fs.close(opened)

    @rule(directory=DIRECTORIES)
    def make_directory(self, directory: str) -> None:
        parent = key(directory).rpartition("\\")[0]
        expected = (
            directory != ""
            and parent in self.directories
            and key(directory) not in self.files
            and key(directory) not in self.directories
        )
        opened = self._open(directory or "\\", n.FILE_CREATE, n.FILE_DIRECTORY_FILE)
        assert (opened is not None) == expected
        if opened is not None:
            self._end(opened)
            self.directories.add(key(directory))

    @rule(directory=DIRECTORIES, name=NAMES, data=st.binary(max_size=9000), at=st.integers(0, 5000))
    def write(self, directory: str, name: str, data: bytes, at: int) -> None:
        path = f"{directory}\\{name}"
        opened = self._open(path, n.FILE_OPEN_IF, n.FILE_NON_DIRECTORY_FILE)
        assert (opened is not None) == (key(directory) in self.directories)
        if opened is None:
            return
        before = self.files.setdefault(key(path), b"")
        try:
            self.fs.write(opened, at, data)
        except StatusError:
            pass
        else:
            if data:
                self.files[key(path)] = before.ljust(at, b"\0")[:at] + data + before[at + len(data) :]
        self._end(opened)

    @rule(directory=DIRECTORIES, name=NAMES)
    def delete(self, directory: str, name: str) -> None:
        path = f"{directory}\\{name}"
        opened = self._open(path, n.FILE_OPEN)
        assert (opened is not None) == (key(path) in self.files)
        if opened is not None:
            self.fs.set_delete(opened, n.FILE_DISPOSITION_DELETE)
            self._end(opened)
            del self.files[key(path)]

    @rule(source=DIRECTORIES, name=NAMES, goal=DIRECTORIES, new=NAMES, replace=st.booleans())
    def rename(self, source: str, name: str, goal: str, new: str, replace: bool) -> None:
        old_path, new_path = f"{source}\\{name}", f"{goal}\\{new}"
        opened = self._open(old_path, n.FILE_OPEN)
        parent = self._open(goal or "\\", n.FILE_OPEN, n.FILE_DIRECTORY_FILE)
        if opened is not None and parent is not None:
            same = key(old_path) == key(new_path)
            expected = same or replace or key(new_path) not in self.files
            try:
                file_links.rename(self.fs, opened, parent.node, new, int(replace))
                done = True
            except StatusError:
                done = False
            assert done == expected
            if done:
                self.files[key(new_path)] = self.files.pop(key(old_path))
                assert opened.path().endswith(f"\\{new}")
        for each in (opened, parent):
            if each is not None:
                self._end(each)

    @rule(directory=DIRECTORIES)
    def remove_directory(self, directory: str) -> None:
        if directory == "":
            return
        opened = self._open(directory, n.FILE_OPEN, n.FILE_DIRECTORY_FILE)
        assert (opened is not None) == (key(directory) in self.directories)
        if opened is None:
            return
        inside = key(directory) + "\\"
        empty = not any(path.startswith(inside) for path in [*self.files, *self.directories])
        try:
            self.fs.set_delete(opened, n.FILE_DISPOSITION_DELETE)
            done = True
        except StatusError:
            done = False
        assert done == empty
        self._end(opened)
        if done:
            self.directories.remove(key(directory))

    @invariant()
    def contents_agree(self) -> None:
        for path, data in self.files.items():
            opened = self._open(path, n.FILE_OPEN)
            assert opened is not None
            assert (self.fs.read(opened, 0, 1 << 20) if data else b"") == data
            assert opened.stream.size == len(data)
            self._end(opened)

    @invariant()
    def listings_and_space_agree(self) -> None:
        for directory in self.directories:
            opened = self._open(directory or "\\", n.FILE_OPEN, n.FILE_DIRECTORY_FILE)
            assert opened is not None
            try:
                entries = self.fs.query_directory(opened, None, restart=True, most=1000)
            except StatusError:
                entries = []
            self._end(opened)
            listed = {key(f"{directory}\\{e.name}") for e in entries if e.name not in (".", "..")}
            known = [*self.files, *self.directories - {""}]
            assert listed == {path for path in known if path.rpartition("\\")[0] == directory}
        used = sum(-(-len(data) // CLUSTER_BYTES) * CLUSTER_BYTES for data in self.files.values())
        assert self.fs.used_bytes == used
        assert len(self.fs.nodes) == len(self.files) + len(self.directories)


TestFilesAgainstDictionary = FilesAgainstDictionary.TestCase
TestFilesAgainstDictionary.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
