"""The audit page in a real browser: judged by mouse and keyboard, reloaded, exported, imported."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import TIMEOUT_S, Browser, needs_browser
from vapo_verl.claims.audit.page import AuditImage, summarise, write_page
from vapo_verl.data.claims_column import Claim

EVIL = """<script>evil = 1</script></script><img src=x onerror="evil = 1"> "quoted" & 's"""

pytestmark = needs_browser


class AuditBrowser(Browser):
    """What a person does on the page."""

    def reload(self) -> None:
        time.sleep(1)  # Chromium's renderer hands local storage over a moment after it is set
        self.load("Page.reload")

    def evaluate(self, expression: str) -> object:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the element, as a person would."""
        x, y = self.evaluate(  # type: ignore[misc]
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, keys: str) -> None:
        for key in keys:
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def choose_file(self, selector: str, path: Path) -> None:
        found = self.send("Runtime.evaluate", expression=f"document.querySelector('{selector}')")
        object_id = found["result"]["objectId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], objectId=object_id)

    def of(self, method: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") == method]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[AuditBrowser]:
    """A fresh browser; at the end, nothing was complained of and nothing was asked for."""
    browser = AuditBrowser(tmp_path / "profile")
    try:
        yield browser
        asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
        assert [url for url in asked if url.split(":")[0] not in ("file", "data", "blob")] == []
        for method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            assert browser.of(method) == []
    finally:
        browser.close()


def audit_image(number: int, *texts: str) -> AuditImage:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((640, 400)).save(buffer, "PNG")
    return AuditImage(
        key=str(number) * 64,
        data=buffer.getvalue(),
        source=f"train.parquet row {number}",
        model="m-7b",
        claims=tuple(Claim(text, index % 2 == 0) for index, text in enumerate(texts)),
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Two images: three claims and two."""
    images = [audit_image(1, EVIL, "It is dark.", "Left."), audit_image(2, "A.", "B.")]
    write_page(tmp_path / "audit.html", images, seed=7)
    return tmp_path / "audit.html"


def choice(claim: int, question: str, answer: str) -> str:
    card = f"#claims > li:nth-child({claim})"
    return f'{card} [data-question="{question}"] input[value="{answer}"]'


def shares(browser: AuditBrowser) -> list[str]:
    names = ("visually_dependent", "answerable", "label_right")
    return [" ".join(browser.text(f'[data-share="{name}"]').split()) for name in names]


def wait_for(condition, what: str):
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def exported(browser: AuditBrowser, folder: Path) -> Path:
    folder.mkdir()
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.click("#export")
    return wait_for(lambda: next(folder.glob("*.json"), None), "no file was exported")


def test_answers_are_counted_kept_over_a_reload_exported_and_imported(browser, page, tmp_path):
    browser.open(page)
    assert browser.text("#claims > li .text") == EVIL  # shown as it is written
    assert browser.evaluate("window.evil") is None
    assert browser.evaluate("document.scripts.length") == 2
    assert browser.evaluate("document.getElementById('image').naturalWidth") == 640
    assert browser.text("#progress") == "Image 1 of 2, 0 of 5 claims judged"
    assert shares(browser) == ["– 0 of 0"] * 3

    browser.click("#auditor")
    browser.press("Ada y12")  # keys of the page are letters of a name here
    browser.click(choice(1, "visually_dependent", "yes"))
    browser.click(choice(1, "answerable", "no"))
    browser.click(choice(1, "label_right", "unsure"))
    browser.click("#claims > li:nth-child(2) .yes-all")
    expected = ["100.0 % 2 of 2", "50.0 % 1 of 2", "50.0 % 1 of 2, 1 unsure"]
    assert shares(browser) == expected
    assert browser.text("#progress") == "Image 1 of 2, 2 of 5 claims judged"

    browser.reload()
    assert shares(browser) == expected
    assert browser.evaluate("document.getElementById('auditor').value") == "Ada y12"
    assert browser.evaluate(f"document.querySelector('{choice(1, 'answerable', 'no')}').checked")

    file = exported(browser, tmp_path / "downloads")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert file.name == f"audit-{content['page_id']}-Ada-y12.json"
    assert content["verdicts"][0] == {
        "image_key": "1" * 64,
        "claim": EVIL,
        "label": True,
        "visually_dependent": "yes",
        "answerable": "no",
        "label_right": "unsure",
    }
    assert len(content["verdicts"]) == 2
    assert "label right          50.0%" in summarise([file])

    browser.evaluate("localStorage.clear()")
    browser.reload()
    assert shares(browser) == ["– 0 of 0"] * 3
    browser.choose_file("#file", file)
    wait_for(lambda: browser.text("#message"), "nothing was imported")
    assert browser.text("#message") == f"Imported 2 of 2 answers from {file.name}."
    assert shares(browser) == expected
    assert browser.evaluate("document.getElementById('auditor').value") == "Ada y12"


def test_an_audit_by_keyboard_alone(browser, page):
    browser.open(page)
    browser.press("jyy")  # to the first claim; it and the second: all yes
    browser.press("122333")  # the third: yes; yes, no; yes, no, unsure
    assert shares(browser) == ["100.0 % 3 of 3", "66.7 % 2 of 3", "66.7 % 2 of 3, 1 unsure"]
    browser.press("ny")  # the next image, its first claim
    assert browser.text("#progress") == "Image 2 of 2, 4 of 5 claims judged"
    browser.press("po")  # back, and to the claim that is open: the last one of image 2
    assert browser.evaluate("document.activeElement.dataset.id") == "1.1"
    browser.press("y")
    assert browser.text("#progress") == "Image 2 of 2, 5 of 5 claims judged"
    browser.press("o")
    assert browser.text("#message") == "Every claim is judged: export your answers."


def test_what_is_no_export_and_what_is_broken_in_the_store_do_no_harm(browser, page, tmp_path):
    browser.open(page)
    (tmp_path / "other.json").write_text('{"verdicts": [{"claim": "A."}]}')
    browser.choose_file("#file", tmp_path / "other.json")
    wait_for(lambda: browser.text("#message"), "nothing was said")
    assert browser.text("#message") == "Not imported: other.json is no export of this page."
    browser.press("jy")
    stored = '{"image": "constructor", "verdicts": {"0.0": {"answerable": "<b>"}, "9.9": {}}}'
    browser.evaluate(f"localStorage.setItem(STORED, {json.dumps(stored)})")
    browser.reload()
    assert shares(browser) == ["– 0 of 0"] * 3


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(browser, page, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    high = "[...document.querySelectorAll('button, .choices label')].filter(e => e.offsetParent)"
    heights = browser.evaluate(f"{high}.map(e => e.getBoundingClientRect().height)")
    assert min(heights) >= 36  # pixels: large enough for a thumb
