"""Requests and errors of OpenAI's completions and chat completions.

Field names: OpenAI's API reference, "Completions" and "Chat". A field that would change the answer and is not
implemented is refused, never ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from bridge_ds.data.text.plain import NONCHARACTERS
from bridge_ds.inference.generator import Sampling

__all__ = [
    "APIError",
    "ChatRequest",
    "CompletionRequest",
    "GenerationRequest",
    "ServerLimits",
    "check_model",
    "parse_request",
]


_LEAST_TEMPERATURE = 1e-10  # clients say 1e-8 for 0


class APIError(Exception):
    """A request that gets no answer; its body is OpenAI's error object."""

    def __init__(
        self, message: str, status: int = 400, *, code: str | None = None, param: str | None = None, retry_s: int = 0
    ) -> None:
        """Args:
        message: one sentence: what was found, what was expected.
        status: HTTP status.
        code: machine-readable reason.
        param: field at fault.
        retry_s: seconds for `Retry-After`; 0 = no such header.
        """
        super().__init__(message)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s

    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ServerLimits:
    """What one request may ask for."""

    tokens: int = 1024
    """Highest max_tokens."""
    texts: int = 16
    """Prompts of one request."""
    body: int = 1 << 20
    """Bytes of a request."""


def _check_text(text: str) -> str:
    """Refuse what no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "expected Unicode text without single surrogates") from None
    if NONCHARACTERS.search(text):
        raise PydanticCustomError("text", "expected text without U+FDD0 to U+FDD5, which are noncharacters")
    return text


def _check_temperature(value: float | None) -> float | None:
    """Logits divided by less than this are infinite."""
    if value and value < _LEAST_TEMPERATURE:
        raise PydanticCustomError("temperature", "expected 0 (greedy) or {least} to 2", {"least": _LEAST_TEMPERATURE})
    return value


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


def _joined(content: Any) -> Any:
    """The text of a message that is given in parts; anything else as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    return content


def _only(*neutral: Any) -> AfterValidator:
    """For a field that is not implemented: accepts values that change nothing."""

    def check(value: Any) -> Any:
        # 0 and False are equal, and do not mean the same: `logprobs: 0` asks for some.
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
            raise PydanticCustomError("unsupported", "is not supported here")
        return value

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_check_text)]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]


class _StreamOptions(BaseModel):
    include_usage: StrictBool | None = None


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_joined)]


class GenerationRequest(BaseModel):
    """Fields that completions and chat completions share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    chat: ClassVar[bool] = False
    """Whether the input is messages."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float | None, AfterValidator(_check_temperature)] = Field(None, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[list[Stop] | None, Field(max_length=4), BeforeValidator(_as_list)] = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    language: Text | None = None
    """Of the input, for an encoder that is told it, and for the choice by language. Not a field of OpenAI's."""
    llm_prompt: Annotated[list[Text] | None, BeforeValidator(_as_list)] = None
    """What the LLM reads in place of each input, where it reads text at all. Not a field of OpenAI's."""
    user: Any = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    n: Annotated[Any, _only(1)] = None
    best_of: Annotated[Any, _only(1)] = None
    echo: Annotated[Any, _only(False)] = None
    logprobs: Annotated[Any, _only(False)] = None
    top_logprobs: Annotated[Any, _only(0)] = None
    suffix: Annotated[Any, _only("")] = None
    presence_penalty: Annotated[Any, _only(0)] = None
    frequency_penalty: Annotated[Any, _only(0)] = None
    logit_bias: Annotated[Any, _only({})] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, _only(True, False)] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    modalities: Annotated[Any, _only(["text"])] = None
    reasoning_effort: Annotated[Any, _only("none")] = None
    service_tier: Annotated[Any, _only("auto", "default")] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    store: Annotated[Any, _only(False)] = None

    @field_validator("top_p", "top_k")
    @classmethod
    def _with_temperature(cls, value: float | None, info: ValidationInfo) -> float | None:
        # OpenAI's default is 1: whoever gives these alone wants to sample. With 0 they mean nothing there either.
        if info.data.get("temperature") is None and value not in (None, 0 if info.field_name == "top_k" else 1):
            raise PydanticCustomError("temperature", "expected it only with a temperature, which is 0 (greedy) here")
        return value

    @field_validator("stream_options")
    @classmethod
    def _with_stream(cls, options: _StreamOptions | None, info: ValidationInfo) -> _StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise PydanticCustomError("stream", "expected it only with stream")
        return options

    @property
    def inputs(self) -> Sequence[Any]:
        """Prompts, or one list of messages."""
        raise NotImplementedError

    @property
    def token_limit(self) -> int | None:
        """Most LLM tokens of an answer; none = the bridge's own."""
        return self.max_tokens

    @property
    def sampling(self) -> Sampling:
        """Greedily nothing is sampled, so the other options must not keep rows apart."""
        return Sampling(self.temperature, self.top_p or 1.0, self.top_k or 0) if self.temperature else Sampling()

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """`/v1/completions`."""

    prompt: Annotated[list[Text], Field(min_length=1), BeforeValidator(_as_list)]

    @property
    def inputs(self) -> Sequence[str]:
        """Prompts."""
        return self.prompt


