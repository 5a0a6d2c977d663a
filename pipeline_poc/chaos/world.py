"""The source's side of the fault suite: what it serves, and everything that it ever served."""

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any

from pipeline_poc.testing import NASTY_RECORDS

Content = tuple[int, str, str]
"""User id, title and body of a post."""

REFUSED_TITLE = "refused by the relational store"
"""How the title of a post begins that the fault suite's relational store refuses."""

_PLACES = 1000
"""Places for other records behind each post."""
_TEXTS = (
    "plain",
    "🦀 of 4 bytes",
    "'; DROP TABLE posts; -- \\",
    "%s {} \\0 `",
    "NUL \0 inside",
    "line\r\n\tbreak",
    "é" * 200,
)


@dataclass(slots=True)
class World:
    """Posts and other records that a `StandIn` serves; to be changed at any time.

    Attributes:
        served: The stand-in's records by place, which is the order of the answer.
        contents: Every valid content that a post ever had, oldest first, by id.
        bad: The payloads of all records ever served that are no posts.
    """

    rng: Random
    served: dict[int, Any]
    contents: dict[int, list[Content]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    _plain: set[int] = field(default_factory=set)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def add(self, posts: int) -> None:
        """Serve so many more posts; their ids may have gaps."""
        last = max(self.contents, default=0)
        for _ in range(posts):
            last += self.rng.choice((1, 1, 1, 5))
            self._serve(last)

    def change(self, posts: int) -> None:
        """Give so many posts another content."""
        for external_id in self._some(posts):
            self._serve(external_id)

    def change_back(self, posts: int) -> None:
        """Give so many posts a content again that they had before."""
        for external_id in self._some(posts):
            self._serve(external_id, self.rng.choice(self.contents[external_id]))

    def restless(self) -> None:
        """Make a post have another content each time it is asked for."""
        for external_id in self._some(1):
            self.served[external_id * _PLACES] = partial(self._changed, external_id)
            self._plain.discard(external_id)

    def vanish(self, posts: int) -> None:
        """Serve so many posts no more."""
        for external_id in self._some(posts):
            del self.served[external_id * _PLACES]
            self._plain.discard(external_id)

    def come_back(self) -> None:
        """Serve all posts again that vanished, as they were."""
        for external_id, contents in self.contents.items():
            if external_id * _PLACES not in self.served:
                self.served[external_id * _PLACES] = self._record(external_id, contents[-1])
                self._plain.add(external_id)

    def spoil(self, records: int) -> None:
        """Serve so many records that are no posts, anywhere among the others."""
        nasty = [json.loads(text) for _, text in NASTY_RECORDS]
        for _ in range(records):
            self._serve_bad(self.rng.choice(nasty))

    def only_bad(self) -> None:
        """Serve nothing but records that are no posts."""
        self.served.clear()
        self._plain.clear()
        self.spoil(5)

    def spoil_posts(self, posts: int) -> None:
        """Serve records that are no posts in place of so many posts."""
        for external_id in self._some(posts):
            record = self._record(external_id, self.contents[external_id][-1]) | {
                "title": None,
                "n": next(self._numbers),
            }
            self.bad.add(canonical(record))
            self.served[external_id * _PLACES] = record
            self._plain.discard(external_id)

    def contradict(self) -> None:
        """Serve a post twice in the same answer, with two contents; the first one counts."""
        for external_id in self._some(1):
            record = self._record(external_id, (1, f"contradiction {next(self._numbers)}", "b"))
            self.bad.add(canonical(record))
            self._plain.discard(external_id)
            self.served[external_id * _PLACES + self.rng.randrange(1, _PLACES)] = record

    def refuse(self, posts: int) -> None:
        """Give so many posts a content that the relational store refuses."""
        for external_id in self._some(posts):
            self._serve(external_id, (1, f"{REFUSED_TITLE} {next(self._numbers)}", "b"))

    def settle(self) -> None:
        """Let what changes all the time keep the content that it has now; serve some post at least."""
        for place, record in list(self.served.items()):
            if callable(record):
                self._serve(place // _PLACES, self.contents[place // _PLACES][-1])
        if not self.now():
            self.come_back()

    def rephrase(self) -> None:
        """Serve the same posts, their fields in another order: no ETag spares the pipeline a look at each of them."""
        for place, record in self.served.items():
            if isinstance(record, dict) and canonical(record) not in self.bad:
                self.served[place] = dict(reversed(record.items()))

    def now(self) -> dict[int, Content]:
        """Return the posts that are served now, as they have to arrive."""
        return {
            place // _PLACES: self.contents[place // _PLACES][-1]
            for place, record in self.served.items()
            if place % _PLACES == 0 and canonical(record) not in self.bad
        }

    def bad_now(self) -> set[str]:
        """Return the payloads of the records that are served now and are no posts."""
        return {text for record in self.served.values() if (text := canonical(record)) in self.bad}

    def _some(self, posts: int) -> list[int]:
        """Draw posts that are served as they are, each once in an answer."""
        here = sorted(self._plain)
        return self.rng.sample(here, min(posts, len(here)))

    def _serve(self, external_id: int, content: Content | None = None) -> None:
        self.served[external_id * _PLACES] = self._record(external_id, self._content(external_id, content))
        self._plain.add(external_id)

    def _changed(self, external_id: int) -> dict[str, Any]:
        return self._record(external_id, self._content(external_id))

    def _content(self, external_id: int, content: Content | None = None) -> Content:
        number = next(self._numbers)
        new = content or (self.rng.randrange(1, 100), f"post {external_id}, text {number}", self.rng.choice(_TEXTS))
        self.contents.setdefault(external_id, []).append(new)
        return new

    def _record(self, external_id: int, content: Content) -> dict[str, Any]:
        user_id, title, body = content
        return {"userId": user_id, "id": external_id, "title": title, "body": body}

    def _serve_bad(self, record: Any) -> None:
        if isinstance(record, dict):
            record = record | {"n": next(self._numbers)}
        self.bad.add(canonical(record))
        near = self.rng.choice([place - place % _PLACES for place in self.served] or [_PLACES])
        self.served[near + self.rng.randrange(1, _PLACES)] = record


def canonical(record: Any) -> str:
    """Return a JSON value as text that is the same whatever the order of its fields."""
    return json.dumps(record, sort_keys=True)
