"""Messages between the two processes: JSON behind its length, on pipes that nothing else uses."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

_LENGTH = struct.Struct("<I")
_LONGEST = 1 << 26  # no message is nearly that long: a length beyond it is garbage

Message = dict[str, Any]


class GarbageError(Exception):
    """What came over the pipe is no message."""


class Inbox:
    """Cuts what comes over a pipe into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes what was read from the pipe."""
        self._bytes += data

    def next(self) -> Message | None:
        """The next message; None as long as it is not complete.

        Raises:
            GarbageError: There is something else.
        """
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        end = _LENGTH.size + length
        if length > _LONGEST:
            raise GarbageError(f"a message of {length} bytes")
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return _parse(text)


def send(pipe: int, message: Message) -> None:
    """Writes a message.

    Raises:
        OSError: The other side is gone.
    """
    data = json.dumps(message).encode()
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def receive(pipe: int, inbox: Inbox) -> Message | None:
    """Waits for a message; None when the other side is gone.

    What comes behind the message stays in ``inbox``.
    """
    while (message := inbox.next()) is None:
        data = os.read(pipe, 1 << 16)
        if not data:
            return None
        inbox.feed(data)
    return message


def _parse(text: bytes) -> Message:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise GarbageError(str(error)) from error
    if not isinstance(message, dict):
        raise GarbageError(repr(message)[:80])
    return message
