"""The relational schema's history: Alembic revisions, run from code."""

from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine


def config() -> Config:
    """Return the Alembic configuration of these revisions."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    return made


def upgrade(engine: Engine) -> None:
    """Bring a database to the newest revision; idempotent, but for one process at a time."""
    made = config()
    with engine.begin() as connection:
        made.attributes["connection"] = connection
        command.upgrade(made, "head")


def upgrade_sql(engine: Engine) -> str:
    """Return what `upgrade` would execute; it looks at the database, and changes nothing."""
    text = StringIO()
    made = config()
    made.output_buffer = text
    with engine.connect() as connection:
        made.attributes["connection"] = connection
        found = MigrationContext.configure(connection).get_current_revision()
        command.upgrade(made, f"{found}:head" if found else "head", sql=True)
    return text.getvalue()
