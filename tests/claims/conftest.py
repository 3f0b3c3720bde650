"""A scripted OpenAI-compatible server, and small image sets."""

import asyncio
import base64
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image

THINGS = (
    *(
        "kettle",
        "bicycle",
        "lantern",
        "cupboard",
        "violin",
        "pumpkin",
        "ladder",
        "carpet",
        "window",
    ),
    *("basket", "teapot", "anchor", "hammer", "candle", "mirror", "saddle", "trumpet", "wagon"),
    *(
        "pillow",
        "bucket",
        "zebra",
        "fountain",
        "jacket",
        "notebook",
        "quilt",
        "umbrella",
        "xylophone",
    ),
    *("yacht", "elephant", "drawer"),
)
QUESTION = "SECRET-QUESTION How many angles has the polygon?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """What the server does with one request."""

    texts: tuple[str, ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    delay_s: float = 0.0
    body: str | bytes | None = None
    """Sent as it is, in place of a completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request, as the server saw it."""

    image_key: str
    text: str
    """All text of the messages."""
    body: dict
    headers: dict[str, str]


Script = Callable[[Seen, int], Scripted]
"""From the request and the number of earlier requests for its image."""


def claim_lines(num_true: int, num_false: int, start: int = 0) -> str:
    """A good answer; claims differ for different `start`."""
    labels = [True] * num_true + [False] * num_false
    return "\n".join(
        json.dumps({"claim": good_claim(start + i), "label": label})
        for i, label in enumerate(labels)
    )


def good_claim(number: int) -> str:
    """A valid claim, different for every number below 870, and about no colour or count."""
    first, step = number % len(THINGS), 1 + number // len(THINGS)
    return f"The {THINGS[first]} lies beside the {THINGS[(first + step) % len(THINGS)]}."


def asked_for(text: str) -> tuple[int, int]:
    found = re.search(r"(\d+) true and (\d+) false", text)
    assert found, text
    return int(found[1]), int(found[2])


def obedient(seen: Seen, num_before: int) -> Scripted:
    """Exactly the claims that are asked for, new ones each time."""
    return Scripted(texts=(claim_lines(*asked_for(seen.text), start=30 * num_before),))


class ScriptedServer:
    """Runs in a thread of its own; `script` may be changed between runs."""

    def __init__(self) -> None:
        self.script: Script = obedient
        self.seen: list[Seen] = []
        self.max_in_flight = 0
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def keys(self) -> list[str]:
        return [seen.image_key for seen in self.seen]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        """Give up answers that hang, too."""
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        seen = _read_request(body, dict(request.headers))
        num_before = self.keys().count(seen.image_key) if len(self.seen) < 2000 else 0
        self.seen.append(seen)
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            scripted = self.script(seen, num_before)
            await asyncio.sleep(scripted.delay_s)
        finally:
            self._in_flight -= 1
        if scripted.body is not None:
            body = scripted.body.encode() if isinstance(scripted.body, str) else scripted.body
            return web.Response(body=body, status=scripted.status, headers=scripted.headers)
        if scripted.status != 200:
            error = {"error": {"message": "scripted", "code": scripted.headers.get("code")}}
            return web.json_response(error, status=scripted.status, headers=scripted.headers)
        return web.json_response(_completion(scripted))


def _read_request(body: dict, headers: dict[str, str]) -> Seen:
    texts, key = [], ""
    for message in body["messages"]:
        parts = message["content"]
        if isinstance(parts, str):
            texts.append(parts)
            continue
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                data = part["image_url"]["url"].partition("base64,")[2]
                key = hashlib.sha256(base64.b64decode(data)).hexdigest()
    return Seen(image_key=key, text="\n".join(texts), body=body, headers=headers)


def _completion(scripted: Scripted) -> dict:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "finish_reason": scripted.finish_reason,
        }
        for index, text in enumerate(scripted.texts)
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
    return {"id": "1", "object": "chat.completion", "choices": choices, "usage": usage}


@pytest.fixture(scope="session")
def scripted() -> SimpleNamespace:
    """The vocabulary that scripts are written in."""
    return SimpleNamespace(
        Answer=Scripted,
        asked_for=asked_for,
        claim_lines=claim_lines,
        good_claim=good_claim,
        obedient=obedient,
        QUESTION=QUESTION,
    )


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer()
    yield running
    running.close()


def _png(number: int) -> bytes:
    """A small image, different for every number below 2^16."""
    buffer = io.BytesIO()
    Image.new("RGB", (56, 28), (number % 256, number // 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    return _png


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of embedded images, each with a question that must never be sent."""

    def write(images: int | Sequence[Sequence[bytes]], name: str = "train.parquet") -> Path:
        if isinstance(images, int):
            images = [[_png(number)] for number in range(images)]
        rows = [
            {
                "prompt": [{"role": "user", "content": QUESTION}],
                "images": [{"bytes": data, "path": None} for data in row],
            }
            for row in images
        ]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        turn = pa.struct([("role", pa.string()), ("content", pa.string())])
        schema = pa.schema([("prompt", pa.list_(turn)), ("images", pa.list_(struct))])
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=16)
        return path

    return write


@pytest.fixture
def environment(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted server is the endpoint."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456")
    monkeypatch.setenv("VAPO_CLAIMS_MODEL", "scripted-vlm")


@pytest.fixture
def claims(environment: None) -> Callable[..., int]:
    """Run the command line in this process, with waits short enough for a test."""
    from vapo_verl.claims.__main__ import main

    def run(*arguments: object) -> int:
        words = [str(argument) for argument in arguments]
        if "--backoff-s" not in words:
            words += ["--backoff-s", "0.01"]
        return main(words)

    return run