class ChatRequest(GenerationRequest):
    """`/v1/chat/completions`."""

    chat: ClassVar[bool] = True
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @field_validator("messages")
    @classmethod
    def _in_order(cls, messages: list[_Message]) -> list[_Message]:
        if any(message.role in ("system", "developer") for message in messages[1:]):
            raise PydanticCustomError("order", "expected a system message only as the first")
        if messages[-1].role != "user":
            raise PydanticCustomError("order", "expected a user's message as the last")
        return messages

    @property
    def inputs(self) -> Sequence[list[dict[str, str]]]:
        """One list of messages."""
        system = {"developer": "system"}
        return [[{"role": system.get(each.role, each.role), "content": each.content} for each in self.messages]]

    @property
    def token_limit(self) -> int | None:
        """Of these two fields the newer one counts."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Request = TypeVar("Request", bound=GenerationRequest)


def check_model(asked: str, model: str) -> None:
    """Raise unless the model that is asked for is the one that is served.

    Raises:
        APIError: 404.
    """
    if asked != model:
        message = f"the model {asked[:200]!r} is not here; expected {model!r}."
        raise APIError(message, 404, code="model_not_found", param="model")


def parse_request(kind: type[Request], body: Any, model: str, limits: ServerLimits) -> Request:
    """A validated request.

    Args:
        kind: which.
        body: decoded JSON.
        model: name of the model that is served.
        limits: of a request.

    Raises:
        APIError: with the field and the reason.
    """
    if not isinstance(body, dict):
        raise APIError("the body is not a JSON object; expected one.")
    try:
        request = kind.model_validate({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        raise _first_error(error) from None
    check_model(request.model, model)
    if len(request.inputs) > limits.texts:
        raise APIError(f"prompt holds {len(request.inputs)} texts; expected at most {limits.texts}.", param="prompt")
    if request.llm_prompt is not None and len(request.llm_prompt) != len(request.inputs):
        found, wanted = len(request.llm_prompt), len(request.inputs)
        raise APIError(f"llm_prompt holds {found} texts; expected {wanted}, one for each input.", param="llm_prompt")
    if (request.token_limit or 0) > limits.tokens:
        message = f"max_tokens is {request.token_limit}; expected at most {limits.tokens}."
        raise APIError(message, param="max_tokens")
    return request


def _first_error(error: ValidationError) -> APIError:
    first = error.errors(include_url=False)[0]
    path = first["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:81] or "a field's name"
    param = ".".join(str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), path))[:80]
    if first["type"] == "extra_forbidden":
        return APIError(f"{where!r} is not a field of this request; leave it out.", param=param)
    if first["type"] == "unsupported":
        return APIError(f"{where} is not supported here; leave it out.", param=param, code="unsupported")
    if first["type"] == "missing":
        return APIError(f"{where} is missing; expected it.", param=param)
    expected = first["msg"].replace("Input should be", "expected").replace(" after validation", "")
    expected = expected.partition(" or instance of")[0]
    found = json.dumps(first["input"], default=str)[:40]
    return APIError(f"{where} is {found}; {expected[0].lower()}{expected[1:]}.", param=param)
