"""What a request may say, and every way in which it can be wrong. Pure.

Field names and the form of errors: OpenAI's API reference, "Completions" and "Chat". A field that would change the
answer and is not built here is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge_ds.data.text.plain import NONCHARACTERS

__all__ = ["APIError", "Ask", "Sampling", "ServerLimits", "parse_chat", "parse_completion"]

_COMMON = {
    "model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options", "user",
    "metadata", "language",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
}
"""Fields of OpenAI's that are taken only with a value that changes nothing."""


class APIError(Exception):
    """A request that gets no answer, as OpenAI's error object says it."""

    def __init__(
        self, message: str, status: int = 400, *, code: str | None = None, param: str | None = None, retry_s: int = 0
    ) -> None:
        """Args:
        message: one sentence: what was found, what was expected.
        status: of HTTP.
        code: a word for programs.
        param: the field at fault.
        retry_s: seconds after which to try again; 0 = not said.
        """
        super().__init__(message)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
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
    stops: int = 4
    """Stop texts."""


@dataclass(frozen=True)
class Sampling:
    """Options that rows of one batch must share."""

    temperature: float = 0.0
    """0 = the likeliest token each time."""
    top_p: float = 1.0
    """Share of probability that is sampled from (0 to 1)."""
    top_k: int = 0
    """Tokens that are sampled from; 0 = all."""
    seed: int | None = None
    """Of sampling; a row with one is written alone, so that its answer depends on nothing else."""


@dataclass(frozen=True)
class Ask:
    """A request that is in order."""

    texts: tuple[Any, ...]
    """Prompts, or one list of messages."""
    chat: bool
    """Which of these."""
    max_tokens: int | None
    """Most LLM tokens of an answer; none = the bridge's own."""
    sampling: Sampling
    """How."""
    stops: tuple[str, ...]
    """Texts before which an answer ends."""
    stream: bool
    """Answer by server-sent events."""
    usage: bool
    """At the end of a stream say how many tokens there were."""
    language: str = ""
    """Of the texts, for an encoder that is told it; empty = not known. Not a field of OpenAI's."""


def parse_completion(body: Any, model: str, limits: ServerLimits) -> Ask:
    """A request to `/v1/completions`.

    Args:
        body: decoded JSON.
        model: the name of the one model here.
        limits: of a request.

    Raises:
        APIError: with the field and the reason.
    """
    values = _fields(body, {*_COMMON, "prompt"}, model)
    prompt = values.get("prompt")
    given = prompt if isinstance(prompt, list) else [prompt]
    texts = [text for text in given if isinstance(text, str)]
    if not texts or len(texts) < len(given):
        raise APIError("prompt is no text; expected one, or a list of texts (token ids are not taken).", param="prompt")
    if len(texts) > limits.texts:
        raise APIError(f"prompt holds {len(texts)} texts; expected at most {limits.texts}.", param="prompt")
    for text in texts:
        _sound(text, "prompt")
    return _ask(values, tuple(texts), False, values.get("max_tokens"), limits)


def parse_chat(body: Any, model: str, limits: ServerLimits) -> Ask:
    """A request to `/v1/chat/completions`; arguments and errors as of :func:`parse_completion`."""
    values = _fields(body, {*_COMMON, "messages", "max_completion_tokens"}, model)
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise APIError("messages is no list of messages; expected at least one.", param="messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "developer", "user", "assistant"):
            raise APIError(
                f"{where} has no role that is known here; expected system, user or assistant.", param="messages"
            )
        if message["role"] in ("system", "developer") and number:
            raise APIError(f"{where} is a system message; expected it first.", param="messages")
        _sound(_content(message.get("content"), where), where)
    if messages[-1]["role"] != "user":
        raise APIError("the last message is not the user's; expected a question to answer.", param="messages")
    plain = [
        {"role": "system" if m["role"] == "developer" else m["role"], "content": _content(m["content"], "")}
        for m in messages
    ]
    most = values.get("max_completion_tokens")
    return _ask(values, (plain,), True, values.get("max_tokens") if most is None else most, limits)


def _fields(body: Any, known: set[str], model: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise APIError("the body is no JSON object; expected one.")
    for name, value in body.items():
        if name in _NEUTRAL:
            if not any(value == neutral for neutral in _NEUTRAL[name]):
                raise APIError(f"{name} is not supported here; leave it out.", param=name, code="unsupported")
        elif name not in known:
            raise APIError(f"{name[:80]!r} is no field of this request; leave it out.", param=name[:80])
    asked = body.get("model")
    if not isinstance(asked, str):
        raise APIError(f"model is missing; expected {model!r}.", param="model")
    if asked != model:
        raise APIError(
            f"the model {asked[:200]!r} is not here; expected {model!r}.", 404, code="model_not_found", param="model"
        )
    return body


def _content(content: Any, where: str) -> str:
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        parts = [part.get("text") for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise APIError(f"{where} has no text content; expected a text or parts of type text.", param="messages")
    return content


def _sound(text: str, where: str) -> None:
    """Refuse what no tokenizer can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise APIError(f"{where} holds half of a surrogate pair; expected Unicode text.", param=where) from None
    if NONCHARACTERS.search(text):
        raise APIError(f"{where} holds one of U+FDD0 to U+FDD5, which are no characters; leave it out.", param=where)


def _ask(values: Mapping[str, Any], texts: tuple[Any, ...], chat: bool, most: Any, limits: ServerLimits) -> Ask:
    max_tokens = _number(most, "max_tokens", 1, limits.tokens, whole=True)
    temperature = _number(values.get("temperature"), "temperature", 0, 2) or 0.0
    top_p = _number(values.get("top_p"), "top_p", 0, 1)
    if top_p == 0:
        raise APIError("top_p is 0; expected above 0 to 1.", param="top_p")
    top_k = _number(values.get("top_k"), "top_k", 0, 1 << 20, whole=True)
    seed = _number(values.get("seed"), "seed", -(1 << 63), (1 << 63) - 1, whole=True)
    # Without a temperature nothing is sampled, so the rest says nothing and must not keep rows apart.
    sampling = Sampling(float(temperature), float(top_p or 1), top_k or 0, seed) if temperature else Sampling()
    streamed = _flag(values.get("stream"), "stream")
    options = values.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not streamed):
        raise APIError("stream_options is given without stream; leave it out.", param="stream_options")
    usage = _flag((options or {}).get("include_usage"), "stream_options.include_usage")
    language = values.get("language")
    if language is not None and not isinstance(language, str):
        raise APIError(f"language is {str(language)[:40]}; expected a text, such as 'si'.", param="language")
    return Ask(texts, chat, max_tokens, sampling, _stops(values.get("stop"), limits), streamed, usage, language or "")


def _stops(value: Any, limits: ServerLimits) -> tuple[str, ...]:
    stops = [] if value is None else value if isinstance(value, list) else [value]
    if len(stops) > limits.stops or not all(isinstance(stop, str) and 0 < len(stop) <= 200 for stop in stops):
        raise APIError(f"stop is wrong; expected a text, or up to {limits.stops}, of 1 to 200 letters.", param="stop")
    for stop in stops:
        _sound(stop, "stop")
    return tuple(stops)


def _number(value: Any, name: str, least: int, most: int, whole: bool = False) -> Any:
    if value is None:
        return None
    kinds = int if whole else (int, float)
    # Not a number (which JSON as Python reads it may hold) is in no range.
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise APIError(f"{name} is {str(value)[:40]}; expected {kind} from {least} to {most}.", param=name)
    return value


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise APIError(f"{name} is {str(value)[:40]!r}; expected true or false.", param=name)
    return bool(value)
