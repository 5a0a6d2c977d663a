"""The sensor that tells people of problems, with a webhook in their place."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    SkipReason,
    build_sensor_context,
)
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

from pipeline_poc import clock
from pipeline_poc.chaos.servers import Redis
from pipeline_poc.health import Check, Health
from pipeline_poc.orchestration import alerts
from pipeline_poc.orchestration.alerts import KINDS, AlertNotTakenError, Findings, send_alerts
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.definitions import defs
from pipeline_poc_tests.unit.test_monitoring import ALERTS
from pipeline_poc_tests.webhook import Webhook, webhook

SECRET = "S3CRET"


@pytest.fixture(autouse=True)
def _right_clock() -> Iterator[None]:
    """The clock is set right again."""
    yield
    clock.shift(timedelta(0))


@pytest.fixture
def hook(pipeline: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """The webhook that ALERT_URLS names, beside a channel that never takes anything."""
    with webhook() as served:
        monkeypatch.setenv("ALERT_URLS", f"json://127.0.0.1:1/{SECRET},{served.url}")
        yield served


class Ticks:
    """Evaluates the sensor as the daemon does: the cursor is kept when a tick succeeds."""

    def __init__(self, instance: DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def __call__(self, *, after_s: float = 0) -> str:
        """Tick once, so many seconds after the right time; returns what the tick says of itself."""
        clock.shift(timedelta(seconds=after_s))
        with build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=defs.get_repository_def(),
        ) as context:
            result = send_alerts(context)
        if isinstance(result, SensorResult):
            self.cursor = result.cursor
            assert result.skip_reason
            result = result.skip_reason
        assert isinstance(result, SkipReason)
        assert result.skip_message
        return result.skip_message

    def ingest(self) -> DagsterRunStatus:
        """Run the ingestion's job."""
        job = defs.resolve_job_def("ingest_posts")
        return job.execute_in_process(instance=self.instance, raise_on_error=False).dagster_run.status


@pytest.fixture
def tick(instance: DagsterInstance) -> Ticks:
    """Ticks on an instance that knows of nothing."""
    return Ticks(instance)


