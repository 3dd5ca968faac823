"""Answers of a server compared with its OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator


class Described:
    """An OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def requests(self) -> dict[str, Any]:
        """The examples of predictions that are asked for, by name."""
        content = self.document["paths"]["/predict"]["post"]["requestBody"]["content"]
        examples = content["application/json"]["examples"]
        return {name: example["value"] for name, example in examples.items()}

    def bodies(self) -> list[bytes]:
        return [json.dumps(example).encode() for example in self.requests().values()]

    def check(self, reference: str, value: Any) -> None:
        """Raise a ``ValueError`` unless a value fits a schema of the document."""
        schema = {"$ref": reference, "components": self.document["components"]}
        errors = list(Draft202012Validator(schema).iter_errors(value))
        if errors:
            raise ValueError(f"{value!r} does not fit {reference}: {errors}")

    def check_answer(self, path: str, method: str, status: int, text: str) -> None:
        """Raise a ``ValueError`` unless an answer is described."""
        responses = self.document["paths"][path][method]["responses"]
        if str(status) not in responses:
            raise ValueError(f"{method} {path} is answered with {status}: {text}")
        content = responses[str(status)].get("content", {})
        if "application/json" in content:
            self.check(content["application/json"]["schema"]["$ref"], json.loads(text))
