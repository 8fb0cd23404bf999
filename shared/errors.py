"""Every error the service can name, in one tree.

    AppError(code, message, retryable)
      InvalidInput                  422  the request or a picture is wrong; sending it again will not help
        InvalidRequest                   invalid_request
        InvalidJson                 400  invalid_json
        UnsupportedMediaType        415  unsupported_media_type
        RequestTooLarge             413  request_too_large
        IdempotencyKeyReused             idempotency_key_reused
        OutputTooLarge                   output_too_large
        SourceError                      a side's picture could not be used
          SourceUnreachable              source_unreachable
          SourceTimeout                  source_timeout
          SourceTooLarge                 source_too_large
          SourceNotAnImage               source_not_an_image
          SourceAddressForbidden         source_address_forbidden
      Denied                             who asks may not, or not so often
        Unauthorized                401  unauthorized
        OutputUrlInvalid            403  output_url_invalid
        RateLimited                 429  rate_limited
      NotFound                      404
        JobNotFound                      job_not_found
        OutputNotFound                   output_not_found
        OutputExpired               410  output_expired
        OutputUrlExpired            410  output_url_expired
        SourceExpired               410  source_expired
      Conflict                      409  the job is not in a state for this
        JobAlreadyFinal                  job_already_final
        JobStillOpen                     job_still_open
        NothingToRetry                   nothing_to_retry
        JobCanceled                      job_canceled
      Unavailable                   503  try again later
        StoreUnavailable                 redis_unavailable
        ModelsNotReady                   models_not_ready
        QueueFull                        queue_full
        TooManyEventStreams              too_many_event_streams
        JobExpired                  504  job_expired
        DeviceQueueFull                  device_queue_full
        DeviceFailed                     device_failed
      ProcessingFailed              500  the job was fine, we were not
        InferenceFailed                  inference_failed
        OutOfDeviceMemory                out_of_device_memory
        OutputNotWritten                 output_not_written
        WorkerCrashed                    worker_crashed
        InternalError                    internal_error
      ExtractionError               502  a design could not be extracted by Gemini
        ExtractionNotConfigured     422  extraction_not_configured
        ExtractionBlocked           422  extraction_blocked
        ExtractionRejected               extraction_rejected
        ExtractionUnauthorized           extraction_unauthorized
        ExtractionModelNotFound          extraction_model_not_found
        ExtractionEmpty                  extraction_empty
        ExtractionBadAnswer              extraction_bad_answer
        ExtractionUnavailable       503  extraction_unavailable
        ExtractionQuota             503  extraction_quota
        ExtractionBusy              503  extraction_busy
        ExtractionInterrupted       503  extraction_interrupted
        ExtractionTimeout           504  extraction_timeout
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
        retry_after_s: when to try again (s), where the error knows better than the API's default.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

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


class IdempotencyKeyReused(InvalidInput):
    code, title = "idempotency_key_reused", "Idempotency key reused"


class OutputTooLarge(InvalidInput):
    code, title = "output_too_large", "Output too large"


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


class Denied(AppError):
    status = 403
    code, title = "denied", "Denied"


class Unauthorized(Denied):
    status = 401
    code, title = "unauthorized", "API key missing or wrong"


class OutputUrlInvalid(Denied):
    code, title = "output_url_invalid", "Output URL is not signed, or not by us"


class RateLimited(Denied):
    status = 429
    code, title, retryable = "rate_limited", "Too many requests", True


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


class OutputUrlExpired(NotFound):
    status = 410
    code, title = "output_url_expired", "Output URL has ended"


class SourceExpired(NotFound):
    status = 410
    code, title = "source_expired", "Source expired"


class Conflict(AppError):
    status = 409
    code, title = "conflict", "Conflict"


class JobAlreadyFinal(Conflict):
    code, title = "job_already_final", "Job has already ended"


class JobStillOpen(Conflict):
    code, title = "job_still_open", "Job has not ended yet"


class NothingToRetry(Conflict):
    code, title = "nothing_to_retry", "Nothing to retry"


class JobCanceled(Conflict):
    code, title = "job_canceled", "Job canceled"


class Unavailable(AppError):
    status = 503
    code, title, retryable = "unavailable", "Service unavailable", True


class StoreUnavailable(Unavailable):
    code, title = "redis_unavailable", "Redis unavailable"


class ModelsNotReady(Unavailable):
    code, title = "models_not_ready", "Models not ready"


class QueueFull(Unavailable):
    code, title = "queue_full", "Queue full"


class TooManyEventStreams(Unavailable):
    code, title = "too_many_event_streams", "Too many event streams"


class JobExpired(Unavailable):
    status = 504
    code, title = "job_expired", "Job expired"


class DeviceQueueFull(Unavailable):
    code, title = "device_queue_full", "Device queue full"


class DeviceFailed(Unavailable):
    code, title = "device_failed", "Device failed"


class ProcessingFailed(AppError):
    code, title, retryable = "processing_failed", "Processing failed", True


class InferenceFailed(ProcessingFailed):
    code, title = "inference_failed", "Inference failed"


class OutOfDeviceMemory(ProcessingFailed):
    code, title = "out_of_device_memory", "Out of device memory"


class OutputNotWritten(ProcessingFailed):
    code, title = "output_not_written", "Output not written"


class WorkerCrashed(ProcessingFailed):
    code, title, retryable = "worker_crashed", "Worker crashed", False


class InternalError(ProcessingFailed):
    code, title = "internal_error", "Internal error"


class ExtractionError(AppError):
    status = 502
    code, title = "extraction_failed", "Design extraction failed"


class ExtractionNotConfigured(ExtractionError):
    status = 422
    code, title = "extraction_not_configured", "Design extraction not configured"


class ExtractionBlocked(ExtractionError):
    status = 422
    code, title = "extraction_blocked", "Design extraction blocked"


class ExtractionRejected(ExtractionError):
    code, title = "extraction_rejected", "Design extraction rejected"


class ExtractionUnauthorized(ExtractionError):
    code, title = "extraction_unauthorized", "Design extraction not authorized"


class ExtractionModelNotFound(ExtractionError):
    code, title = "extraction_model_not_found", "Extraction model not found"


class ExtractionEmpty(ExtractionError):
    code, title, retryable = "extraction_empty", "Extraction gave no picture", True


class ExtractionBadAnswer(ExtractionError):
    code, title, retryable = "extraction_bad_answer", "Extraction answer unusable", True


class ExtractionUnavailable(ExtractionError):
    status = 503
    code, title, retryable = "extraction_unavailable", "Extraction service unavailable", True


class ExtractionQuota(ExtractionError):
    status = 503
    code, title, retryable = "extraction_quota", "Extraction quota used up", True


class ExtractionBusy(ExtractionError):
    status = 503
    code, title, retryable = "extraction_busy", "Too many extractions at once", True


class ExtractionInterrupted(ExtractionError):
    status = 503
    code, title, retryable = "extraction_interrupted", "Design extraction interrupted", True


class ExtractionTimeout(ExtractionError):
    status = 504
    code, title, retryable = "extraction_timeout", "Design extraction too slow", True


class FatalError(Exception):
    """The process cannot start. The message is for the operator: what is wrong and what to run."""
