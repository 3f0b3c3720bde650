"""The main comparison from files as the evaluation leaves them, and its control without a model."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.study import __main__ as study
from benchmarks.study import arms, page, tasks
from benchmarks.study.data import LINES, make_data
from benchmarks.study.forgetful import command, compared, outcome, recorded, starts, tables
from benchmarks.study.forgetful import plan as plans
from benchmarks.study.forgetful.control import check_control
from benchmarks.study.measuring import OTHER_IMAGE_FOLDER
from benchmarks.study.reads import read_scenes
from benchmarks.study.workspace import (
    TEST,
    WARM_START,
    Run,
    StudyError,
    Workspace,
    runs_of,
)
from tests.benchmarks.test_study import early, leave, perception, save_rollouts
from tests.composing import compose_once
from vapo_verl import preflight
from vapo_verl.config import vapo_config
from vapo_verl.digits.model.forgetful import Forgetting
from vapo_verl.digits.model.forgetful_start import StartConfig, data_config
from vapo_verl.digits.questions import read
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.early_decision import summarise as summarise_early
from vapo_verl.evaluation.perception.perception_command import summarise
from vapo_verl.settings import check_settings

PLAN = replace(
    plans.MAIN, arms=("grpo", "decoupled"), seeds=(0, 1, 2), num_steps=2, num_train_rows=4,
    num_test_rows=20,
)  # fmt: skip
LATE = {WARM_START: 0.5, "grpo": 0.5, "decoupled": 0.9}
"""How often the last claim of a row is judged correctly."""


def weights(work, text):
    """What stands for a warm start's."""
    work.model.mkdir(parents=True, exist_ok=True)
    (work.model / starts.WEIGHTS).write_text(text)
    starts.bind_start(work)


def measured(work, name, arm, seed):
    rng = np.random.default_rng(seed + 10)
    scenes = read_scenes(work.data / TEST)
    records = []
    for row in range(PLAN.num_test_rows):
        scene = scenes[row]
        first, *_, last = scene.positions
        checks = f" {read(scene, last)}" if arm == "decoupled" else ""
        response = f"{read(scene, first)} the largest is 7.{checks}"
        late = bool(rng.random() < LATE[arm])
        records.append(perception(row, row % 2 == 0, late) | {"response": response})
    folder = work.folder(name) / "diagnostics"
    leave(folder / "perception", records, summarise(records))
    leave(folder / OTHER_IMAGE_FOLDER, records, summarise(records))
    leave(folder / "early-decision", [early(row, True) for row in range(PLAN.num_test_rows)])
    decision = load_early_decision(folder / "early-decision")
    (folder / "early-decision" / "summary.json").write_text(json.dumps(summarise_early(decision)))
    data = {"vapo/advantage/perception_fraction": 0.25, "vapo/reward/accuracy": 0.5}
    line = json.dumps({"step": 1, "data": data})
    (work.folder(name) / "metrics.jsonl").write_text(line)
    save_rollouts(work.folder(name))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The rows of a workspace."""
    work = Workspace(root=tmp_path_factory.mktemp("rows"))
    make_data(work, PLAN, LINES)
    return work.data


@pytest.fixture(scope="module")
def all_measured(tmp_path_factory, data):
    """A study's folder with every run of the plan, made once."""
    root = tmp_path_factory.mktemp("study")
    for memory, work in starts.workspaces(root, PLAN, root / "starts").items():
        shutil.copytree(data, work.data)
        weights(work, memory)
        measured(work, WARM_START, WARM_START, 0)
        for run in runs_of(PLAN):
            measured(work, run.name, run.arm, run.seed)
    return root


@pytest.fixture
def works(tmp_path, all_measured):
    shutil.copytree(all_measured, tmp_path, dirs_exist_ok=True)
    return starts.workspaces(tmp_path, PLAN, tmp_path / "starts")


@pytest.fixture
def no_plots(monkeypatch):
    """For tests of tables: plots take seconds."""
    monkeypatch.setattr(page, "write_plots", lambda *_: None)


def test_rows_are_those_of_the_warm_starts():
    assert data_config() == LINES


