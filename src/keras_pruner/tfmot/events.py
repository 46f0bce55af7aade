"""Event files, as TensorBoard reads them, written without TensorFlow.

Records of (length, its checksum, an `Event` message, its checksum); a message is a sequence of
(field number, type, content), by the Protocol Buffers encoding.
"""

import os
import socket
import struct
import time
from pathlib import Path

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class EventFile:
    """An event file in a directory, which is made if it is not there.

    Args:
        directory: of the file; TensorBoard finds every one below its own.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._record(_double(1, now) + _bytes(3, b"brain.Event:2"))

    def scalars(self, figures: dict[str, float], step: int) -> None:
        """Note numbers under their tags at a step."""
        values = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + _float(2, float(number)))
            for tag, number in figures.items()
        )
        self._record(_double(1, time.time()) + _integer(2, step) + _bytes(5, values))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _record(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        self._file.write(length + _checksum(length) + message + _checksum(message))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _integer(field: int, number: int) -> bytes:
    return _key(field, _VARINT) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _key(field, _DOUBLE) + struct.pack("<d", number)


def _float(field: int, number: float) -> bytes:
    return _key(field, _FLOAT) + struct.pack("<f", number)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


_CRC32C = _table()


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and offset as record files have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
