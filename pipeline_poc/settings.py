"""The settings: read once by an entry point, validated as a whole, passed as arguments.

This module is the only reader of the environment. `load_settings` reads the environment and
`.env` (the environment wins); `.env.example` lists every setting with its default.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline_poc import failpoints
from pipeline_poc.errors import SettingsError
from pipeline_poc.retry import RetryPolicy

PUBLIC_SOURCE_URL = "https://jsonplaceholder.typicode.com/posts"
"""What is ingested where no SOURCE_URL is set."""


_SECRET_MIN = 32


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


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Values separated by commas."""
TokenHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TokenHashes = Annotated[tuple[TokenHash, ...], NoDecode, BeforeValidator(_split)]
RateLimit = Annotated[str, Field(pattern=r"^[1-9][0-9]*/(second|minute|hour)$")]


def _fail_points(value: str) -> str:
    failpoints.parse(value)
    return value


class Settings(BaseSettings):
    """Everything that can be set; each field is the environment variable of the same name.

    Durations are in seconds (``_S``). URLs may hold passwords and are secret for that reason.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8", hide_input_in_errors=True)

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

    fail_points: Annotated[str, AfterValidator(_fail_points)] | None = Field(
        None, description="For tests of faults only: where this process kills, stops or fails itself."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least severe log shown.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`text` for people, `json` for machines; `auto`: text on a terminal, else JSON."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("is set, but empty; unset it to get the default")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError("HEARTBEAT_TIMEOUT_S must be at least twice HEARTBEAT_INTERVAL_S")
        if self.session_secret and len(self.session_secret.get_secret_value()) < _SECRET_MIN:
            raise ValueError(f"SESSION_SECRET must have at least {_SECRET_MIN} characters")
        if self.retry_cap_s < self.retry_base_s:
            raise ValueError("RETRY_CAP_S must not be below RETRY_BASE_S")
        return self

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
        """Whether made-up posts can do no harm: no source and no store is set, all is embedded."""
        return not any((self.source_url, self.mongo_url, self.redis_url, self.sql_url))


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
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{env_file} can't be read: {problem}") from None
    except ValidationError as error:
        problems = [
            f"{str(*problem['loc'][:1]).upper()} {problem['msg'].removeprefix('Value error, ')}".strip()
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SettingsError("; ".join(problems)) from None
