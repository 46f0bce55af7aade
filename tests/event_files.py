"""A small reader of the event files that TensorBoard shows."""

import struct


def read(folder):
    """Tag -> [(step, number)] of the one event file in a directory."""

    def fields(message):
        at = 0
        while at < len(message):
            key, at = varint(message, at)
            if key & 7 == 0:
                value, at = varint(message, at)
            elif key & 7 == 2:
                size, at = varint(message, at)
                value, at = message[at : at + size], at + size
            else:
                size, form = (8, "<d") if key & 7 == 1 else (4, "<f")
                value, at = struct.unpack(form, message[at : at + size])[0], at + size
            yield key >> 3, value

    def varint(message, at):
        number = shift = 0
        while True:
            byte = message[at]
            number |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return number, at

    (file,) = folder.glob("events.out.tfevents.*")
    content, at, seen = file.read_bytes(), 0, {}
    while at < len(content):
        (size,) = struct.unpack("<Q", content[at : at + 8])
        event = dict(fields(content[at + 12 : at + 12 + size]))
        at += 16 + size
        for _, value in fields(event.get(5, b"")):
            entry = dict(fields(value))
            seen.setdefault(entry[1].decode(), []).append((event.get(2, 0), entry[2]))
    return seen