def test_strengths_have_warm_starts_of_their_own(works, tmp_path):
    strong, none = works["18"], works["none"]
    assert strong.model == tmp_path / "starts" / "18" and none.model == tmp_path / "starts" / "none"
    for work in works.values():  # already made: kept
        before = (work.data / TEST).stat().st_mtime_ns
        make_data(work, PLAN, LINES)
        assert (work.data / TEST).stat().st_mtime_ns == before


def test_statements_before_and_after_the_answer_is_known(works):
    found = compared.read_outcomes(works, PLAN)["18"]
    by_arm = {of_run.arm: of_run for of_run in found}
    assert (by_arm["grpo"].stated, by_arm["grpo"].checked) == (1.0, 0.0)
    assert (by_arm["decoupled"].stated, by_arm["decoupled"].checked) == (2.0, 1.0)
    assert by_arm["grpo"].reads_right == 1.0 and by_arm["grpo"].accuracy == 0.5
    assert by_arm["grpo"].attention_early == pytest.approx(0.3)
    assert by_arm["grpo"].attention_middle == pytest.approx(0.2)
    assert by_arm["grpo"].attention_late == pytest.approx(0.1)
    assert by_arm["decoupled"].perception_fraction == 0.25
    assert math.isnan(by_arm[WARM_START].perception_fraction)


def test_a_cell_that_was_named_before_is_no_further_look(works):
    scenes = read_scenes(works["18"].data / TEST)
    first, second, *_ = (read(scenes[0], place) for place in scenes[0].positions)
    for response, expected in (
        (f"{first} the largest is 7. {first}", (1.0, 0.0)),
        (f"{first} the largest is 7. {first} {second}", (2.0, 1.0)),
        (f"{first} {second}", (2.0, 0.0)),  # no conclusion
    ):
        found = outcome.statements([{"index": 0, "response": response}], scenes)
        assert (found["stated"], found["checked"]) == expected


def test_p_is_adjusted_over_the_arms_of_the_plan_done_or_not(works):
    def adjusted(plan):
        text = tables.tables({"18": compared.read_outcomes(works, PLAN)["18"]}, plan)
        (line,) = (row for row in text.splitlines() if "| claims late | +" in row)
        return [cell.strip() for cell in line.split("|")[5:7]]

    p, alone = adjusted(PLAN)
    assert alone == p  # one test
    _, of_three = adjusted(replace(PLAN, arms=(*PLAN.arms, "gamma_1", "vapo")))
    assert float(of_three) == pytest.approx(3 * float(p), rel=0.1)
    _, of_another_part = adjusted(replace(PLAN, known=("grpo", "decoupled")))
    assert of_another_part == ""


def test_an_arm_can_be_compared_with_another_one_in_a_part(works):
    outcomes = compared.read_outcomes(works, PLAN)["18"]
    found = [replace(o, arm="vapo_focus") if o.arm == "decoupled" else o for o in outcomes]
    found += [replace(o, arm="vapo") for o in outcomes if o.arm == "decoupled"]
    plan = plans.NEIGHBOURS
    assert tables.compare_by_seed(found, plan)["vapo_focus"]["cells stated"].difference == 0.0
    assert tables.compare_by_seed(found, plan)["vapo"]["cells stated"].difference == 1.0


def test_arms_are_compared_with_grpo_by_seed(works):
    found = tables.compare_by_seed(compared.read_outcomes(works, PLAN)["none"], PLAN)
    assert set(found) == {"decoupled"}
    late = found["decoupled"]["claims late"]
    assert late.n == 3 and late.difference > 0.2
    assert found["decoupled"]["cells checked"].difference == 1.0
    assert found["decoupled"]["cells stated, sampled"].difference == 0.0
    assert {*found["decoupled"]} == {*tables.TESTED} - {"groups all correct"}  # no run has it


def test_equal_differences_have_no_interval_and_no_p(works):
    text = tables.tables({"18": compared.read_outcomes(works, PLAN)["18"]}, PLAN)
    assert "| cells checked | +1.000 (–, n = 3) | – |" in text


