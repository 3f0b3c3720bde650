"""A browser that a reader of the report drives, and that complains of nothing."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser import Browser


class ReportBrowser(Browser):
    """What a reader does on the page."""

    def evaluate(self, expression: str) -> object:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def choose(self, selector: str, value: str) -> None:
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change')); }})()"
        )

    def show_as(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def draw_all(self) -> None:
        self.evaluate("dispatchEvent(new Event('beforeprint'))")

    def screenshot(self, path: Path) -> None:
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def decode_images(self) -> None:
        """Wait for them: the browser decodes them in its own time."""
        decoded = "Promise.all([...document.images].map(e => e.decode()))"
        self.send("Runtime.evaluate", expression=decoded, awaitPromise=True)

    def of(self, method: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") == method]


@contextmanager
def quiet_browser(profile: Path) -> Iterator[ReportBrowser]:
    """A fresh browser; at the end, nothing was complained of and nothing was asked for."""
    browser = ReportBrowser(profile)
    try:
        yield browser
        asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
        assert [url for url in asked if url.split(":")[0] not in ("file", "data", "blob")] == []
        for method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            assert browser.of(method) == []
    finally:
        browser.close()
