"""The report in a real browser: drawn, filtered, on a wide screen and a narrow one, in the dark."""

import io
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import TIMEOUT_S, needs_browser
from vapo_verl.report.__main__ import main

EVIL = "</script><script>evil = 1</script><img src=x onerror='evil = 1'>"

pytestmark = needs_browser


@pytest.fixture
def page(tmp_path: Path, make_run, rollout_row, anchor) -> Path:
    """Two runs of two steps; one response has what a model might write to do harm."""
    evil = rollout_row(
        1, 5, accuracy=0.0, tokens=[EVIL, *"abcdefg"], prompt=EVIL,
        anchors=[anchor(3, label=True, p_yes=0.2, claim=EVIL)],
    )  # fmt: skip
    layers = [[0.1, 0.2, 0.3]] * 8
    rows = {s: [rollout_row(s, s, visual_attention_layers=layers)] for s in (1, 2)}
    bare = {s: [rollout_row(s, s, visual_attention=[], anchors=[])] for s in (1, 2)}
    metrics = {
        step: {
            "vapo/reward/total": 1 + step / 10,
            "vapo/anchors/accuracy": 0.6,
            "vapo/attention/mean": 0.2 / step,
            f"timing_s/{EVIL}": 1.0,
            "timing_s/gen": 4.0,
        }
        for step in (1, 2)
    }
    a = make_run("a", {1: [*rows[1], evil], 2: rows[2]}, metrics)
    b = make_run("b", bare, metrics)
    assert main([str(a), "--compare", str(b), "--out", str(tmp_path / "r.html")]) == 0
    return tmp_path / "r.html"


def test_panels_are_drawn_and_text_stays_text(browser, page):
    browser.open(page)
    browser.draw_all()
    assert browser.evaluate("window.evil") is None
    assert browser.evaluate("document.images.length") == 0
    # one line a run: solid for the first, dashed for the second
    dashes = "[...document.querySelectorAll('.plot')].find(p => p.dataset.panel === '0').data"
    assert browser.evaluate(f"{dashes}.map(trace => trace.line.dash)") == ["solid", "dash"]
    undrawn = "[...document.querySelectorAll('.plot')].filter(p => !p.querySelector('svg')).length"
    assert browser.evaluate(undrawn) == 0
    assert browser.evaluate("document.querySelectorAll('.heatmaplayer image').length") == 1
    legends = browser.evaluate(
        "[...document.querySelectorAll('.legendtext')].map(e => e.textContent)"
    )
    assert any(EVIL[:20] in legend for legend in legends), legends  # shown as it is written


def test_rollouts_are_filtered_and_their_anchors_marked(browser, page):
    browser.open(page)
    assert browser.text("#count") == "1 of 3"
    marks = "[...document.querySelectorAll('#response > *')].map(e => e.className || '.').join(' ')"
    # behind tokens 2 and 6
    assert browser.evaluate(marks) == ". . anchor right . . . . anchor wrong . ."
    colours = "[...document.querySelectorAll('#response > span')].map(e => e.style.backgroundColor)"
    found = browser.evaluate(colours)
    assert found[0] == found[1] != found[2]
    browser.click("#response button:nth-of-type(2)")
    assert browser.text("#anchors tr.chosen").split("\t")[:2] == ["2", "6"]

    browser.choose("#right", "false")
    assert browser.text("#count") == "1 of 1"
    assert browser.text("#response span") == EVIL
    assert browser.text("#prompt") == EVIL
    assert browser.text("#anchors td:nth-child(3)") == EVIL
    assert browser.text("#anchors td:nth-child(6)") == "0.2"
    browser.choose("#step", "2")
    assert browser.text("#count") == "No response fits."
    browser.choose("#right", "true")
    assert browser.text("#count") == "1 of 1"
    browser.choose("#run", "1")
    browser.choose("#right", "")
    browser.click("#next")
    assert browser.text("#count") == "2 of 2"
    assert "vapo.attention.enabled=true" in browser.text("#hint")
    assert "vapo.anchors.num_anchors" in browser.text("#no-anchors")
    assert browser.evaluate("window.evil") is None


def test_a_response_without_attention_says_why(browser, make_run, rollout_row):
    lacking = rollout_row(1, 1, visual_attention=[float("nan")] * 8)
    run = make_run("a", {1: [rollout_row(1, 0), lacking]})
    assert main([str(run)]) == 0
    browser.open(run / "report.html")
    assert browser.text("#hint") == ""
    browser.click("#next")
    assert "its prompt shows no image" in browser.text("#hint")


def test_the_images_of_a_prompt_are_shown(browser, make_run, rollout_row, png):
    images = [png(600, 1200, "red"), png(64, 64, "blue")]
    run = make_run("a", {1: [rollout_row(1, 0, images=images), rollout_row(1, 1, images=[])]})
    assert main([str(run)]) == 0
    browser.open(run / "report.html")
    browser.decode_images()
    sizes = "[...document.images].map(e => [e.naturalWidth, e.naturalHeight, e.className])"
    assert browser.evaluate(sizes) == [[256, 512, ""], [64, 64, "small"]]
    assert browser.evaluate("document.images[0].offsetHeight") > 100
    browser.click("#next")
    assert browser.evaluate("document.images.length") == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_the_screen_and_follows_the_colour_scheme(browser, page, tmp_path, width, scheme):
    browser.show_as(width, scheme)
    browser.open(page)
    browser.draw_all()
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    widths = browser.evaluate(
        "[...document.querySelectorAll('.plot .main-svg')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(widths) <= width
    path = tmp_path / "page.png"
    browser.screenshot(path)
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        corner = picture.convert("L").getpixel((2, picture.height - 3))
    assert corner < 60 if scheme == "dark" else corner > 200

    other = "light" if scheme == "dark" else "dark"
    colour = "document.querySelector('.plot .xtick text').style.fill"
    before = browser.evaluate(colour)
    browser.show_as(width, other)
    deadline = time.monotonic() + TIMEOUT_S
    while browser.evaluate(colour) == before:
        assert time.monotonic() < deadline, "the figures keep the old colours"
        time.sleep(0.05)
