"""openapi.json is valid, complete, and says what the app does."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.app import create_app
from api.error_reference import WHEN
from api.errors import error_classes
from api.examples import REQUESTS
from api.openapi import build_openapi
from api.report_schemas import ErrorRecord, Opinion, Preflight, PrintReport
from api.schemas import ProcessRequest
from shared.jobs import Job
from shared.options import PrintOptions
from shared.settings import Settings, load_settings
from shared.storage import output_name
from shared.store import Store
from tests.conftest import PlayedWorker, succeed
from worker.cells import print_report, print_spec
from worker.images.opinion import own_alpha_opinion, second_opinion
from worker.images.preflight import preflight
from worker.images.printing import render_print

README = Path(__file__).parents[2] / "README.md"


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


def deliver_with_file(settings: Settings, store: Store, job: Job) -> None:
    settings.outputs_dir.mkdir(parents=True, exist_ok=True)
    (settings.outputs_dir / output_name(job.id, job.job_id, "front", "rmbg")).write_bytes(b"0123456789")
    succeed(store, job)


#: Of the server and the medium, or said once for all replies in the document's text.
_GENERAL = {"Content-Type", "Content-Length", "Date", "Server", "Connection", "Transfer-Encoding"} | {
    "X-Content-Type-Options", "Referrer-Policy", "Content-Security-Policy",
}  # fmt: skip


def test_every_header_that_is_sent_is_documented(
    settings: Settings, played_worker: PlayedWorker, document: dict[str, Any]
) -> None:
    played_worker.outcome = partial(deliver_with_file, settings)
    client = create_app(settings.model_copy(update={"rate_limit": "1000/minute"})).test_client()
    body = {"id": 1, "output": {"front": "https://example.com/front.png"}, "options": {"models": ["rmbg"]}}
    named = {"Idempotency-Key": "k"}
    made = client.post("/process", json=body, headers=named)
    job, file = (made.json or {})["job_id"], (made.json or {})["front_rmbg"].removeprefix("http://service.test")
    sent = {
        ("POST", "/process"): [
            made,
            client.post("/process", json=body, headers=named),
            client.post("/process", json=body, headers={"Prefer": "wait=0, respond-async"}),
            client.post("/process", data="x"),
        ],
        ("GET", "/jobs"): [client.get("/jobs"), client.get("/jobs?x=1")],
        ("GET", "/jobs/{job_id}"): [client.get(f"/jobs/{job}"), client.get("/jobs/none")],
        ("GET", "/jobs/{job_id}/events"): [client.get(f"/jobs/{job}/events", buffered=True)],
        ("POST", "/jobs/{job_id}/cancel"): [client.post(f"/jobs/{job}/cancel")],
        ("POST", "/jobs/{job_id}/retry"): [client.post(f"/jobs/{job}/retry")],
        ("GET", "/health"): [client.get("/health")],
        ("GET", "/live"): [client.get("/live")],
        ("GET", "/ready"): [client.get("/ready")],
        ("GET", "/metrics"): [client.get("/metrics")],
        ("GET", "/openapi.json"): [client.get("/openapi.json")],
    }
    files = {"/outputs/{name}": file, "/docs": "/docs", "/": "/", "/static/{name}": "/static/app.js"}
    for name, path in files.items():
        ways: list[dict[str, str]] = [{}, {"Range": "bytes=0-3"}, {"Range": "bytes=999999-"}]
        sent["GET", name] = [client.get(path, headers=way, buffered=True) for way in ways]
    is_same = {"If-None-Match": sent["GET", "/outputs/{name}"][0].headers["ETag"]}
    sent["GET", "/outputs/{name}"].append(client.get(file, headers=is_same, buffered=True))
    sent["DELETE", "/jobs/{job_id}"] = [client.delete(f"/jobs/{job}")]
    known = operations(document)
    assert sent.keys() == known.keys()
    for route, replies in sent.items():
        for reply in replies:
            documented = known[route]["responses"][str(reply.status_code)]["headers"]
            assert set(reply.headers.keys()) - _GENERAL <= set(documented), (route, reply.status_code)


def test_process_documents_its_statuses_and_headers(document: dict[str, Any]) -> None:
    replies = operations(document)["POST", "/process"]["responses"]
    assert set(replies) == {"200", "202", "400", "401", "409", "413", "415", "422", "429", "500", "502", "503", "504"}
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


# --- every word of it -------------------------------------------------------------------------------------------------


def described(schema: Any, path: str) -> Iterator[str]:
    """Paths of properties without a description, anywhere inside a schema."""
    if isinstance(schema, dict):
        for name, item in schema.get("properties", {}).items():
            # Of an allOf that only narrows a field the description is where the field is.
            if isinstance(item, dict) and "description" not in item and set(item) != {"enum"}:
                yield f"{path}.{name}"
        for name, item in schema.items():
            if name not in ("example", "examples", "enum"):
                yield from described(item, f"{path}.{name}")
    elif isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from described(item, f"{path}[{number}]")


def test_every_field_parameter_and_header_is_described(document: dict[str, Any]) -> None:
    assert list(described(document["components"]["schemas"], "")) == []
    assert all(schema.get("description") for schema in document["components"]["schemas"].values())
    for operation in operations(document).values():
        assert list(described(operation, operation["operationId"])) == []
        assert operation["summary"]
        for parameter in operation["parameters"]:
            assert parameter["description"]
            assert parameter["schema"].keys() & {"examples", "default"}, parameter["name"]
    for header in document["components"]["headers"].values():
        assert header["description"]
        assert "example" in header


def test_every_error_code_is_explained_as_in_the_readme(document: dict[str, Any]) -> None:
    table = dict(re.findall(r"^\| `([a-z_]+)` \| \d+ \| (.*) \| (?:yes|no) \|$", README.read_text(), re.MULTILINE))
    assert table == WHEN
    assert {error["code"]: error["when"] for error in document["x-error-codes"]} == WHEN
    for operation in operations(document).values():
        for status, reply in operation["responses"].items():
            problem = reply.get("content", {}).get("application/problem+json")
            codes = problem["schema"]["allOf"][1]["properties"]["code"]["enum"] if problem else []
            assert set(codes) == set(problem["examples"] if problem else [])
            for code in codes:
                value = problem["examples"][code]["value"]
                assert (value["code"], value["status"], value["type"]) == (code, int(status), f"/docs#{code}")
                assert f"`{code}`" in reply["description"]


def examples(document: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(where, schema, example) of every example of a body."""
    for operation in operations(document).values():
        bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
        for status, body in bodies.items():
            for kind, media in body.get("content", {}).items():
                if kind == "text/event-stream":
                    continue  # its schema is of the data of one event, its example a whole stream
                values = [example["value"] for example in media.get("examples", {}).values()]
                for value in values + ([media["example"]] if "example" in media else []):
                    yield f"{operation['operationId']} {status}", media["schema"], value


