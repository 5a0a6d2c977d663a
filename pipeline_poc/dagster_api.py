"""Dagster as its GraphQL shows it: what anybody may ask it for, and the launch of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from pipeline_poc.errors import PipelineError, TransientError, mask_secrets
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity

UNDER_WAY = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
"""States of a run that has not ended."""

_STATE = """
query PipelineState {
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
  workspaceOrError {
    __typename
    ... on Workspace {
      locationEntries { name loadStatus locationOrLoadError { __typename ... on PythonError { message } } }
    }
    ... on PythonError { message }
  }
  repositoriesOrError {
    __typename
    ... on RepositoryConnection {
      nodes {
        name
        location { name }
        jobs { name }
        schedules { name scheduleState { status } futureTicks(limit: 1) { results { timestamp } } }
        sensors { name sensorState { status } }
      }
    }
  }
}
"""
_LAUNCH = """
mutation LaunchIngestion($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_RUNS = """
query Runs($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 1) { __typename ... on Runs { results { runId } } ... on PythonError { message } }
}
"""
_RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run {
      runId status startTime endTime
      assetMaterializations {
        metadataEntries {
          label
          ... on IntMetadataEntry { intValue }
          ... on FloatMetadataEntry { floatValue }
          ... on BoolMetadataEntry { boolValue }
        }
      }
      eventConnection(limit: 1000) {
        events {
          ... on ExecutionStepFailureEvent { error { message cause { message } } }
          ... on RunFailureEvent { message error { message } }
        }
      }
    }
  }
}
"""


class DagsterUnavailable(TransientError):
    """Dagster's webserver or its code location does not answer as it should."""


class RunNotLaunchedError(PipelineError):
    """Dagster refused to launch a run."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of the daemons that this instance needs, and its last sign of life."""

    name: str
    is_healthy: bool
    heartbeat_at: datetime | None


