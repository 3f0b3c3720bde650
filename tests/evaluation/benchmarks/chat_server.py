"""A scripted OpenAI-compatible endpoint on the loopback, and small benchmark files."""

import base64
import contextlib
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from vapo_verl.evaluation.__main__ import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: its text, its images, and all of its body."""

    text: str
    images: tuple[Image.Image, ...]
    body: dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server does with a request."""

    text: str = ""
    status: int = 200
    finish_reason: str = "stop"


Script = Callable[[Request], Reply]


@dataclass(slots=True, kw_only=True)
class ChatServer:
    """Answers by `script`, which may be changed at any time, and keeps all requests."""

    url: str
    script: Script
    requests: list[Request] = field(default_factory=list)
    models: tuple[str, ...] = ("scripted",)
    """What it lists."""


@contextlib.contextmanager
def chat_server(script: Script) -> Iterator[ChatServer]:
    """A server for as long as the context is open."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = _read(body)
            state.requests.append(request)
            reply = state.script(request)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": reply.finish_reason,
            }
            usage = {"prompt_tokens": 10, "completion_tokens": len(reply.text.split())}
            answer = {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}
            if reply.status != 200:
                answer = {"error": {"message": "scripted"}}
            data = json.dumps(answer).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            data = json.dumps({"data": [{"id": name} for name in state.models]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ChatServer(url=f"http://127.0.0.1:{server.server_port}/v1", script=script)
    thread = threading.Thread(
        target=server.serve_forever,
        kwargs={"poll_interval": 0.01},  # seconds that its end may take
        daemon=True,
    )
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _read(body: dict) -> Request:
    text, images = "", []
    for message in body["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                text += part["text"]
            else:
                data = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
                images.append(Image.open(io.BytesIO(data)).convert("RGB"))
    return Request(text=text, images=tuple(images), body=body)


def png(color: tuple[int, int, int], size: tuple[int, int] = (56, 28)) -> str:
    """An image in base64: half of it in this colour, half black."""
    image = Image.new("RGB", size)
    image.paste(color, (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_tsv(path: Path, rows: Sequence[dict]) -> Path:
    """A TSV as VLMEvalKit writes it; each row without an image gets one of its own colour."""
    for number, row in enumerate(rows):
        row.setdefault("index", number)
        row.setdefault("image", png((50 + number, 200, 30)))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def benchmark(url: str, out: Path, *data: Path | str) -> int:
    """Run the command against an endpoint; its exit code. Options may follow the files."""
    words = ["benchmark", url, *map(str, data), "--out", str(out), "--model-name", "scripted"]
    return main(words)
