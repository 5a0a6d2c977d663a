-- A database of its own for Dagster, beside that of the pipeline: both keep an `alembic_version`.
CREATE DATABASE dagster CHARACTER SET utf8mb4;
GRANT ALL ON dagster.* TO pipeline;
