"""Rows about installing a package by pnputil. Codes: winerror.h, setupapi.h and the documentation of PnPUtil.

SetupAPI's own codes are shown as 0xE0000nnn or, as HRESULTs, as 0x800F0nnn; both are one row.
"""

from __future__ import annotations

from harness.symptoms.symptom import Place, Symptom

_FIX = "./inv doctor --fix --machine <name>"
_BUILD_AGAIN = "build the package again: ./inv clean, then ./inv build"

PNPUTIL: tuple[Symptom, ...] = (
    Symptom(
        "pnputil-259",
        Place.PNPUTIL,
        "pnputil: 259 (ERROR_NO_MORE_ITEMS)",
        "the same or a newer version of the package is installed",
        "raise DriverVer, or delete the older package first: pnputil /delete-driver oemNN.inf /uninstall",
        259,
        r"\b259\b",
    ),
    Symptom(
        "pnputil-3010",
        Place.PNPUTIL,
        "pnputil: 3010 (ERROR_SUCCESS_REBOOT_REQUIRED)",
        "it is done, but the driver in use is the old one until a restart: it refused to be unloaded",
        "restart the guest, or restore it: ./inv vm.restore",
        3010,
        r"\b3010\b",
    ),
    Symptom(
        "pnputil-1641",
        Place.PNPUTIL,
        "pnputil: 1641 (ERROR_SUCCESS_REBOOT_INITIATED)",
        "it is done, and the guest restarts now",
        "wait until the guest is back, then deploy again",
        1641,
        r"\b1641\b",
    ),
    Symptom(
        "pnputil-file-missing",
        Place.PNPUTIL,
        "pnputil: 2 (ERROR_FILE_NOT_FOUND)",
        "a file that the INF lists is not beside it",
        "compare [SourceDisksFiles] and CatalogFile with the files of the package",
        2,
        r"pnputil returned 2\b",
    ),
    Symptom(
        "pnputil-root",
        Place.PNPUTIL,
        "pnputil: 0x800B0109 (CERT_E_UNTRUSTEDROOT)",
        "the certificate of the catalog is not in the machine's store Root",
        f"certutil -f -addstore Root <cer>; {_FIX} does it",
        0x800B0109,
        r"0x800B0109",
    ),
    Symptom(
        "pnputil-publisher",
        Place.PNPUTIL,
        "pnputil: 0xE0000242 (ERROR_AUTHENTICODE_TRUST_NOT_ESTABLISHED)",
        "the certificate of the catalog is not in the machine's store TrustedPublisher",
        f"certutil -f -addstore TrustedPublisher <cer>; {_FIX} does it",
        0xE0000242,
        r"0x(E000|800F)0242",
    ),
    Symptom(
        "pnputil-add-failed",
        Place.PNPUTIL,
        "pnputil: 0xE0000247 (ERROR_DRIVER_STORE_ADD_FAILED)",
        "the driver store did not take the package, in most cases because the publisher is not trusted",
        f"see the end of C:\\Windows\\INF\\setupapi.dev.log in the guest; {_FIX}",
        0xE0000247,
        r"0x(E000|800F)0247",
    ),
    Symptom(
        "pnputil-no-catalog",
        Place.PNPUTIL,
        "pnputil: 0xE000022F (ERROR_NO_CATALOG_FOR_OEM_INF)",
        "the INF names no catalog",
        "write CatalogFile in [Version]",
        0xE000022F,
        r"0x(E000|800F)022F",
    ),
    Symptom(
        "pnputil-hash",
        Place.PNPUTIL,
        "pnputil: 0xE000024B (ERROR_FILE_HASH_NOT_IN_CATALOG)",
        "a file was changed after the catalog was made",
        _BUILD_AGAIN,
        0xE000024B,
        r"0x(E000|800F)024B",
    ),
    Symptom(
        "pnputil-not-signed",
        Place.PNPUTIL,
        "pnputil: 0x800B0100 (TRUST_E_NOSIGNATURE)",
        "the catalog is not signed, or it is none",
        _BUILD_AGAIN,
        0x800B0100,
        r"0x800B0100",
    ),
    Symptom(
        "pnputil-bad-digest",
        Place.PNPUTIL,
        "pnputil: 0x80096010 (TRUST_E_BAD_DIGEST)",
        "the catalog was changed after it was signed",
        _BUILD_AGAIN,
        0x80096010,
        r"0x80096010",
    ),
    Symptom(
        "pnputil-in-use",
        Place.PNPUTIL,
        "pnputil: 0xE000023D (ERROR_INF_IN_USE_BY_DEVICES)",
        "the package is installed, and pnputil was not told to uninstall it",
        "pnputil /delete-driver <oem> /uninstall",
        0xE000023D,
        r"0x(E000|800F)023D",
    ),
    Symptom(
        "certificate-expired",
        Place.PNPUTIL,
        "0x800B0101 (CERT_E_EXPIRED)",
        "the certificate is not valid at the time that the guest's clock shows",
        f"is the clock right? {_FIX}; else remove .cache/signing and build again",
        0x800B0101,
        r"0x800B0101",
    ),
)
