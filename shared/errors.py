"""Every error the service can name, in one tree.

    AppError(code, message, retryable)
      InvalidInput                  422  the request or a picture is wrong; sending it again will not help
        InvalidRequest                   invalid_request
        InvalidJson                 400  invalid_json
        UnsupportedMediaType        415  unsupported_media_type
        RequestTooLarge             413  request_too_large
        SourceError                      a side's picture could not be used
          SourceUnreachable              source_unreachable
          SourceTimeout                  source_timeout
          SourceTooLarge                 source_too_large
          SourceNotAnImage               source_not_an_image
          SourceAddressForbidden         source_address_forbidden
      NotFound                      404
        JobNotFound                      job_not_found
        OutputNotFound                   output_not_found
        OutputExpired               410  output_expired
      Unavailable                   503  try again later
        StoreUnavailable                 redis_unavailable
        ModelsNotReady                   models_not_ready
      ProcessingFailed              500  the job was fine, we were not
        InferenceFailed                  inference_failed
        OutOfDeviceMemory                out_of_device_memory
        OutputNotWritten                 output_not_written
        InternalError                    internal_error
    FatalError                           the process cannot start; shown to the operator, never to a client

Codes are a promise to clients: they are listed in the README and never change meaning.
"""

from typing import ClassVar


class AppError(Exception):
    """An error with a stable code and a sentence that says what, which value and what to do.

    Attributes:
        code: stable identifier, lower snake case.
        status: HTTP status a client gets when the error ends a request.
        title: the short, constant name of the kind of error (RFC 9457 `title`).
        retryable: True when the same request may succeed later.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def to_record(self) -> dict[str, object]:
        """The error as it is stored in a job record and shown in a reply."""
        return {"code": self.code, "detail": self.message, "retryable": self.retryable}


class InvalidInput(AppError):
    status = 422
    code, title = "invalid_input", "Invalid input"


class InvalidRequest(InvalidInput):
    code, title = "invalid_request", "Invalid request"


class InvalidJson(InvalidInput):
    status = 400
    code, title = "invalid_json", "Request body is not JSON"


class UnsupportedMediaType(InvalidInput):
    status = 415
    code, title = "unsupported_media_type", "Unsupported media type"


class RequestTooLarge(InvalidInput):
    status = 413
    code, title = "request_too_large", "Request too large"


class SourceError(InvalidInput):
    code, title = "source_error", "Source picture cannot be used"


class SourceUnreachable(SourceError):
    code, title, retryable = "source_unreachable", "Source unreachable", True


class SourceTimeout(SourceError):
    code, title, retryable = "source_timeout", "Source too slow", True


class SourceTooLarge(SourceError):
    code, title = "source_too_large", "Source too large"


class SourceNotAnImage(SourceError):
    code, title = "source_not_an_image", "Source is not an image"


class SourceAddressForbidden(SourceError):
    code, title = "source_address_forbidden", "Source address forbidden"


class NotFound(AppError):
    status = 404
    code, title = "not_found", "Not found"


class JobNotFound(NotFound):
    code, title = "job_not_found", "Job not found"


class OutputNotFound(NotFound):
    code, title = "output_not_found", "Output not found"


class OutputExpired(NotFound):
    status = 410
    code, title = "output_expired", "Output expired"


class Unavailable(AppError):
    status = 503
    code, title, retryable = "unavailable", "Service unavailable", True


class StoreUnavailable(Unavailable):
    code, title = "redis_unavailable", "Redis unavailable"


class ModelsNotReady(Unavailable):
    code, title = "models_not_ready", "Models not ready"


class ProcessingFailed(AppError):
    code, title, retryable = "processing_failed", "Processing failed", True


class InferenceFailed(ProcessingFailed):
    code, title = "inference_failed", "Inference failed"


class OutOfDeviceMemory(ProcessingFailed):
    code, title = "out_of_device_memory", "Out of device memory"


class OutputNotWritten(ProcessingFailed):
    code, title = "output_not_written", "Output not written"


class InternalError(ProcessingFailed):
    code, title = "internal_error", "Internal error"


class FatalError(Exception):
    """The process cannot start. The message is for the operator: what is wrong and what to run."""
