"""Tables that a process of Dagster's makes, whose SQLAlchemy has been taught other types."""

import dagster._core.storage.sql  # noqa: F401 - what teaches it

from pipeline_poc.entities import ENTITIES
from pipeline_poc.relational_store import RelationalStore


def test_times_have_no_fractions(sql_url: str) -> None:
    """Columns are DATETIME as everywhere else: MySQL takes the server's clock for no default of one with fractions."""
    store = RelationalStore(sql_url, timeout_s=5, entities=list(ENTITIES.values()))
    sql = store.schema_sql()
    store.close()
    assert sql.count("CREATE TABLE migrated_") == len(ENTITIES)
    assert "DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP" in sql
    assert "(6)" not in sql
