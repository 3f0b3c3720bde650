"""One request to an OpenAI-compatible endpoint, as plain HTTP: ``POST BASE_URL/chat/completions``.

A client library would handle replies that are not completions in its own way.
"""

import asyncio
import email.utils
import io
import ipaddress
import json
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from PIL import Image

from vapo_verl.claims.options import NO_KEY, EndpointOptions
from vapo_verl.claims.requests.reply import (
    UNREADABLE,
    FatalFault,
    ImageFailed,
    Message,
    Reply,
    TransientFault,
    printable,
    read_reply,
    stated_error,
    without_key,
)
from vapo_verl.data.errors import BadCell
from vapo_verl.data.images import IMAGE_ERRORS, ImageHeader, load_image, read_header

MAX_REPLY_BYTES = 32 << 20
"""A larger body is not a model's answer; reading stops there."""
_FATAL = {
    401: "the endpoint refuses the key; correct OPENAI_API_KEY",
    402: "the account cannot pay; top it up",
    404: "no such model or address; correct --model or OPENAI_BASE_URL",
    407: "the proxy refuses its user or password; correct HTTPS_PROXY or HTTP_PROXY",
}
_TRANSIENT_STATUS = (408, 409, 425, 429)
_CHUNK_BYTES = 1 << 16
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
SENT_AS_THEY_ARE = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""The formats that OpenAI-compatible endpoints take; others are sent as PNG."""


class Endpoint:
    """A chat-completions client without retries; `retry` does and counts them.

    Args:
        options: where the model is, and how it samples.
        top_p: sent with every request; None leaves it to the server; `vllm serve` reads it from
            the model's `generation_config.json`.
    """

    def __init__(self, options: EndpointOptions, *, top_p: float | None = None):
        self._options, self._top_p = options, top_p
        self._url = f"{options.base_url.rstrip('/')}/chat/completions"
        self._proxy = _proxy_for(self._url)

    async def __aenter__(self) -> "Endpoint":
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._options.api_key}"},
            timeout=aiohttp.ClientTimeout(total=self._options.timeout_s),
            connector=aiohttp.TCPConnector(limit=0),  # --max-concurrency is the limit
            cookie_jar=_NoCookies(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(self, messages: Sequence[Message], num_choices: int = 1) -> Reply:
        """Send one request.

        Raises:
            TransientFault: the same request may succeed later.
            ImageFailed: the endpoint refuses this one.
            FatalFault: it would refuse all.
        """
        try:
            return await self._ask(self._fields(messages, num_choices))
        except asyncio.TimeoutError as error:
            raise TransientFault("timeout") from error
        except aiohttp.ClientHttpProxyError as error:  # its text has the proxy's password
            if error.status in _FATAL:
                said = f"the proxy answers {error.status}; {_FATAL[error.status]}"
                raise FatalFault(said) from None
            raise TransientFault(f"proxy status {error.status}") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            # their texts quote headers, which may have the key: no traceback shows them
            raise TransientFault(UNREADABLE, detail=self._printable(str(error))) from None
        except aiohttp.ClientError as error:
            raise TransientFault("no connection", detail=self._printable(str(error))) from None

    async def _ask(self, fields: Mapping[str, Any]) -> Reply:
        # redirects are not followed: images and key are for this address alone
        async with self._session.post(
            self._url, json=fields, proxy=self._proxy, allow_redirects=False
        ) as response:
            body = await _read(response)
            if 200 <= response.status < 300:
                return read_reply(body, self._without_key)
            raise self._fault(response.status, response.headers, body)

    def _fields(self, messages: Sequence[Message], num_choices: int) -> dict[str, Any]:
        options = self._options
        fields: dict[str, Any] = {"model": options.model, "messages": list(messages)}
        fields |= {options.token_limit_name: options.max_tokens, "temperature": options.temperature}
        fields |= {"top_p": self._top_p, "n": num_choices if num_choices > 1 else None}
        return {name: value for name, value in fields.items() if value is not None}

    def _fault(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        text, code = _error_in(body)
        said = self._printable(text)
        if status in _FATAL or code == "insufficient_quota":
            fix = _FATAL.get(status, _FATAL[402])
            return FatalFault(f"the endpoint answers {status}: {said}; {fix}")
        if status in _TRANSIENT_STATUS or status >= 500:
            return TransientFault(f"status {status}", retry_after_s(headers), said)
        if 300 <= status < 400:
            place = self._printable(headers.get("location", "nowhere"))
            detail = f"to {place}; if that is the endpoint, set OPENAI_BASE_URL to it"
            return TransientFault(f"redirect with status {status}", detail=detail)
        return ImageFailed(f"refused with status {status}", said)

    def _without_key(self, text: str) -> str:
        key = self._options.api_key
        return text if key == NO_KEY else without_key(text, key)

    def _printable(self, text: str) -> str:
        """The start of a server's text, without control characters and without the key."""
        return printable(self._without_key(text))


