"""The Dagster definitions of the pipeline, of all ENTITIES."""

from dagster import Definitions, definitions

from pipeline_poc.entities import ENTITIES
from pipeline_poc.orchestration.code_server import adapt_code_server
from pipeline_poc.orchestration.project import definitions_of
from pipeline_poc.settings import load_settings


@definitions
def defs() -> Definitions:
    """Return everything that Dagster is to know; the settings are read when it asks, not when it imports this."""
    adapt_code_server()
    return definitions_of(tuple(ENTITIES[name] for name in load_settings().entities))
