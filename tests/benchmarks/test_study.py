"""The study's figures, tests and plots from files as the diagnostics leave them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.study import __main__ as study
from benchmarks.study import arms, figures, in_one_process, page, variants
from benchmarks.study.claims import shares_by_kind
from benchmarks.study.credit import read_credit
from benchmarks.study.data import make_data, with_other_images
from benchmarks.study.measuring import OTHER_IMAGE_FOLDER, VALIDATION_FOLDER
from benchmarks.study.reads import stated_by_step, summarise_reads
from benchmarks.study.spread import spread
from benchmarks.study.statistics import compare
from benchmarks.study.workspace import WARM_START, Run, StudyError, Workspace, runs_of
from tests.composing import compose_once
from vapo_verl.digits.scene import Cell, Scene
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.early_decision import summarise as summarise_early
from vapo_verl.evaluation.perception.perception_command import summarise
from vapo_verl.run_folder.rollouts import write_rollouts

PLAN = replace(arms.FULL, arms=("grpo", "vapo"), num_steps=2, num_train_rows=4, num_test_rows=40)
TARGETS = (0.0, 0.5, 1.0)


def perception(row: int, right: bool, late: bool) -> dict:
    asked = ((0, True), (2, True), (5, False), (9, late))
    return {
        "row": row,
        "index": row,
        "response": "top left is red 1. and so on, to the end; top left is red 1.",
        "right": right,
        "format": 1.0,
        "finish": "stop",
        "num_tokens": 10,
        "attention": [0.3] * 5 + [0.1] * 5,
        "anchors": [
            {
                "position": position,
                "claim": "The top left digit is 1.",
                "correct": correct,
                "answer": True,
                "label": True,
            }
            for position, correct in asked
        ],
        "probe_tokens": 10,
        "cached_tokens": 5,
    }


def early(row: int, right: bool) -> dict:
    cuts = [
        {"target": target, "position": 0, "answer": "1", "right": right if target == 1 else True}
        for target in TARGETS
    ]
    return {
        "row": row,
        "data_source": "digits",
        "index": row,
        "ground_truth": "1",
        "response": "",
        "num_tokens": 10,
        "reasoning": [0, 9],
        "finish": "stop",
        "answer": "1",
        "right": right,
        "cuts": cuts,
    }


def leave(folder: Path, records: list[dict], summary: dict | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))


def measured(work: Workspace, name: str, share: float, seed: int) -> None:
    """A checkpoint that is correct, also on late claims, in about a `share` of the rows."""
    rng = np.random.default_rng(seed)
    right = rng.random(PLAN.num_test_rows) < share
    records = [perception(row, bool(r), bool(r)) for row, r in enumerate(right)]
    diagnostics = work.folder(name) / "diagnostics"
    leave(diagnostics / "perception", records, summarise(records))
    leave(diagnostics / OTHER_IMAGE_FOLDER, [perception(r, r < 4, False) for r in range(40)])
    leave(diagnostics / "early-decision", [early(row, bool(r)) for row, r in enumerate(right)])
    decision = load_early_decision(diagnostics / "early-decision")
    summary = json.dumps(summarise_early(decision))
    (diagnostics / "early-decision" / "summary.json").write_text(summary)
    lines = [{"step": step, "data": {"vapo/reward/accuracy": share}} for step in (1, 2)]
    (work.folder(name) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_rollouts(work.folder(name))


def save_rollouts(folder: Path) -> None:
    """Of two steps: in the first, nothing or a cell is stated, in the second, two cells are."""
    one = "top left is red 1."
    for step, texts in enumerate((("", one), (f"{one} {one} top center is red 1.",)), start=1):
        rows = [{"step": step, "index": 0, "response": text} for text in texts]
        write_rollouts(folder, step, rows)


@pytest.fixture(scope="module")
def all_measured(tmp_path_factory) -> Path:
    """A study's folder with every run of the plan, made once."""
    workspace = Workspace(root=tmp_path_factory.mktemp("study"))
    make_data(workspace, PLAN)
    measured(workspace, WARM_START, 0.4, seed=9)
    for run in runs_of(PLAN):
        measured(workspace, run.name, {"grpo": 0.45, "vapo": 0.9}[run.arm], seed=run.seed)
    return workspace.root


@pytest.fixture
def work(tmp_path, all_measured) -> Workspace:
    return Workspace(root=shutil.copytree(all_measured, tmp_path / "study"))


