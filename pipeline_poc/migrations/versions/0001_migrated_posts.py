"""Create ``migrated_posts``, or complete the table that the replaced service left."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLE = "migrated_posts"


def upgrade() -> None:
    """Apply the revision."""
    # What `op` offers can't be asked where the SQL is only to be shown.
    inspector = sa.inspect(context.config.attributes["connection"])
    if not inspector.has_table(_TABLE):
        _create()
        return
    present = {column["name"] for column in inspector.get_columns(_TABLE)}
    for column in (sa.Column("contentHash", sa.CHAR(32)), sa.Column("version", sa.BigInteger)):
        if column.name not in present:
            op.add_column(_TABLE, column)
    constraints = [*inspector.get_unique_constraints(_TABLE), *filter(_is_unique, inspector.get_indexes(_TABLE))]
    if not any(constraint["column_names"] == ["externalId"] for constraint in constraints):
        op.create_index("uq_migrated_posts_externalId", _TABLE, ["externalId"], unique=True)


def _is_unique(index: sa.engine.interfaces.ReflectedIndex) -> bool:
    return bool(index["unique"])


def _create() -> None:
    big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    now = "CURRENT_TIMESTAMP"
    # Where Dagster is imported, SQLAlchemy says DATETIME(6) for a plain one, which MySQL refuses with this default.
    time = sa.DateTime().with_variant(mysql.DATETIME(), "mysql", "mariadb")
    on_update = f"{now} ON UPDATE {now}" if op.get_bind().dialect.name != "sqlite" else now
    op.create_table(
        _TABLE,
        sa.Column("id", big_key, primary_key=True, autoincrement=True),
        sa.Column("externalId", sa.Integer, nullable=False),
        sa.Column("userId", sa.Integer, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("ingestedAt", time, nullable=False),
        sa.Column("migratedAt", time, nullable=False),
        sa.Column("createdAt", time, nullable=False, server_default=sa.text(now)),
        sa.Column("updatedAt", time, nullable=False, server_default=sa.text(on_update)),
        sa.Column("contentHash", sa.CHAR(32)),
        sa.Column("version", sa.BigInteger),
        sa.UniqueConstraint("externalId", name="uq_migrated_posts_externalId"),
        mysql_charset="utf8mb4",
    )


def downgrade() -> None:
    """Take the revision back: remove what this one added to the replaced service's table."""
    op.drop_column(_TABLE, "version")
    op.drop_column(_TABLE, "contentHash")
