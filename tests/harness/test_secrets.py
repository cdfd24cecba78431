"""Where passwords come from, in which order, and that nobody sees them on the way."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import keyring
import keyring.backend
import keyring.errors
import pytest

from harness import config
from harness.log import Log
from harness.secrets import SERVICE, Secrets, variable
from vm.errors import MachineError
from vm.secrets import SecretStore

NAME = "win2025.password"
VARIABLE = "DOWNLINK_SECRET_WIN2025_PASSWORD"
PURPOSE = "log on to the machine 'win2025'"


class MemoryKeyring(keyring.backend.KeyringBackend):
    """A keyring backend as its own API has it; `error` is raised by every call, `hangs` blocks them."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.error: Exception | None = None
        self.hangs: threading.Event | None = None
        self.calls = 0

    def _enter(self) -> None:
        self.calls += 1
        if self.hangs is not None:
            self.hangs.wait()
        if self.error is not None:
            raise self.error

    def get_password(self, service: str, username: str) -> str | None:
        self._enter()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._enter()
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._enter()
        if (service, username) not in self.kept:
            raise keyring.errors.PasswordDeleteError("not found")
        del self.kept[service, username]


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    before = keyring.get_keyring()
    backend = MemoryKeyring()
    keyring.set_keyring(backend)
    yield backend
    if backend.hangs:
        backend.hangs.set()
    keyring.set_keyring(before)


def nobody(_: str) -> str:
    raise AssertionError("somebody was asked")


def store(ring: MemoryKeyring | None = None, **options: object) -> Secrets:
    return Secrets(**{"environment": {}, "ask": nobody, **options})  # type: ignore[arg-type]


def test_it_is_the_store_that_machines_ask() -> None:
    wanted: SecretStore = store()
    assert wanted is not None


def test_the_variable_of_a_name_has_capitals_and_underscores_only() -> None:
    assert variable(NAME) == VARIABLE
    assert variable("my-vm.ssh key") == "DOWNLINK_SECRET_MY_VM_SSH_KEY"


def test_the_environment_wins_over_the_keyring(ring: MemoryKeyring) -> None:
    ring.kept[SERVICE, NAME] = "from the ring"
    secrets = store(environment={VARIABLE: "from the environment"})
    assert secrets.get(NAME, purpose=PURPOSE) == "from the environment"
    assert ring.calls == 0
    assert secrets.where(NAME) == f"the environment variable {VARIABLE}"


def test_the_keyring_comes_before_the_prompt(ring: MemoryKeyring) -> None:
    ring.kept[SERVICE, NAME] = "from the ring"
    assert store().get(NAME, purpose=PURPOSE) == "from the ring"
    assert store().where(NAME) == "the keyring"


def test_a_person_is_asked_last_once_and_with_the_purpose(ring: MemoryKeyring) -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "typed"

    secrets = store(ask=answer)
    assert [secrets.get(NAME, purpose=PURPOSE) for _ in range(2)] == ["typed", "typed"]
    assert asked == [f"password to {PURPOSE}: "]
    assert secrets.where(NAME) is None, "what was typed is kept nowhere"


def test_finding_a_secret_asks_nobody(ring: MemoryKeyring) -> None:
    assert store().find(NAME) is None


def test_without_anybody_to_ask_the_error_names_every_place(
    ring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("not a terminal"))
    secrets = Secrets(environment={})
    with pytest.raises(MachineError) as raised:
        secrets.get(NAME, purpose=PURPOSE)
    assert PURPOSE in raised.value.message
    assert raised.value.hint is not None
    for place in (VARIABLE, f"python -m keyring set {SERVICE} {NAME}", "terminal"):
        assert place in raised.value.hint


def test_an_empty_variable_counts_as_none_and_is_named(ring: MemoryKeyring) -> None:
    with pytest.raises(MachineError, match=f"{VARIABLE} is set but empty"):
        store(environment={VARIABLE: ""}, ask=lambda _: "").get(NAME, purpose=PURPOSE)


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (keyring.errors.NoKeyringError("none"), "no usable keyring"),
        (keyring.errors.KeyringLocked("locked"), "is locked"),
        (keyring.errors.InitError("collection"), "failed (InitError)"),
        (RuntimeError("dbus said: correct horse"), "failed (RuntimeError)"),
    ],
)
def test_a_keyring_that_fails_is_said_once_and_the_prompt_takes_over(
    ring: MemoryKeyring, error: Exception, note: str
) -> None:
    ring.error = error
    notes: list[str] = []
    secrets = store(say=notes.append, ask=lambda _: "typed")
    assert secrets.get(NAME, purpose=PURPOSE) == "typed"
    assert secrets.get("other.password", purpose=PURPOSE) == "typed"
    assert len(notes) == 1
    assert note in notes[0]
    assert "horse" not in notes[0]
    assert ring.calls == 1


