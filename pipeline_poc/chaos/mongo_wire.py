"""As much of MongoDB's wire protocol as it takes to answer a client in the server's place."""

import struct
from typing import Any

import bson

_HEADER = struct.Struct("<iiii")
"""Size of the whole message, id, id of the request that it answers, kind of message."""
_INT = struct.Struct("<i")
_MSG = 2013
_REQUESTS = {2004, 2012, _MSG}
"""OP_QUERY, with which drivers begin; OP_COMPRESSED, which nobody asks for here; OP_MSG, all the rest."""
_MAX_SIZE = 48_000_000
"""Largest message that a server takes."""
_CHECKSUM_PRESENT = 1
_MORE_TO_COME = 2
_CURSOR_NOT_FOUND = 43
_LET_PASS = {"hello", "ismaster", "ping", "endsessions"}
"""With these a driver looks after its connections; a server that refuses everything else still answers them."""
_NAMES = {
    11: "UserNotFound",
    43: "CursorNotFound",
    50: "MaxTimeMSExpired",
    91: "ShutdownInProgress",
    112: "WriteConflict",
    189: "PrimarySteppedDown",
    262: "ExceededTimeLimit",
    10107: "NotWritablePrimary",
    11600: "InterruptedAtShutdown",
    11602: "InterruptedDueToReplStateChange",
    13435: "NotPrimaryNoSecondaryOk",
    13436: "NotPrimaryOrSecondary",
    14031: "OutOfDiskSpace",
}


def request_size(data: bytes | bytearray) -> int | None:
    """Return the size of the request that begins here, or None where none does.

    Args:
        data: What a client sent; may hold a part of the request only, or several of them.
    """
    if len(data) < _HEADER.size:
        return None
    size, _, answers, opcode = _HEADER.unpack_from(data)
    return size if opcode in _REQUESTS and answers == 0 and _HEADER.size <= size <= _MAX_SIZE else None


def refusal(request: bytes, code: int) -> bytes | None:
    """Return the answer of a server that refuses a request.

    Args:
        request: One whole message.
        code: The error of the server. 43, CursorNotFound, is the answer to getMore only.

    Returns:
        None where the request is to be passed on; nothing to send, `b""`, where the client waits for no answer.
    """
    _, request_id, _, opcode = _HEADER.unpack_from(request)
    if opcode != _MSG:
        return None
    (flags,) = _INT.unpack_from(request, _HEADER.size)
    name = next(iter(_command(request, flags)), "")
    if name.lower() in _LET_PASS or (code == _CURSOR_NOT_FOUND and name != "getMore"):
        return None
    if flags & _MORE_TO_COME:
        return b""
    # MongoDB calls its unnamed errors this way, too.
    code_name = _NAMES.get(code, f"Location{code}")
    body = bson.encode({"ok": 0.0, "errmsg": f"{code_name}, says the proxy", "code": code, "codeName": code_name})
    size = _HEADER.size + _INT.size + 1 + len(body)
    return _HEADER.pack(size, 0, request_id, _MSG) + _INT.pack(0) + b"\x00" + body


def _command(request: bytes, flags: int) -> dict[str, Any]:
    """Return the section with the command; those beside it hold the documents of a bulk write."""
    end = len(request) - (_INT.size if flags & _CHECKSUM_PRESENT else 0)
    position = _HEADER.size + _INT.size
    while position < end:
        kind = request[position]
        (size,) = _INT.unpack_from(request, position + 1)
        if kind == 0:
            return bson.decode(request[position + 1 : position + 1 + size])
        position += 1 + size
    return {}
