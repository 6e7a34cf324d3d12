"""The JSON schema of study files, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, create_model

from sparsemtl.registry.checking import STRICT, checkable
from sparsemtl.runs.schema import Keys, json_schema
from sparsemtl.study.grid import KEYS
from sparsemtl.study.search_options import SEARCH_KEYS

_RUN = "https://sparsemtl/run.json"
"""Identifier of the schema of runs inside that of studies: references in it start at its own root."""


def study_json_schema() -> dict[str, Any]:
    """Return the JSON schema of study files."""
    run = json_schema()
    del run["$schema"]
    schema = _schema(KEYS)
    values = schema["properties"]
    values["base"]["anyOf"] = [{"type": "string"}, {"$ref": _RUN}]
    search = _schema(SEARCH_KEYS)
    search["properties"]["keys"]["additionalProperties"] = _SPACE
    values["search"]["anyOf"] = [search, {"type": "null"}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "StudyConfig",
        "$defs": {"run": {"$id": _RUN, **run}},
    }


_SPACE: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "minItems": 1},
        {
            "type": "object",
            "properties": {
                "low": {"type": "number"},
                "high": {"type": "number"},
                "log": {"type": "boolean"},
                "step": {"type": "number", "exclusiveMinimum": 0},
            },
            "required": ["low", "high"],
            "additionalProperties": False,
        },
    ]
}
"""Schema of the values of a searched key."""


def _schema(keys: Keys) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: (checkable(key.hint), Field(key.default, description=key.meaning or None)) for name, key in keys.items()
    }
    model: type[BaseModel] = create_model("Study", __config__=STRICT, **fields)
    return model.model_json_schema()
