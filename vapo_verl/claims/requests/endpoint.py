"""One request to an OpenAI-compatible endpoint: the only place that knows the openai package."""

import asyncio
import email.utils
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import openai

from vapo_verl.claims.options import NO_KEY, EndpointOptions
from vapo_verl.claims.requests.reply import (
    Choice,
    FatalFault,
    ImageFailed,
    Message,
    Reply,
    TransientFault,
)
from vapo_verl.claims.shards.record import Usage

_FATAL = {
    401: "the endpoint refuses the key; correct OPENAI_API_KEY",
    402: "the account cannot pay; top it up",
    404: "no such model or address; correct --model or OPENAI_BASE_URL",
}
_MAX_SAID = 300
_TRANSIENT_STATUS = (408, 409, 425, 429)


class Endpoint:
    """A chat-completions client without retries of its own: those are `retry`'s, and counted."""

    def __init__(self, options: EndpointOptions):
        self._options = options
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=options.api_key,
            max_retries=0,
            timeout=options.timeout_s,
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, messages: Sequence[Message], num_choices: int = 1) -> Reply:
        """Send one request.

        Raises:
            TransientFault: the same request may succeed later.
            ImageFailed: the endpoint refuses this one.
            FatalFault: it would refuse all.
        """
        call = self._client.chat.completions.create(
            model=self._options.model,
            messages=messages,  # type: ignore[arg-type]
            **self._sampling(num_choices),
        )
        try:
            # the client's own timeout starts again with every byte that arrives
            completion = await asyncio.wait_for(call, self._options.timeout_s)
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            raise TransientFault("timeout") from error
        except openai.APIStatusError as error:
            raise self._fault(error) from error
        except openai.APIConnectionError as error:
            raise TransientFault("no connection") from error
        except (openai.APIError, ValueError) as error:  # a body that is not JSON
            raise TransientFault("unreadable response") from error
        return _reply(completion)

    def _sampling(self, num_choices: int) -> dict[str, Any]:
        options = self._options
        fields = {options.token_limit_name: options.max_tokens, "temperature": options.temperature}
        fields |= {"n": num_choices if num_choices > 1 else None}
        return {name: value for name, value in fields.items() if value is not None}

    def _fault(self, error: openai.APIStatusError) -> Exception:
        status, said = error.status_code, self._redacted(error.message)
        if status in _FATAL or error.code == "insufficient_quota":
            fix = _FATAL.get(status, _FATAL[402])
            return FatalFault(f"the endpoint answers {status}: {said}; {fix}")
        if status in _TRANSIENT_STATUS or status >= 500:
            return TransientFault(f"status {status}", retry_after_s(error.response.headers))
        return ImageFailed(f"refused with status {status}", said)

    def _redacted(self, text: str) -> str:
        """Some servers repeat the key they were given; it must not reach a log."""
        key = self._options.api_key
        return (text if key == NO_KEY else text.replace(key, "***"))[:_MAX_SAID]


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or a date); None without."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        value = headers.get("retry-after", "")
        if value.replace(".", "", 1).isdigit():
            return float(value)
        date = email.utils.parsedate_to_datetime(value)
        return max(date.timestamp() - (time.time() if now is None else now), 0.0)
    except (ValueError, TypeError):  # TypeError: what Python 3.10 raises for no date
        return None


def _reply(completion: Any) -> Reply:
    """Raises TransientFault for a response that is no completion: a proxy's page, an error body."""
    choices = getattr(completion, "choices", None)
    if not choices:
        raise TransientFault("response without choices")
    usage = completion.usage
    return Reply(
        choices=tuple(
            Choice(text=choice.message.content or "", cut_off=choice.finish_reason == "length")
            for choice in choices
        ),
        usage=Usage(
            num_requests=1,
            prompt_tokens=(usage and usage.prompt_tokens) or 0,
            completion_tokens=(usage and usage.completion_tokens) or 0,
        ),
    )
