"""The entities that there are; ENTITIES says which of them move. Pure.

Whoever adds one writes a model and a line of `ENTITIES`: docs/extending.md goes through it.
"""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity, Id, Record, Text


def _as_json(value: Any) -> Any:
    """Return an object as JSON text; what the raw store holds is text already."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, dict) else value


Json = Annotated[Text, BeforeValidator(_as_json)]
"""An object of the source, kept as text."""


class Comment(Record):
    """What somebody says of a post."""

    post_id: Id = Field(alias="postId", description="the id of the post in the source")
    name: Text = Field(description="the comment's headline")
    email: Text = Field(description="the author's address")
    body: Text = Field(description="the comment's text")


class User(Record):
    """Who writes posts."""

    name: Text = Field(description="the user's full name")
    username: Text = Field(description="the user's name for a login")
    email: Text = Field(description="the user's address for mail")
    address: Json = Field(description="street, city and place, as JSON")
    phone: Text = Field(description="the user's telephone number")
    website: Text = Field(description="the user's website")
    company: Json = Field(description="the user's company, as JSON")


class Todo(Record):
    """What a user has to do."""

    user_id: Id = Field(alias="userId", description="the user's id in the source")
    title: Text = Field(description="what is to be done")
    completed: bool = Field(description="whether it is done")


class Album(Record):
    """An album of photos."""

    user_id: Id = Field(alias="userId", description="the user's id in the source")
    title: Text = Field(description="the album's title")


class Photo(Record):
    """A photo of an album."""

    album_id: Id = Field(alias="albumId", description="the album's id in the source")
    title: Text = Field(description="the photo's title")
    url: Text = Field(description="where the photo is")
    thumbnail_url: Text = Field(alias="thumbnailUrl", description="where a small form of it is")


ENTITIES = {
    entity.name: entity
    for entity in (
        POSTS,
        Entity("comments", Comment),
        Entity("users", User),
        Entity("todos", Todo),
        Entity("albums", Album),
        Entity("photos", Photo),
    )
}