def test_every_example_keeps_to_its_schema(document: dict[str, Any]) -> None:
    found = 0
    for where, schema, value in examples(document):
        whole = {**schema, "components": document["components"]}
        errors = [error.message for error in OAS31Validator(whole).iter_errors(value)]
        assert errors == [], where
        found += 1
    assert found > 20


def test_the_example_requests_are_requests() -> None:
    for _, body in REQUESTS.values():
        assert ProcessRequest.model_validate(body).id == body["id"]


@pytest.mark.parametrize("has_keys", [True, False])
def test_the_document_says_which_routes_ask_for_a_key(has_keys: bool) -> None:
    made = build_openapi(("rmbg",), has_keys=has_keys)
    document = json.loads(made.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True))
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    needs = {path for (_, path), operation in operations(document).items() if {"bearer": []} in operation["security"]}
    jobs = {path for _, path in operations(document) if path.startswith("/jobs")}
    assert needs == {"/process", "/metrics", "/health", *jobs}
    for (_, path), operation in operations(document).items():
        is_protected = path in needs - {"/health"}
        assert ("401" in operation["responses"]) is ("429" in operation["responses"]) is is_protected
        assert ({} in operation["security"]) is (path in needs and (not has_keys or path == "/health"))
        for reply in operation["responses"].values():
            assert {"RateLimit", "RateLimit-Policy"} <= set(reply["headers"])


def test_the_reports_of_the_worker_have_the_documented_shape() -> None:
    art = np.zeros((300, 200, 4), np.uint8)
    art[60:240, 40:160] = (200, 30, 40, 255)
    blank = np.zeros((300, 200, 4), np.uint8)
    for cutout in (art, blank):
        checks = preflight(cutout, dpi=None, source_alpha=False)
        Preflight.model_validate(checks)
        masks = {"rmbg": cutout[..., 3], "birefnet": np.roll(cutout[..., 3], 30)}
        Opinion.model_validate(second_opinion(masks, {"rmbg": checks}))
        Opinion.model_validate(own_alpha_opinion(masks))
        spec = print_spec(PrintOptions(canvas="600x800", dpi=100))
        PrintReport.model_validate(print_report(render_print(cutout, spec)))
    ErrorRecord.model_validate(error_classes()["internal_error"]("x").to_record())
