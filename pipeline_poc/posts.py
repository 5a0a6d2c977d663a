"""The post: the record with which everything began. Pure."""

from pydantic import Field

from pipeline_poc.records import Entity, Id, Record, Text


class Post(Record):
    """A post as the source serves it."""

    user_id: Id = Field(alias="userId", description="the author's id in the source")
    title: Text = Field(description="the post's title")
    body: Text = Field(description="the post's text")


POSTS = Entity("posts", Post)
