"""The report of run folders: complete ones, broken ones, and missing data."""

import base64
import gc
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vapo_verl.report.__main__ import main, run_names
from vapo_verl.report.run_summary import summarise_run
from vapo_verl.run_folder.rollouts import write_rollouts

EVIL = "</script><script>evil = 1</script><img src=x onerror='evil = 1'>${policy}"
METRICS = {
    "vapo/reward/total": 1.5,
    "vapo/anchors/accuracy": 0.75,
    "vapo/attention/mean": float("nan"),
    "timing_s/gen": 2.0,
}


def report(run_dir: Path, *arguments: str) -> str:
    out = run_dir / "report.html"
    assert main([str(run_dir), *arguments]) == 0
    return out.read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def panel(page: str, title: str) -> dict:
    return next(panel for panel in data_of(page)["panels"] if panel["title"] == title)


def visible(page: str) -> str:
    """What stands in the page before its data and scripts."""
    return " ".join(page.split('<script type="application/json"')[0].split())


def test_a_reward_that_does_not_distinguish_responses_is_told(make_run, rollout_row):
    def signal(agreement, fraction=0.3):
        figures = {"vapo/anchors/agreement": agreement, "vapo/anchors/spread": 0.03}
        figures["vapo/advantage/perception_fraction"] = fraction
        return dict.fromkeys(range(1, 7), METRICS | figures)

    rows = {1: [rollout_row(1)]}
    title = "Signal of the perception reward"
    alike = panel(report(make_run("alike", rows, signal(0.97))), title)
    assert "agree on 97.0% of their claims" in alike["note"]
    assert panel(report(make_run("apart", rows, signal(0.8))), title)["note"] == ""
    drowned = panel(report(make_run("drowned", rows, signal(0.8, 0.02))), title)
    assert "decides 2.0% of the advantage" in drowned["note"]
    assert "docs/study.md" in drowned["note"]


