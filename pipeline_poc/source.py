"""The source: an HTTP API that answers with JSON lists of posts.

An answer is taken in whole (on disk, not in memory) and checked to its last byte before the
first record is handed out, so that a broken answer changes nothing that is stored.
"""

import codecs
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.utils import get_auth_from_url

from pipeline_poc import retry
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable, SourceAnswerError, mask_secrets
from pipeline_poc.retry import RetryPolicy

logger = logging.getLogger(__name__)

_SPOOL_BYTES = 1 << 20
"""An answer up to this size stays in memory; a larger one goes to a temporary file."""
_CHUNK_BYTES = 1 << 16
_PAGES_MAX = 10_000
"""A source that links to so many pages leads nowhere."""
_TOO_MANY_REQUESTS = 429
_NOT_MODIFIED = 304
_FIRST_ERROR = 400
_FIRST_SERVER_ERROR = 500
_REQUEST_TIMEOUT = 408


@dataclass(frozen=True, slots=True)
class _Page:
    """A page, and where its bytes are in the file that holds all pages of the answer."""

    url: str
    status: int
    start: int
    size: int


class Answer:
    """What the source served: a list of records, checked, possibly spread over pages.

    Attributes:
        not_modified: Whether nothing changed since the ETag given, as the source says, or since the digest given.
        etag: To be given with the next request; None where the source serves none.
        digest: Of all bytes; to be given with the next request, too.
        count: Number of records.
    """

    def __init__(
        self, pages: list[_Page], body: IO[bytes], *, etag: str | None, digest: str | None, not_modified: bool
    ) -> None:
        self._pages = pages
        self._body = body
        self.etag = etag
        self.digest = digest
        self.not_modified = not_modified
        self.count = sum(1 for _ in self.records())

    def records(self) -> Iterator[Any]:
        """Yield the records in the source's order, one at a time; can be called again.

        Raises:
            SourceAnswerError: The answer is no JSON list; never after the first complete pass.
        """
        for page in self._pages:
            yield from _elements(page, self._body)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._body.close()