def test_figures_of_a_run(work):
    row = figures.read_figures(work, "vapo-1", "vapo", 1)
    right = json.loads((work.folder("vapo-1") / "diagnostics/perception/summary.json").read_text())
    assert row.accuracy == right["accuracy"]["share"] == row.claims_late
    assert (row.claims_start, row.claims_early, row.claims_middle) == (1.0, 1.0, 0.0)
    assert row.attention == pytest.approx(0.2)
    assert row.accuracy_other_image == pytest.approx(0.1)
    assert row.peak == 1.0 and row.peak_at == 0.0
    assert row.recoverable == pytest.approx(1 - row.accuracy)


def test_pairs_are_rows_and_seeds(work):
    runs = runs_of(PLAN)
    rows = [figures.read_figures(work, run.name, run.arm, run.seed) for run in runs]
    outcomes = [item for run in runs for item in figures.read_outcomes(work, run)]
    accuracy, late = compare(rows, outcomes, runs)
    assert (accuracy.measure, late.measure) == ("accuracy", "claims_late")
    assert accuracy.over_rows.n == PLAN.num_test_rows and accuracy.over_seeds.n == len(PLAN.seeds)
    mean = np.mean([r.accuracy for r in rows if r.arm == "vapo"]) - np.mean(
        [r.accuracy for r in rows if r.arm == "grpo"]
    )
    assert accuracy.over_rows.difference == pytest.approx(mean)
    assert accuracy.over_seeds.difference == pytest.approx(mean)
    assert accuracy.over_rows.p_t < 1e-3


def test_results_are_written_and_read_back(work, tmp_path, monkeypatch, capsys):
    document = tmp_path / "study.md"
    start, end = page.marks(page.FIGURES)
    document.write_text(f"Before.\n\n{start}\nold\n{end}\n\nAfter.\n")
    monkeypatch.setattr(page, "DOCUMENT", document)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    study.report_arms(work, PLAN, document=True)
    text = document.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    # its figures, two comparisons, claims by kind, what it learnt from
    assert text.count("| VAPO |") == 5
    kinds = (tmp_path / "results" / study.CLAIMS_CSV).read_text().splitlines()
    assert len(kinds) == 2 + len(runs_of(PLAN))
    again = figures.read_csv(tmp_path / "results" / study.RUNS_CSV, figures.Figures)
    assert [(row.arm, row.seed) for row in again] == [
        (WARM_START, study.NO_SEED),
        *((run.arm, run.seed) for run in runs_of(PLAN)),
    ]
    for name in ("claims", "attention", "early_decision", "training", "stated"):
        assert Image.open(tmp_path / "results" / f"{name}.png").size > (0, 0)
    assert "VAPO" in capsys.readouterr().out


@pytest.fixture
def with_variants(work) -> Workspace:
    """GRPO is correct in no row, VAPO's variants in every row, the rest in the even ones."""
    for run in variants.all_runs():
        rights = {"grpo": 0, "gamma_1": 1}
        shutil.rmtree(work.folder(run.name), ignore_errors=True)
        records = [
            perception(row, bool(rights.get(run.arm, row % 2 == 0)), late=True) for row in range(4)
        ]
        folder = work.folder(run.name)
        leave(folder / "diagnostics" / VALIDATION_FOLDER, records)
        metrics = {"vapo/reward/accuracy": 0.5, "actor/kl_loss": 0.01}
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": metrics}))
    return work


def test_a_variant_is_compared_with_the_arm_that_shares_its_learning_rate(with_variants):
    differences = variants.compare_variants(with_variants)
    assert "grpo" not in differences
    accuracy = {arm: by_measure["accuracy"] for arm, by_measure in differences.items()}
    assert accuracy["gamma_1"].difference == 1.0 and accuracy["gamma_1"].n == 4
    assert accuracy["grpo_lr_1e-4"].difference == accuracy["vapo"].difference == 0.5
    assert accuracy["vapo_lr_1e-4"].difference == 0.0  # GRPO with that rate is as good
    assert differences["gamma_1"]["claims_late"].difference == 0.0


def test_variants_are_written_with_what_they_learnt_from(
    with_variants, tmp_path, monkeypatch, capsys
):
    start, end = page.marks(page.VARIANTS)
    document = tmp_path / "study.md"
    document.write_text(f"Before.\n{start}\n{end}\nAfter.\n")
    monkeypatch.setattr(page, "DOCUMENT", document)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    study.report_variants(with_variants, document=True)
    text = document.read_text()
    assert text.count("| VAPO, gamma 1 |") == 2 and text.endswith("After.\n")
    assert "| VAPO, learning rate 1e-4 | GRPO, learning rate 1e-4 | +0.000" in text
    header, *lines = (tmp_path / "results" / study.VARIANTS_CSV).read_text().splitlines()
    assert len(lines) == len(arms.VARIANTS) + 2 * len(arms.FULL.seeds)
    row = dict(zip(header.split(","), lines[0].split(","), strict=True))
    assert (row["arm"], row["accuracy"], row["accuracy_last"]) == ("grpo", "0.0000", "0.5000")
    assert "VAPO, gamma 1" in capsys.readouterr().out


