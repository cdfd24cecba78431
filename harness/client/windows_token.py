"""Tokens on Windows: a thread without its Administrators group, and the privilege that loading a filter needs."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint32, c_uint64

from harness.client import hresult as hr
from harness.client.errors import port_error
from harness.client.windows_api import (
    DISABLE_MAX_PRIVILEGE,
    SE_PRIVILEGE_ENABLED,
    SECURITY_MAX_SID_SIZE,
    TOKEN_ADJUST_PRIVILEGES,
    TOKEN_ASSIGN_PRIMARY,
    TOKEN_DUPLICATE,
    TOKEN_IMPERSONATE,
    TOKEN_QUERY,
    WIN_BUILTIN_ADMINISTRATORS_SID,
    Libraries,
    Luid,
    SidAndAttributes,
    TokenPrivileges,
)


def impersonate_restricted(api: Libraries) -> None:
    """Go on, on this thread, with a token that has Administrators deny-only and no privileges."""
    sid = ctypes.create_string_buffer(SECURITY_MAX_SID_SIZE)
    sid_size = c_uint32(SECURITY_MAX_SID_SIZE)
    made = api.advapi32.CreateWellKnownSid(WIN_BUILTIN_ADMINISTRATORS_SID, None, sid, byref(sid_size))
    _check(api, made, "CreateWellKnownSid")
    denied = SidAndAttributes(ctypes.addressof(sid), 0)
    token = _process_token(api, TOKEN_DUPLICATE | TOKEN_QUERY | TOKEN_IMPERSONATE | TOKEN_ASSIGN_PRIMARY)
    restricted = c_uint64()
    try:
        made = api.advapi32.CreateRestrictedToken(
            token, DISABLE_MAX_PRIVILEGE, 1, byref(denied), 0, None, 0, None, byref(restricted)
        )
        _check(api, made, "CreateRestrictedToken")
    finally:
        api.kernel32.CloseHandle(token)
    try:
        _check(api, api.advapi32.ImpersonateLoggedOnUser(restricted.value), "ImpersonateLoggedOnUser")
    finally:
        api.kernel32.CloseHandle(restricted.value)


def revert(api: Libraries) -> None:
    """Go on, on this thread, as the process."""
    _check(api, api.advapi32.RevertToSelf(), "RevertToSelf")


def enable_load_driver_privilege(api: Libraries) -> None:
    """Enable SeLoadDriverPrivilege in the process token (fact L2)."""
    privilege = TokenPrivileges(1, Luid(), SE_PRIVILEGE_ENABLED)
    luid = Luid()
    found = api.advapi32.LookupPrivilegeValueW(None, "SeLoadDriverPrivilege", byref(luid))
    _check(api, found, "LookupPrivilegeValue")
    privilege.Luid = luid
    token = _process_token(api, TOKEN_ADJUST_PRIVILEGES | TOKEN_QUERY)
    try:
        done = api.advapi32.AdjustTokenPrivileges(token, 0, byref(privilege), 0, None, None)
        # It succeeds with ERROR_NOT_ALL_ASSIGNED when the token has no such privilege.
        if not done or api.last_error():
            raise port_error(hr.PRIVILEGE_NOT_HELD, "AdjustTokenPrivileges")
    finally:
        api.kernel32.CloseHandle(token)


def _process_token(api: Libraries, access: int) -> int:
    token = c_uint64()
    opened = api.advapi32.OpenProcessToken(api.kernel32.GetCurrentProcess(), access, byref(token))
    _check(api, opened, "OpenProcessToken")
    return token.value


def _check(api: Libraries, succeeded: int, operation: str) -> None:
    if not succeeded:
        raise port_error(hr.from_win32(api.last_error()), operation)
