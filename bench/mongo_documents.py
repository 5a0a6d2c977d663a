"""As much of MongoDB's queries, updates and aggregations as the pipeline and its benchmarks send, on dicts in memory.

Whatever is not understood raises `NotSupportedError`, so that nothing is measured that was not done.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Document = dict[str, Any]

_MISSING: Any = object()


class NotSupportedError(Exception):
    """The stand-in does not know this part of MongoDB's language."""


def value_of(document: Mapping[str, Any], path: str) -> Any:
    """Return what is at a dotted path, or `_MISSING`."""
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value


def bracket(value: Any) -> str:
    """Return the kind of a value: those of different kinds are neither less nor greater than each other."""
    if isinstance(value, bool) or value is None or value is _MISSING:
        return type(value).__name__
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, other: bracket(value) == bracket(other) and compare(value, other)


def _equal(value: Any, other: Any) -> bool:
    if other is None:
        return value is None or value is _MISSING
    return bracket(value) == bracket(other) and bool(value == other)


_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": _equal,
    "$ne": lambda value, other: not _equal(value, other),
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
    "$in": lambda value, others: any(_equal(value, other) for other in others),
    "$nin": lambda value, others: not any(_equal(value, other) for other in others),
    "$exists": lambda value, wanted: (value is not _MISSING) == wanted,
}


def is_condition(value: Any) -> bool:
    """Return whether a value in a query holds operators, and is not to be compared as it is."""
    return isinstance(value, dict) and bool(value) and all(name.startswith("$") for name in value)


def matcher(query: Mapping[str, Any]) -> Callable[[Document], bool]:
    """Return a function that tells whether a document matches."""
    tests: list[tuple[str, Callable[[Any, Any], bool], Any]] = []
    for path, condition in query.items():
        if path.startswith("$"):
            raise NotSupportedError(path)
        for name, other in condition.items() if is_condition(condition) else [("$eq", condition)]:
            if name not in _OPERATORS:
                raise NotSupportedError(name)
            tests.append((path, _OPERATORS[name], other))

    def matches(document: Document) -> bool:
        return all(test(value_of(document, path), other) for path, test, other in tests)

    return matches


def update(document: Document, changes: Mapping[str, Any], *, is_new: bool) -> bool:
    """Change a document; returns whether that made a difference."""
    changed = False
    for name, fields in changes.items():
        if name not in _UPDATES:
            raise NotSupportedError(name)
        if name == "$setOnInsert" and not is_new:
            continue
        for path, value in fields.items():
            *parents, last = path.split(".")
            holder = document
            for parent in parents:
                holder = holder.setdefault(parent, {})
            before = holder.get(last, _MISSING)
            after = _UPDATES[name](before, value)
            if after is _MISSING:
                holder.pop(last, None)
            else:
                holder[last] = after
            changed = changed or (before is not after and before != after)
    return changed


_UPDATES: Mapping[str, Callable[[Any, Any], Any]] = {
    "$set": lambda _, value: value,
    "$setOnInsert": lambda _, value: value,
    "$unset": lambda *_: _MISSING,
    "$inc": lambda before, value: value if before is _MISSING else before + value,
    "$min": lambda before, value: value if before is _MISSING else min(before, value),
    "$max": lambda before, value: value if before is _MISSING else max(before, value),
}


def project(document: Document, fields: Mapping[str, Any]) -> Document:
    """Return the wanted fields of a document; nested ones are not supported."""
    if any(fields.get(name) for name in fields if name != "_id"):
        names = [name for name in fields if fields[name]]
        if fields.get("_id", True) and "_id" not in names:
            names.append("_id")
        return {name: document[name] for name in names if name in document}
    return {name: value for name, value in document.items() if fields.get(name, True)} if fields else document


def ordered(documents: Iterable[Document], sort: Mapping[str, int]) -> list[Document]:
    """Sort documents; missing values come first."""
    found = list(documents)
    for path, direction in reversed(list(sort.items())):

        def key(document: Document, path: str = path) -> tuple[bool, Any]:
            value = value_of(document, path)
            return (False, 0) if value is None or value is _MISSING else (True, value)

        found.sort(key=key, reverse=direction < 0)
    return found


def aggregate(documents: Iterable[Document], stages: Iterable[Mapping[str, Any]]) -> Iterable[Document]:
    """Run the stages of a pipeline."""
    for stage in stages:
        ((name, how),) = stage.items()
        if name == "$match":
            documents = filter(matcher(how), documents)
        elif name == "$group":
            documents = _group(documents, how)
        elif name == "$sort":
            documents = ordered(documents, how)
        elif name == "$limit":
            documents = list(documents)[:how]
        else:
            raise NotSupportedError(name)
    return documents


def _group(documents: Iterable[Document], how: Mapping[str, Any]) -> Iterator[Document]:
    accumulators = [(name, *next(iter(rule.items()))) for name, rule in how.items() if name != "_id"]
    groups: dict[str, Document] = {}
    for document in documents:
        key = _evaluate(document, how["_id"])
        group = groups.setdefault(repr(key), {"_id": key})
        for name, rule, expression in accumulators:
            if rule not in _ACCUMULATORS:
                raise NotSupportedError(rule)
            value = _evaluate(document, expression)
            group[name] = value if name not in group else _ACCUMULATORS[rule](group[name], value)
    yield from groups.values()


_ACCUMULATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "$sum": operator.add,
    "$min": min,
    "$max": max,
    "$first": lambda first, _: first,
}


def _evaluate(document: Document, expression: Any) -> Any:
    if isinstance(expression, str) and expression.startswith("$"):
        value = value_of(document, expression[1:])
        return None if value is _MISSING else value
    if not isinstance(expression, dict):
        return expression
    if is_condition(expression):
        ((name, operands),) = expression.items()
        if name != "$ifNull":
            raise NotSupportedError(name)
        return next((value for part in operands if (value := _evaluate(document, part)) is not None), None)
    return {name: _evaluate(document, part) for name, part in expression.items()}
