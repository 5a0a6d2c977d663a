"""Tokens and sessions: only who has a token of the settings is somebody, and no longer than it is there."""

from typing import Any

import pytest

from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings
from pipeline_poc.web.auth import SESSION_COOKIE, TOKEN_PREFIX, Authenticator, Principal, check_binding, new_token
from pipeline_poc_tests.web.stack import OPERATE_HASH, OPERATE_TOKEN, READ_HASH, READ_TOKEN, WITH_TOKENS

SECRET: dict[str, Any] = {"session_secret": "s" * 32}


def _authenticator(**overrides: Any) -> Authenticator:
    return Authenticator(Settings(_env_file=None, **overrides))


def _who(authenticator: Authenticator, authorization: str = "", cookie: str | None = None) -> Principal | None:
    headers = {"authorization": authorization} if authorization else {}
    return authenticator.authenticate(headers, {SESSION_COOKIE: cookie} if cookie is not None else {})


def test_no_tokens() -> None:
    """Where there are no tokens, everybody may do everything, whatever they bring along."""
    authenticator = _authenticator()
    assert not authenticator.required
    assert _who(authenticator) == Principal("operate", "anonymous")
    assert _who(authenticator, "Bearer wrong", "wrong") == Principal("operate", "anonymous")
    assert authenticator.login(OPERATE_TOKEN) is None


def test_tokens() -> None:
    """Each token has its scope and its name; several are good at once, so that they can be replaced."""
    _, other_hash = new_token()
    authenticator = _authenticator(
        api_read_token_hashes=(other_hash, READ_HASH), api_operate_token_hashes=(OPERATE_HASH,)
    )
    assert authenticator.required
    assert _who(authenticator, f"Bearer {READ_TOKEN}") == Principal("read", f"token-{READ_HASH[:8]}")
    assert _who(authenticator, f"bearer  {OPERATE_TOKEN} ") == Principal("operate", f"token-{OPERATE_HASH[:8]}")
    for wrong in ("", "Bearer", "Bearer ", f"Bearer {READ_TOKEN}x", f"Bearer {READ_HASH}", f"Basic {READ_TOKEN}"):
        assert _who(authenticator, wrong) is None


def test_token_in_both_lists() -> None:
    """A token in both lists may operate."""
    authenticator = _authenticator(api_read_token_hashes=(READ_HASH,), api_operate_token_hashes=(READ_HASH,))
    assert _who(authenticator, f"Bearer {READ_TOKEN}") == Principal("operate", f"token-{READ_HASH[:8]}")


def test_new_token() -> None:
    """A new token can be recognised as such, can't be guessed, and is good once its hash is set."""
    token, token_hash = new_token()
    assert token.startswith(TOKEN_PREFIX)
    assert len(token) >= 43 + len(TOKEN_PREFIX)
    assert len({new_token()[0] for _ in range(20)}) == 20
    assert _who(_authenticator(api_read_token_hashes=(token_hash,)), f"Bearer {token}") is not None


def test_session() -> None:
    """A login has the scope of its token, and neither the token nor its hash is in the cookie."""
    authenticator = _authenticator(**WITH_TOKENS)
    cookie = authenticator.login(READ_TOKEN)
    assert cookie is not None
    assert READ_TOKEN not in cookie
    assert READ_HASH[:8] not in cookie
    assert _who(authenticator, cookie=cookie) == Principal("read", f"session of token-{READ_HASH[:8]}")
    assert authenticator.login("wrong") is None
    for wrong in ("", "x", cookie[:-2], cookie + "x", "x" + cookie):
        assert _who(authenticator, cookie=wrong) is None


def test_wrong_token_beside_a_session() -> None:
    """A wrong bearer token is not made good by a cookie; another kind of authorization is not our affair."""
    authenticator = _authenticator(**WITH_TOKENS)
    cookie = authenticator.login(OPERATE_TOKEN)
    for wrong in ("Bearer wrong", "Bearer ", "bearer"):
        assert _who(authenticator, wrong, cookie) is None
    assert _who(authenticator, f"Bearer {READ_TOKEN}", cookie) == Principal("read", f"token-{READ_HASH[:8]}")
    assert _who(authenticator, "Basic dTpw", cookie) is not None


def test_end_of_a_session() -> None:
    """A session ends with its time, with its token, and with the secret that signed it."""
    cookie = _authenticator(**WITH_TOKENS, **SECRET).login(READ_TOKEN)
    assert _who(_authenticator(**WITH_TOKENS, **SECRET), cookie=cookie) is not None  # Another start, the same secret.
    assert _who(_authenticator(**WITH_TOKENS), cookie=cookie) is None
    assert _who(_authenticator(api_operate_token_hashes=(OPERATE_HASH,), **SECRET), cookie=cookie) is None
    settings = Settings(_env_file=None, **WITH_TOKENS, **SECRET)
    over = Authenticator(settings.model_copy(update={"session_ttl_s": -1}))
    assert _who(over, cookie=cookie) is None


def test_scope_of_a_session_is_that_of_its_token_now() -> None:
    """A token that may no longer operate takes that from its sessions."""
    cookie = _authenticator(api_operate_token_hashes=(READ_HASH,), **SECRET).login(READ_TOKEN)
    demoted = _who(_authenticator(api_read_token_hashes=(READ_HASH,), **SECRET), cookie=cookie)
    assert demoted == Principal("read", f"session of token-{READ_HASH[:8]}")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_binding_to_this_machine(host: str) -> None:
    """Without tokens the server may listen to this machine."""
    check_binding(Settings(_env_file=None, web_host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.1", "localhost.example.org"])
def test_binding_to_others(host: str) -> None:
    """Without tokens the server does not listen to others, and says what to do; with one of any kind it does."""
    with pytest.raises(SettingsError, match=r"WEB_HOST .*API_OPERATE_TOKEN_HASHES.*127\.0\.0\.1"):
        check_binding(Settings(_env_file=None, web_host=host))
    check_binding(Settings(_env_file=None, web_host=host, api_read_token_hashes=(READ_HASH,)))
    check_binding(Settings(_env_file=None, web_host=host, api_operate_token_hashes=(READ_HASH,)))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_production_needs_a_token_that_may_act(host: str) -> None:
    """In production the server does not start without one, for whomever it listens to, and says what to do."""
    production: dict[str, Any] = {"environment": "production", "allow_embedded_stores": True, "web_host": host}
    for hashes in (None, (READ_HASH,)):
        with pytest.raises(SettingsError, match=r"API_OPERATE_TOKEN_HASHES is not set.*`pipeline-poc token`"):
            check_binding(Settings(_env_file=None, **production, api_read_token_hashes=hashes))
    check_binding(Settings(_env_file=None, **production, api_operate_token_hashes=(OPERATE_HASH,)))
