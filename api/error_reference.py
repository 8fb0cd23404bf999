"""When each error code comes, in words: for /docs and openapi.json. A test holds the README's table against it."""

#: code -> when a client meets it; `words` in backticks are settings, routes and fields.
WHEN: dict[str, str] = {
    "invalid_json": "the body is not JSON",
    "unauthorized": "the API has keys, and the request has none or one that is not known",
    "output_url_invalid": "output URLs are signed here, and this one is not, or not by us",
    "not_found": "there is no such route",
    "job_not_found": "no such job, or its record has expired",
    "output_not_found": "no such output",
    "output_expired": "the output was there and has been removed",
    "output_url_expired": "the signed URL has had its time; `GET /jobs/{job_id}` gives a fresh one",
    "method_not_allowed": "the route does not know this method",
    "request_too_large": "the body is larger than `UPLOAD_LIMIT_MB`",
    "unsupported_media_type": "neither JSON nor multipart",
    "invalid_request": "a field is missing, unknown or wrong; `detail` names it",
    "source_unreachable": "the URL cannot be fetched",
    "source_timeout": "the download took too long",
    "source_too_large": "too many bytes (`SOURCE_LIMIT_MB`) or pixels (`PIXEL_LIMIT_MP`)",
    "source_not_an_image": "not a picture in a known format, or damaged",
    "source_address_forbidden": "the address is private and not in `ALLOW_PRIVATE_SOURCES`, or not http(s)",
    "rate_limited": "more requests than `RATE_LIMIT` allows; `Retry-After` says when to come again",
    "inference_failed": "the network gave no usable answer",
    "out_of_device_memory": "the device has no room",
    "output_not_written": "the volume does not take the file (disk full, ...)",
    "internal_error": "our fault; the log has it under the request's id",
    "models_not_ready": "`/ready`: no worker has all models ready",
    "redis_unavailable": "Redis does not answer",
}
