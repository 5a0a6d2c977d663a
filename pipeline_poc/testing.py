"""Records that a pipeline must withstand, for its tests and demonstrations."""

import json
from typing import Any

NASTY_RECORDS = [
    ("no id", '{"userId": 1, "title": "t", "body": "b"}'),
    ("id as text", '{"userId": 1, "id": "900001", "title": "t", "body": "b"}'),
    ("null id", '{"userId": 1, "id": null, "title": "t", "body": "b"}'),
    ("negative id", '{"userId": 1, "id": -900002, "title": "t", "body": "b"}'),
    ("id above INT", '{"userId": 1, "id": 3000000000, "title": "t", "body": "b"}'),
    ("float id", '{"userId": 1, "id": 900003.0, "title": "t", "body": "b"}'),
    ("boolean id", '{"userId": 1, "id": true, "title": "t", "body": "b"}'),
    ("no title", '{"userId": 1, "id": 900004, "body": "b"}'),
    ("null title", '{"userId": 1, "id": 900005, "title": null, "body": "b"}'),
    ("numeric title", '{"userId": 1, "id": 900006, "title": 7, "body": "b"}'),
    ("object as title", '{"userId": 1, "id": 900007, "title": {"$ne": null}, "body": "b"}'),
    ("body of 70 kB", json.dumps({"userId": 1, "id": 900008, "title": "t", "body": "x" * 70_000})),
    ("lone surrogate", '{"userId": 1, "id": 900009, "title": "\\ud800", "body": "b"}'),
    ("NaN", '{"userId": NaN, "id": 900010, "title": "t", "body": "b"}'),
    ("text, not an object", '"just text"'),
    ("null, not an object", "null"),
    ("list, not an object", '[1, 900011, "t", "b"]'),
    ("id of 4,000 digits", '{"userId": 1, "id": ' + "9" * 4000 + ', "title": "t", "body": "b"}'),
    ("id beyond every float", '{"userId": 1, "id": 1e400, "title": "t", "body": "b"}'),
    ("id with an exponent", '{"userId": 1, "id": 9.00012e5, "title": "t", "body": "b"}'),
    ("id of minus zero", '{"userId": 1, "id": -0, "title": "t", "body": "b"}'),
    ("id beyond 64 bits", '{"userId": 1, "id": 9223372036854775808, "title": "t", "body": "b"}'),
    ("null in a second id", '{"userId": 2, "id": 900013, "id": null, "title": "t", "body": "b"}'),
    ("lone surrogate in a key", '{"userId": 1, "id": 900014, "title": "t", "\\udc00": "b"}'),
    ("names of our own", '{"user_id": 1, "external_id": 900015, "title": "t", "body": "b"}'),
    (
        "prototypes",
        '{"__proto__": {"id": 900016}, "constructor": {"id": 900016}, "userId": 1, "title": "t", "body": "b"}',
    ),
    (
        "operators",
        '{"$set": {"migrated": true}, "userId": {"$gt": 0}, "id": {"$exists": true}, "title": "t", "body": "b"}',
    ),
    ("title 100 deep", '{"userId": 1, "id": 900017, "title": ' + "[" * 100 + "]" * 100 + ', "body": "b"}'),
    ("empty object", "{}"),
]
"""Records that are no posts: name and JSON text of each. None has the id of a post that is served."""

UNREADABLE_RECORDS = [
    (
        "100,000 deep",
        '{"userId": 1, "id": 920001, "title": ' + "[" * 100_000 + '"]"' + "]" * 100_000 + ', "body": "b"}',
    ),
    ("id of 5,000 digits", '{"userId": 1, "id": ' + "9" * 5000 + ', "title": "t", "body": "b"}'),
]
"""Records that Python's own decoder refuses, each name and JSON text; they must not hinder what is beside them."""

NASTY_BODIES: list[tuple[str, bytes, int | None]] = [
    ("byte order mark", b"\xef\xbb\xbf[1]", 1),
    ("two byte order marks", b"\xef\xbb\xbf\xef\xbb\xbf[1]", None),
    ("white space around", b" \r\n\t[ 1 ,\n2 ] \n", 2),
    ("UTF-16", "[1]".encode("utf-16"), None),
    ("Latin-1", '["é"]'.encode("latin-1"), None),
    ("overlong UTF-8", b'["\xc0\xaf"]', None),
    ("surrogate as UTF-8", b'["\xed\xa0\x80"]', None),
    ("half a character at the end", b'["\xf0\x9f\xa6', None),
    ("NUL behind the end", b"[1]\0", None),
    ("control character in a text", b'["a\x01b"]', None),
    ("leading zero", b"[01]", None),
    ("plus sign", b"[+1]", None),
    ("comma at the end", b"[1,]", None),
    ("two lists", b"[1][2]", None),
    ("lists of lines", b"[1]\n[2]\n", None),
    ("single quotes", b"['a']", None),
    ("comment", b"[1 /* one */]", None),
    ("deep and open", b"[" * 100_000, None),
    ("deep and closed", b"[" * 100_000 + b"]" * 100_000, 1),
    ("open text in the deep", b"[" + b"[" * 100_000 + b'"' + b"]" * 100_000 + b"]", None),
    ("an object", b'{"posts": []}', None),
    ("nothing", b"", None),
]
"""Whole answers: name, bytes, and the number of records in it, or None where it is no list and to be refused."""

UNUSUAL_POSTS: list[tuple[str, dict[str, Any]]] = [
    ("emoji of 4 bytes", {"userId": 1, "id": 910001, "title": "🦀 crab", "body": "👩‍🚀 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢"}),
    ("NUL inside", {"userId": 1, "id": 910002, "title": "before\0after", "body": "\0"}),
    ("body of 65,535 bytes", {"userId": 1, "id": 910003, "title": "t", "body": "é" * 32_767 + "x"}),
    ("unknown fields", {"userId": 1, "id": 910004, "title": "t", "body": "b", "tags": ["a"], "meta": {"n": None}}),
    ("empty texts", {"userId": 1, "id": 910005, "title": "", "body": ""}),
    ("quotes", {"userId": 1, "id": 910006, "title": "'; DROP TABLE posts; -- \\", "body": '%s {} \\" \\0 `'}),
    ("white space", {"userId": 1, "id": 910007, "title": "  both sides  ", "body": "\r\n\t"}),
    ("control characters", {"userId": 1, "id": 910008, "title": "\x1b[2J\x07\x7f\x85", "body": "\u2028\u202e\ufeff"}),
    ("largest ids", {"userId": 2_147_483_647, "id": 2_147_483_647, "title": "t", "body": "b"}),
]
"""Posts that are valid, though unusual: name and record of each; all of them are migrated."""
