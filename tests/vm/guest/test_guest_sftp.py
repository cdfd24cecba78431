"""SFTP as paramiko's client sees it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import paramiko
import pytest


@pytest.fixture
def sftp(machine: Any) -> Iterator[paramiko.SFTPClient]:
    client = machine.sftp()
    client.mkdir("/C:/Work")
    yield client
    client.close()
    client.get_channel().get_transport().close()
    shutil.rmtree(machine.c / "Work")


def test_a_file_goes_up_and_comes_down_whole(machine: Any, sftp: paramiko.SFTPClient) -> None:
    data = os.urandom(3_000_000)
    sftp.putfo(BytesIO(data), "/C:/Work/up.bin.part", confirm=True)
    sftp.posix_rename("/C:/Work/up.bin.part", "/C:/Work/up.bin")
    assert (machine.c / "Work/up.bin").read_bytes() == data
    back = BytesIO()
    sftp.getfo("C:/Work/up.bin", back)
    assert back.getvalue() == data


def test_answers_are_never_held_back_by_the_socket(machine: Any, sftp: paramiko.SFTPClient) -> None:
    sockets = machine.face._sftp._server.connections._sockets
    assert sockets
    assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


def test_names_are_found_without_case_and_kept_with_it(machine: Any, sftp: paramiko.SFTPClient) -> None:
    sftp.putfo(BytesIO(b"x"), "/c:/WORK/MixedCase.TXT")
    assert sftp.listdir("/C:/work") == ["MixedCase.TXT"]
    assert sftp.stat("/C:/Work/mixedcase.txt").st_size == 1
    sftp.rename("/C:/Work/mixedcase.txt", "/C:/Work/MIXEDCASE.txt")
    assert sftp.listdir("/C:/Work") == ["MIXEDCASE.txt"]


def test_paths_have_windows_sshds_form(machine: Any, sftp: paramiko.SFTPClient) -> None:
    assert sftp.normalize(".") == "/C:/Users/lab"
    assert sftp.normalize("C:/Work/../Work/x") == "/C:/Work/x"
    assert sftp.normalize("/") == "/"
    assert sftp.listdir("/") == ["C:"]
    assert stat.S_ISDIR(sftp.stat("/").st_mode or 0)
    assert stat.S_ISDIR(sftp.stat("/C:").st_mode or 0)
    sftp.putfo(BytesIO(b"x"), "relative.txt")
    assert (machine.c / "Users/lab/relative.txt").exists()


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("C:\\Work\\x", None),
        ("/C:/Work/a\\b", None),
        ("/C:/Work/a|b", None),
        ("/C:/Work/a:b", None),
        ("/C:/Work/nul", None),
        ("/C:/Work/missing/x", errno.ENOENT),
        ("/D:/x", errno.ENOENT),
        ("/etc/passwd", errno.ENOENT),
        ("/Work/x", errno.ENOENT),
    ],
)
def test_a_path_that_windows_does_not_take_is_refused(
    sftp: paramiko.SFTPClient, path: str, number: int | None
) -> None:
    with pytest.raises(OSError) as caught:
        sftp.open(path, "wb")
    assert caught.value.errno == number
    with pytest.raises(OSError):
        sftp.mkdir(path)


def test_nothing_leads_out_of_the_drive(machine: Any, sftp: paramiko.SFTPClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (machine.c / "Work/link").symlink_to(secret)
    (machine.c / "Work/up").symlink_to(tmp_path)
    for path in ("/C:/Work/link", "/C:/Work/up/secret"):
        with pytest.raises(PermissionError):
            sftp.open(path, "rb")
        with pytest.raises(PermissionError):
            sftp.open(path, "wb")
        with pytest.raises(PermissionError):
            sftp.stat(path)
    with pytest.raises(PermissionError):
        sftp.listdir("/C:/Work/up")
    with pytest.raises(FileNotFoundError):
        sftp.stat("/C:/../../../../etc/passwd")
    with pytest.raises(OSError):
        sftp.symlink("/C:/Windows", "/C:/Work/new")
    sftp.remove("/C:/Work/link")
    sftp.remove("/C:/Work/up")
    assert secret.read_text() == "secret"


def test_directories_are_made_listed_and_removed(sftp: paramiko.SFTPClient) -> None:
    sftp.mkdir("/C:/Work/d")
    with pytest.raises(OSError):
        sftp.mkdir("/C:/Work/D")
    sftp.putfo(BytesIO(b"abc"), "/C:/Work/d/f")
    entries = sftp.listdir_attr("/C:/Work/d")
    assert [(entry.filename, entry.st_size, entry.st_uid) for entry in entries] == [("f", 3, 0)]
    with pytest.raises(OSError):
        sftp.rmdir("/C:/Work/d")
    with pytest.raises(OSError):
        sftp.remove("/C:/Work/d")
    with pytest.raises(OSError):
        sftp.listdir("/C:/Work/d/f")
    sftp.remove("/C:/Work/d/f")
    sftp.rmdir("/C:/Work/d")
    with pytest.raises(FileNotFoundError):
        sftp.listdir("/C:/Work/d")
    with pytest.raises(PermissionError):
        sftp.rmdir("/C:/")


def test_rename_refuses_an_existing_target_and_posix_rename_replaces_it(sftp: paramiko.SFTPClient) -> None:
    sftp.putfo(BytesIO(b"new"), "/C:/Work/a")
    sftp.putfo(BytesIO(b"old"), "/C:/Work/b")
    with pytest.raises(OSError):
        sftp.rename("/C:/Work/a", "/C:/Work/B")
    sftp.posix_rename("/C:/Work/a", "/C:/Work/B")
    assert sftp.listdir("/C:/Work") in (["b"], ["B"])
    assert sftp.stat("/C:/Work/b").st_size == 3
    with pytest.raises(FileNotFoundError):
        sftp.rename("/C:/Work/a", "/C:/Work/c")


def test_files_are_opened_in_every_mode(machine: Any, sftp: paramiko.SFTPClient) -> None:
    with sftp.open("/C:/Work/f", "wb") as file:
        file.write(b"hello")
    with sftp.open("/C:/Work/f", "ab") as file:
        file.write(b" world")
    with sftp.open("/C:/Work/f", "r+b") as file:
        file.seek(6)
        file.write(b"W")
        file.seek(0)
        assert file.read() == b"hello World"
        assert file.stat().st_size == 11
        file.truncate(5)
    with pytest.raises(OSError):
        sftp.open("/C:/Work/f", "xb")
    with pytest.raises(FileNotFoundError):
        sftp.open("/C:/Work/g", "rb")
    assert (machine.c / "Work/f").read_bytes() == b"hello"


def test_size_and_times_can_be_set(sftp: paramiko.SFTPClient) -> None:
    sftp.putfo(BytesIO(b"hello"), "/C:/Work/f")
    sftp.utime("/C:/Work/f", (1_000_000_000, 1_100_000_000))
    sftp.truncate("/C:/Work/f", 2)
    sftp.chmod("/C:/Work/f", 0o600)
    sftp.utime("/C:/Work/f", (1_000_000_000, 1_100_000_000))
    status = sftp.stat("/C:/Work/f")
    assert (status.st_size, status.st_atime, status.st_mtime) == (2, 1_000_000_000, 1_100_000_000)
    with pytest.raises(FileNotFoundError):
        sftp.truncate("/C:/Work/g", 2)


def test_writing_into_the_guests_python_does_not_reach_the_cache(
    machine: Any, sftp: paramiko.SFTPClient
) -> None:
    file = next(machine.c.glob("Python/**/pluggy/__init__.py"))
    (machine.c / "Work/second-name").hardlink_to(file)
    before = file.read_bytes()
    with sftp.open("/C:/Work/second-name", "r+b") as opened:
        opened.write(b"changed")
    assert file.read_bytes() == before
    assert (machine.c / "Work/second-name").read_bytes().startswith(b"changed")


def test_a_wrong_password_and_other_ways_in_are_refused(machine: Any) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        machine.sftp(password="wrong")
    transport = paramiko.Transport(("127.0.0.1", machine.face.ssh_port))
    transport.connect()
    with pytest.raises(paramiko.AuthenticationException):
        transport.auth_publickey("lab", paramiko.ECDSAKey.generate())
    with pytest.raises(paramiko.BadAuthenticationType):
        transport.auth_none("lab")
    transport.close()


def test_there_is_no_shell_behind_ssh(machine: Any, sftp: paramiko.SFTPClient) -> None:
    transport = sftp.get_channel().get_transport()
    for ask in (lambda channel: channel.exec_command("id"), lambda channel: channel.invoke_shell()):
        channel = transport.open_session()
        with pytest.raises(paramiko.SSHException):
            ask(channel)
    with pytest.raises(paramiko.SSHException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 2))


def test_several_sessions_work_at_once(machine: Any, sftp: paramiko.SFTPClient) -> None:
    def work(number: int) -> None:
        client = machine.sftp()
        client.putfo(BytesIO(bytes([number]) * 200_000), f"/C:/Work/{number}.bin")
        client.get_channel().get_transport().close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert (machine.c / f"Work/{number}.bin").read_bytes() == bytes([number]) * 200_000


def test_every_start_has_a_host_key_of_its_own(own_machine: Callable[..., Any], machine: Any) -> None:
    other = own_machine()
    assert other.face.host_key.startswith("ssh-ed25519 AAAA")
    assert other.face.host_key != machine.face.host_key