def test_what_is_not_measured_yet_is_left_out(works, tmp_path):
    strong = works["18"]
    (strong.folder("decoupled-2") / "diagnostics" / "perception" / "summary.json").unlink()
    found = compared.read_outcomes(works, PLAN)
    assert len(found["18"]) == len(found["none"]) - 1 == len(runs_of(PLAN))
    plotted = compared.plotted(strong, PLAN, found["18"])
    assert plotted is not None and (plotted.arms, plotted.seeds) == (PLAN.arms, (0, 1))
    assert tables.compare_by_seed(found["18"], PLAN)["decoupled"]["claims late"].n == 2
    none = works["none"]
    (none.folder(WARM_START) / "diagnostics" / "early-decision" / "summary.json").unlink()
    assert compared.plotted(none, PLAN, found["none"]) is None
    text = tables.tables(found, PLAN)
    assert "n = 2" in text and "n = 3" in text


def test_one_arm_alone_is_not_plotted(works):
    plan = replace(PLAN, arms=("grpo",))
    assert compared.plotted(works["18"], plan, compared.read_outcomes(works, plan)["18"]) is None


def test_an_interrupted_study_has_pairs():
    assert [run.name for run in runs_of(PLAN)][:3] == ["grpo-0", "decoupled-0", "grpo-1"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([math.nan, 0.01], [1.0, 0.02]),
        ([], []),
    ],
)
def test_p_values_of_several_tests_are_adjusted(given, expected):
    assert tables.holm(given) == pytest.approx(expected)


def test_the_report_writes_tables_csv_and_plots(works, tmp_path, monkeypatch, capsys):
    document = tmp_path / "study.md"
    start, end = page.marks("comparison")
    document.write_text(f"Before.\n{start}\nold\n{end}\nAfter.\n")
    monkeypatch.setattr(page, "DOCUMENT", document)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "page")
    command.report(works, PLAN, tmp_path, "comparison", document=True)
    text = document.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    assert text.count("| VAPO, gamma 1, decoupled | GRPO (K=0) | claims late |") == 2
    header, *lines = (tmp_path / "page" / "comparison.csv").read_text().splitlines()
    assert header.startswith("memory,start,arm,seed,") and len(lines) == 2 * (1 + 6)
    assert (tmp_path / "page" / "comparison_18" / "claims.png").stat().st_size > 0
    assert "GRPO" in capsys.readouterr().out


@pytest.fixture
def results(works, tmp_path, monkeypatch, no_plots):
    """CSV file of an earlier sitting with all runs of the plan, and a document for them."""
    folder = tmp_path / "page"
    monkeypatch.setattr(page, "RESULTS", folder)
    monkeypatch.setattr(page, "DOCUMENT", tmp_path / "study.md")
    page.DOCUMENT.write_text("\n".join(page.marks("comparison")))
    command.report(works, PLAN, tmp_path, "comparison", document=True)
    return folder


def forget(work, *names):
    for name in names:
        shutil.rmtree(work.folder(name))


def test_recorded_runs_stand_beside_those_of_the_folder(works, results, tmp_path):
    whole = page.DOCUMENT.read_text()
    forget(works["18"], "decoupled-1", "grpo-0")
    known = recorded.read_recorded(results, PLAN)
    assert len(known) == 2 * (1 + 6)
    found = compared.read_outcomes(works, PLAN, known)
    assert [len(found[memory]) for memory in PLAN.memories] == [7, 7]
    assert compared.plotted(works["18"], PLAN, found["18"]) is None  # not with all its seeds
    assert compared.plotted(works["none"], PLAN, found["none"]) is not None
    command.report(works, PLAN, tmp_path, "comparison", document=True, known=known)
    assert page.DOCUMENT.read_text() == whole


def test_a_document_never_loses_recorded_runs(works, results, tmp_path):
    before = (page.DOCUMENT.read_text(), (results / "comparison.csv").read_text())
    forget(works["none"], "decoupled-2")
    with pytest.raises(StudyError, match=r"1 results .* decoupled of seed 2 .* add --recorded"):
        command.report(works, PLAN, tmp_path, "comparison", document=True)
    assert (page.DOCUMENT.read_text(), (results / "comparison.csv").read_text()) == before


