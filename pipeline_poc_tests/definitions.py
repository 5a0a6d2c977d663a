"""The definitions of posts alone, as they are by default."""

from pipeline_poc.orchestration.project import definitions_of
from pipeline_poc.posts import POSTS

defs = definitions_of((POSTS,))
