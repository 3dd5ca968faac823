"""The document that describes the server: its examples are what the server takes and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from openapi_spec_validator import validate
from profiles.serving.described import Described

from lightning_pelt.profiles.serving.openapi import document
from lightning_pelt.profiles.serving.request_validation import Limits, RequestValidation


@pytest.fixture(params=[True, False], ids=["secured", "open"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return document(secured=request.param)


def test_the_document_is_valid_and_complete(found: dict[str, Any]) -> None:
    validate(found)
    secured = "security" in found
    responses = {
        (path, method): set(what["responses"])
        for path, methods in found["paths"].items()
        for method, what in methods.items()
    }
    assert responses["/predict", "post"] >= {"200", "404", "413", "422", "500", "503", "504"}
    assert responses["/profiles/{id}", "delete"] >= {"202", "204", "403", "404", "503"}
    for path in ("/predict", "/profiles/{id}", "/metrics"):
        (method,) = found["paths"][path]
        assert ("401" in responses[path, method]) == secured
    for path in ("/health", "/ready"):
        assert found["paths"][path]["get"]["security"] == []
    assert found["info"]["title"] and found["info"]["version"] and found["info"]["description"]
    schemas = found["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in references(found)} == set(schemas)
    assert {name: schema["title"] for name, schema in schemas.items()} == {n: n for n in schemas}


def test_all_examples_fit_their_schemas(found: dict[str, Any]) -> None:
    described, shown = Described(found), 0
    for name, schema in found["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            described.check(f"#/components/schemas/{name}", example)
            shown += 1
    for content in contents(found):
        for example in content.get("examples", {}).values():
            described.check(content["schema"]["$ref"], example["value"])
            shown += 1
    assert shown > 10


def test_the_examples_of_requests_are_accepted(found: dict[str, Any]) -> None:
    checked = RequestValidation(None, limits=Limits())  # type: ignore[arg-type]
    described = Described(found)
    assert set(described.requests()) == {"One text", "Several texts"}
    for body in described.bodies():
        assert checked.refusal(body) is None


@pytest.mark.parametrize(
    "body", [{}, {"text": "a"}, {"text": "", "profile": "b"}, {"texts": [], "profile": "b"}, [1]]
)
def test_invalid_requests_do_not_fit_the_schema(found: dict[str, Any], body: Any) -> None:
    with pytest.raises(ValueError):
        Described(found).check("#/components/schemas/Request", body)


def contents(found: Any) -> Iterator[dict[str, Any]]:
    """Everything that describes a body of JSON."""
    if isinstance(found, dict):
        if isinstance(found.get("application/json"), dict):
            yield found["application/json"]
        for value in found.values():
            yield from contents(value)


def references(found: Any) -> list[str]:
    if isinstance(found, list):
        return [name for each in found for name in references(each)]
    if not isinstance(found, dict):
        return []
    return [
        name
        for key, value in found.items()
        for name in ([value] if key == "$ref" else references(value))
    ]
