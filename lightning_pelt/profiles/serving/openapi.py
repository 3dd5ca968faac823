"""What the server answers, as an OpenAPI document for ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning_pelt.profiles.serving.request_validation import (
    PATH,
    PredictionRequest,
    TextsRequest,
)
from lightning_pelt.profiles.serving.routes import HEALTH, METRICS, PROFILES, READY

DESCRIPTION = """\
One model, and a profile for each of its users.

A request has one text, or several texts of one profile; the answer has their predictions in the
same order. If one of several texts cannot be predicted, the answer is the error of the first such
text. Errors are `{"detail": ...}`.
"""
TEXTS = ["The film is a delight.", "It is too long."]
ONE_TEXT = {"text": TEXTS[0], "profile": "ann"}
SEVERAL_TEXTS = {"texts": TEXTS, "profile": "ann"}
PREDICTIONS = [
    {"label": "good", "probabilities": {"bad": 0.1, "good": 0.9}},
    {"label": "bad", "probabilities": {"bad": 0.8, "good": 0.2}},
]
REQUESTS = {"One text": ONE_TEXT, "Several texts": SEVERAL_TEXTS}
ANSWERS = {"One text": PREDICTIONS[0], "Several texts": {"predictions": PREDICTIONS}}
NOT_FOUND = "There is no such profile."
UNAUTHORIZED = {401: "The token is missing or wrong."}
PREDICT_ERRORS = {
    404: NOT_FOUND,
    413: "The request has too many bytes, texts or tokens.",
    422: "The request is not valid, a text is too long or has no tokens, the profile does not fit "
    "the plan of the model, or a prediction is not finite.",
    500: "The row of the profile is damaged, or an unexpected error, which is logged.",
    503: "The store cannot be read, or the server stops.",
    504: "The request has waited in the queue for too long.",
}
DELETE_ERRORS = {
    202: "It is deleted, and a worker that is busy overwrites its memory later.",
    403: "The server deletes no profiles, or may only read the store.",
    404: NOT_FOUND,
    503: "The store cannot be written.",
}


def document(*, secured: bool) -> dict[str, Any]:
    """The document; ``secured`` with a bearer token."""
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "lightning-pelt profiles",
            "description": DESCRIPTION,
            "version": version("lightning-pelt"),
        },
        "paths": {
            PATH: {"post": _predict(secured)},
            PROFILES + "{id}": {"delete": _delete(secured)},
            HEALTH: {"get": _health()},
            READY: {"get": _ready()},
            METRICS: {"get": _metrics(secured)},
        },
        "components": {"schemas": _schemas()},
    }
    if secured:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _predict(secured: bool) -> dict[str, Any]:
    return {
        "summary": "Predictions for one text or several with a profile.",
        "operationId": "predict",
        "requestBody": {"required": True, "content": _json("Request", REQUESTS)},
        "responses": {
            "200": {"description": "The predictions.", "content": _json("Answer", ANSWERS)},
            **_errors(PREDICT_ERRORS, secured),
        },
    }


def _delete(secured: bool) -> dict[str, Any]:
    id = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The id of the profile. Slashes may be sent as they are.",
        "schema": {"type": "string", "minLength": 1},
        "example": "ann",
    }
    return {
        "summary": "Delete a profile and all its versions.",
        "operationId": "delete",
        "parameters": [id],
        "responses": {
            "204": {"description": "The store and all workers have nothing of it."},
            **_errors(DELETE_ERRORS, secured),
        },
    }


def _health() -> dict[str, Any]:
    return {
        "summary": "Whether the server is alive.",
        "operationId": "health",
        "security": [],
        "responses": {
            "200": {"description": "It is.", "content": _text("ok")},
            "503": {"description": "The model is not loaded.", "content": _text("not ready")},
        },
    }


def _ready() -> dict[str, Any]:
    ready = {"Ready": {"status": "ready"}}
    return {
        "summary": "Whether all workers have loaded the model and the store can be read.",
        "operationId": "ready",
        "security": [],
        "responses": {
            "200": {"description": "It can answer requests.", "content": _json("Ready", ready)},
            "503": {"description": "It cannot.", "content": _json("Error")},
        },
    }


def _metrics(secured: bool) -> dict[str, Any]:
    example = "lightning_pelt_cached_profiles 12.0\n"
    return {
        "summary": "Figures in the text format of Prometheus.",
        "operationId": "metrics",
        "responses": {
            "200": {"description": "The figures.", "content": _text(example)},
            **_errors({}, secured),
        },
    }


def _errors(errors: Mapping[int, str], secured: bool) -> dict[str, Any]:
    every = {**(UNAUTHORIZED if secured else {}), **errors}
    return {str(s): {"description": t, "content": _json("Error")} for s, t in every.items()}


def _schemas() -> dict[str, Any]:
    prediction = "The prediction of the task, such as a label with probabilities, or a value."
    return {
        "Request": {
            "title": "Request",
            "anyOf": [_reference("OneText"), _reference("SeveralTexts")],
        },
        "OneText": _model("OneText", PredictionRequest.model_json_schema(), ONE_TEXT),
        "SeveralTexts": _model("SeveralTexts", TextsRequest.model_json_schema(), SEVERAL_TEXTS),
        "Answer": {
            "title": "Answer",
            "anyOf": [_reference("Predictions"), _reference("Prediction")],
        },
        "Prediction": _object("Prediction", prediction, PREDICTIONS[0]),
        "Predictions": _object(
            "Predictions",
            "The predictions in the order of the texts.",
            {"predictions": PREDICTIONS},
            predictions={"type": "array", "items": _reference("Prediction"), "minItems": 1},
        ),
        "Ready": _object("Ready", "", {"status": "ready"}, status={"const": "ready"}),
        "Error": _object(
            "Error",
            "The value, what was expected, and the remedy.",
            {"detail": "there is no profile 'ann'"},
            detail={"type": "string"},
        ),
    }


def _model(name: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """The schema of a model without its docstring, which is for Python."""
    fields = {key: value for key, value in schema.items() if key != "description"}
    return {**fields, "title": name, "examples": [example]}


def _object(name: str, description: str, example: Any, **properties: Any) -> dict[str, Any]:
    required = {"properties": properties, "required": [*properties]} if properties else {}
    shown = {"description": description} if description else {}
    return {"title": name, "type": "object", **shown, **required, "examples": [example]}


def _json(name: str, examples: Mapping[str, Any] | None = None) -> dict[str, Any]:
    shown = {key: {"value": value} for key, value in (examples or {}).items()}
    named = {"examples": shown} if shown else {}
    return {"application/json": {"schema": _reference(name), **named}}


def _text(example: str) -> dict[str, Any]:
    return {"text/plain": {"schema": {"type": "string"}, "example": example}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
