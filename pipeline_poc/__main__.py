"""``python -m pipeline_poc`` is ``pipeline-poc``."""

from pipeline_poc.cli import main

main()
