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
]
"""Records that are no posts: name and JSON text of each. None has the id of a post that is served."""

UNUSUAL_POSTS: list[tuple[str, dict[str, Any]]] = [
    ("emoji of 4 bytes", {"userId": 1, "id": 910001, "title": "🦀 crab", "body": "👩‍🚀 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢"}),
    ("NUL inside", {"userId": 1, "id": 910002, "title": "before\0after", "body": "\0"}),
    ("body of 65,535 bytes", {"userId": 1, "id": 910003, "title": "t", "body": "é" * 32_767 + "x"}),
    ("unknown fields", {"userId": 1, "id": 910004, "title": "t", "body": "b", "tags": ["a"], "meta": {"n": None}}),
    ("empty texts", {"userId": 1, "id": 910005, "title": "", "body": ""}),
    ("quotes", {"userId": 1, "id": 910006, "title": "'; DROP TABLE posts; -- \\", "body": '%s {} \\" \\0 `'}),
    ("white space", {"userId": 1, "id": 910007, "title": "  both sides  ", "body": "\r\n\t"}),
    ("largest ids", {"userId": 2_147_483_647, "id": 2_147_483_647, "title": "t", "body": "b"}),
]
"""Posts that are valid, though unusual: name and record of each; all of them are migrated."""
