"""openapi.json is valid, complete, and says what the app does."""

import json
import re
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from api.app import create_app
from api.errors import error_classes
from api.schemas import JobEnvelope, JobList
from shared.settings import load_settings


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(load_settings())


@pytest.fixture(scope="module")
def document(app: Flask) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(app.test_client().get("/openapi.json").data)
    return body


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): op for path, item in document["paths"].items() for method, op in item.items()}


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_route_is_documented_and_nothing_else_is(app: Flask, document: dict[str, Any]) -> None:
    routes = {
        (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(operations(document)) == routes


def test_every_reply_documents_its_request_id(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        for reply in operation["responses"].values():
            assert "X-Request-ID" in reply["headers"]


def test_process_documents_its_statuses_and_headers(document: dict[str, Any]) -> None:
    replies = operations(document)["POST", "/process"]["responses"]
    assert set(replies) == {"200", "202", "400", "409", "413", "415", "422", "500", "503", "504", "default"}
    assert {"Location", "Preference-Applied", "Retry-After"} <= set(replies["202"]["headers"])
    assert "Retry-After" in replies["503"]["headers"]
    flat = document["components"]["schemas"]["ProcessReply"]["properties"]
    assert {"front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"} <= set(flat)


def test_every_documented_code_exists_with_its_status(document: dict[str, Any]) -> None:
    classes = error_classes()
    codes: set[str] = set()
    for operation in operations(document).values():
        for status, reply in operation["responses"].items():
            media = reply.get("content", {}).get("application/problem+json")
            for part in media["schema"]["allOf"][1:] if media else []:
                for code in part["properties"]["code"]["enum"]:
                    codes.add(code)
                    assert code == "requested_range_not_satisfiable" or classes[code].status == int(status)
    parents = {parent.code for parent in classes.values() if parent.__subclasses__()}
    assert set(classes) - parents <= codes


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for pointer in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        target: Any = document
        for part in pointer.split("/"):
            target = target[part]
        assert target


def test_every_parameter_says_how_it_looks(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        for parameter in operation["parameters"]:
            assert parameter["description"], parameter
            schema = parameter["schema"]
            assert schema.keys() & {"examples", "pattern", "default"}, parameter


def test_every_example_of_a_job_is_one_by_its_own_schema(document: dict[str, Any]) -> None:
    """An example is what people copy; one that breaks the schema beside it is worse than none."""
    checked = 0
    for operation in operations(document).values():
        for reply in operation["responses"].values():
            media = reply.get("content", {}).get("application/json", {})
            if "example" in media:
                models: dict[str, type[BaseModel]] = {"JobEnvelope": JobEnvelope, "JobList": JobList}
                model = models[media["schema"]["$ref"].rpartition("/")[2]]
                assert model.model_validate(media["example"]).model_dump(mode="json") == media["example"]
                checked += 1
    assert checked >= 5
