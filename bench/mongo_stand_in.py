"""A stand-in for a MongoDB server that costs nearly nothing: it answers from memory, and keeps nothing.

It is for measuring our own cost only, never for saying how quick anything is with a real server.
`python -m bench.mongo_stand_in --port 27017` runs it by hand.
"""

import argparse
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import bson

from bench.mongo_collection import Collection, DuplicateKeyError
from bench.mongo_documents import Document, NotSupportedError, aggregate, matcher, ordered, project
from pipeline_poc.chaos.servers import Mongo

_HEADER = struct.Struct("<iiii")
_INT = struct.Struct("<i")
_REPLY, _QUERY, _MSG = 1, 2004, 2013
_CHECKSUM_PRESENT, _MORE_TO_COME = 1, 2
_BATCH = 101
"""Documents in the first answer of a cursor that asks for no number."""
_HELLO = {
    "ismaster": True,
    "isWritablePrimary": True,
    "helloOk": True,
    "maxBsonObjectSize": 16_777_216,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
}


class MongoStandIn(Mongo):
    """The stand-in as a process.

    Args:
        read_us: Pretended time for each document read, in microseconds.
        write_us: The same for each one written.
    """

    def __init__(self, read_us: float, write_us: float) -> None:
        super().__init__()
        self._costs = ["--read-us", str(read_us), "--write-us", str(write_us)]

    def _command(self) -> list[str]:
        # A server runs in a folder of its own, from which this package is not found.
        path = f"PYTHONPATH={Path(__file__).resolve().parents[1]}"
        return ["env", path, sys.executable, "-m", "bench.mongo_stand_in", "--port", str(self.port), *self._costs]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, read_us: float, write_us: float) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.lock = threading.Lock()
        self.read_us, self.write_us = read_us, write_us
        self._databases: dict[str, dict[str, Collection]] = {}
        self._cursors: dict[int, tuple[str, list[Document], int]] = {}
        self._numbers = count(1)
        self.touched = [0, 0]
        """Documents that the command under way has read and written."""
        self._commands: dict[str, Callable[[dict[str, Collection], Document], Document]] = {
            "insert": self._insert,
            "update": self._update,
            "delete": self._delete,
            "find": self._find,
            "findandmodify": self._find_and_modify,
            "aggregate": self._aggregate,
            "getmore": self._get_more,
            "killcursors": self._kill_cursors,
            "createindexes": self._create_indexes,
            "listindexes": self._list_indexes,
            "listcollections": self._list_collections,
            "drop": lambda database, command: {"dropped": bool(database.pop(command["drop"], None))},
            "dropdatabase": self._drop_database,
            "buildinfo": lambda *_: {"version": "0"},
        }

    def answer(self, command: Document) -> tuple[bytes, float]:
        """Run a command; returns its answer, and how long a server that costs something would have taken."""
        name = next(iter(command))
        if name.lower() in ("hello", "ismaster"):
            return bson.encode(_HELLO | {"ok": 1.0}), 0.0
        if name.lower() in ("ping", "endsessions", "collmod"):
            return bson.encode({"ok": 1.0}), 0.0
        with self.lock:
            self.touched = [0, 0]
            try:
                run = self._commands.get(name.lower())
                if run is None:
                    raise NotSupportedError(name)
                said = run(self._databases.setdefault(command["$db"], {}), command) | {"ok": 1.0}
            except NotSupportedError as error:
                said = {"ok": 0.0, "errmsg": f"the stand-in does not support {error}", "code": 59}
            # Under the lock: others would change the documents meanwhile.
            encoded = bson.encode(said)
            read, written = self.touched
        return encoded, (read * self.read_us + written * self.write_us) / 1e6

    def _drop_database(self, database: dict[str, Collection], _: Document) -> Document:
        database.clear()
        return {}

    def _insert(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["insert"], Collection())
        errors = []
        for index, document in enumerate(command["documents"]):
            try:
                collection.insert(document)
            except DuplicateKeyError as error:
                errors.append(_duplicate(index, error))
                if command.get("ordered", True):
                    break
        self.touched[1] += len(command["documents"])
        return {"n": len(command["documents"]) - len(errors)} | ({"writeErrors": errors} if errors else {})

    def _update(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["update"], Collection())
        matched = modified = 0
        upserted, errors = [], []
        for index, one in enumerate(command["updates"]):
            found = list(islice(collection.find(one["q"]), None if one.get("multi") else 1))
            matched += len(found)
            modified += sum(collection.change(document, one["u"]) for document in found)
            if not found and one.get("upsert"):
                try:
                    upserted.append({"index": index, "_id": collection.upsert(one["q"], one["u"])["_id"]})
                except DuplicateKeyError as error:
                    errors.append(_duplicate(index, error))
        self.touched[1] += matched + len(upserted)
        said: Document = {"n": matched + len(upserted), "nModified": modified}
        return said | ({"upserted": upserted} if upserted else {}) | ({"writeErrors": errors} if errors else {})

    def _delete(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["delete"], Collection())
        found = [
            document
            for one in command["deletes"]
            for document in islice(collection.find(one["q"]), one.get("limit") or None)
        ]
        for document in found:
            collection.remove(document)
        self.touched[1] += len(found)
        return {"n": len(found)}

    def _find_and_modify(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command.get("findAndModify") or command["findandmodify"], Collection())
        if command.get("upsert") or command.get("remove") or command.get("sort"):
            raise NotSupportedError("findAndModify with upsert, remove or sort")
        found = next(collection.find(command["query"]), None)
        before = dict(found) if found else None
        if found:
            collection.change(found, command["update"])
            self.touched[1] += 1
        return {"value": found if command.get("new") else before, "lastErrorObject": {"n": int(found is not None)}}

    def _find(self, database: dict[str, Collection], command: Document) -> Document:
        found = database.setdefault(command["find"], Collection()).find(command.get("filter", {}))
        if command.get("skip"):
            raise NotSupportedError("skip")
        if command.get("sort"):
            found = iter(ordered(found, command["sort"]))
        fields = command.get("projection") or {}
        documents = [project(document, fields) for document in islice(found, command.get("limit") or None)]
        is_single = command.get("singleBatch", False)
        return self._page(f"{command['$db']}.{command['find']}", documents, command.get("batchSize", _BATCH), is_single)

    def _aggregate(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["aggregate"], Collection())
        stages = list(command["pipeline"])
        # A condition at the begin can use an index.
        found = collection.find(stages.pop(0)["$match"] if stages and "$match" in stages[0] else {})
        documents = list(aggregate(found, stages))
        return self._page(f"{command['$db']}.{command['aggregate']}", documents, len(documents) + 1, True)

    def _page(self, namespace: str, documents: list[Document], size: int, is_single: bool) -> Document:
        self.touched[0] += len(documents)
        number = 0
        if len(documents) > size and not is_single:
            number = next(self._numbers)
            # Copies: what is sent later must not change meanwhile.
            self._cursors[number] = namespace, [dict(document) for document in documents], size
        return {"cursor": {"firstBatch": documents[:size], "id": bson.Int64(number), "ns": namespace}}

    def _get_more(self, _: dict[str, Collection], command: Document) -> Document:
        number = int(command["getMore"])
        namespace, documents, sent = self._cursors.pop(number)
        end = sent + (command.get("batchSize") or len(documents))
        if end < len(documents):
            self._cursors[number] = namespace, documents, end
        else:
            number = 0
        return {"cursor": {"nextBatch": documents[sent:end], "id": bson.Int64(number), "ns": namespace}}

    def _kill_cursors(self, _: dict[str, Collection], command: Document) -> Document:
        for number in command["cursors"]:
            self._cursors.pop(int(number), None)
        return {"cursorsKilled": command["cursors"]}

    def _create_indexes(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["createIndexes"], Collection())
        for specification in command["indexes"]:
            collection.create_index(specification)
        return {"numIndexesAfter": len(collection.specifications) + 1}

    def _list_indexes(self, database: dict[str, Collection], command: Document) -> Document:
        collection = database.setdefault(command["listIndexes"], Collection())
        specifications = [{"v": 2, "key": {"_id": 1}, "name": "_id_"}, *collection.specifications]
        return self._page(f"{command['$db']}.{command['listIndexes']}", specifications, _BATCH, True)

    def _list_collections(self, database: dict[str, Collection], command: Document) -> Document:
        is_wanted = matcher(command.get("filter", {}))
        known = [{"name": name, "type": "collection", "options": {}} for name in database]
        return self._page(f"{command['$db']}.$cmd.listCollections", [*filter(is_wanted, known)], _BATCH, True)


