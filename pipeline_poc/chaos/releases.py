"""The release that comes after this one, made up: the same code with one more step in its relational schema."""

import shutil
from pathlib import Path

from pipeline_poc.relational_store import SCHEMA_VERSION

_REVISION = '''"""A step of the next release which this one can do without."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{new}", "{old}", None, None


def upgrade() -> None:
    op.add_column("migrated_posts", sa.Column("drill", sa.Integer, nullable=True))
'''


def next_release(project: Path, folder: Path) -> Path:
    """Write it into a folder that can stand on PYTHONPATH; returns that.

    Args:
        project: Folder of this release's package.
        folder: Does not exist yet.
    """
    package = folder / "pipeline_poc"
    shutil.copytree(project / "pipeline_poc", package, ignore=shutil.ignore_patterns("__pycache__"))
    number = SCHEMA_VERSION[:4]
    new = f"{int(number) + 1:04d}_from_{number}"
    revision = _REVISION.format(new=new, old=SCHEMA_VERSION)
    (package / "migrations" / "versions" / f"{new}.py").write_text(revision, encoding="utf-8")
    module = package / "relational_store.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(
        text.replace(f'SCHEMA_VERSION = "{SCHEMA_VERSION}"', f'SCHEMA_VERSION = "{new}"'), encoding="utf-8"
    )
    return folder
