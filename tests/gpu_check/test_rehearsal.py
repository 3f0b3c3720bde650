"""The stages' own code on CPU, at small sizes: what a GPU would run, but for its kernels."""

import json
import subprocess
import sys

import pytest
import torch

from vapo_verl.gpu_check import engine, kernels
from vapo_verl.gpu_check.case import CaseFailed


def rehearse(out, *stages):
    command = [sys.executable, "-m", "vapo_verl.gpu_check", "--device", "cpu"]
    options = ["--stages", *stages, "--minutes", "60", "--out", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((out / "results.json").read_text())
    assert [stage["name"] for stage in document["stages"]] == list(stages)
    return {stage["name"]: stage["cases"] for stage in document["stages"]}


def test_kernels_and_their_speed(tmp_path):
    cases = rehearse(tmp_path, "kernels", "kernel_speed")
    assert len(cases["kernels"]) == 6
    assert all(case["status"] == "passed" for case in cases["kernels"])
    (timed,) = cases["kernel_speed"]
    assert timed["figures"]["visual_keys_us"] > 0


def changed(change):
    """Instead of the kernel, the reference with a change."""
    return lambda batch, case, window=None: change(batch.expected(window))


def test_pixels_computed_for_a_model_are_the_processors():
    assert engine.compare_pixels("cpu")["floats"] > 1000


CASE = kernels.Geometry(kind="agreement", dtype="float32", dim=64, with_lse=False, device="cpu")


def test_a_right_kernel_passes():
    assert kernels.measure(CASE, changed(lambda ratio: ratio))["combinations"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ratio: ratio + 1e-3, "off by 1.0e-03"),
        (lambda ratio: ratio.nan_to_num(0.0), "nan in other rows than expected"),
        (lambda ratio: torch.full_like(ratio, float("nan")), "nan in other rows than expected"),
    ],
    ids=["off", "no nan", "all nan"],
)
def test_a_wrong_kernel_fails(change, message):
    with pytest.raises(CaseFailed, match=message):
        kernels.measure(CASE, changed(change))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines(tmp_path):
    cases = rehearse(tmp_path, "engine")["engine"]
    assert [case["status"] for case in cases] == 6 * ["passed"]
    assert cases[-1]["figures"]["preemptions"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_speed_of_an_engine_and_of_probes(tmp_path):
    cases = rehearse(tmp_path, "engine_speed", "probes")
    assert {case["status"] for stage in cases.values() for case in stage} == {"passed"}
    assert "all_adds_percent" in cases["engine_speed"][-1]["figures"]
    assert cases["probes"][-1]["figures"]["prefilled_tokens_a_probe"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training(tmp_path):
    cases = rehearse(tmp_path, "train")["train"]
    assert [case["status"] for case in cases] == 3 * ["passed"]
    assert cases[1]["figures"]["least_correlation"] >= 0.99999
    assert cases[1]["figures"]["update_actor_gib"] > 0