@dataclass(frozen=True, slots=True)
class Automation:
    """A schedule or sensor: whether it runs, and when it ticks next; None for sensors."""

    name: str
    is_running: bool
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DagsterState:
    """What Dagster says about itself.

    Attributes:
        locations: Error of each code location by name; None where it is loaded.
        daemons: Those that this instance needs.
        repository: Location and name of the repository that has our jobs; None while it is not loaded.
    """

    locations: Mapping[str, str | None]
    daemons: tuple[Daemon, ...]
    schedules: tuple[Automation, ...]
    sensors: tuple[Automation, ...]
    repository: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    Attributes:
        status: Dagster's word, such as STARTED or SUCCESS.
        numbers: Numbers and flags among the metadata of what it materialized, by label.
        error: Why it failed; the message only.
    """

    id: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    numbers: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status not in UNDER_WAY


class DagsterApi:
    """Dagster's GraphQL.

    Args:
        client: Knows where Dagster's webserver is, in this process or elsewhere.
        entity: Whose ingestion it is about.

    Raises (every method):
        DagsterUnavailable: It does not answer, or with something else.
    """

    def __init__(self, client: httpx.AsyncClient, entity: Entity = POSTS) -> None:
        self._client = client
        self._ingestion_job = entity.job("ingest")

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def _ask(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = await self._client.post("/graphql", json={"query": query, "variables": variables or {}})
            answer = response.json() if response.status_code == httpx.codes.OK else None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise DagsterUnavailable(f"Dagster's webserver does not answer: {mask_secrets(reason)}") from error
        except ValueError as error:
            raise DagsterUnavailable("Dagster's webserver answers with something that is no JSON") from error
        if answer is None:
            hint = ": set API_TOKEN" if response.status_code == httpx.codes.UNAUTHORIZED else ""
            raise DagsterUnavailable(f"Dagster's webserver answers with status {response.status_code}{hint}")
        if answer.get("errors"):
            raise DagsterUnavailable(f"Dagster's GraphQL fails: {mask_secrets(answer['errors'][0]['message'])[:300]}")
        data: dict[str, Any] = answer["data"]
        return data

    async def state(self) -> DagsterState:
        """Return what Dagster says about itself."""
        data = await self._ask(_STATE)
        workspace = data["workspaceOrError"]
        if workspace["__typename"] != "Workspace":
            raise DagsterUnavailable(f"Dagster has no workspace: {workspace.get('message')}")
        nodes = data["repositoriesOrError"].get("nodes", [])
        daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
        ours = [node for node in nodes if any(job["name"] == self._ingestion_job for job in node["jobs"])]
        return DagsterState(
            locations={entry["name"]: _location_error(entry) for entry in workspace["locationEntries"]},
            daemons=tuple(
                Daemon(daemon["daemonType"], bool(daemon["healthy"]), _time(daemon["lastHeartbeatTime"]))
                for daemon in daemons
                if daemon["required"]
            ),
            schedules=tuple(_schedule(schedule) for node in ours for schedule in node["schedules"]),
            sensors=tuple(
                Automation(sensor["name"], sensor["sensorState"]["status"] == "RUNNING")
                for node in ours
                for sensor in node["sensors"]
            ),
            repository=(ours[0]["location"]["name"], ours[0]["name"]) if ours else None,
        )

    async def run_under_way(self) -> str | None:
        """Return the id of an ingestion that has not ended; None where there is none."""
        runs = (await self._ask(_RUNS, {"filter": {"pipelineName": self._ingestion_job, "statuses": list(UNDER_WAY)}}))[
            "runsOrError"
        ]
        if runs["__typename"] != "Runs":
            raise DagsterUnavailable(f"Dagster does not tell its runs: {runs.get('message')}")
        return runs["results"][0]["runId"] if runs["results"] else None

    async def launch_ingestion(self, tags: Mapping[str, str]) -> str:
        """Launch the ingestion's job; returns the id of the run.

        Raises:
            RunNotLaunchedError: Dagster refused.
        """
        repository = (await self.state()).repository
        if repository is None:
            raise DagsterUnavailable("the code location with the ingestion's job is not loaded")
        location, name = repository
        params = {
            "selector": {"repositoryLocationName": location, "repositoryName": name, "jobName": self._ingestion_job},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        launched = (await self._ask(_LAUNCH, {"params": params}))["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            reason = launched.get("message") or launched["__typename"]
            raise RunNotLaunchedError(f"Dagster did not launch the run: {mask_secrets(reason)[:300]}")
        run_id: str = launched["run"]["runId"]
        return run_id

    async def run(self, run_id: str) -> Run | None:
        """Look a run up; None where Dagster doesn't know it."""
        found = (await self._ask(_RUN, {"id": run_id}))["runOrError"]
        if found["__typename"] != "Run":
            return None
        numbers = {
            entry["label"]: value
            for materialization in found["assetMaterializations"]
            for entry in materialization["metadataEntries"]
            if (value := _value(entry)) is not None
        }
        return Run(
            id=found["runId"],
            status=found["status"],
            started_at=_time(found["startTime"]),
            ended_at=_time(found["endTime"]),
            numbers=numbers,
            error=_failure(found["eventConnection"]["events"]),
        )


def _location_error(entry: Mapping[str, Any]) -> str | None:
    loaded = entry["locationOrLoadError"]
    if loaded is None:
        return "it is being loaded"
    return mask_secrets(loaded["message"])[:300] if loaded["__typename"] == "PythonError" else None


def _schedule(schedule: Mapping[str, Any]) -> Automation:
    ticks = schedule["futureTicks"]["results"]
    return Automation(
        schedule["name"],
        schedule["scheduleState"]["status"] == "RUNNING",
        _time(ticks[0]["timestamp"]) if ticks else None,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(float(seconds), UTC)


def _value(entry: Mapping[str, Any]) -> float | None:
    for kind in ("intValue", "floatValue", "boolValue"):
        if entry.get(kind) is not None:
            value: float = entry[kind]
            return value
    return None


def _failure(events: list[dict[str, Any]]) -> str | None:
    for event in events:
        error = event.get("error")
        if error:
            # Dagster wraps what a step raised; the cause is ours.
            message = (error.get("cause") or error)["message"]
            return mask_secrets(" ".join(message.split()))[:500]
    return next((mask_secrets(event["message"]) for event in events if event.get("message")), None)