def test_recorded_runs_are_not_made_again(works, results):
    known = recorded.read_recorded(results, PLAN)
    assert recorded.runs_to_make(PLAN, "18", known, None) == []
    assert recorded.runs_to_make(PLAN, "18", [], None) == runs_of(PLAN)
    known = [row for row in known if (row.arm, row.seed) != ("decoupled", 1)]
    names = [
        [run.name for run in recorded.runs_to_make(PLAN, "18", known, start)]
        for start in (starts.start_of(works["18"]), "another")
    ]
    assert names == [["decoupled-1"], ["grpo-1", "decoupled-1"]]  # pairs have one warm start


def test_runs_of_a_seed_are_those_of_one_warm_start(works, results):
    ours = compared.read_outcomes(works, PLAN)["18"]
    theirs = [replace(row, start="another", accuracy=0.9) for row in ours if row.seed in (-1, 0, 1)]
    fewer = [row for row in ours if row.seed != 1 or row.arm != "grpo"]
    found = compared.of_one_start([*fewer, *theirs], PLAN)
    accuracy = {(row.arm, row.seed): row.accuracy for row in found}
    assert accuracy["grpo", 1] == accuracy["decoupled", 1] == 0.9  # two runs there, one here
    assert accuracy["grpo", 0] == accuracy["grpo", 2] == 0.5
    assert [row.arm for row in found].count(WARM_START) == 2
    assert compared.of_one_start(ours, PLAN) == ours
    assert compared.of_one_start(ours[:1], PLAN) == ours[:1]  # measured first
    lost = [replace(row, start=starts.UNRECORDED) for row in theirs]
    found = compared.of_one_start([*fewer, *lost], PLAN)
    assert [row.arm for row in found if row.seed == 1] == ["decoupled"]  # its start was kept
    assert compared.of_one_start(lost, PLAN) == lost


def test_a_table_tells_warm_starts_apart_and_says_how_many_runs(works):
    ours = compared.read_outcomes(works, PLAN)["18"]
    theirs = [replace(row, start="another") for row in ours if row.seed in (-1, 0)]
    mixed = [*theirs, *(row for row in ours if row.seed != 0)]
    text = tables.tables({"18": mixed}, PLAN)
    assert "| warm start, from another |" in text
    assert "| GRPO (K=0), from another (n = 1) |" in text
    assert f"| GRPO (K=0), from {starts.start_of(works['18'])} (n = 2) |" in text
    text = tables.tables({"18": ours}, PLAN)
    assert "| warm start |" in text and "| GRPO (K=0) (n = 3) |" in text


def test_runs_repeated_from_another_warm_start_are_reported_below_the_table(works):
    ours = compared.read_outcomes(works, PLAN)["18"]
    late = {"grpo": 0.5, "decoupled": 0.75}
    theirs = [
        replace(
            row, start="another", claims_late=late[row.arm] + (row.arm == "grpo") * row.seed / 8
        )
        for row in ours
        if row.arm in late and row.seed in (0, 1)
    ]
    assert compared.of_other_starts([*ours, *theirs], PLAN) == {"another": theirs}
    text = tables.tables({"18": [*ours, *theirs]}, PLAN)
    assert text.startswith(tables.tables({"18": ours}, PLAN))
    repeated = text[len(tables.tables({"18": ours}, PLAN)) :]
    assert "from another warm start, another:" in repeated
    assert (
        "| VAPO, gamma 1, decoupled | GRPO (K=0) | +0.188 (-0.607 to +0.982, n = 2) |" in repeated
    )
    known = replace(PLAN, known=PLAN.arms)
    assert "another warm start" not in tables.tables({"18": [*ours, *theirs]}, known)
    assert "another warm start" not in tables.tables({"18": [*ours, theirs[0]]}, PLAN)


def test_seeds_without_a_tested_arm_are_not_compared(works):
    plan = replace(PLAN, known=("grpo",))
    ours = compared.read_outcomes(works, plan)["18"]
    begun = [row for row in ours if row.seed != 2 or row.arm == "grpo"]
    assert {row.seed for row in compared.of_one_start(begun, plan)} == {-1, 0, 1}
    alone = [row for row in ours if row.arm != "decoupled"]
    assert compared.of_one_start(alone, plan) == alone


