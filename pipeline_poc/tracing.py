"""Traces: one from an ingestion over the queue to its rows, by OpenTelemetry; off unless the environment asks for it.

`start` imports OpenTelemetry only then; while tracing is off, a span costs a call that returns at once. The SDK sends
spans in the background, and drops them while nobody takes them. They have no content of posts in them.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from pipeline_poc.errors import mask_secrets

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

logger = logging.getLogger(__name__)

Attributes = dict[str, "AttributeValue"]
"""Named by OpenTelemetry's semantic conventions where those have a name."""

_FLUSH_S = 1.0
"""Longest wait at the end of a process for the last spans to be sent."""
_SAY_AGAIN_S = 600.0
"""A collector that is away is mentioned so often."""
_ERROR_SHOWN = 500
"""Characters of an error that are shown."""


def start() -> None:
    """Trace what this process does from now on, if the environment asks for it; idempotent.

    The variables are OpenTelemetry's own, which the SDK reads as well.
    """
    global _tracing  # noqa: PLW0603 - on or off is a state of the process, as the log is
    with _lock:
        if _tracing is not None or not _is_wanted():
            return
        try:
            _tracing = _Tracing()
        except ImportError as error:
            logger.warning("no traces: the extra `tracing` is not installed", extra={"error": str(error)})
        except Exception as error:  # noqa: BLE001 - whatever the variables say, posts have to move
            logger.warning("no traces", extra={"error": mask_secrets(str(error))[:_ERROR_SHOWN]})
        else:
            # Where threads can't be started any more.
            atexit.register(flush)


def flush() -> None:
    """Send what is not sent yet; returns after a second, whether or not somebody took it."""
    if _tracing is not None:
        _tracing.flush()


def ingesting() -> AbstractContextManager[None]:
    """Span of an ingestion."""
    return _span("ingest posts", "INTERNAL", {})


def storing(records: int) -> AbstractContextManager[None]:
    """Span of the storing of a batch, of which the batch in the ledger keeps the `traceparent`."""
    return _span("store batch", "CLIENT", _database("mongodb", "posts", records))


def traceparent() -> str | None:
    """Return the current span in W3C's words, for another process to go on from; None while tracing is off."""
    return _tracing.traceparent() if _tracing is not None else None


@contextmanager
def enqueueing(batches: Mapping[str, Any], queue: str) -> Iterator[None]:
    """Spans of the enqueueing of batches, each in its own trace.

    Args:
        batches: The `traceparent` that the ledger has for each id.
        queue: Its name.
    """
    with ExitStack() as stack:
        for batch_id, parent in batches.items() if _tracing is not None else ():
            attributes = _message(batch_id, "send") | {"messaging.destination.name": queue}
            stack.enter_context(_span("enqueue batch", "PRODUCER", attributes, parent))
        yield


def processing(batch_id: str, parent: object, worker: str) -> AbstractContextManager[None]:
    """Span of an execution of a batch, from queue or ledger; goes on from its `traceparent`, if that is one."""
    return _span("process batch", "CONSUMER", _message(batch_id, "process") | {"messaging.client.id": worker}, parent)


def writing(posts: int, system: str) -> AbstractContextManager[None]:
    """Span of the writing of rows into a database of a kind such as ``mysql``."""
    return _span("write rows", "CLIENT", _database(system, "migrated_posts", posts))


def marking(posts: int) -> AbstractContextManager[None]:
    """Span of the marking of posts, and of the closing of their batch."""
    return _span("mark posts", "CLIENT", _database("mongodb", "posts", posts))


def _database(system: str, collection: str, size: int) -> Attributes:
    return {"db.system.name": system, "db.collection.name": collection, "db.operation.batch.size": size}


def _message(batch_id: str, operation: str) -> Attributes:
    return {"messaging.system": "rq", "messaging.operation.type": operation, "messaging.message.id": batch_id}


_CURRENT = object()
"""Stands for the span in which this thread is."""


def _span(name: str, kind: str, attributes: Attributes, parent: object = _CURRENT) -> AbstractContextManager[None]:
    return _tracing.span(name, kind, attributes, parent) if _tracing is not None else _OFF


def _is_wanted() -> bool:
    exporter = os.environ.get("OTEL_TRACES_EXPORTER")
    has_endpoint = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_"))
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_disabled and (exporter == "otlp" or (not exporter and has_endpoint))


class _Tracing:
    """Everything that knows OpenTelemetry."""

    def __init__(self) -> None:
        from opentelemetry.context import Context  # noqa: PLC0415 - all of them: see above
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        log = logging.getLogger("opentelemetry")
        log.handlers[:] = [_Seldom()]
        log.propagate = False
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "pipeline-poc"}))
        # Not the global one: libraries, such as FastAPI, take that for a wish to trace whatever they do, unmasked.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pipeline_poc")
        self._propagator = TraceContextTextMapPropagator()
        self._context, self._kind, self._error = Context, SpanKind, StatusCode.ERROR
        self._flush_asked, self._flushed = threading.Event(), threading.Event()
        threading.Thread(target=self._flush_when_asked, name="traces", daemon=True).start()

    @contextmanager
    def span(self, name: str, kind: str, attributes: Attributes, parent: object) -> Iterator[None]:
        """Make a span, current within the context; an error that passes makes it one that failed."""
        with self._tracer.start_as_current_span(
            name,
            None if parent is _CURRENT else self._context_of(parent),
            self._kind[kind],
            attributes,
            record_exception=False,  # Which would not mask it.
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except GeneratorExit:  # Whoever used what was yielded has failed; a span of theirs says why.
                span.set_status(self._error)
                raise
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(self._error, mask_secrets(str(error))[:_ERROR_SHOWN])
                raise

    def _context_of(self, parent: object) -> "Context":
        """Return where a trace goes on; where a new one begins if that is malformed: anybody may have written it."""
        carrier = {"traceparent": parent} if isinstance(parent, str) else {}
        return self._propagator.extract(carrier, self._context())

    def traceparent(self) -> str | None:
        """Return the current span in W3C's words; None where there is none."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def flush(self) -> None:
        """Let the thread flush, since that can't be given a time limit."""
        self._flushed.clear()
        self._flush_asked.set()
        self._flushed.wait(_FLUSH_S)

    def _flush_when_asked(self) -> None:
        while self._flush_asked.wait():
            self._flush_asked.clear()
            self._provider.force_flush()
            self._flushed.set()


class _Seldom(logging.Handler):
    """Passes on what OpenTelemetry warns of, such as that the collector is away, but not each time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write it into our log."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + _SAY_AGAIN_S
            logger.warning("traces in trouble", extra={"error": mask_secrets(record.getMessage())[:_ERROR_SHOWN]})


_OFF = nullcontext()
_tracing: _Tracing | None = None
_lock = threading.Lock()
