"""The settings: read once by an entry point, validated as a whole, passed as arguments.

This module is the only reader of the environment. `load_settings` reads the environment and
`.env` (the environment wins), and secrets from the files that they name as ``<NAME>_FILE``.
`.env.example` and docs/settings.md list every setting; scripts/settings-docs writes both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipeline_poc import failpoints
from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import SettingsError
from pipeline_poc.posts import POSTS
from pipeline_poc.retry import RetryPolicy

PUBLIC_SOURCE_URL = "https://jsonplaceholder.typicode.com/posts"
"""What is ingested where no SOURCE_URL is set."""


_SECRET_MIN = 32
_KNOWN_PASSWORDS = frozenset({"", "123456", "admin", "change-me", "changeme", "password", "root", "secret"})
"""Passwords that everybody tries first, and those of our examples; the user's own name is another one."""


def _url_of(*schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.scheme.startswith("http") and parts.port  # Others may list several hosts.
        except ValueError:  # Whose text quotes the URL.
            raise ValueError("is no valid URL") from None
        if parts.scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        needs_host = not parts.scheme.startswith(("sqlite", "unix"))
        if needs_host and not parts.netloc.rpartition("@")[2]:
            raise ValueError("names no host")
        if parts.scheme == "sqlite" and parts.path.strip("/") in ("", ":memory:"):
            raise ValueError("names no file; a store in memory would be another one in each process")
        return value

    return AfterValidator(check)


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _split_urls(value: Any) -> Any:
    """Divide before what begins another URL: within one, commas stand between receivers."""
    if not isinstance(value, str):
        return value
    return tuple(re.split(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", value.strip(", \r\n\t")))


def _some_url(value: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://\S", value.get_secret_value()):
        raise ValueError("must be URLs of Apprise, separated by commas, such as mailto://… or slack://…")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Values separated by commas."""
TokenHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TokenHashes = Annotated[tuple[TokenHash, ...], NoDecode, BeforeValidator(_split)]
AlertUrls = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_some_url)], ...], NoDecode, BeforeValidator(_split_urls)
]
RateLimit = Annotated[str, Field(pattern=r"^[1-9][0-9]*/(second|minute|hour)$")]


def _fail_points(value: str) -> str:
    failpoints.parse(value)
    return value


def _has_known_password(url: str) -> bool:
    parts = urlsplit(url)
    user, colon, password = map(unquote, parts.netloc.rpartition("@")[0].partition(":"))
    if not colon:
        # MySQL takes that for an empty password; with others it means a certificate, or nobody has to log in.
        return bool(user) and parts.scheme.startswith(("mysql", "mariadb"))
    return password.lower() in _KNOWN_PASSWORDS or password == user


@dataclass(frozen=True, slots=True)
class _Unusable:
    """Stands where a value should, and says why there is none."""

    problem: str


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets from files, as Docker and Kubernetes mount them: ``<NAME>_FILE`` names the file with NAME.

    Args:
        settings_cls: The settings.
        sources: Environment and `.env`; a secret that is there as well is an error.
    """

    def __init__(self, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._given = [source.env_vars for source in sources if isinstance(source, EnvSettingsSource)]

    def __call__(self) -> dict[str, Any]:
        """Return the secrets that files are named for."""
        found = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in SECRETS}
        return {name: value for name, value in found.items() if value is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - as asked for
        """Return the content of the file; None where none is named."""
        variable = file_variable(field_name)
        path = self._variable(variable.lower())
        value: str | _Unusable | None = None
        if path is not None and self._variable(field_name) is not None:
            value = _Unusable(f"is given by {variable}, too: unset one of them")
        elif path is not None:
            try:
                value = Path(path).read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:  # The path is not told: it might be the secret, put into the wrong variable.
                value = _Unusable(f"can't be read from the file that {variable} names: {error.strerror}")
            except ValueError:
                value = _Unusable(f"can't be read from the file that {variable} names: it is not UTF-8")
        return value, field_name, False

    def _variable(self, name: str) -> str | None:
        return next((value for given in self._given if (value := given.get(name)) is not None), None)


class Settings(BaseSettings):
    """Everything that can be set; each field is the environment variable of the same name.

    Durations are in seconds (``_S``). URLs may hold passwords and are secret for that reason.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8", hide_input_in_errors=True)

    # These two stand first: what others may be depends on them.
    environment: Literal["development", "test", "production"] = Field(
        "development",
        description="`production` refuses what is good for a trial only; `test` takes made-up posts where no source "
        "and no store is set.",
    )
    allow_embedded_stores: bool = Field(False, description="In production: stores may be embedded ones.")

    entities: Names = Field(
        ("posts",),
        description=f"What moves, separated by commas: {', '.join(ENTITIES)}. Each has a collection, a queue and a "
        "table of its own, and is served beside the posts at SOURCE_URL.",
    )
    source_url: Annotated[SecretStr, _url_of("http", "https")] | None = Field(
        None, description=f"The API to ingest. Unset: {PUBLIC_SOURCE_URL}"
    )
    source_timeout_s: float = Field(10.0, gt=0, description="Longest wait to connect to the source, and between bytes.")
    source_max_attempts: int = Field(4, ge=1, description="Attempts at the source before an ingestion fails.")

    mongo_url: Annotated[SecretStr, _url_of("mongodb", "mongodb+srv")] | None = Field(
        None, description="The raw store. Unset: the embedded SecantusDB."
    )
    mongo_database: str = Field(
        "pipeline_poc",
        max_length=63,
        pattern=r'^[^\s."$/\\\x00]+$',
        description="The database of the raw store.",
    )
    redis_url: Annotated[SecretStr, _url_of("redis", "rediss", "unix")] | None = Field(
        None, description="The Redis of the migration queue. Unset: the embedded Valkey."
    )
    queue_name: str = Field(
        "migration", pattern=r"^[A-Za-z0-9_-]+$", description="The RQ queue that carries the migration jobs."
    )
    sql_url: Annotated[SecretStr, _url_of("mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql", "sqlite")] | None = (
        Field(None, description="The relational store. Unset: a SQLite file in DATA_DIR.")
    )

    data_dir: Path = Field(Path(".pipeline_poc"), description="Folder of everything that the embedded services keep.")

    dagster_home: Path | None = Field(
        None, description="Dagster's own folder. Unset: `up` keeps Dagster's data in DATA_DIR; workers make no reports."
    )
    run_retention_s: int = Field(
        30 * 86_400, ge=3600, description="Dagster's runs, reports and results of checks are kept for so long."
    )

    batch_size: int = Field(5000, ge=1, le=50_000, description="Most posts in a batch; a batch is one job.")
    queue_window: int = Field(20, ge=1, le=1000, description="Most jobs outstanding on the queue at once.")
    store_timeout_s: float = Field(
        5.0, gt=0, description="Longest wait to reach a store before that counts as an outage."
    )

    retry_max_attempts: int = Field(6, ge=1, description="Attempts of a job before it is a dead letter.")
    retry_base_s: float = Field(
        1.0, gt=0, description="Upper bound of the first backoff; it doubles with each attempt."
    )
    retry_cap_s: float = Field(60.0, gt=0, description="Upper bound of every backoff.")

    job_timeout_s: int = Field(600, ge=1, description="Longest run of a job.")
    shutdown_grace_s: float = Field(
        8.0, gt=0, description="A worker that is asked to stop finishes its batch within so long, or gives it back."
    )
    heartbeat_interval_s: float = Field(5.0, gt=0, description="A worker shows this often that its batch is alive.")
    heartbeat_timeout_s: float = Field(
        30.0, gt=0, description="A batch without a heartbeat for so long is taken from its worker."
    )
    filling_timeout_s: float = Field(
        120.0, gt=0, description="A batch that its ingestion did not complete for so long is taken over."
    )
    ledger_retention_s: int = Field(7 * 86_400, ge=3600, description="Closed batches are kept for so long.")

    worker_count: int = Field(2, ge=1, le=64, description="Workers that `up` starts.")
    web_host: str = Field("127.0.0.1", description="Address on which the web server listens.")
    web_port: int = Field(3000, ge=1, le=65_535, description="Port on which the web server listens.")
    web_allowed_hosts: Names | None = Field(
        None,
        description="Names by which the web server may be called, separated by commas; `*` for any. "
        "Unset: this machine's own names, and WEB_HOST.",
    )
    web_allowed_origins: Names | None = Field(
        None, description="Origins of pages elsewhere that may call the endpoints (CORS), separated by commas."
    )
    web_trusted_proxies: Names | None = Field(
        None, description="Addresses of proxies whose X-Forwarded headers are believed, separated by commas."
    )
    web_max_body_bytes: int = Field(1_000_000, ge=1000, description="Largest body of a request.")
    web_drain_s: float = Field(
        0.0,
        ge=0,
        description="A web server that is asked to stop says so in `/health/ready`, and goes on answering for so long.",
    )

    api_read_token_hashes: TokenHashes | None = Field(
        None,
        repr=False,
        description="SHA-256 of the tokens that may look, separated by commas; see `pipeline-poc token`.",
    )
    api_operate_token_hashes: TokenHashes | None = Field(
        None, repr=False, description="SHA-256 of the tokens that may look and act, separated by commas."
    )
    auth_protect_ui: Literal["all", "mutations", "off"] = Field(
        "all",
        description="What of Dagster's UI and GraphQL needs a token, where there are any.",
    )
    session_secret: SecretStr | None = Field(
        None, description="Signs the cookie of a login. Unset: a new one with each start, which ends all logins."
    )
    session_ttl_s: int = Field(43_200, ge=60, description="A login lasts so long.")
    api_token: SecretStr | None = Field(None, description="The token with which the command line asks the web server.")

    rate_limit_read: RateLimit = Field("600/minute", description="Most looks, for each token or address.")
    rate_limit_operate: RateLimit = Field("60/minute", description="Most actions, for each token or address.")

    health_timeout_s: float = Field(2.0, gt=0, description="Longest time that a health check may take.")
    count_interval_s: float = Field(
        2.0, gt=0, description="Shortest pause between two counts of what is stored; a slow count makes it longer."
    )
    lag_warn_s: float = Field(900.0, gt=0, description="Health warns of a post that waits for so long.")
    source_warn_s: float = Field(1800.0, gt=0, description="Health warns if no ingestion went well for so long.")

    alert_urls: AlertUrls | None = Field(
        None,
        description="Where people are told of problems, and of their end: URLs of Apprise, separated by commas. "
        "Unset: nowhere.",
    )

    fail_points: Annotated[str, AfterValidator(_fail_points)] | None = Field(
        None, description="For tests of faults only: where this process kills, stops or fails itself."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least severe log shown.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`text` for people, `json` for machines; `auto`: text on a terminal, else JSON."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a whole folder of secrets is not read
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, files of secrets, environment and `.env`; what comes first wins."""
        files = _SecretFiles(settings_cls, env_settings, dotenv_settings)
        return init_settings, files, env_settings, dotenv_settings

    @field_validator("*", mode="before")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        if isinstance(value, _Unusable):
            raise ValueError(value.problem)  # noqa: TRY004 - what pydantic takes for a wrong value
        if value == "":
            raise ValueError("is set, but empty; unset it to get the default")
        return value

    @field_validator("entities")
    @classmethod
    def _known_entities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - ENTITIES.keys()):
            raise ValueError(f"names {', '.join(unknown)}, but there are only {', '.join(ENTITIES)}")
        if POSTS.name not in value or len(set(value)) != len(value):
            raise ValueError(f"must name {POSTS.name}, and nothing twice")
        return value

    @field_validator("mongo_url", "redis_url", "sql_url")
    @classmethod
    def _store_fit_for_production(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if info.data.get("environment") != "production":
            return value
        if value is None and not info.data.get("allow_embedded_stores"):
            raise ValueError("is not set, and ENVIRONMENT is production: set it, or ALLOW_EMBEDDED_STORES=true")
        if value and _has_known_password(value.get_secret_value()):
            raise ValueError("has no password, or one that everybody knows, and ENVIRONMENT is production: change it")
        return value

    @field_validator("fail_points")
    @classmethod
    def _no_faults_in_production(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("environment") == "production":
            raise ValueError("is for tests of faults, and ENVIRONMENT is production: unset it")
        return value

    # Each looks at settings that stand above its own; one that looked at the whole would be asked only once all else
    # is right, and what is wrong has to be named at once.

    @field_validator("heartbeat_timeout_s")
    @classmethod
    def _above_interval(cls, value: float, info: ValidationInfo) -> float:
        if value < 2 * info.data.get("heartbeat_interval_s", 0):
            raise ValueError("must be at least twice HEARTBEAT_INTERVAL_S")
        return value

    @field_validator("retry_cap_s")
    @classmethod
    def _above_base(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("retry_base_s", 0):
            raise ValueError("must not be below RETRY_BASE_S")
        return value

    @field_validator("session_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value and len(value.get_secret_value()) < _SECRET_MIN:
            raise ValueError(f"must have at least {_SECRET_MIN} characters")
        return value

    @property
    def source_policy(self) -> RetryPolicy:
        """How the source is retried within an ingestion."""
        return RetryPolicy(max_attempts=self.source_max_attempts, base_s=self.retry_base_s, cap_s=self.retry_cap_s)

    @property
    def job_policy(self) -> RetryPolicy:
        """How a job is retried."""
        return RetryPolicy(max_attempts=self.retry_max_attempts, base_s=self.retry_base_s, cap_s=self.retry_cap_s)

    @property
    def may_use_stand_in(self) -> bool:
        """Whether made-up posts can do no harm: no source and no store is set, and it is not production."""
        is_set = any((self.source_url, self.mongo_url, self.redis_url, self.sql_url))
        return self.environment != "production" and not is_set


def _mentions(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_mentions(part, wanted) for part in get_args(annotation))


SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if not field.repr or _mentions(field.annotation, SecretStr)
)
"""The settings that are never shown, and that may come from files."""


def file_variable(secret: str) -> str:
    """Return the variable that names the file of a secret."""
    return f"{secret.upper()}_FILE"


def given(env_file: Path | None = Path(".env")) -> dict[str, Mapping[str, str | None]]:
    """Return the variables of the environment, and those of the file, each by their names in small letters.

    Raises:
        SettingsError: The file can't be read.
    """
    environment = EnvSettingsSource(Settings).env_vars
    try:
        return {"environment": environment, str(env_file): DotEnvSettingsSource(Settings, env_file).env_vars}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(env_file, error) from None


def _unreadable(env_file: Path | None, error: OSError | UnicodeDecodeError) -> SettingsError:
    problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    return SettingsError(f"{env_file} can't be read: {problem}")


def load_settings(*, env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings from the environment, then `.env` in the working directory.

    Args:
        env_file: The file to read; a missing one is no error. None: the environment only.
        overrides: Settings that win over both, such as those given on the command line.

    Raises:
        SettingsError: Names every wrong setting; shows no value.
    """
    try:
        return Settings(_env_file=env_file, **overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(env_file, error) from None
    except ValidationError as error:
        problems = [
            f"{str(*problem['loc'][:1]).upper()} {problem['msg'].removeprefix('Value error, ')}".strip()
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SettingsError("; ".join(problems)) from None