def test_a_run_in_numbers(make_run, rollout_row):
    rows = [rollout_row(1, index, accuracy=float(index)) for index in (0, 1)]
    page = report(make_run("one", {1: rows}, {1: METRICS, 2: METRICS | {"vapo/reward/total": 2}}))
    reward = panel(page, "Reward")["series"]
    assert [(s["name"], s["x"], s["y"]) for s in reward] == [("total", [1, 2], [1.5, 2])]
    phases = panel(page, "Time per phase")["series"]
    assert [(s["name"], s["y"]) for s in phases] == [("gen", [2, 2])]
    accuracy = panel(page, "Anchor accuracy by position")
    # of 8 tokens: position 2 in [0.2, 0.3), right; 6 in [0.7, 0.8), wrong; in both responses
    assert accuracy["series"][0]["x"] == [0.25, 0.75]
    assert accuracy["series"][0]["y"] == [1.0, 0.0]
    assert accuracy["series"][0]["texts"] == ["2 of 2", "0 of 2"]
    assert accuracy["level"] == 0.5
    curve = panel(page, "Visual attention by token")["series"][0]
    assert curve["x"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curve["y"] == pytest.approx([0.8, 0.8, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], abs=0.0006)
    samples = data_of(page)["samples"]
    assert [(s["correct"], s["index"]) for s in samples] == [(False, 0), (True, 1)]
    assert samples[0]["anchors"][1]["p_yes"] == 0.6
    assert samples[0]["attention"][2] == 0.3
    text = visible(page)
    # early: tokens 1 and 2 of 8; late: 6, 7 and 8: (0.2 + 0.1 + 0.1) / 3 / 0.8
    assert "late third / early third</th><td>0.167 (0.167 to 0.167)" in text
    # 0.8 at token 2 and 0.3 at token 3: 0.4 at 2.8, which is 1.8 behind the first
    assert "half-life, tokens</th><td>1.8</td>" in text
    assert "sampled responses</th><td>2</td>" in text


def test_each_layer_has_a_line_of_the_heat_map(make_run, rollout_row):
    rows = {s: [rollout_row(s, visual_attention_layers=[[0.1, 0.4]] * 8)] for s in (1, 2)}
    run = make_run("one", rows)
    heat = panel(report(run), "Visual attention by layer")["heat"]
    assert heat["y"] == ["captured layer 0", "captured layer 1"]
    assert len(heat["values"]) == 2
    # 8 tokens fill 8 of the 20 bins
    assert [value for value in heat["values"][1] if value is not None] == [0.4] * 8
    write_rollouts(run, 1, rows[1], layers=[3, 10])
    page = report(run)
    assert panel(page, "Visual attention by layer")["heat"]["y"] == ["layer 3", "layer 10"]
    assert "1 response(s) were captured at other layers" in visible(page)


def test_what_is_missing_is_said_with_its_setting(make_run, rollout_row):
    bare = {"visual_attention": [float("nan")] * 8, "anchors": [], "reward": None}
    page = visible(report(make_run("bare", {1: [rollout_row(**bare)]}, {1: {"x": 1}})))
    for setting in (
        "vapo.attention.enabled=true",
        "vapo.attention.per_layer=true",
        "vapo.anchors.num_anchors &gt; 0 and a claims column",
        "trainer.test_freq &gt; 0",
    ):
        assert setting in page


def test_what_one_of_two_runs_lacks_is_said_under_its_name(make_run, rollout_row):
    a = make_run("a", {1: [rollout_row()]})
    b = make_run("b", {1: [rollout_row(visual_attention=[])]})
    page = report(a, "--compare", str(b))
    curve = panel(page, "Visual attention by progress")
    assert [series["run"] for series in curve["series"]] == [0]
    assert curve["missing"].startswith("b: The sampled rollouts hold no visual attention.")
    assert panel(page, "Anchor accuracy by position")["missing"] == ""
    assert curve["missing"] in visible(page)


def test_metrics_without_rollouts_and_rollouts_without_metrics(make_run, rollout_row):
    page = report(make_run("metrics", {}, {1: METRICS}))
    assert "No rollouts were kept." in visible(page)
    page = report(make_run("rollouts", {1: [rollout_row()]}))
    assert panel(page, "Reward")["missing"] == "No step has logged it."
    assert len(data_of(page)["samples"]) == 1


def test_a_run_that_writes_and_one_that_crashed(make_run, rollout_row):
    run = make_run("live", {1: [rollout_row()]}, {1: METRICS})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "data": {"vapo/rew')
    (run / "rollouts" / "step_000002.parquet").write_bytes(b"PAR1 cut short")
    (run / "rollouts" / "step_000003.partial").write_bytes(b"PAR1")
    page = report(run)
    assert "metrics.jsonl: 1 incomplete line(s)" in visible(page)
    assert "step_000002.parquet cannot be read and is left out" in visible(page)
    assert panel(page, "Reward")["series"][0]["x"] == [1]
    assert len(data_of(page)["samples"]) == 1


def test_null_cells_and_columns_of_another_version(make_run, rollout_row):
    run = make_run("one", {1: [rollout_row()]})
    nulls = dict.fromkeys(rollout_row()) | {"step": 2}
    run = make_run("one", {1: [rollout_row()], 2: [nulls]})
    table = pa.table({"step": [3], "response": ["text"], "tokens": [["text"]]})
    pq.write_table(table, run / "rollouts" / "step_000003.parquet")
    page = report(run)
    assert [sample["step"] for sample in data_of(page)["samples"]] == [1, 2, 3]


def test_what_a_model_wrote_stays_text(make_run, rollout_row, anchor):
    row = rollout_row(
        tokens=[EVIL] * 8,
        prompt=EVIL,
        ground_truth=EVIL,
        anchors=[anchor(1, label=True, p_yes=0.9, claim=EVIL)],
    )
    page = report(make_run("<b>evil", {1: [row]}, {1: {f"timing_s/{EVIL}": 1.0}}))
    assert "evil = 1" not in visible(page)
    assert "<b>evil" not in page
    data = page.split('id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert data_of(page)["samples"][0]["tokens"][0] == EVIL  # and in full
    assert page.count("<script") - page.split("<script>")[1].count("<script") == 3


def test_the_policy_names_the_scripts_that_stand_there(make_run, rollout_row):
    page = report(make_run("one", {1: [rollout_row()]}))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2  # plotly once, and the page's own
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_images_are_shown_where_the_file_has_them(make_run, rollout_row, png):
    red, blue = png(4, 3, "red"), png(4, 3, "blue")
    cells = ([red, blue], [blue], [None, b"no image"], None)
    run = make_run("one", {1: [rollout_row(1, i, images=cell) for i, cell in enumerate(cells)]})
    data = data_of(report(run))
    assert [sample["images"] for sample in data["samples"]] == [[0, 1], [1], [], []]
    assert [uri.partition(",")[0] for uri in data["images"]] == ["data:image/png;base64"] * 2


def test_two_runs_are_drawn_together_and_paired(make_run, rollout_row):
    a = make_run(
        "a",
        {s: [rollout_row(s, 7, accuracy=0.0)] for s in (1, 2, 3)},
        {s: {"vapo/reward/total": s} for s in (1, 2, 3)},
    )
    b = make_run(
        "b",
        {s: [rollout_row(s, 7, accuracy=1.0)] for s in (2, 3, 4)},
        {s: {"vapo/reward/total": s + 0.5} for s in (2, 3, 4)},
    )
    page = report(a, "--compare", str(b))
    assert [(s["run"], s["x"]) for s in panel(page, "Reward")["series"]] == [
        (0, [1, 2, 3]),
        (1, [2, 3, 4]),
    ]
    text = visible(page)
    # common steps 2 and 3: means 2.5 and 3, difference 0.5 in both, so no spread to test against
    cells = "<td>2</td><td>2.5</td><td>3</td><td>0.5</td><td>–</td><td>–</td><td>0.5</td>"
    assert f"vapo/reward/total</th>{cells}" in text
    # the same prompt at steps 2 and 3
    assert "accuracy</th><td>2</td><td>0</td><td>1</td><td>1</td>" in text
    c = make_run("c", {9: [rollout_row(9, 8)]}, {9: {"vapo/reward/total": 1}})
    text = visible(report(a, "--compare", str(c)))
    assert "No common step" in text
    assert "No common prompt" in text


def test_early_decision_in_numbers(make_run, rollout_row, early_decision):
    run = make_run("one", {1: [rollout_row()]})
    early_decision(run, ["+++", "-+-", "--+", "-+-"])
    page = report(run)
    curve = panel(page, "Early decision")["series"][0]
    assert (curve["x"], curve["y"]) == ([0, 0.5, 1], [0.25, 0.75, 0.5])
    assert curve["texts"] == ["1 of 4", "3 of 4", "2 of 4"]
    text = visible(page)
    for cell in (
        "responses</th><td>4</td>",
        "peak</th><td>0.75 (0.301 to 0.954), 3 of 4 at 50%",
        "last cut − peak</th><td>-0.25 (",
        "recoverable by any cut, of errors</th><td>1 (0.342 to 1), 2 of 2",
        "recoverable by any cut, of all</th><td>0.5 (0.15 to 0.85), 2 of 4",
        "recoverable by a single cut, of errors</th><td>1 (0.342 to 1), 2 of 2 at 50%",
    ):
        assert cell in text


def test_early_decision_that_was_not_made_or_cannot_be_read(make_run, rollout_row, early_decision):
    run = make_run("one", {1: [rollout_row()]})
    page = report(run)
    assert "early-decision MODEL DATA --run RUN_DIR" in panel(page, "Early decision")["missing"]
    assert "Early decision in numbers" not in visible(page)
    folder = early_decision(run, ["+++"])
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"row": 1, "cuts')  # is being written
    assert panel(report(run), "Early decision")["series"][0]["texts"] == ["1 of 1"] * 3
    (folder / "rows.jsonl").write_text('{"row": 0}\n')
    page = report(run)
    assert "rows.jsonl: a row lacks or has wrong" in visible(page)
    assert panel(page, "Early decision")["series"] == []


def test_early_decision_of_two_runs_is_paired_by_row(make_run, rollout_row, early_decision):
    a, b = (make_run(name, {1: [rollout_row()]}) for name in "ab")
    early_decision(a, ["+++", "-+-", "---"])
    text = visible(report(a, "--compare", str(b)))
    assert "b: No early-decision run was made." in text
    assert "Common early-decision rows" not in text
    early_decision(b, ["--+", "-++", "-+-", "+++"])
    text = visible(report(a, "--compare", str(b)))
    # rows 0, 1, 2: with all reasoning 1 0 0 and 1 1 0, at an earlier cut 1 1 0 and 0 1 1
    assert "correct with all reasoning</th><td>3</td><td>0.333</td><td>0.667</td>" in text
    assert "correct at any earlier cut</th><td>3</td><td>0.667</td><td>0.667</td>" in text
    assert "correct with no reasoning</th><td>3</td><td>0.333</td><td>0</td>" in text


def test_a_thousand_steps_in_bounded_memory(make_run, rollout_row):
    cells = {"tokens": ["token "] * 200, "visual_attention": [0.5] * 200}
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    rows = [
        rollout_row(1, 0, n, accuracy=float(n % 2), images=[encoded(noise[n])], **cells)
        for n in range(8)
    ]
    short, run = make_run("short", {1: rows}), make_run("long", {1: rows})
    table = pq.read_table(run / "rollouts" / "step_000001.parquet")
    for step in range(2, 1001):
        steps = pa.array([step] * len(table), pa.int64())
        moved = table.set_column(table.schema.get_field_index("step"), "step", steps)
        for folder in (run, short) if step <= 50 else (run,):
            pq.write_table(moved, folder / "rollouts" / f"step_{step:06d}.parquet")
    first = summarise_run(short, name="short", num_samples=20, seed=0)
    again = summarise_run(short, name="short", num_samples=20, seed=0)
    assert again.explorer.responses() == first.explorer.responses()
    gc.collect()
    before = psutil.Process().memory_info().rss
    summary = summarise_run(run, name="long", num_samples=20, seed=0)
    grown = psutil.Process().memory_info().rss - before
    # The tokens of all rows alone are 80 MiB as Python's objects, the images 50 MiB.
    assert grown < 32 * 2**20
    assert (summary.num_files, summary.num_responses) == (1000, 8000)
    shown = summary.explorer.responses()
    assert len(shown) == 20
    assert sum(response.correct is True for response in shown) == 10
    assert len({response.step for response in shown}) > 10  # from all over the run
    assert summary.anchors.num_anchors == 16_000


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_report_is_made_without_torch(make_run, rollout_row):
    run = make_run("one", {1: [rollout_row()]}, {1: METRICS})
    code = (
        "import sys; from vapo_verl.report.__main__ import main\n"
        f"assert main([{str(run)!r}]) == 0\n"
        "print(sorted({'torch', 'verl', 'vllm', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_errors_name_the_path_and_the_fix(tmp_path, make_run, rollout_row, capsys):
    run = make_run("one", {1: [rollout_row()]})
    cases = [
        ([str(tmp_path / "none")], "none is no folder; give a run's trainer.default_local_dir"),
        ([str(tmp_path)], "has neither metrics.jsonl nor rollouts/step_*.parquet"),
        ([str(run), "--compare", str(tmp_path)], "has neither metrics.jsonl"),
        ([str(run), "--out", str(tmp_path)], "give a file in a folder that exists"),
        ([str(run), "--out", str(tmp_path / "no" / "x.html")], "give a file in a folder"),
        ([str(run), "--num-samples", "-1"], "--num-samples -1: give 0 or more"),
    ]
    for arguments, message in cases:
        assert main([*arguments]) == 2
        assert message in capsys.readouterr().err


def test_no_samples_may_be_asked_for(make_run, rollout_row):
    page = report(make_run("one", {1: [rollout_row()]}), "--num-samples", "0")
    assert data_of(page)["samples"] == []


def test_a_very_small_p_is_not_told_exactly(make_run, rollout_row):
    steps = range(1, 60)
    a = make_run("a", {}, {s: {"vapo/reward/total": s % 3} for s in steps})
    b = make_run("b", {}, {s: {"vapo/reward/total": s % 3 + 1 + s % 2 / 10} for s in steps})
    assert "<td>&lt; 1e-06</td>" in visible(report(a, "--compare", str(b)))


def test_runs_of_the_same_name_are_told_apart():
    assert run_names([Path("a/run"), Path("b/other")]) == ["run", "other"]
    assert run_names([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vapo_verl.report.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_early_decisions_on_other_data_are_not_paired(make_run, rollout_row, early_decision):
    a, b = (make_run(name, {1: [rollout_row()]}) for name in "ab")
    for run, data in ((a, "test.parquet 12"), (b, "test.parquet 34")):
        folder = early_decision(run, ["+++", "-+-"])
        (folder / "settings.json").write_text(json.dumps({"DATA": data}))
    text = visible(report(a, "--compare", str(b)))
    assert "Nothing to pair: A is on test.parquet 12, B on test.parquet 34. Both runs need" in text
    assert "correct with all reasoning</th><td>2</td>" not in text


def test_early_decisions_with_other_options_are_not_paired(make_run, rollout_row, early_decision):
    """More cuts are more chances to be correct at any of them."""
    a, b = (make_run(name, {1: [rollout_row()]}) for name in "ab")
    for run, model, num_cuts in ((a, "m1", 21), (b, "m2", 5)):
        folder = early_decision(run, ["+++", "-+-"])
        settings = {"MODEL": model, "DATA": "test.parquet 12", "--num-cuts": num_cuts}
        (folder / "settings.json").write_text(json.dumps(settings))
    text = visible(report(a, "--compare", str(b)))
    assert "Nothing to pair: --num-cuts is 21 in A and 5 in B." in text
    assert "correct with all reasoning</th><td>2</td>" not in text