def test_a_keyring_that_hangs_is_given_up(ring: MemoryKeyring) -> None:
    ring.hangs = threading.Event()
    notes: list[str] = []
    secrets = store(say=notes.append, ask=lambda _: "typed", keyring_seconds=0.05)
    assert secrets.get(NAME, purpose=PURPOSE) == "typed"
    assert notes == ["the keyring did not answer within 0.05 s; it is not asked again"]


def test_a_secret_is_kept_in_the_keyring_and_forgotten_there(ring: MemoryKeyring) -> None:
    store().put(NAME, "made here")
    assert ring.kept == {(SERVICE, NAME): "made here"}
    assert store().get(NAME, purpose=PURPOSE) == "made here"
    store().forget(NAME)
    store().forget(NAME)
    assert ring.kept == {}


def test_a_forgotten_secret_is_asked_for_again(ring: MemoryKeyring) -> None:
    answers = iter(["old", "new"])
    secrets = store(ask=lambda _: next(answers))
    assert secrets.get(NAME, purpose=PURPOSE) == "old"
    secrets.forget(NAME)
    assert secrets.get(NAME, purpose=PURPOSE) == "new"


def test_without_a_keyring_keeping_says_where_to_put_it(ring: MemoryKeyring) -> None:
    ring.error = keyring.errors.NoKeyringError("none")
    with pytest.raises(MachineError, match="no usable keyring") as raised:
        store().put(NAME, "made here")
    assert VARIABLE in str(raised.value.hint)
    assert "made here" not in raised.value.render()


def test_what_the_environment_says_needs_no_keyring_and_is_not_contradicted(ring: MemoryKeyring) -> None:
    store(environment={VARIABLE: "same"}).put(NAME, "same")
    with pytest.raises(MachineError, match="another value"):
        store(environment={VARIABLE: "other"}).put(NAME, "mine")
    assert ring.kept == {}


def test_no_secret_is_in_a_repr(ring: MemoryKeyring) -> None:
    secrets = store(environment={VARIABLE: "correct horse"})
    secrets.get(NAME, purpose=PURPOSE)
    assert repr(secrets) == f"Secrets({NAME})"


def test_logs_mask_what_was_handed_out_before_and_after_they_were_named(ring: MemoryKeyring) -> None:
    stream = io.StringIO()
    secrets = store(environment={VARIABLE: "first-word", "DOWNLINK_SECRET_B": "second-word"})
    secrets.get(NAME, purpose=PURPOSE)
    log = Log(stream)
    secrets.protect_in(log)
    secrets.get("b", purpose=PURPOSE)
    log.write("first-word second-word third-word")
    assert stream.getvalue().split()[1:] == ["***", "***", "third-word"]


@pytest.mark.parametrize("before", ["", "a", "ab", "lab:"])
@pytest.mark.parametrize("after", ["", "z", "yz"])
def test_a_log_masks_every_form_of_a_secret(before: str, after: str) -> None:
    secret = 'pä"ss/w+rd&9<'
    whole = before + secret + after
    written = [
        base64.b64encode(whole.encode()).decode(),
        base64.urlsafe_b64encode(whole.encode()).decode(),
        base64.b64encode(whole.encode("utf-16-le")).decode(),
        quote(whole),
        quote(whole, safe=""),
        json.dumps(whole),
        json.dumps(whole, ensure_ascii=False),
        whole.encode().hex(),
    ]
    for text in written:
        stream = io.StringIO()
        log = Log(stream)
        log.protect(secret)
        log.write(text)
        masked = stream.getvalue().split()[1]
        assert "***" in masked, text
        assert len(masked) <= len("***") + len(text) - len(secret), f"only a part of {text} is masked"


def test_a_machine_of_the_configuration_asks_the_configurations_store(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / config.FILE).read_text(encoding="utf-8")
    far = '[machines.far]\nkind = "remote"\nhost = "192.0.2.7"\nusername = "lab"\n'
    (tmp_path / config.FILE).write_text(text + far, encoding="utf-8")
    secrets = store(environment={"DOWNLINK_SECRET_FAR_PASSWORD": "correct horse"})
    configuration = replace(config.load(tmp_path), secrets=secrets)
    address = configuration.create_machine("far", configuration.driver()).address()
    assert address.credentials.password == "correct horse"
    assert "horse" not in repr(configuration) + repr(address)
