"""Errors: fit for a person, with the setting's name and without secrets."""

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_poc import errors
from pipeline_poc.errors import (
    DataError,
    PipelineError,
    ServiceUnavailable,
    SettingsError,
    SourceAnswerError,
    TransientError,
    invalid_url,
    mask_secrets,
)
from pipeline_poc.migration_queue import MigrationQueue
from pipeline_poc.mongo import Mongo
from pipeline_poc.relational_store import RelationalStore

CHARACTERS = string.ascii_letters + string.digits + "@:/?#!$&'()*+,;=%[]|é🦀"
SECRETS = st.text(alphabet=CHARACTERS, min_size=6, max_size=20).map(lambda text: f"S3CR{text}T")
USERS = st.text(alphabet=string.ascii_letters + "@.-_", max_size=8)


@given(user=USERS, password=SECRETS, scheme=st.sampled_from(["mysql+pymysql", "mongodb", "redis", "https"]))
def test_passwords_are_masked(user: str, password: str, scheme: str) -> None:
    """No password of a URL is left, whatever characters it and its user have, alone or within a text."""
    url = f"{scheme}://{user}:{password}@host:1234/db"
    for text in (url, f"can't reach '{url}' now", f"{url} and {url}"):
        masked = mask_secrets(text)
        assert password not in masked
        assert "S3CR" not in masked
        assert f"{scheme}://{user}:***@host:1234/db" in masked


@given(
    secret=st.text(alphabet=string.ascii_letters + string.digits + "%+-_.~", min_size=1),
    name=st.sampled_from(["token", "access_token", "api_key", "apiKey", "password", "client_secret", "KEY"]),
)
def test_secret_parameters_are_masked(secret: str, name: str) -> None:
    """No secret value of a query is left; other parameters are."""
    url = f"https://host/posts?page=1&{name}={secret}&limit=2"
    assert mask_secrets(url) == f"https://host/posts?page=1&{name}=***&limit=2"


@pytest.mark.parametrize(
    "text",
    ["", "no URL", "mongodb://127.0.0.1:27017/?journal=true", "https://host/posts?page=2", "redis://host:6379/0"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Texts and URLs without secrets are shown as they are."""
    assert mask_secrets(text) == text


@given(text=st.text())
def test_masking_never_fails(text: str) -> None:
    """Any text can be masked, and masking again changes nothing."""
    assert mask_secrets(mask_secrets(text)) == mask_secrets(text)


def test_an_outage_in_a_sentence() -> None:
    """An outage is one line that names service, URL and setting, says why, and shows no secret."""
    cause = "line one\n  line two mysql://u:pa55@h " + "x" * 1000
    error = ServiceUnavailable("MySQL", "SQL_URL", "mysql://user:pa55@host/db", cause, retry_after_s=3.0)
    text = str(error)
    assert text.startswith("MySQL at mysql://user:***@host/db (SQL_URL) is not available: line one line two")
    assert "pa55" not in text
    assert "\n" not in text
    assert len(text) < 500
    assert (error.service, error.setting, error.retry_after_s) == ("MySQL", "SQL_URL", 3.0)


def test_a_wrong_answer_in_a_sentence() -> None:
    """A wrong answer is named with URL, status and the first bytes, not with all of them."""
    error = SourceAnswerError("https://h/?token=abc", 200, "an object", b"{" + b"x" * 1000)
    assert str(error).startswith("https://h/?token=*** (SOURCE_URL) answered 200: an object; the body begins b'{xxx")
    assert len(str(error)) < 200


def test_the_tree() -> None:
    """Each error is either worth a retry or not, and the docstring of the module draws all of them."""
    made = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(made) >= 9
    for error in made:
        assert issubclass(error, PipelineError)
        assert error.__name__ in (errors.__doc__ or "")
    assert issubclass(ServiceUnavailable, TransientError)
    assert DataError("relational_1406", "m").code == "relational_1406"


MALFORMED = [
    "mongodb://u:S3CR/ET@host/db",
    "mongodb://u:S3CR@ET@host/db",
    "mongodb://u:%S3CRET@host",
    "redis://:S3CR/ET@host:6379/0",
    "redis://u:S3CRET@host:port/0",
    "mysql://u:S3CRET@host:port/db",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_malformed_urls_show_no_part_of_a_password(url: str) -> None:
    """A URL that a driver misreads is refused with its setting's name and without any part of its password."""
    makers: dict[str, Callable[[], object]] = {
        "mongodb": lambda: Mongo(url, "db", timeout_s=1),
        "redis": lambda: MigrationQueue(url, "q", timeout_s=1, job_timeout_s=1),
        "mysql": lambda: RelationalStore(url, timeout_s=1),
    }
    scheme = url.partition(":")[0]
    with pytest.raises(SettingsError) as caught:
        makers[scheme]()
    text = str(caught.value)
    assert {"mongodb": "MONGO_URL", "redis": "REDIS_URL", "mysql": "SQL_URL"}[scheme] in text
    assert "S3CR" not in text
    assert "ET@" not in text


def test_a_malformed_url_without_secrets_says_why() -> None:
    """Where nothing is to hide, the reason is the driver's."""
    assert str(invalid_url("REDIS_URL", "redis://host:x", ValueError("bad port 'x'"))) == (
        "REDIS_URL redis://host:x is not valid: bad port 'x'"
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://ghp_S3CR3T@api.example.org/posts",
        "https://sk_live_S3CR3T:@api.example.org/posts",
        "https://api.example.org/posts?sig=S3CR3T&page=1",
        "https://api.example.org/posts?page=1&auth=S3CR3T",
    ],
)
def test_tokens_in_place_of_passwords(url: str) -> None:
    """A token that an API takes as the user, or as a signature, is no more shown than a password."""
    masked = mask_secrets(f"GET {url} failed")
    assert "S3CR3T" not in masked
    assert "api.example.org/posts" in masked
