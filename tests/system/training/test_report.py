"""The report of real runs in a real browser: a whole one, a killed one, both side by side."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from tests.browser import needs_browser
from tests.evaluation.probing_commands import ENVIRONMENT, SMALL
from vapo_verl.report.live import KEY_PANELS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_browser]

STEPS = 2
SHORT = (f"trainer.total_training_steps={STEPS}", "trainer.save_freq=-1")
WHOLE = (
    "vapo.attention.enabled=true",
    "vapo.attention.per_layer=true",
    "vapo.anchors.gate=always",
    "vapo.logging.report_freq=1",
    f"trainer.test_freq={STEPS}",
)
PLOTS = "[...document.querySelectorAll('.plot')]"
UNDRAWN = f"{PLOTS}.filter(plot => !plot.querySelector('svg')).length"
MISSING = "[...document.querySelectorAll('.missing')].map(e => e.innerText)"


@pytest.fixture(scope="module")
def whole(smoke, run_module, packaged_model):
    """A run with all that a report can show; its report from the end of training is kept."""
    run = smoke.run("whole", *SHORT, *WHOLE)
    (run / "report.html").rename(run / "left.html")
    rows = (packaged_model, smoke.data["val"], "--run", run, "--num-rows", "4", "--num-cuts", "5")
    command = ("vapo_verl.evaluation", "early-decision", *rows, *SMALL)
    run_module(*command, env=ENVIRONMENT, check=True)
    run_module("vapo_verl.report", run, check=True)
    return run


@pytest.fixture(scope="module")
def killed(smoke, run_module):
    """A run without attention, `kill -9` in its second step."""
    process = smoke.start("killed", *SHORT, "trainer.val_before_train=false")
    smoke.kill_when(process, smoke.root / "killed" / "rollouts" / "step_000002.parquet")
    run_module("vapo_verl.report", smoke.root / "killed", check=True)
    return smoke.root / "killed"


def test_every_section_is_filled(browser, whole):
    browser.open(whole / "report.html")
    browser.draw_all()
    assert browser.evaluate(UNDRAWN) == 0
    assert browser.evaluate(MISSING) == []
    assert browser.evaluate("document.querySelectorAll('.problem').length") == 0
    layers = f"{PLOTS}.flatMap(p => p.data).filter(t => t.type === 'heatmap').map(t => t.y)"
    assert browser.evaluate(layers) == [["layer 1", "layer 4"]]  # one in 8, of 6 layers
    assert "peak" in browser.text("#forgetting")
    browser.decode_images()
    assert browser.evaluate("document.images[0].naturalWidth") >= 56
    assert browser.evaluate("document.querySelectorAll('#response .anchor').length") == 8
    coloured = (
        "[...document.querySelectorAll('#response span')].every(e => e.style.backgroundColor)"
    )
    assert browser.evaluate(coloured)


def test_a_run_leaves_its_report_when_it_ends(browser, whole):
    browser.open(whole / "left.html")
    browser.draw_all()
    assert browser.evaluate(UNDRAWN) == 0
    [missing] = browser.evaluate(MISSING)
    assert missing.startswith("No early-decision run was made.")


def test_the_trackers_got_the_key_figures(whole):
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={IMAGES: 0})
    events.Reload()
    steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()[IMAGES]}
    assert steps == {f"report/{title}": [1, 2] for title in KEY_PANELS}


def test_a_killed_runs_report_says_what_is_missing(browser, killed):
    browser.open(killed / "report.html")
    browser.draw_all()
    assert browser.evaluate(UNDRAWN) == 0
    missing = " ".join(browser.evaluate(MISSING))
    for setting in ("vapo.attention.enabled", "vapo.attention.per_layer", "early-decision"):
        assert setting in missing
    assert browser.text("#count").endswith("of 32")


def test_two_runs_side_by_side(run_module, browser, whole, killed, tmp_path):
    out = tmp_path / "both.html"
    run_module("vapo_verl.report", whole, "--compare", killed, "--out", out, check=True)
    browser.open(out)
    browser.draw_all()
    assert browser.evaluate(UNDRAWN) == 0
    # the same seed and data: each prompt of the second run has its pair in the first
    rows = "[...document.querySelectorAll('#comparison tr')]"
    cells = f"{rows}.map(row => [row.cells[0].innerText, row.cells[1]?.innerText])"
    num_pairs = dict(browser.evaluate(cells))
    assert int(num_pairs["total reward"]) > 4
    assert int(num_pairs["vapo/reward/total"]) >= 1
    browser.choose("#run", "1")
    assert "vapo.attention.enabled=true" in browser.text("#hint")
