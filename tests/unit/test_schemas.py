"""The checks of outside input that need no pixels, and the Prefer header."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.prefer import Preferences, parse_prefer
from api.schemas import ProcessRequest, select_models, to_invalid_request
from shared.errors import InvalidRequest

URL = "https://example.com/front.png"


def read(body: Any) -> ProcessRequest:
    try:
        return ProcessRequest.model_validate_json(json.dumps(body))
    except ValidationError as exc:
        raise to_invalid_request(exc) from exc


def asked(**changes: Any) -> dict[str, Any]:
    return {"id": 123, "output": {"front": URL}, **changes}


@pytest.mark.parametrize("value", [0, 123, -7, 2**53, "a", "A_b-9", "1" * 64, "007"])
def test_an_id_is_an_integer_or_a_short_plain_string_and_keeps_its_type(value: int | str) -> None:
    found = read(asked(id=value)).id
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [True, False, None, 1.0, 1.5, "", "1" * 65, "a b", "../x", "é", 2**53 + 1, [], {}])
def test_any_other_id_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^id: must be an integer .* or a string"):
        read(asked(id=value))


@pytest.mark.parametrize(
    "value",
    [URL, "http://10.0.0.5:8080/a.png?x=1#y", "HTTPS://EXAMPLE.COM/", "http://[::1]/x", "data:,x",
     "data:image/png;base64,AAAA", "DATA:image/svg+xml;charset=utf-8;base64,AAAA"],
)  # fmt: skip
def test_a_source_is_an_http_url_or_a_data_uri(value: str) -> None:
    assert read(asked(output={"back": value})).output.back == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("ftp://example.com/x", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("//example.com/x", "must begin with"),
        ("front.png", "must begin with"),
        ("http://", "must name a host"),
        ("http:///x", "must name a host"),
        ("http://user@example.com/x", "user name or password"),
        ("http://user:secret@example.com/x", "user name or password"),
        ("http://example.com:99999/x", "not a URL"),
        ("http://example.com:0/x", "must name a host"),
        ("http://[::1/x", "not a URL"),
        ("http://example.com/a b", "spaces"),
        ("http://example.com\\@evil.com/", "backslashes"),
        ("http://example.com/\r\nX: y", "control characters"),
        ("http://example.com/" + "a" * 9000, "limit is 8192"),
        ("data:image/png", "not a data: URI"),
        ("data:image/png;base64;x,AAAA", "not a data: URI"),
        ("", "must be an http"),
        (5, "must be an http"),
    ],
)
def test_any_other_source_is_refused_with_its_reason(value: object, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^output\.front: .*{reason}"):
        read(asked(output={"front": value}))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"output": {"front": URL}}, "id: is required"),
        ({"id": 1}, "output: is required"),
        ({"id": 1, "output": {}}, "output: give front, back or both"),
        ({"id": 1, "output": {"front": None, "back": None}}, "output: give front, back or both"),
        ({"id": 1, "output": URL}, "output: must be an object"),
        ([], "body: must be an object"),
        (asked(size=3), "size: unknown field"),
        ({"id": 1, "output": {"front": URL, "left": URL}}, "output.left: unknown field"),
        (asked(options={"model": ["rmbg"]}), "options.model: unknown field"),
        (asked(options={"models": "rmbg"}), "options.models: .*valid array"),
        (asked(options={"models": [5]}), "options.models.0: .*valid string"),
        (asked(options={"models": []}), "options.models: .*at least 1 item"),
        (asked(options=None), "options: must be an object"),
    ],
)
def test_a_mistake_is_told_with_the_name_of_its_field(body: object, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{sentence}"):
        read(body)


def test_many_or_long_mistakes_make_no_long_answer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(asked(**{"x" * 5000 + str(number): 1 for number in range(500)}))
    assert len(caught.value.message) < 1000
    assert "and 495 more" in caught.value.message


def test_one_side_may_be_left_out_or_null() -> None:
    assert read(asked(output={"back": URL})).output.front is None
    assert read(asked(output={"front": None, "back": URL})).output.front is None


def test_models_are_chosen_from_those_the_service_runs_and_kept_in_its_order() -> None:
    available = ("rmbg", "birefnet")
    assert select_models(read(asked()).options, available) == available
    assert select_models(read(asked(options={"models": ["birefnet", "rmbg"]})).options, available) == available
    assert select_models(read(asked(options={"models": ["birefnet"]})).options, available) == ("birefnet",)
    for models, sentence in (
        (["u2net"], "'u2net' is not one of rmbg, birefnet"),
        (["rmbg", "rmbg"], "each model once"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            select_models(read(asked(options={"models": models})).options, available)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"edge": "raw"}, "output.options.edge|options.edge: unknown field"),
        ({"edges": "soft"}, "options.edges"),
        ({"background": "red"}, "options.background"),
        ({"print": {"canvas": "4500"}}, "options.print.canvas: must be WIDTHxHEIGHT"),
        ({"print": {"canvas": "99999x1"}}, "options.print.canvas: must be at most"),
        ({"print": {"dpi": 10}}, "options.print.dpi"),
        ({"print": {"scale": 1.5}}, 'options.print.scale: must be "fit", "none" or a number of 0.01 to 1'),
        ({"print": {"scale": True}}, "options.print.scale: must be"),
        ({"print": {"margin_px": 200, "canvas": "400x400"}}, "options.print: margin_px 200 leaves nothing"),
        ({"print": {"halftone_lpi": 90, "dpi": 200, "alpha": "halftone"}}, "options.print: halftone_lpi 90"),
        ({"print": True}, "options.print"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        read(asked(options=options))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], Preferences()),
        (["respond-async"], Preferences(True)),
        (["Respond-Async"], Preferences(True)),
        (["wait=10"], Preferences(False, 10)),
        (['wait = "10"'], Preferences(False, 10)),
        (["respond-async, wait=10"], Preferences(True, 10)),
        (["wait=10", "respond-async"], Preferences(True, 10)),
        (["wait=5, wait=10"], Preferences(False, 5)),
        (['foo; bar="a, wait=3; b", wait=7;x=1'], Preferences(False, 7)),
        (["wait=-1"], Preferences()),
        (["wait=soon"], Preferences()),
        (["wait"], Preferences()),
        (["wait=99999999999999999999"], Preferences()),
        (["respond-async=yes"], Preferences()),
        (["((( , wait=4"], Preferences(False, 4)),
        (['"unclosed, wait=4'], Preferences(False, 4)),
        (["", " , ,", "handling=lenient"], Preferences()),
        (['return=minimal; foo="some parameter", respond-async'], Preferences(True)),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(headers: list[str], expected: Preferences) -> None:
    assert parse_prefer(headers) == expected


def test_a_hostile_prefer_header_is_read_in_no_time() -> None:
    for text in ("a;" * 30_000, '"' * 50_000, "a=" * 30_000, "wait;;;;" * 8_000 + "\\", "(" * 60_000):
        parse_prefer([text])
