"""A real browser for pages: headless Chromium over its DevTools pipe."""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
TIMEOUT_S = 60

needs_browser = pytest.mark.skipif(
    EXECUTABLE is None, reason=f"no browser: none of {NAMES} is here"
)


class Browser:
    """Headless Chromium with one tab, driven over its DevTools pipe: it reads 3 and writes 4."""

    def __init__(self, profile: Path):
        command_end, self._commands = os.pipe()
        self._events, event_end = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        redirected = f'exec "$@" 3<&{command_end} 4>&{event_end}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", str(EXECUTABLE), *flags],
            pass_fds=(command_end, event_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_end)
        os.close(event_end)
        self._unread, self._number, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._events)
        self._process.kill()
        self._process.wait()

    def send(self, method: str, **params: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._events], [], [], TIMEOUT_S)
            assert ready, "the browser does not answer"
            part = os.read(self._events, 1 << 16)
            assert part, "the browser has ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)

    def load(self, method: str, **params: object) -> None:
        """A command that ends with the page loaded again."""
        seen = len(self.events)
        self.send(method, **params)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events[seen:]):
            self.events.append(self._receive())

    def open(self, page: Path) -> None:
        self.load("Page.navigate", url=page.as_uri())
