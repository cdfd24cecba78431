"""Page hashes of a PE image: a digest for every page, as `signtool /ph` and `inf2cat /pageHashes` enclose them.

Layout (version 2, SHA-256): for each page its offset in the file, 32 bit, and its digest; first the headers, then every
section's raw data; last the offset behind it with a digest of zeros. Short pages are filled up with zeros. What the
image's own digest leaves out of the headers (checksum, pointer to the certificate table) is left out here, too.
"""

from __future__ import annotations

import hashlib
import struct

from vm.emulated.image.headers import read_headers

PAGE_HASHES_2 = "1.3.6.1.4.1.311.2.3.2"
CLASS_ID = bytes.fromhex("a6b586d5b4a12466ae05a217da8e60d6")
"""SpcSerializedObject of page hashes: {D586B5A6-A1B4-6624-AE05-A217DA8E60D6}."""


def page_hashes(data: bytes, name: str = "image") -> bytes:
    """The list of page hashes of an image, signed or not.

    Raises:
        PackageError: it is no PE image.
    """
    headers = read_headers(data, name)
    page = headers.section_alignment
    first = data[: headers.checksum_offset]
    first += data[headers.checksum_offset + 4 : headers.security_directory_offset]
    first += data[headers.security_directory_offset + 8 : headers.size_of_headers]
    entries = [_entry(0, first + bytes(page - headers.size_of_headers))]
    end = headers.size_of_headers
    for section in headers.sections:
        for offset in range(0, section.raw_size, page):
            begin = section.raw_offset + offset
            content = data[begin : begin + min(page, section.raw_size - offset)]
            entries.append(_entry(begin, content.ljust(page, b"\0")))
        if section.raw_size:
            end = section.raw_offset + section.raw_size
    return b"".join(entries) + struct.pack("<I", end) + bytes(32)


def _entry(offset: int, content: bytes) -> bytes:
    return struct.pack("<I", offset) + hashlib.sha256(content).digest()