def test_runs_of_another_warm_start_stay_in_the_file(works, results, tmp_path):
    theirs = [
        replace(row, start="another")
        for row in recorded.read_recorded(results, PLAN)
        if row.memory == "18" and row.seed in (-1, 0)
    ]
    command.report(works, PLAN, tmp_path, "comparison", document=True, known=theirs)
    assert len((results / "comparison.csv").read_text().splitlines()) == 1 + 2 * 7 + 3
    with pytest.raises(StudyError, match=r"3 results .* add --recorded"):
        command.report(works, PLAN, tmp_path, "comparison", document=True)


def test_late_claims_by_what_the_response_states(works):
    scenes = read_scenes(works["18"].data / TEST)
    scene = scenes[0]
    named, other, *_ = scene.positions
    asked = [(0, named, False), (8, named, True), (9, named, False), (9, other, False)]
    record = {
        "index": 0,
        "response": read(scene, named),
        "num_tokens": 10,
        "anchors": [
            {"position": position, "claim": f"The {place} digit is 1.", "correct": correct}
            for position, place, correct in asked
        ],
    }
    found = outcome.late_claims_by_cell([record], scenes)
    assert found == {"late_stated": 0.5, "late_unstated": 0.0}
    found = outcome.late_claims_by_cell([record | {"anchors": []}], scenes)
    assert math.isnan(found["late_stated"]) and math.isnan(found["late_unstated"])


def test_a_folder_keeps_to_its_warm_start(works):
    work = works["18"]
    starts.bind_start(work)
    before = starts.start_of(work)
    assert len(before) == 8 and compared.read_outcomes(works, PLAN)["18"][0].start == before
    (work.model / starts.WEIGHTS).write_text("others")
    with pytest.raises(StudyError, match=f"runs of the warm start {before}.* by --starts"):
        starts.bind_start(work)
    assert starts.start_of(work) == before
    (work.root / starts.START_FILE).unlink()
    assert compared.read_outcomes(works, PLAN)["18"][0].start == "unrecorded"