def test_tables_need_their_place_in_the_document(tmp_path):
    document = tmp_path / "study.md"
    document.write_text("Nothing to replace.\n")
    with pytest.raises(ValueError, match="variants: begin"):
        page.write_tables(document, page.VARIANTS, "table")
    assert document.read_text() == "Nothing to replace.\n"


def test_a_second_study_is_held_against_the_error_bars_of_both(work):
    ours = [figures.read_figures(work, f"vapo-{seed}", "vapo", seed) for seed in PLAN.seeds]
    same = page.agreement(ours, ours).splitlines()
    num = len(figures.MEASURES)
    assert len(same) == 3 and same[2].startswith(f"| VAPO | {num} of {num} |")
    committed = [replace(row, format=0.5 + 0.01 * seed) for seed, row in enumerate(ours)]
    # 1.0 in all of ours; 0.50, 0.51, 0.52 before: sd 0.01, t(2) = 4.303, bar 4.303 * 0.01 / sqrt(3)
    (line,) = page.agreement(ours, committed).splitlines()[2:]
    assert line == f"| VAPO | {num - 1} of {num} | format | 0.4900 | 0.0248 |"


def test_reads_are_held_against_the_image():
    cells = tuple(Cell(digit=digit, color="red", scan=0) for digit in (1, 2, 3, 4))
    scenes = {7: Scene(rows=2, cols=2, cells=cells)}
    seen = "top left is red 1. bottom right is red 4. the answer is far away. top right is red 2."
    unseen = seen.replace("top left is red 1", "top left is blue 1") + " middle left is red 3."
    records = [
        {"index": 7, "response": seen, "right": False},
        # a place that the grid has not is left out
        {"index": 7, "response": unseen, "right": False},
    ]
    reads = summarise_reads(records, scenes)
    # early: "top left", correct and not; late: "top right", twice correct; between: "bottom right"
    assert (reads.early, reads.late, reads.wrong_but_seen) == (0.5, 1.0, 0.5)
    assert reads.number == 3.0
    assert np.isnan(summarise_reads([{**records[0], "response": ""}], scenes).early)


def test_cells_stated_in_training_by_step(work):
    assert stated_by_step(work, "vapo-1") == {1: 0.5, 2: 2.0}
    shutil.rmtree(work.folder("vapo-1") / "rollouts")
    with pytest.raises(StudyError, match="vapo-1: no saved rollouts"):
        stated_by_step(work, "vapo-1")


def test_claims_are_told_apart_by_kind_and_place():
    cells = tuple(Cell(digit=digit, color="red", scan=0) for digit in (1, 2, 3, 4))
    scene = Scene(rows=2, cols=2, cells=cells)
    asked = (
        (1, "The top left digit is 1.", True),
        (2, "The top left digit is 5.", False),
        (9, "The top left digit is blue.", True),
        (5, "The top left digit is 1.", False),  # neither early nor late
    )
    anchors = [{"position": p, "claim": claim, "correct": right} for p, claim, right in asked]
    shares = shares_by_kind([{"index": 3, "num_tokens": 10, "anchors": anchors}], {3: scene})
    assert (shares["identity_early"], shares["color_late"]) == (0.5, 1.0)
    assert np.isnan(shares["identity_late"]) and np.isnan(shares["position_early"])