def test_a_run_that_fails_and_the_next_that_does_not(
    hook: Webhook, pipeline: Services, tick: Ticks, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """People get one message as a job begins to fail and one as it succeeds again; none is lost while none is taken."""
    assert tick() == "problems that last: 0"
    stand_in.stop()
    assert tick.ingest() == DagsterRunStatus.FAILURE
    hook.status = 503
    before = tick.cursor
    for _ in range(2):
        with pytest.raises(
            AlertNotTakenError, match=r"^no channel of ALERT_URLS took the alert; 1 \(JSON\): "
        ) as raised:
            tick()
    assert "2 (JSON): " in str(raised.value)
    assert tick.cursor == before
    hook.status = 200
    assert tick().startswith("told people of 1, but not by 1 (JSON): ")
    [sent] = hook.received
    assert (sent["title"], sent["type"]) == ("Problem: a run of ingest_posts failed", "failure")
    assert "(SOURCE_URL) is not available: " in sent["message"], sent["message"]
    assert "development, on " in sent["message"]
    hook.titles()

    assert tick.ingest() == DagsterRunStatus.FAILURE
    assert tick(after_s=30) == "problems that last: 1"
    stand_in.start()
    assert tick.ingest() == DagsterRunStatus.SUCCESS
    assert tick(after_s=31) == "problems that last: 1"
    assert tick(after_s=95).endswith("; problems that last: 0")
    assert tick(after_s=96) == "problems that last: 0"
    assert hook.titles() == ["Over: a run of ingest_posts failed"]
    assert SECRET not in caplog.text + str(raised.value)
    assert "an alert was not taken by 1 (JSON): " in caplog.text


def test_what_health_sees(hook: Webhook, pipeline: Services, tick: Ticks, redis_server: Redis) -> None:
    """A store that is away for two minutes is told of, once; what it alone could tell of is not taken for mended."""
    for after_s in (0, 200):
        tick(after_s=after_s)
    assert hook.titles() == ["Problem: no worker begins anything"]
    redis_server.kill()
    for after_s in (210, 300, 331, 400, 520):
        tick(after_s=after_s)
    assert hook.titles() == ["Problem: Redis is away"]
    redis_server.start()
    for after_s in (530, 591, 620):
        tick(after_s=after_s)
    assert hook.titles() == ["Over: Redis is away"]


def test_without_channels_nothing_is_looked_at(tick: Ticks, pipeline: Services, redis_server: Redis) -> None:
    """A tick without ALERT_URLS asks no store, and says why it does nothing."""
    redis_server.kill()
    assert tick() == "ALERT_URLS is not set: nobody is told of anything"
    assert tick.cursor is None
    redis_server.start()


def test_checks_and_freshness(instance: DagsterInstance) -> None:
    """A check is a problem while its latest evaluation is an error; an asset, while Dagster finds it too old."""

    def found(*, lag: tuple[bool, AssetCheckSeverity] | None = None, fresh: FreshnessState | None = None) -> Findings:
        if lag:
            passed, severity = lag
            evaluation = AssetCheckEvaluation(asset, "lag", passed, severity=severity, description="it waits")
            instance.report_runless_asset_event(evaluation)
        if fresh:
            now_s = clock.utc_now().timestamp()
            instance.report_runless_asset_event(
                FreshnessStateChange(
                    key=asset, new_state=fresh, previous_state=FreshnessState.UNKNOWN, state_change_timestamp=now_s
                )
            )
        findings = Findings()
        alerts.look_at_checks(instance, [AssetCheckKey(asset, name) for name in ("lag", "other")], findings)
        alerts.look_at_freshness(instance, [asset], findings)
        return findings

    asset = AssetKey("migrated_posts")
    assert found() == Findings([], {"check:migrated_posts:lag", "check:migrated_posts:other"})
    assert found(lag=(False, AssetCheckSeverity.WARN)) == Findings([], {"check:migrated_posts:other"})
    [problem] = found(lag=(False, AssetCheckSeverity.ERROR)).problems
    assert (problem.key, problem.title, problem.text) == (
        "check:migrated_posts:lag",
        "the check lag of migrated_posts fails",
        "it waits",
    )
    assert found(lag=(True, AssetCheckSeverity.ERROR)).problems == []
    [problem] = found(fresh=FreshnessState.FAIL).problems
    assert (problem.key, problem.title) == ("freshness:migrated_posts", "migrated_posts is not fresh")
    assert found(fresh=FreshnessState.PASS).problems == []


def test_runs_that_tell_nothing(instance: DagsterInstance) -> None:
    """A job without a run that ended is unknown; one that was cancelled or is under way changes nothing."""

    def found() -> list[str]:
        findings = Findings()
        alerts.look_at_runs(instance, ["ingest_posts", "check_posts"], findings)
        assert findings.unknown >= {"run:check_posts"}
        return [problem.key for problem in findings.problems]

    job = defs.resolve_job_def("ingest_posts")
    for status in (DagsterRunStatus.CANCELED, DagsterRunStatus.STARTED):
        instance.create_run_for_job(job, status=status)
    assert found() == []
    instance.create_run_for_job(job, status=DagsterRunStatus.FAILURE)
    for status in (DagsterRunStatus.CANCELED, DagsterRunStatus.STARTED):
        instance.create_run_for_job(job, status=status)
        assert found() == ["run:ingest_posts"]
    instance.create_run_for_job(job, status=DagsterRunStatus.SUCCESS)
    assert found() == []


def test_health_in_words() -> None:
    """A check that does not pass is told under a title of its own or its name, secrets masked, and cut."""
    findings = Findings()
    alerts.look_at_health(
        Health(
            (
                Check("new:check", "fail", output=f"mongodb://u:{SECRET}@h {'x ' * 500}"),
                Check("migration:lag", "warn", is_known=False),
                Check("quarantine:records", "warn", 7, output="they wait"),
                Check("queue:depth", "pass", 9),
            )
        ),
        findings,
    )
    new, quarantined = findings.problems
    assert (new.title, new.hold_s, new.count) == ("the check new:check of /health does not pass", 300, 0)
    assert new.text.startswith("mongodb://u:***@h x")
    assert len(new.text) < 410
    assert (quarantined.count, quarantined.runbook) == (7, "docs/operations.md#pipelinequarantinegrowing")
    assert findings.unknown == {"migration:lag"}


def test_every_kind_exists() -> None:
    """What is said of a check names an alert that the runbook has."""
    assert {kind.alert for kind in KINDS.values() if kind.alert} <= set(ALERTS)