class Source:
    """The API behind one URL; asked politely: timeouts, ETag, Retry-After, backoff.

    Args:
        url: Answers GET with a JSON list; ``Link: <…>; rel="next"`` leads to further pages.
        timeout_s: Longest wait for a connection and between two reads, in seconds.
        policy: How often connection errors, 408, 429 and 5xx are retried.
        is_stand_in: Whether this is the bundled stand-in, not an API that somebody chose.
    """

    def __init__(self, url: str, *, timeout_s: float, policy: RetryPolicy, is_stand_in: bool = False) -> None:
        self.url = url
        self.is_stand_in = is_stand_in
        self._timeout_s = timeout_s
        self._policy = policy
        self._session = requests.Session()
        self._session.headers["Accept"] = "application/json"
        # Links to further pages don't repeat the login.
        login = get_auth_from_url(url)
        self._session.auth = login if any(login) else None

    @property
    def shown_url(self) -> str:
        """The URL without secrets, fit for logs and screens."""
        return mask_secrets(self.url)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def ping(self) -> None:
        """Check, once, that the API answers.

        Raises:
            ServiceUnavailable: It can't be reached, or is failing.
            SourceAnswerError: It refuses.
        """
        try:
            with _spool() as body:
                self._get_once(self.url, None, body)
        except (requests.RequestException, OSError) as error:
            raise self._unavailable(self.url, error) from None

    def fetch(self, etag: str | None = None, digest: str | None = None) -> Answer:
        """Get all posts of the source.

        Args:
            etag: Of the last answer that was ingested completely; lets the source answer
                "nothing changed".
            digest: Of the same answer; tells that nothing changed where the source serves no ETag,
                or many pages.

        Raises:
            ServiceUnavailable: Still unreachable, overloaded or failing after all attempts.
            SourceAnswerError: A 4xx, or an answer that is no JSON list of records.
        """
        pages: list[_Page] = []
        seen = {self.url}
        url: str | None = self.url
        first_etag: str | None = None
        body = _spool()
        try:
            while url is not None:
                page, response = self._get(url, etag if not pages else None, body)
                if response.status_code == _NOT_MODIFIED:
                    return Answer([], body, etag=etag, digest=digest, not_modified=True)
                pages.append(page)
                first_etag = first_etag or response.headers.get("ETag")
                url = self._next_page(page, response)
                if len(pages) > _PAGES_MAX:
                    raise SourceAnswerError(page.url, page.status, f"it has more than {_PAGES_MAX:,} pages")
                if url in seen:
                    raise SourceAnswerError(url, page.status, "its next page is one that came before")
                seen.add(url or "")
            # The ETag of a page says nothing about the pages behind it.
            new_etag = first_etag if len(pages) == 1 else None
            new_digest = _digest(body)
            is_same = new_digest == digest
            return Answer([] if is_same else pages, body, etag=new_etag, digest=new_digest, not_modified=is_same)
        except BaseException:
            body.close()
            raise

    def _next_page(self, page: _Page, response: requests.Response) -> str | None:
        link = response.links.get("next", {}).get("url")
        if link is None:
            return None
        url = urljoin(page.url, link)
        if _origin(url) != _origin(self.url):
            raise SourceAnswerError(page.url, page.status, f"its next page is on another host: {mask_secrets(url)}")
        return url

    def _get(self, url: str, etag: str | None, body: IO[bytes]) -> tuple[_Page, requests.Response]:
        def attempt() -> tuple[_Page, requests.Response]:
            try:
                return self._get_once(url, etag, body)
            except requests.exceptions.InvalidURL as error:
                raise SourceAnswerError(url, 0, f"the URL is not valid: {error}") from None
            except (requests.RequestException, OSError) as error:
                # The library's errors quote the URL with its secrets, and Dagster keeps causes.
                raise self._unavailable(url, error) from None

        return retry.call(attempt, self._policy)

    def _unavailable(self, url: str, error: Exception) -> ServiceUnavailable:
        return ServiceUnavailable("The source", "SOURCE_URL", url, _reason(error))

    def _get_once(self, url: str, etag: str | None, body: IO[bytes]) -> tuple[_Page, requests.Response]:
        """Append what the URL answers to the body; an attempt that fails leaves nothing there."""
        headers = {"If-None-Match": etag} if etag else {}
        start = body.seek(0, os.SEEK_END)
        try:
            with self._session.get(url, headers=headers, timeout=self._timeout_s, stream=True) as response:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    body.write(chunk)
        except BaseException:
            body.truncate(start)
            raise
        status = response.status_code
        page = _Page(url, status, start, body.tell() - start)
        if status < _FIRST_ERROR:
            return page, response
        first_bytes = _first_bytes(page, body)
        body.truncate(start)
        if status in (_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS) or status >= _FIRST_SERVER_ERROR:
            raise ServiceUnavailable(
                "The source",
                "SOURCE_URL",
                url,
                f"it answered {status} {response.reason}",
                retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
            )
        raise SourceAnswerError(url, status, f"{response.reason}, a refusal that a retry can't change", first_bytes)


def _spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)


def _digest(body: IO[bytes]) -> str:
    body.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while chunk := body.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _first_bytes(page: _Page, body: IO[bytes]) -> bytes:
    body.seek(page.start)
    return body.read(min(200, page.size))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _reason(error: Exception) -> str:
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    # The library's text nests its own reprs; the innermost one says it all.
    cause: BaseException = error
    while cause.args and isinstance(cause.args[-1], BaseException):
        cause = cause.args[-1]
    reason = getattr(cause, "reason", None) or cause
    return re.sub(r"^<.*?>: |^HTTPS?Connection\(.*?\): ", "", str(reason))


_RETRY_AFTER_MAX_S = 300.0
"""A run waits no longer than this for a source, whatever that asks for; the schedule comes again."""