def _duplicate(index: int, error: DuplicateKeyError) -> Document:
    return {"index": index, "code": 11000, "errmsg": f"E11000 duplicate key: {error}"}


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        while head := self._receive(_HEADER.size):
            size, request_id, _, opcode = _HEADER.unpack(head)
            body = self._receive(size - _HEADER.size)
            if opcode == _QUERY:  # With which drivers begin.
                start = body.index(b"\0", _INT.size) + 1 + 2 * _INT.size
                said, _ = self.server.answer(bson.decode(body[start:]))
                reply = struct.pack("<iqii", 8, 0, 0, 1) + said
                self._send(_REPLY, request_id, reply)
                continue
            (flags,) = _INT.unpack_from(body)
            said, cost_s = self.server.answer(_command(body, flags))
            if cost_s:
                time.sleep(cost_s)
            if not flags & _MORE_TO_COME:
                self._send(_MSG, request_id, bytes(_INT.size + 1) + said)

    def _receive(self, size: int) -> bytes:
        """Return so many bytes; none where the client has gone."""
        parts = []
        while size:
            part = self.request.recv(min(size, 1 << 20))
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _send(self, opcode: int, answers: int, body: bytes) -> None:
        self.request.sendall(_HEADER.pack(_HEADER.size + len(body), 0, answers, opcode) + body)


def _command(body: bytes, flags: int) -> Document:
    """Return a command, with the documents that come in sections of their own where they belong."""
    end = len(body) - (_INT.size if flags & _CHECKSUM_PRESENT else 0)
    position = _INT.size
    command: Document = {}
    sequences: Document = {}
    while position < end:
        kind = body[position]
        (size,) = _INT.unpack_from(body, position + 1)
        section = body[position + 1 : position + 1 + size]
        if kind == 0:
            command = bson.decode(section)
        else:
            name_end = section.index(b"\0", _INT.size)
            sequences[section[_INT.size : name_end].decode()] = bson.decode_all(section[name_end + 1 :])
        position += 1 + size
    return command | sequences


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.mongo_stand_in", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--read-us", type=float, default=0.0, help="pretended time for each document read, µs")
    parser.add_argument("--write-us", type=float, default=0.0, help="pretended time for each document written, µs")
    arguments = parser.parse_args()
    with _Server(arguments.port, arguments.read_us, arguments.write_us) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
