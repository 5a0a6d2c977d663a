"""Traces, sent to a collector by real processes: one from an ingestion over the queue to the rows."""

import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pymongo.database import Database

from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.integration.workers import Start

SECRET = "S3CRET"
BATCHES = 5
MALFORMED = ["", "no-trace", f"00-{'0' * 32}-{'1' * 16}-01", 7]
"""What all batches but one have in place of their `traceparent` when they are enqueued."""


class Collector(BaseHTTPRequestHandler):
    """Takes spans by OTLP over HTTP."""

    raw: bytes
    spans: list[Any]
    url: str

    def do_POST(self) -> None:
        """Keep what a request has."""
        kept, body = type(self), self.rfile.read(int(self.headers["Content-Length"]))
        kept.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert attributes(resource.resource)["service.name"] == "pipeline-poc"
            kept.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the library gives it
        """Say nothing."""


def attributes(of: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


def ways(spans: list[Any]) -> Counter[str]:
    """Count spans by their names and those of their ancestors."""
    by_id = {span.span_id: span for span in spans}

    def way(span: Any) -> str:
        return f"{way(by_id[span.parent_span_id])} > {span.name}" if span.parent_span_id else str(span.name)

    return Counter(map(way, spans))


@pytest.fixture
def collector() -> Iterator[type[Collector]]:
    """A collector that is there."""

    class Own(Collector):
        raw, spans = b"", []

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        Own.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Own
        server.shutdown()


def test_one_trace(
    services: Services, stand_in: StandIn, database: Database[Any], start: Start, collector: type[Collector]
) -> None:
    """The rows of a batch are in the trace of its ingestion; what is malformed begins a new one; exits lose nothing."""
    stand_in.behaviour = {"n": str(BATCHES * 10)}
    # In the background nothing would be sent for a minute.
    tracing = {"otel_exporter_otlp_endpoint": collector.url, "otel_bsp_schedule_delay": 60_000}
    assert start(command="ingest", **tracing).wait() == 0
    batches = services.ledger.batches("open")
    for batch, malformed in zip(batches[1:], MALFORMED, strict=True):
        database.batches.update_one({"_id": batch.id}, {"$set": {"traceparent": malformed}})
    assert start(command="enqueue", **tracing).wait() == 0
    worker = start(**tracing)
    until(lambda: not services.ledger.waiting_ids(), "everything is migrated")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0

    [trace_id] = [span.trace_id for span in collector.spans if span.name == "ingest posts"]
    ours = [span for span in collector.spans if span.trace_id == trace_id]
    stored = "ingest posts > store batch"
    steps = ("enqueue batch", "process batch", "process batch > write rows", "process batch > mark posts")
    assert ways(ours) == {"ingest posts": 1, stored: BATCHES} | {f"{stored} > {step}": 1 for step in steps}
    assert ways([span for span in collector.spans if span not in ours]) == dict.fromkeys(steps, len(MALFORMED))
    assert {span.status.code for span in collector.spans} == {Status.STATUS_CODE_UNSET}
    found = {span.name: (span.kind, attributes(span)) for span in ours}
    message = {"messaging.system": "rq", "messaging.message.id": batches[0].id}
    sent = message | {"messaging.operation.type": "send", "messaging.destination.name": "migration"}
    rows = {"db.system.name": "sqlite", "db.collection.name": "migrated_posts", "db.operation.batch.size": 10}
    assert found["enqueue batch"] == (Span.SPAN_KIND_PRODUCER, sent)
    assert found["process batch"][0] == Span.SPAN_KIND_CONSUMER
    assert found["process batch"][1].items() >= message.items()
    assert found["write rows"] == (Span.SPAN_KIND_CLIENT, rows)
    assert services.relational_store.sample(1)[0]["title"].encode() not in collector.raw


def test_errors_are_masked(start: Start, collector: type[Collector]) -> None:
    """The span of an ingestion that fails says why, without secrets."""
    url = f"http://user:{SECRET}@127.0.0.1:9/posts?token={SECRET}"
    settings = {"source_url": url, "source_max_attempts": 1, "otel_exporter_otlp_endpoint": collector.url}
    assert start(command="ingest", **settings).wait() != 0
    [span] = collector.spans
    assert (span.status.code, attributes(span)) == (Status.STATUS_CODE_ERROR, {"error.type": "ServiceUnavailable"})
    assert "user:***@127.0.0.1:9/posts?token=***" in span.status.message
    assert SECRET.encode() not in collector.raw


def test_collector_that_hangs(services: Services, stand_in: StandIn, start: Start) -> None:
    """Nobody takes the spans: everything is migrated, a worker ends as ever, and its log says once what is wrong."""
    stand_in.behaviour = {"n": str(BATCHES * 10)}
    services.ingest()
    services.tick()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        # Room for two spans; and an answer would be waited for until this test fails.
        small = {"otel_bsp_schedule_delay": 50, "otel_bsp_max_queue_size": 2, "otel_bsp_max_export_batch_size": 1}
        worker = start(otel_exporter_otlp_endpoint=url, otel_exporter_otlp_timeout=600, **small)
        until(lambda: not services.ledger.waiting_ids(), "everything is migrated")
        worker.wait_for("traces in trouble")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert worker.said.count("traces in trouble") == 1
    assert "Traceback" not in worker.said
    assert "leaving at once" not in worker.said
