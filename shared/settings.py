"""The service's settings: one frozen, typed object, read from the environment once per process.

Every field below is an environment variable of the same name in capitals (`REDIS_URL`, `MODELS`, ...); `.env.example`
and the README table list the same fields, which a test compares. Nothing else in the service reads the environment.
"""

import base64
import binascii
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import FatalError

#: Fields that a URL or a log line must never show.
_WORDS = Annotated[tuple[str, ...], NoDecode]

_KEY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})")
_RATE = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")


class Settings(BaseSettings):
    """All settings. Defaults run the local stack; compose overrides what differs in containers.

    Raises:
        FatalError: from `load_settings`, when any value is out of range; all of them are listed at once.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # --- where things are -------------------------------------------------------------------------------------
    base_url: str = Field(
        "http://127.0.0.1:8001", description="Public address of the service; output URLs begin with it"
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis for the queue, results and job records"
    )
    models_dir: Path = Field(Path("models"), description="Folder of published and starter weights")
    outputs_dir: Path = Field(Path("outputs"), description="Folder of result PNGs, shared by API and worker")

    # --- models -----------------------------------------------------------------------------------------------
    models: _WORDS = Field(("rmbg", "birefnet"), description="Models each side goes through, comma-separated")
    model_profile: Literal["full", "starter", "auto"] = Field(
        "auto", description="full: published checkpoints; starter: small ones in git; auto: full where the files are"
    )
    rmbg_repo: str = Field("briaai/RMBG-2.0", description="Hub repository of RMBG-2.0 (CC BY-NC 4.0, gated)")
    rmbg_revision: str = Field(
        "5df4c9c76d8170882c34f6986e848ee07fd0ba43",
        description="Commit, tag or branch of the RMBG-2.0 repository",
    )
    birefnet_repo: str = Field("ZhengPeng7/BiRefNet", description="Hub repository of BiRefNet (MIT)")
    birefnet_revision: str = Field(
        "e2bf8e4460fc8fa32bba5ea4d94b3233d367b0e4",
        description="Commit, tag or branch of the BiRefNet repository",
    )
    hf_token: SecretStr = Field(SecretStr(""), description="Hugging Face token; needed only for the gated RMBG-2.0")
    hf_endpoint: str = Field("https://huggingface.co", description="Address of the model hub or a mirror of it")

    # --- device -----------------------------------------------------------------------------------------------
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    gpu_device: str = Field("0", description="Which GPU compose gives the worker (index or UUID)")
    use_fp16: bool = Field(True, description="Half precision on CUDA; the CPU always computes in fp32")
    compile: Literal["auto", "off", "graphs", "aot"] = Field(
        "auto",
        description="graphs: record each pass as a CUDA graph; aot: also compile it once, into MODELS_DIR/.compiled; "
        "auto: graphs on CUDA; off: neither",
    )
    cpu_threads: int = Field(0, ge=0, le=256, description="Threads of one forward pass on the CPU; 0: all cores")
    max_batch: int = Field(0, ge=0, le=64, description="Pictures of one forward pass; 0: 1 on the CPU, 4 on CUDA")
    max_batch_wait_ms: float = Field(
        5, ge=0, le=1000, description="How long a busy device's next batch waits for more pictures (ms)"
    )
    max_device_queue: int = Field(64, ge=1, le=4096, description="Pictures that may wait for the device at once")
    device_timeout_s: float = Field(
        900,
        ge=0,
        le=86400,
        description="A batch that takes longer means the device is lost: the worker ends (s); 0: off",
    )

    # --- worker -----------------------------------------------------------------------------------------------
    worker_name: str = Field(
        "worker-1", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Name of this worker; unique for each on one Redis"
    )
    worker_threads: int = Field(8, ge=2, le=64, description="Cells and plans one worker handles at once")
    worker_core: str = Field(
        "auto",
        pattern=r"^(auto|any|[0-9]{1,4})$",
        description="Core that a worker's threads take turns on: a number, auto: one of all, any: not one core",
    )
    shutdown_grace_s: float = Field(60, ge=1, le=3600, description="How long a stopping worker may finish its work (s)")
    max_deliveries: int = Field(
        3, ge=1, le=100, description="A job that was being worked on when so many workers died is given up"
    )
    rescue_after_s: float = Field(
        30, ge=1, le=3600, description="A job without a change for so long whose message was lost is begun again (s)"
    )
    picture_cache_mb: int = Field(512, ge=0, le=65536, description="Decoded pictures kept for their other cells (MB)")

    pixels_in_flight_mp: float = Field(
        130,
        gt=0,
        le=10000,
        description="Pixels a worker composes at once, print canvases included (million); 30 to 35 MB of memory each",
    )

    # --- limits of outside input ------------------------------------------------------------------------------
    upload_stall_s: float = Field(30, gt=0, le=600, description="Longest pause of a client in mid-request (s)")
    upload_limit_mb: int = Field(64, ge=1, le=2048, description="Largest request body (MB)")
    source_limit_mb: int = Field(50, ge=1, le=2048, description="Largest source file (MB)")
    pixel_limit_mp: float = Field(64, gt=0, le=1000, description="Largest picture (million pixels)")
    download_connect_timeout_s: float = Field(5, gt=0, le=300, description="Time to connect to a source (s)")
    download_timeout_s: float = Field(30, gt=0, le=600, description="Time for a whole download (s)")
    download_redirects: int = Field(5, ge=0, le=20, description="Redirects followed for one source")
    allow_private_sources: _WORDS = Field(
        (), description="Private hosts or networks sources may come from, comma-separated (10.0.0.5, 192.168.0.0/16)"
    )

    # --- jobs -------------------------------------------------------------------------------------------------
    sync_wait_s: float = Field(
        60, ge=0, le=600, description="How long POST /process waits when the client does not say"
    )
    sync_wait_limit_s: float = Field(120, ge=0, le=600, description="Longest wait a client may ask for (s)")
    job_ttl_s: int = Field(86400, ge=60, le=31536000, description="Lifetime of a job record after its last change (s)")

    max_queued_jobs: int = Field(
        500, ge=1, le=1_000_000, description="Jobs that may wait for a worker; past it the answer is 503 queue_full"
    )
    source_ttl_s: int = Field(
        3600, ge=0, le=31536000, description="How long sources of jobs that did not succeed are kept for a retry (s)"
    )
    result_cache_ttl_s: int = Field(
        86400,
        ge=0,
        le=31536000,
        description="How long after its last use a cell is given again for the same picture and options (s); 0: off",
    )

    output_ttl: int = Field(
        0, ge=0, le=315360000, description="How long outputs are kept after they were made (s); 0: for ever"
    )
    output_max_bytes: int = Field(
        0, ge=0, le=10**15, description="Most bytes of outputs; past it the oldest jobs' go first; 0: no limit"
    )

    # --- API --------------------------------------------------------------------------------------------------
    api_host: str = Field("127.0.0.1", description="Address the API listens on")
    api_port: int = Field(8001, ge=1, le=65535, description="Port the API listens on")
    api_threads: int = Field(320, ge=2, le=2048, description="Web threads")
    max_event_streams: int = Field(
        64, ge=0, le=2000, description="Event streams at once; past it the answer is 503 too_many_event_streams"
    )
    max_sync_waits: int = Field(
        200,
        ge=0,
        le=2000,
        validate_default=True,
        description="Requests that may wait at once; past it the answer is 202. Less than API_THREADS minus streams",
    )

    # --- access -----------------------------------------------------------------------------------------------
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Who may use the API: name:sha256 pairs, comma-separated, made by python -m api.keys; "
        "empty: everyone",
    )
    rate_limit: str = Field(
        "",
        description="Most requests of one caller, such as 600/minute or 10/second;5000/day; empty: no limit",
    )
    trusted_proxies: int = Field(
        0, ge=0, le=8, description="Proxies in front that add X-Forwarded-For; 0: the header is not believed"
    )
    output_url_ttl: int = Field(
        0, ge=0, le=604800, description="Lifetime of signed output URLs (s); 0: URLs are not signed and do not end"
    )
    output_url_secret: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Key that output URLs are signed with, 32 characters or more; needed by OUTPUT_URL_TTL",
    )

    # --- webhooks ---------------------------------------------------------------------------------------------
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Key that webhooks are signed with, whsec_ and base64 (make setup makes one); empty: no webhooks",
    )
    webhook_timeout_s: float = Field(10, gt=0, le=60, description="Time for one try of a webhook (s)")

    # --- compose ----------------------------------------------------------------------------------------------
    redis_password: SecretStr = Field(SecretStr(""), description="Password of compose's Redis (make setup makes one)")
    flower_user: str = Field("admin", description="User name of Flower's basic auth")
    flower_password: SecretStr = Field(
        SecretStr(""), description="Password of Flower's basic auth (make setup makes one)"
    )
    flower_port: int = Field(5555, ge=1, le=65535, description="Port of Flower, on loopback")

    # --- design extraction ------------------------------------------------------------------------------------
    gemini_api_key: SecretStr = Field(
        SecretStr(""), description="Google Gemini API key for design extraction; empty: no picture is ever sent away"
    )
    extract_design: Literal["auto", "always", "never"] = Field(
        "auto", description="Extract designs with Gemini when the client does not say; auto: photographs of prints only"
    )
    extract_on_error: Literal["original", "fail"] = Field(
        "original", description="When extraction fails: go on with the original and warn, or fail the side"
    )
    extract_cache_ttl_s: int = Field(
        604800, ge=3600, le=31536000, description="How long an answer is used again for the same picture (s)"
    )
    extract_cache_mb: int = Field(1024, ge=64, le=1048576, description="Answers kept on the outputs volume (MB)")
    gemini_model: str = Field(
        "gemini-3.1-flash-image", pattern=r"^[A-Za-z0-9._/-]{1,128}$", description="Gemini image model"
    )
    gemini_prompt_file: str = Field("", description="Your own prompt, a text file; empty: worker/prompts/extract.txt")
    gemini_image_size: Literal["default", "1K", "2K", "4K"] = Field(
        "2K", description="Size of answers that is asked for; default: do not ask, for models without sizes"
    )
    gemini_base_url: str = Field(
        "https://generativelanguage.googleapis.com", description="Address of the Gemini API or a gateway to it"
    )
    gemini_timeout_s: float = Field(90, ge=1, le=600, description="Time for one extraction, all its tries together (s)")
    gemini_tries: int = Field(
        4, ge=1, le=10, description="Calls for one extraction; again only on 429, 5xx and if nothing was sent"
    )
    gemini_calls_at_once: int = Field(4, ge=1, le=64, description="Calls one worker has under way at once")
    gemini_calls_per_minute: int = Field(30, ge=1, le=10000, description="Calls of all workers together in a minute")

    # --- logs -------------------------------------------------------------------------------------------------
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged")
    log_format: Literal["json", "text"] = Field("json", description="json: one object a line; text: for reading")

    @field_validator("models", "allow_private_sources", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one model, each once, for example MODELS=rmbg,birefnet")
        bad = [name for name in value if not name.isalnum() or not name.islower()]
        if bad:
            raise ValueError(f"model names are lower-case letters and digits, not {', '.join(bad)}")
        return value

    @field_validator("max_sync_waits")
    @classmethod
    def _leave_threads_for_other_routes(cls, value: int, info: ValidationInfo) -> int:
        streams = info.data.get("max_event_streams", 0)
        threads = info.data.get("api_threads", value + streams + 1)
        if value + streams >= threads:
            raise ValueError(
                f"with MAX_EVENT_STREAMS={streams} make it less than API_THREADS={threads}, "
                "or waiting requests block every other route"
            )
        return value

    @field_validator("allow_private_sources")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if "/" in word:
                try:
                    ipaddress.ip_network(word, strict=False)
                except ValueError as exc:
                    raise ValueError(f"{word} is not a network, such as 192.168.0.0/16: {exc}") from exc
        return value

    @field_validator("api_keys")
    @classmethod
    def _check_api_keys(cls, value: SecretStr) -> SecretStr:
        entries = [_KEY.fullmatch(entry) for entry in _entries(value)]
        if not all(entries):
            raise ValueError(
                "write name:sha256,name:sha256 as `python -m api.keys new NAME` prints it; not the key itself"
            )
        names = [entry[1] for entry in entries if entry]
        if len(set(names)) < len(names):
            raise ValueError("give each key a name of its own")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _check_rate_limit(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(";")] if value else []
        if not all(_RATE.fullmatch(part) for part in parts) or len({part.partition("/")[2] for part in parts}) < len(
            parts
        ):
            raise ValueError(
                "write it like 600/minute, or several like 10/second;5000/day, one per second, minute, ..."
            )
        return ";".join(parts)

    @field_validator("output_url_secret")
    @classmethod
    def _check_output_url_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        secret = value.get_secret_value()
        if info.data.get("output_url_ttl") and not secret:
            raise ValueError("OUTPUT_URL_TTL needs it; make one: openssl rand -hex 32")
        if secret and len(secret) < 32:
            raise ValueError("is too short to keep anybody out; make one: openssl rand -hex 32")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value()
        try:
            size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            size = 0
        if secret and not (secret.startswith("whsec_") and 24 <= size <= 64):
            raise ValueError("must be whsec_ and the base64 of 24-64 bytes: echo whsec_$(openssl rand -base64 32)")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("begin it with redis://, for example redis://localhost:6379/0")
        return value

    @field_validator("gemini_api_key")
    @classmethod
    def _check_gemini_api_key(cls, value: SecretStr) -> SecretStr:
        if not all("!" <= letter <= "~" for letter in value.get_secret_value()):
            raise ValueError("holds a space, a quote from elsewhere or another character that no key has")
        return value

    @field_validator("hf_endpoint", "gemini_base_url")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("begin it with http:// or https://")
        return value.rstrip("/")

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("begin it with http:// or https://, for example http://192.168.10.74:8001")
        return value.rstrip("/")

    @property
    def key_hashes(self) -> dict[str, str]:
        """Name of each caller -> SHA-256 of its key, in hexadecimal; empty when the API is open."""
        return dict(entry.split(":", 1) for entry in _entries(self.api_keys))

    @property
    def upload_limit_bytes(self) -> int:
        return self.upload_limit_mb * 1_000_000

    @property
    def source_limit_bytes(self) -> int:
        return self.source_limit_mb * 1_000_000

    @property
    def pixel_limit(self) -> int:
        return int(self.pixel_limit_mp * 1_000_000)


def _entries(keys: SecretStr) -> list[str]:
    return [entry.strip() for entry in keys.get_secret_value().split(",") if entry.strip()]


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` win.

    Raises:
        FatalError: one or more values are wrong; the message lists each with its variable and the reason.
    """
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            name = ".".join(str(part) for part in error["loc"])
            field = Settings.model_fields.get(name)
            secret = field is not None and field.annotation is SecretStr
            got = "" if secret or not name else f" (got {error['input']!r})"
            lines.append(f"  {name.upper() or 'together'}: {error['msg']}{got}")
        raise FatalError("Settings are wrong; correct .env or the environment:\n" + "\n".join(lines)) from exc
