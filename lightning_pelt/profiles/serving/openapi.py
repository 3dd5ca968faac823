"""What the server answers, as an OpenAPI document for ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lightning_pelt.profiles.serving.request_validation import PATH, PredictionRequest

ERRORS = {
    401: "The token is missing or wrong.",
    404: "There is no such profile.",
    413: "The body is too large.",
    422: "The request is not valid, the text is too long or has no tokens, the profile does not "
    "fit the plan of the model, or the prediction is not finite.",
    500: "The row of the profile is damaged, or an unexpected error, which is logged.",
    503: "The store cannot be read, or the server stops.",
}
REQUEST = {"text": "The film is a delight.", "profile": "ann"}
ANSWER = {"label": "positive", "probabilities": {"negative": 0.1, "positive": 0.9}}


def document(*, secured: bool) -> dict[str, Any]:
    """The document; ``secured`` with a bearer token."""
    errors = {status: text for status, text in ERRORS.items() if secured or status != 401}
    schemas = {
        "Request": PredictionRequest.model_json_schema() | {"examples": [REQUEST]},
        "Answer": {
            "title": "Answer",
            "description": "The prediction of the task, such as a label and its probability.",
            "type": "object",
            "examples": [ANSWER],
        },
        "Error": {
            "title": "Error",
            "type": "object",
            "properties": {"detail": {"type": "string"}},
            "required": ["detail"],
        },
    }
    predict = {
        "summary": "The prediction for a text with a profile.",
        "operationId": "predict",
        "requestBody": {"required": True, "content": _content("Request")},
        "responses": {"200": {"description": "The prediction.", "content": _content("Answer")}}
        | {str(s): {"description": t, "content": _content("Error")} for s, t in errors.items()},
    }
    health = {
        "summary": "Whether the model is loaded.",
        "operationId": "health",
        "security": [],
        "responses": {"200": {"description": "It is."}, "503": {"description": "Not yet."}},
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "lightning-pelt profiles",
            "description": "One model, and a profile for each of its users.",
            "version": version("lightning-pelt"),
        },
        "paths": {PATH: {"post": predict}, "/health": {"get": health}},
        "components": {"schemas": schemas},
    }
    if secured:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