def _retry_after_s(header: str | None) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date; None where there is none to use."""
    if not header:
        return None
    if header.strip().isdecimal():
        return min(float(header), _RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - utc_now()).total_seconds()), _RETRY_AFTER_MAX_S)


_SPACE = " \t\n\r"
_BYTE_ORDER_MARK = "\ufeff"
_RECORD_MAX_CHARACTERS = 1 << 24
"""Bounds the memory that a broken answer can take: what is longer than this is no record."""


_INTEGER_MAX_DIGITS = 4300
"""Python reads no longer integer; a longer one is no id, and must not hinder other records."""
_NUMBER_TAIL = 2
"""Characters behind a number that may belong to it once more follow: ``1.`` and ``1e+`` end a chunk."""


def _elements(page: _Page, body: IO[bytes]) -> Iterator[Any]:
    """Yield the elements of a JSON list in a stream of UTF-8, holding one at a time."""

    def fail(problem: str) -> SourceAnswerError:
        return SourceAnswerError(page.url, page.status, problem, _first_bytes(page, body))

    reader = _TextReader(body, page.start, page.size)
    try:
        first = reader.skip_space()
        if first == _BYTE_ORDER_MARK:
            reader.advance()
            first = reader.skip_space()
        if first != "[":
            problem = "an empty body" if not first else _not_a_list(first)
            raise fail(f"{problem}, not a JSON list of posts")
        reader.advance()
        separator = ""
        while (char := reader.skip_space()) != "]":
            if separator:
                if char != ",":
                    raise fail(f"no valid JSON list: {_at_end(char)} at character {reader.offset}, expected ',' or ']'")
                reader.advance()
                reader.skip_space()
            yield reader.element()
            separator = ","
        reader.advance()
        if reader.skip_space():
            raise fail(f"no valid JSON list: more text behind its end, at character {reader.offset}")
    except json.JSONDecodeError as error:
        raise fail(
            f"no valid JSON list: {error.msg.removesuffix(' at')} at character {reader.offset + error.pos}"
        ) from None
    except UnicodeDecodeError as error:
        raise fail(f"no valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise fail("no valid JSON list: nested too deeply") from None


def _not_a_list(first: str) -> str:
    return {"{": "an object", "<": "HTML or XML"}.get(first, f"text that begins with {first!r}")


def _at_end(char: str) -> str:
    return f"{char!r}" if char else "the body ends"


class _TextReader:
    """Reads JSON values from a stream of UTF-8 through the standard library's decoder."""

    def __init__(self, body: IO[bytes], start: int, size: int) -> None:
        body.seek(start)
        self._body = body
        self._unread = size
        self._decode = json.JSONDecoder(parse_int=_integer).raw_decode
        self._bytes = b""
        self._text = ""
        self._at = 0
        self._passed = 0
        self._ended = False

    @property
    def offset(self) -> int:
        """Characters that were read before the current one."""
        return self._passed + self._at

    def advance(self) -> None:
        self._at += 1

    def skip_space(self) -> str:
        """Return the next character that is no white space, without taking it; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def element(self) -> Any:
        """Take the JSON value that begins at the current character."""
        while True:
            start = self._at
            try:
                value, end = self._decode_or_keep(start)
            except (json.JSONDecodeError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError):
                    error.pos -= self._at
                if len(self._text) - self._at > _RECORD_MAX_CHARACTERS or not self._more():
                    raise
                continue
            # A number may go on behind the end of what was read so far.
            if len(self._text) - end <= _NUMBER_TAIL and self._more():
                continue
            self._at += end - start  # What was read before may be gone.
            return value

    def _decode_or_keep(self, start: int) -> tuple[Any, int]:
        """Return the value that begins there, and its end; its own text where it is nested too deeply.

        How deep is too deep depends on the caller, too: a record must not be one the first time,
        and the end of the whole answer the second time.
        """
        try:
            return self._decode(self._text, start)
        except RecursionError:
            end = _end_of_brackets(self._text, start)
            if end is None:
                raise
            return self._text[start:end], end

    def _more(self) -> bool:
        if self._ended:
            return False
        # Doubling keeps one huge element from being decoded again for every chunk.
        chunk = self._body.read(min(self._unread, max(_CHUNK_BYTES, len(self._text) - self._at)))
        self._unread -= len(chunk)
        self._ended = not chunk
        data = self._bytes + chunk
        text, used = codecs.utf_8_decode(data, "strict", self._ended)
        self._bytes = data[used:]
        self._passed += self._at
        self._text = self._text[self._at :] + text
        self._at = 0
        return not self._ended


_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
"""Whole strings, quotes of strings that don't end, and brackets outside of strings."""


def _end_of_brackets(text: str, start: int) -> int | None:
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        if found[0] in ("[", "{"):
            depth += 1
        elif found[0] in ("]", "}"):
            depth -= 1
            if not depth:
                return found.end()
        elif found[0] == '"':
            return None
    return None


def _integer(text: str) -> float:
    return int(text) if len(text) <= _INTEGER_MAX_DIGITS else float(text)