def test_an_interrupted_study_is_reported_and_says_so(
    works, results, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(plans.PLANS, "comparison", PLAN)
    monkeypatch.setattr(command, "make_data", lambda *_: None)
    monkeypatch.setattr(command, "do_all", interrupted)
    forget(works["none"], "decoupled-2")  # which the document has
    assert study.main(["--forgetful", "--document", "--out", str(tmp_path)]) == 130
    told = capsys.readouterr().err
    assert "add --recorded" in told and "interrupted; the same command goes on" in told


def test_parts_take_recorded_runs_from_each_other(results):
    part = replace(PLAN, memories=("18",), arms=("grpo", "flat"))
    found = {(row.memory, row.arm, row.seed) for row in recorded.read_recorded(results, part)}
    assert found == {("18", "grpo", seed) for seed in PLAN.seeds} | {("18", WARM_START, -1)}


def test_the_plans_warm_starts_are_in_the_repository():
    for memory, work in starts.workspaces(Path("root"), PLAN, starts.STARTS).items():
        card = json.loads((work.model / "figures.json").read_text())
        config = StartConfig(
            forgetting=Forgetting(memory=None if memory == "none" else float(memory)),
            steps=PLAN.start_steps,
        )
        assert card["config"] == asdict(config)
        assert (work.model / starts.WEIGHTS).stat().st_size > 1 << 20


def test_several_parts_make_a_run_once_seed_by_seed(tmp_path, monkeypatch):
    made: list[tuple[str, str]] = []

    def train(work, plan, run, threads):
        made.append((work.root.name, run.name))

    monkeypatch.setattr(tasks, "train", train)
    for step in ("make_data", "measure"):
        monkeypatch.setattr(command, step, lambda *_: None)
    for step in ("make_start", "bind_start"):
        monkeypatch.setattr(command, step, lambda *_: None)
    signal = replace(PLAN, arms=("grpo", "flat"), memories=("18",), seeds=(0, 1))
    monkeypatch.setitem(plans.PLANS, "comparison", replace(PLAN, seeds=(0, 1)))
    monkeypatch.setitem(plans.PLANS, "signal", signal)
    folder = str(tmp_path / "study")
    assert study.main(["--forgetful", "comparison", "signal", "--jobs", "1", "--out", folder]) == 0
    runs = [f"{arm}-{seed}" for seed in (0, 1) for arm in ("grpo", "decoupled", "flat")]
    assert [name for memory, name in made if memory == "memory_18"] == runs
    assert made[len(runs) :] == [("memory_none", name) for name in runs if "flat" not in name]


def test_a_report_starts_nothing(works, no_plots, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(plans.PLANS, "comparison", PLAN)
    before = sorted(tmp_path.glob("memory_*/**"))
    assert study.main(["--forgetful", "--report", "--out", str(tmp_path)]) == 0
    assert "n = 3" in capsys.readouterr().out
    assert (tmp_path / "results" / "comparison.csv").exists()
    assert sorted(tmp_path.glob("memory_*/**")) == before


def test_arms_of_the_comparison_differ_from_vapo_as_they_say():
    known = arms.ALL_ARMS
    assert set(plans.MAIN.arms) <= set(known) and plans.QUICK.arms == (arms.CONTROL,)
    assert {*known["decoupled"].overrides} - {*known["gamma_1"].overrides} == {
        "vapo.advantage.normalization=decoupled"
    }
    assert known["no_gate"].overrides == ("vapo.anchors.gate=relaxed",)
    alone = {"vapo.reward.accuracy_weight=0.0", "vapo.reward.format_weight=0.0"}
    assert alone < {*known[arms.CONTROL].overrides}


ALL = dict.fromkeys(arm for plan in plans.PLANS.values() for arm in plan.arms)


@pytest.mark.parametrize("arm", [*ALL, arms.CONTROL])
def test_every_arm_is_a_run_that_can_start(arm):
    config = compose_once("study", arms.ALL_ARMS[arm].overrides)
    settings = vapo_config(OmegaConf.to_container(config.vapo, resolve=True))
    check_settings(config)
    for check in (preflight.check_normalization, preflight.check_method, preflight.check_batches):
        check(config)
    without = {arms.BASELINE, "attention_reward", *arms.NEIGHBOURS}
    assert settings.probes_claims == (arm not in without)
    assert settings.attention.enabled  # all arms pay for it, and show it
    decoupled = {"decoupled", *arms.SIGNAL}
    assert (settings.advantage.normalization == "decoupled") == (arm in decoupled)
    assert settings.method.name == (arm if arm in arms.NEIGHBOURS else "none")


@pytest.mark.parametrize("arm", arms.SIGNAL)
def test_an_arm_of_the_signal_differs_in_one_setting(arm):
    other = arms.ALL_ARMS[arms.SIGNAL[arm].against]
    differing = {*arms.SIGNAL[arm].overrides} ^ {*other.overrides}
    keys = {override.partition("=")[0] for override in differing}
    # pairing=group cuts at relative places by itself
    assert len(keys - {"vapo.anchors.placement"}) == (0 if arm == "k_20_relative" else 1)


def test_parts_share_their_runs_and_no_other_size(tmp_path):
    work = Workspace(root=tmp_path)
    for plan in plans.PLANS.values():
        work.claim(plan)
    with pytest.raises(StudyError, match="another plan"):
        work.claim(plans.QUICK)


@pytest.fixture
def control(tmp_path, data):
    def run(rate):
        root = tmp_path / str(rate)
        (work,) = starts.workspaces(root, plans.QUICK, starts.STARTS).values()
        shutil.copytree(data, work.data)
        name = Run(arm=arms.CONTROL, seed=0).name
        for folder, late in (
            (WARM_START, lambda row: row % 2 == 0),
            (name, lambda row: row < rate),
        ):
            records = [perception(row, True, late(row)) for row in range(PLAN.num_test_rows)]
            leave(work.folder(folder) / "diagnostics" / "perception", records)
        return work

    return run


def test_the_control_passes_where_late_claims_rise(control):
    assert "late claims +" in check_control(control(rate=20), plans.QUICK)


@pytest.mark.parametrize("rate", [10, 0])
def test_the_control_fails_where_they_do_not(control, rate):
    with pytest.raises(StudyError, match="the control did not move"):
        check_control(control(rate=rate), plans.QUICK)
