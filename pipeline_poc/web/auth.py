"""Who asks: tokens, of which only hashes are known, and the sessions of browsers."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Literal

from itsdangerous import BadData, URLSafeTimedSerializer

from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings

Scope = Literal["read", "operate"]

SESSION_COOKIE = "pipeline_poc_session"
TOKEN_PREFIX = "ppoc_"  # noqa: S105 - no secret; shows people and scanners what they found


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what they may do; ``operate`` includes ``read``."""

    scope: Scope
    name: str

    def may(self, scope: Scope) -> bool:
        """Whether this scope is enough."""
        return scope in ("read", self.scope)


ANYBODY = Principal("operate", "anonymous")
"""Everybody, where there are no tokens."""


class Authenticator:
    """Tells who asks, by a bearer token or by the cookie of a login.

    A session names the token that began it: it ends with that token, and has its scope.
    """

    def __init__(self, settings: Settings) -> None:
        # A token in both lists may operate: the later entry counts.
        self._scopes: dict[str, Scope] = {
            **dict.fromkeys(settings.api_read_token_hashes or (), "read"),
            **dict.fromkeys(settings.api_operate_token_hashes or (), "operate"),
        }
        secret = settings.session_secret.get_secret_value() if settings.session_secret else secrets.token_hex(32)
        self._sessions = URLSafeTimedSerializer(
            secret, salt="pipeline_poc.session", signer_kwargs={"digest_method": sha256, "key_derivation": "hmac"}
        )
        self.session_ttl_s = settings.session_ttl_s

    @property
    def required(self) -> bool:
        """Whether there are tokens, so that one is needed."""
        return bool(self._scopes)

    def authenticate(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Principal | None:
        """Return who asks; None where that is nobody we know.

        A wrong bearer token is never made good by a cookie.
        """
        if not self.required:
            return ANYBODY
        token = bearer_token(headers)
        if token is not None:
            token_hash = self._known(token)
            return Principal(self._scopes[token_hash], _name(token_hash)) if token_hash else None
        return self._session(cookies.get(SESSION_COOKIE, ""))

    def login(self, token: str) -> str | None:
        """Return the value of the cookie that opens a session; None for a wrong token."""
        token_hash = self._known(token)
        return self._sessions.dumps(_session_id(token_hash)) if token_hash else None

    def _known(self, token: str) -> str | None:
        presented = hash_of(token)
        found = None
        for token_hash in self._scopes:  # All of them: the time taken must not tell which one it was.
            if hmac.compare_digest(token_hash, presented):
                found = token_hash
        return found

    def _session(self, cookie: str) -> Principal | None:
        try:
            session_id = self._sessions.loads(cookie, max_age=self.session_ttl_s)
        except BadData:
            return None
        for token_hash, scope in self._scopes.items():
            if _session_id(token_hash) == session_id:
                return Principal(scope, f"session of {_name(token_hash)}")
        return None


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the bearer token that a request carries, right or wrong; None where it carries none."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def hash_of(token: str) -> str:
    """Return what the settings hold of a token."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_token() -> tuple[str, str]:
    """Return a new token, and its hash for the settings."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, hash_of(token)


def check_binding(settings: Settings) -> None:
    """Refuse to listen to other machines where nobody needs a token, and in production where no token may act.

    Raises:
        SettingsError: Names what to set.
    """
    if settings.environment == "production" and not settings.api_operate_token_hashes:
        raise SettingsError(
            "API_OPERATE_TOKEN_HASHES is not set, and ENVIRONMENT is production: make a token with "
            "`pipeline-poc token` and put its hash there"
        )
    if Authenticator(settings).required or is_loopback(settings.web_host):
        return
    raise SettingsError(
        f"WEB_HOST {settings.web_host} can be reached from other machines, and no token is set: make one with "
        "`pipeline-poc token` and put its hash into API_OPERATE_TOKEN_HASHES, or set WEB_HOST to 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name(token_hash: str) -> str:
    return f"token-{token_hash[:8]}"


def _session_id(token_hash: str) -> str:
    return sha256(token_hash.encode()).hexdigest()[:16]
