"""The JSON Schema of a policy file: for editors, and for messages that say what is allowed."""

from __future__ import annotations

from typing import Any

from relay.policy.schema import PolicySet

Node = dict[str, Any]
"""A JSON Schema, or a part of one."""


def json_schema() -> Node:
    """The schema of one policy file.

    Draft 7 without references, which is what TOML language servers read most reliably: each key's own description
    stands beside its type instead of being shadowed by a `$ref`.
    """
    raw = PolicySet.model_json_schema()
    definitions = raw.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_resolve(raw, definitions)}


def _resolve(node: Any, definitions: Node) -> Any:
    """Put definitions in the place of references, and leave out null, which TOML does not have."""
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    own = dict(node)
    if "$ref" in own:
        own = {**definitions[own.pop("$ref").removeprefix("#/$defs/")], **own}
    if {"type": "null"} in own.get("anyOf", ()):
        (only,) = (choice for choice in own.pop("anyOf") if choice != {"type": "null"})
        return _resolve({**only, **own}, definitions)
    if own.get("default", ...) in (None, {}) or "properties" in own:
        own.pop("default", None)  # says nothing, or the parts have their own
    if "patternProperties" in own:
        own["additionalProperties"] = False
    return {key: _resolve(value, definitions) for key, value in own.items()}


def node_at(schema: Node, path: tuple[str | int, ...]) -> Node | None:
    """The part of a schema that describes one key.

    Args:
        schema: from `json_schema`.
        path: keys and array positions from the top.

    Returns:
        None if the schema has no such key. If what lies around the key is marked `writeOnly`, so is the key.
    """
    node = schema
    for step in path:
        inner = _step(node, step)
        if inner is None:
            return None
        node = {**inner, "writeOnly": True} if node.get("writeOnly") else inner
    return node


def keys_of(node: Node) -> list[str]:
    """The keys that a table described by this part may have; none if the operator chooses them."""
    return [key for choice in node.get("oneOf", (node,)) for key in choice.get("properties", ())]


def _step(node: Node, step: str | int) -> Node | None:
    for choice in node.get("oneOf", (node,)):
        if isinstance(step, int):
            if "items" in choice:
                return dict(choice["items"])
        elif step in choice.get("properties", ()):
            return dict(choice["properties"][step])
        elif "patternProperties" in choice:
            return dict(*choice["patternProperties"].values())
    return None
