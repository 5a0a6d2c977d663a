"""What all runs share: one at a time of a job, and how they fail or try again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dagster import Failure, RetryRequested

from pipeline_poc.errors import PipelineError, ServiceUnavailable, TransientError
from pipeline_poc.retry import decide
from pipeline_poc.settings import Settings

_ATTEMPTS = 3
"""Of a step whose store is away; what lasts longer is for the next run, which goes on where this one ended."""


def one_at_a_time(job: str) -> dict[str, str]:
    """Tag the runs of a job, so that the queue of production starts the next one when the last has ended."""
    return {"pipeline_poc/one_at_a_time": job}


@contextmanager
def plain_failures(settings: Settings, retry_number: int) -> Iterator[None]:
    """Let a step fail with the pipeline's own sentence at its head, or try again where only a store is away.

    Args:
        settings: Say how long the backoff is.
        retry_number: Of the step, as Dagster counts; 0 for the first attempt.

    Raises:
        RetryRequested: An outage; Dagster waits, and executes the step again.
        Failure: Anything else that the pipeline raises, and an outage that lasts.
    """
    try:
        yield
    except PipelineError as error:
        delay_s = _delay_s(error, settings, retry_number)
        if delay_s is None:
            raise Failure(str(error)) from error
        raise RetryRequested(max_retries=retry_number + 1, seconds_to_wait=delay_s) from error


def _delay_s(error: PipelineError, settings: Settings, retry_number: int) -> float | None:
    # An ingestion asks the source again by itself, patiently, before it gives up.
    is_source = isinstance(error, ServiceUnavailable) and error.setting == "SOURCE_URL"
    if is_source or not isinstance(error, TransientError):
        return None
    return decide(error, retry_number + 1, replace(settings.job_policy, max_attempts=_ATTEMPTS)).delay_s
