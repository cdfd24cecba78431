"""Files of the host kept equal in a directory of the guest: only what changed is sent, as one archive, and verified."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from harness.remote.archive import Archive, digest_of, is_safe, pack
from harness.remote.channels import CommandResult, ContentError, Upload, shown_code
from harness.remote.quoting import quote
from vm.deadline import Deadline
from vm.errors import ConfigurationError, GuestError

if TYPE_CHECKING:
    from harness.remote.guest import Guest

TAR = r"%SystemRoot%\System32\tar.exe"
"""By its path: a host with Git may have another tar in front of the inbox one, which takes `C:` for a host's name."""

_FULL = ("no space left", "not enough space", "write failed")


@dataclass(frozen=True, slots=True)
class Sync:
    """What it took to make a directory of the guest equal."""

    sent_files: int
    sent_bytes: int
    """Content of those files."""
    archive_bytes: int
    """What of the archive went over the wire: 0 when the guest had it already, less than all when it was resumed."""
    seconds: float
    """Of everything: comparing, packing, sending, verifying, unpacking."""
    speed: float
    """Megabytes (10^6 bytes) of archive per second while it was sent; 0.0 when nothing was."""
    removed_files: int = 0

    def __str__(self) -> str:
        if not self.sent_files:
            return f"up to date, {self.removed_files} files removed" if self.removed_files else "up to date"
        packed = f"{self.archive_bytes / 1024:.0f} KiB packed, {self.speed:.1f} MB/s"
        return f"{self.sent_files} files, {self.sent_bytes / 1024:.0f} KiB ({packed})"


def synchronise(
    guest: Guest,
    files: Mapping[str, Path],
    root: str,
    deadline: Deadline,
    *,
    manifest: str,
    digests: Mapping[str, str] | None = None,
) -> Sync:
    """Make the guest have exactly `files` below `root`, as far as the manifest there knows.

    The archive's hash is computed in the guest before it is unpacked. The manifest is removed first and written last,
    so that an interrupted transfer counts as none; what of its archive has arrived is used by the next one.

    Args:
        guest: the running guest.
        files: by their path below `root`, with slashes.
        root: Windows path of the directory.
        deadline: for all of it.
        manifest: Windows path of the file in the guest that lists what was sent, one per set of files.
        digests: SHA-256 in hex by the same names, where they are known already.

    Raises:
        ConfigurationError: a file cannot be read, has changed meanwhile, or has a name that Windows does not take.
        GuestError: the guest refused something, or has another content than what was sent.
        DeadlineExceededError: it took too long.
    """
    started = time.monotonic()
    for name in files:
        if not is_safe(name):
            raise ConfigurationError(f"a file cannot be called '{name}' in the guest")
    wanted = {name: (digests[name] if digests else digest_of(path)).lower() for name, path in files.items()}
    there = _listed(guest.read_bytes(manifest, deadline))
    changed = {name: path for name, path in files.items() if there.get(name) != wanted[name]}
    stale = [name for name in there if name not in wanted]
    if not changed and not stale and there:
        return Sync(0, 0, 0, time.monotonic() - started, 0.0)
    guest.remove([manifest, *(_below(root, name) for name in stale)], deadline)
    content = sent = 0
    speed = 0.0
    if changed:
        with tempfile.TemporaryDirectory(prefix="downlink-") as scratch:
            archive = pack(changed, wanted, Path(scratch))
            began = time.monotonic()
            place = str(PureWindowsPath(root, f".{PureWindowsPath(manifest).stem}"))
            sent = _deliver(guest, archive, place, deadline)
            speed = sent / 1e6 / max(time.monotonic() - began, 1e-6)
            content = archive.content_bytes
            _unpack(guest, archive, place, root, deadline)
    guest.put_bytes(json.dumps(wanted, indent=1).encode(), manifest, deadline)
    done = Sync(len(changed), content, sent, time.monotonic() - started, speed, len(stale))
    guest.log.write(f"made '{root}' equal in {done.seconds:.3f} s: {done}")
    return done


def _deliver(guest: Guest, archive: Archive, place: str, deadline: Deadline) -> int:
    """Have the archive in the guest, unless it is there; returns the bytes sent."""
    target = str(PureWindowsPath(place, archive.path.name))
    digest = {target: archive.sha256}
    upload = [Upload(archive.path, target)]
    sent = 0
    if guest.size(target, deadline) != archive.size_bytes:
        sent = guest.put(upload, deadline, resume=True)
    try:
        guest.verify(digest, deadline)
    except ContentError:
        if sent == archive.size_bytes:
            raise
        # What was left over from an earlier attempt is broken, as after a crash of the guest: all of it once more.
        guest.remove([target, f"{target}.part"], deadline)
        sent = guest.put(upload, deadline)
        guest.verify(digest, deadline)
    return sent


def _unpack(guest: Guest, archive: Archive, place: str, root: str, deadline: Deadline) -> None:
    packed = quote(str(PureWindowsPath(place, archive.path.name)))
    line = f"{TAR} -xf {packed} -C {quote(root)} && rmdir /s /q {quote(place)}"
    result = guest.run(line, deadline=deadline, check=False)
    if result.exit_code:
        raise _not_unpacked(result, root, guest.machine)


def _not_unpacked(result: CommandResult, root: str, machine: str) -> GuestError:
    said = result.output.strip().splitlines()
    last = f": {said[-1].strip()}" if said else ""
    full = any(word in result.output.lower() for word in _FULL)
    return GuestError(
        f"the files could not be unpacked in '{root}' (tar returned {shown_code(result.exit_code)}){last}",
        exit_code=result.exit_code,
        hint="the guest's disk is full: make room on its C:"
        if full
        else "tar.exe belongs to Windows since version 1803 and Server 2019; a file that is in use cannot be replaced",
        machine=machine,
    )


def _listed(content: bytes | None) -> dict[str, str]:
    """The manifest in the guest; anything but a complete and sound one counts as empty."""
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    sound = all(is_safe(name) and isinstance(digest, str) for name, digest in found.items())
    return found if sound else {}


def _below(root: str, name: str) -> str:
    return str(PureWindowsPath(root).joinpath(*PurePosixPath(name).parts))
