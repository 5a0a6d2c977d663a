"""The errors of the pipeline.

    PipelineError
    ├── SettingsError           a setting is wrong; the message names it
    ├── ServiceStartError       a local process could not be started
    ├── TransientError          a retry may help: connection, timeout, deadlock, overload
    │   └── ServiceUnavailable  a store or the source can't be reached or refuses the login
    └── TerminalError           a retry never helps
        ├── SourceAnswerError   the source answered with something that is no list of posts
        ├── SchemaError         a store has a schema that this code can't work with
        └── DataError           a store refuses data as such; alone, the record is quarantined

Stores and the source raise only these: driver errors are translated inside their own module.
"""

import re


class PipelineError(Exception):
    """Base of every error that the pipeline raises on purpose; its text is fit for a person."""


class SettingsError(PipelineError):
    """A setting is missing, malformed or contradicts another one."""


class ServiceStartError(PipelineError):
    """A local process could not be started, or is in the way of one."""


class TransientError(PipelineError):
    """Something that may succeed when it is tried again."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds that the other side asked us to wait, or None."""


class ServiceUnavailable(TransientError):
    """A store or the source can't be reached, times out, or refuses the login."""

    def __init__(
        self, service: str, setting: str, url: str, cause: object, *, retry_after_s: float | None = None
    ) -> None:
        reason = mask_secrets(" ".join(str(cause).split()))
        super().__init__(
            f"{service} at {mask_secrets(url)} ({setting}) is not available: {reason[:300]}",
            retry_after_s=retry_after_s,
        )
        self.service = service
        self.setting = setting


class TerminalError(PipelineError):
    """Something that fails in the same way however often it is tried."""


class SourceAnswerError(TerminalError):
    """The source answered, but not with a list of posts; names URL, status and the first bytes."""

    def __init__(self, url: str, status: int, problem: str, body: bytes = b"") -> None:
        shown = f"; the body begins {body[:80]!r}" if body else ""
        super().__init__(f"{mask_secrets(url)} (SOURCE_URL) answered {status}: {problem}{shown}")
        self.url = url
        self.status = status


class SchemaError(TerminalError):
    """A store has a schema that this code can't work with; the message names both versions and what to do."""


class DataError(TerminalError):
    """A store refuses the data itself: too long, out of range, not encodable, a constraint."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """Reason code for the quarantine, such as ``relational_1406``."""


_USERINFO = re.compile(r"(?<=://)([^/\s:]*):(\S*)@")
_TOKEN = re.compile(r"(https?://)[^/@:\s]+@(?![^/\s]*@)")
"""A token in place of a user, as some APIs take it."""
_SECRET_PARAMETERS = re.compile(
    r"(?i)([?&](?:[^=&\s]*(?:password|passwd|token|key|secret|signature)|sig|auth|pwd|code|authmechanismproperties)=)"
    r"[^&\s]+"
)


_MASKED_MAX = 20_000
"""Characters of a text that are looked at; nobody reads more, and others may choose how long an error is."""
_LONG_WORD = re.compile(r"\S{1500,}")
"""Longer than any URL of ours; the time that looking for secrets takes grows with the square of it, or worse."""


def _mask_long(word: re.Match[str]) -> str:
    return "***" if any(mark in word[0] for mark in ("://", "?", "&")) else word[0]


def mask_secrets(text: str) -> str:
    """Return the text with the passwords of all URLs in it, and secret query values, as ``***``.

    What is longer than any message is cut, and what is longer than any URL is masked as a whole.
    """
    if len(text) > _MASKED_MAX:
        # Within a word there may be half of a URL.
        text = f"{text[:_MASKED_MAX].rsplit(maxsplit=1)[0]} …"
    text = _LONG_WORD.sub(_mask_long, text)
    # Without a password the user may be the secret.
    without_passwords = _USERINFO.sub(lambda match: f"{match[1]}:***@" if match[2] else "***@", text)
    without_tokens = _TOKEN.sub(r"\1***@", without_passwords)
    return _SECRET_PARAMETERS.sub(r"\1***", without_tokens)


def invalid_url(setting: str, url: str, error: Exception) -> SettingsError:
    """Return the error for a URL that a driver can't read; shows no part of a password."""
    shown = mask_secrets(url)
    # A driver quotes what it misreads, which may be a part of the password; files it reads whole.
    is_plain = shown == url or isinstance(error, OSError)
    reason = error if is_plain else "special characters in its user and password must be percent-encoded"
    return SettingsError(f"{setting} {shown} is not valid: {reason}")