class _NoCookies(aiohttp.DummyCookieJar):
    """Reads no cookies either: aiohttp logs the names that it refuses, and one may be a key."""

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: object) -> None:
        pass


def _proxy_for(url: str) -> str | None:
    """The proxy by HTTPS_PROXY, HTTP_PROXY and NO_PROXY; none for this machine. aiohttp's own
    lookup also reads ~/.netrc, and refuses a request with a key in both places."""
    parts = urlsplit(url)
    if _is_loopback(parts.hostname or "") or urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, decompressed.

    Raises:
        TransientFault: it is larger than ``MAX_REPLY_BYTES``; the rest is not read.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            response.close()
            detail = f"it is larger than {MAX_REPLY_BYTES >> 20} MiB"
            raise TransientFault(UNREADABLE, detail=detail)
    return bytes(body)


def _error_in(body: bytes) -> tuple[str, object]:
    """Message and code of an error body; the body as text if it has another form."""
    text = body.decode("utf-8", "replace")
    try:
        said, code = stated_error(json.loads(text))
    except (ValueError, RecursionError):
        return text, None
    return said or text, code


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or a date); None without.

    The number may be infinite: `retry.PatientAsker` caps it. Any other value, such as a negative
    number, counts as absent.
    """
    milliseconds, seconds = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if _NUMBER.fullmatch(milliseconds.strip()):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(seconds.strip()):
        return float(seconds)
    try:
        date = email.utils.parsedate_to_datetime(seconds).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):  # not a date, or out of range
        return None
    return max(date - (time.time() if now is None else now), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded image to be sent."""

    data: bytes
    media_type: str


def num_pixels(data: bytes) -> int:
    """Width times height, from the file's header. Raises BadCell when it cannot be read."""
    header = _header(data)
    return header.width * header.height


def prepare(data: bytes, media_type: str, max_pixels: int | None = None) -> Picture:
    """The image to send; the model sees the pixels of :func:`vapo_verl.data.images.load_image`.

    The stored bytes are sent if endpoints take the format and every decoder gives the same pixels.
    Otherwise, as for a transparent image or one rotated by EXIF, the pixels are sent as PNG.

    Args:
        max_pixels: larger images are scaled down to it, in proportion, and sent as PNG.

    Raises:
        BadCell: the image cannot be read.
    """
    header = _header(data)
    too_large = max_pixels is not None and header.width * header.height > max_pixels
    if media_type in SENT_AS_THEY_ARE and header.is_plain and not too_large:
        return Picture(data=data, media_type=media_type)
    try:
        image = load_image(data)
    except BadCell as error:
        raise _unreadable(error) from error
    if too_large and max_pixels is not None:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        size = (max(int(image.width * scale), 1), max(int(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(data=buffer.getvalue(), media_type="image/png")


def _header(data: bytes) -> ImageHeader:
    try:
        return read_header(data)
    except IMAGE_ERRORS as error:
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> BadCell:
    found = error.found if isinstance(error, BadCell) else str(error)
    return BadCell("images", f"cannot decode the image: {found}", "replace it or drop the row")
