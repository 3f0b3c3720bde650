"""A run that validates on a benchmark file, keeps its best checkpoint, and is evaluated."""

import base64
import json

import pyarrow.parquet as pq
import pytest

from tests.evaluation.benchmarks.chat_server import write_tsv
from tests.system.smoke import metrics
from vapo_verl.data.cells import IMAGE_PLACEHOLDER
from vapo_verl.run_folder.checkpoints import BEST_FILE, complete_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 3
METRIC = "val/sums/accuracy"


@pytest.fixture(scope="module")
def tsv(smoke):
    """The validation rows of the digits world as VLMEvalKit would write them."""
    rows = [
        {
            "question": row["prompt"][0]["content"].replace(IMAGE_PLACEHOLDER, ""),
            "answer": row["reward_model"]["ground_truth"],
            "image": base64.b64encode(row["images"][0]["bytes"]).decode("ascii"),
        }
        for row in pq.read_table(smoke.data["val"]).to_pylist()
    ]
    return write_tsv(smoke.root / "sums.tsv", rows)


def overrides(smoke, tsv, metric):
    return (
        f"data.val_files=[{smoke.data['val']},{tsv}]",
        f"vapo.keep_best={metric}",
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=1",
        "trainer.test_freq=1",
        "trainer.max_actor_ckpt_to_keep=1",
    )


def test_validation_names_the_benchmark_and_the_best_checkpoint_stays(smoke, tsv, run_module):
    run_dir = smoke.run("benchmark", *overrides(smoke, tsv, METRIC))
    steps = metrics(run_dir)
    for step in range(STEPS + 1):
        values = steps[step]
        # the same rows, by the reward and by the rule: the greedy answers are the same
        assert values["val/digits/accuracy"] == values["val-core/digits/acc/mean@1"]
        assert values[METRIC] == values["val/digits/accuracy"]
        assert 0 <= values["val/sums/unparsed"] <= 1
        assert "val/digits/unparsed" not in values
    accuracies = {step: steps[step][METRIC] for step in range(1, STEPS + 1)}
    best = json.loads((run_dir / BEST_FILE).read_text())
    assert best["metric"] == METRIC
    assert best["value"] == max(accuracies.values()) == accuracies[best["step"]]
    assert complete_steps(run_dir) == sorted({best["step"], STEPS})

    out = smoke.root / "evaluated"
    words = ["benchmark", str(run_dir), str(tsv), "--out", str(out), "--suffix", "trained"]
    words += ["--step", str(best["step"]), "--dtype", "float32", "--kv-cache-gib", "0.25"]
    done = run_module("vapo_verl.evaluation", *words, "--max-tokens", "160")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"exporting step {best['step']}" in done.stdout
    assert "suffix ''" in done.stdout
    summary = json.loads((out / "sums" / "summary.json").read_text())
    # weights are rounded to bfloat16 by the export
    assert summary["accuracy"]["mean"] == pytest.approx(best["value"], abs=0.2)


def test_an_unknown_metric_ends_the_run_at_its_first_validation(smoke, tsv):
    process = smoke.start("unknown", *overrides(smoke, tsv, "val/sums/acc"))
    assert process.wait(timeout=900) == 1
    log = smoke.log("unknown")
    assert "vapo.keep_best=val/sums/acc: the validation has no such metric; set one of" in log
    assert METRIC in log
    assert complete_steps(smoke.root / "unknown") == []