def test_what_runs_learnt_from_is_a_mean_over_steps(work):
    lines = [
        {"step": 1, "data": {"vapo/advantage/perception_only": 0.2, "vapo/anchors/accuracy": None}},
        {"step": 2, "data": {"vapo/advantage/perception_only": 0.4, "vapo/anchors/accuracy": 0.7}},
    ]
    (work.folder("vapo-1") / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    credit = read_credit(work, Run(arm="vapo", seed=1))
    assert credit.perception_only == pytest.approx(0.3) and credit.claims == 0.7
    assert np.isnan(credit.kl)
    header, _, row = page.credit_table([credit]).splitlines()
    assert (
        "advantage by perception alone" in header and "| 0.300 |" in row and row.endswith("| – |")
    )


def rollout(uid: str, *predictions: bool) -> dict:
    """A response of four tokens, with an anchor behind each."""
    anchors = [{"position": k, "correct": right} for k, right in enumerate(predictions, start=1)]
    return {"uid": uid, "response_ids": [0] * 4, "anchors": anchors}


def test_places_alone_spread_the_perception_reward_only_under_late_emphasis():
    early, late = rollout("a", True, False, False, False), rollout("a", False, False, False, True)
    found = spread([early, late, rollout("b", True), rollout("a")])
    # weights exp(1.5 k / 4) over their sum: 0.1307 and 0.4025; sd of two is their distance / sqrt 2
    assert found.paper == pytest.approx((0.4025 - 0.1307) / 2**0.5, abs=2e-4)
    assert found.flat == 0.0
    other = spread([early, rollout("a", True, True, False, False)])
    assert other.flat == pytest.approx(0.25 / 2**0.5)
    assert np.isnan(spread([early, rollout("b", True)]).flat)


def test_accuracy_in_training_is_told_of_the_first_and_the_last_quarter(work):
    shares = (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    lines = [
        {"step": step, "data": {"vapo/reward/accuracy": share}}
        for step, share in enumerate(shares, start=1)
    ]
    (work.folder("vapo-1") / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    credit = read_credit(work, Run(arm="vapo", seed=1))
    assert (credit.accuracy_first, credit.accuracy_last) == (pytest.approx(0.2), 0.9)


def test_one_process_runs_commands_until_one_fails(tmp_path, capsys):
    missing = ("vapo_verl.export", str(tmp_path / "none"))
    report = ("vapo_verl.report", str(tmp_path / "none"))
    assert in_one_process.main([in_one_process.to_argument([missing, report])]) == 2
    assert capsys.readouterr().err.count("none") == 1  # the second was not run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--arms", "vapo"], "add grpo"),
        (["--variants", "--seeds", "3"], "leave --arms and --seeds out"),
        (["--quick", "--document"], "full study"),
        (["--seeds", "3", "--document"], "full study"),
        (["--quick", "--variants"], "not allowed with"),
        (["--quick", "--forgetful"], "not allowed with"),
        (["--seeds", "-1"], "--seeds -1: give different numbers of 0 to"),
        (["--seeds", "1", "1"], "--seeds 1 1: give different numbers"),
        (["--forgetful", "--seeds", "0", "-2"], "--seeds 0 -2: give different"),
        (["--quick", "--seeds", "3"], "leave --arms and --seeds out"),
        (["--arms", "grpo", "decoupled"], "choose from grpo, vapo, vapo_focus"),
        (["--forgetful", "--arms", "grpo", "vapo_focus"], "choose from grpo, vapo, gamma_1"),
        (["--forgetful", "signal", "--arms", "grpo", "vapo"], "choose from decoupled, k_20"),
        (["--forgetful", "all"], "invalid choice: 'all'"),
        (["--report"], "--report is for --forgetful"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, options, told):
    with pytest.raises(SystemExit):
        study.main([*options, "--out", str(tmp_path / "study")])
    assert told in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_a_folder_of_another_plan_is_refused(tmp_path):
    work = Workspace(root=tmp_path)
    work.claim(PLAN)
    work.claim(PLAN)
    with pytest.raises(StudyError, match="another plan"):
        work.claim(replace(PLAN, seeds=(7,)))


def test_a_command_that_fails_names_its_log(tmp_path):
    work = Workspace(root=tmp_path)
    with pytest.raises(StudyError, match=r"exit code 2; see .*grpo-0\.log"):
        work.command("grpo-0", "vapo_verl.evaluation", "no-such-command", threads=1)
    assert "no-such-command" in (tmp_path / "logs" / "grpo-0.log").read_text()


def test_text_and_image_part_in_the_control(work):
    rows = pq.read_table(work.data / "test.parquet")
    other = with_other_images(rows)
    assert other.drop_columns("images").equals(rows.drop_columns("images"))
    pairs = zip(rows["images"].to_pylist(), other["images"].to_pylist(), strict=True)
    assert all(one != two for one, two in pairs)


def test_arms_change_only_what_they_name():
    for arm in (arms.ARMS | arms.VARIANTS).values():
        config = compose_once("study", arm.overrides)
        probes = config.vapo.anchors.num_anchors > 0
        assert probes == (config.vapo.reward.perception_source == "claims")
        assert config.vapo.attention.enabled  # all arms pay for it, and show it
