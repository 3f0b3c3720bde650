"""generate, against a real server on the loopback that plays every failure."""

import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import read_records, shard_paths


def records_of(folder: Path) -> dict:
    return {record.image_key: record for record in read_records(folder)}


def run_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())["run"]


def first_then(obedient, *first):
    """A script that plays `first` for each image's first requests, then behaves."""

    def script(seen, num_before):
        return first[num_before] if num_before < len(first) else obedient(seen, num_before)

    return script


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "claims"


def test_every_image_gets_twenty_balanced_claims(claims, server, parquet, png, out, capsys):
    assert claims("generate", parquet(5), "--out", out) == 0
    records = records_of(out)
    assert set(records) == {image_key(png(number)) for number in range(5)}
    for record in records.values():
        assert record.status == "full"
        assert len({claim.text for claim in record.claims}) == 20
        assert sum(claim.label for claim in record.claims) == 10
        assert (record.model, record.attempts) == ("scripted-vlm", 1)
        assert record.usage.prompt_tokens == 100
    assert len(server.seen) == 5
    assert "5 images finished" in capsys.readouterr().out


def test_no_question_is_sent_and_the_image_byte_for_byte(claims, server, parquet, png, out):
    assert claims("generate", parquet(3), "--out", out) == 0
    assert {seen.image_key for seen in server.seen} == {image_key(png(i)) for i in range(3)}
    assert not any("SECRET-QUESTION" in json.dumps(seen.body) for seen in server.seen)


def test_a_server_on_this_machine_is_asked_without_the_proxy(
    claims, server, parquet, out, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert claims("generate", parquet(1), "--out", out) == 0
    assert len(server.seen) == 1


def test_what_is_missing_is_asked_for_and_what_is_kept_is_told(
    claims, server, scripted, parquet, out
):
    def script(seen, num_before):
        if num_before == 0:  # 9 + 8 of 10 + 10
            return scripted.Answer(texts=(scripted.claim_lines(9, 8),))
        return scripted.obedient(seen, num_before)

    server.script = script
    assert claims("generate", parquet(1), "--out", out) == 0
    second = server.seen[1].text
    assert scripted.asked_for(second) == (1, 2)
    assert scripted.good_claim(0) in second
    (record,) = read_records(out)
    assert (record.status, record.attempts) == ("full", 2)
    assert record.usage.num_requests == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda good, lines: "", "empty"),
        (lambda good, lines: "Here you are!\n" + lines(10, 9), "malformed"),
        (lambda good, lines: lines(10, 10).replace('"label": true', '"label": "yes"'), "bad_label"),
        (lambda good, lines: lines(5, 5) + "\n" + lines(5, 5), "duplicate"),
        (lambda good, lines: lines(15, 5), "surplus"),
        (lambda good, lines: lines(10, 10).replace("lies", "probably lies"), "hedge"),
        (lambda good, lines: lines(10, 10).replace("lies", "lies " + "very " * 20), "length"),
        (lambda good, lines: lines(10, 10).replace("The ", "The red "), "low_level"),
    ],
)
def test_a_bad_answer_is_mended_by_the_next(claims, server, scripted, parquet, out, make, reason):
    text = make(scripted.good_claim, scripted.claim_lines)
    server.script = first_then(scripted.obedient, scripted.Answer(texts=(text,)))
    assert claims("generate", parquet(1), "--out", out) == 0
    (record,) = read_records(out)
    assert record.rejected[reason] >= 1
    assert (record.status, record.attempts) == ("full", 2)


def test_the_whole_lines_of_a_cut_off_answer_count(claims, server, scripted, parquet, out):
    text = scripted.claim_lines(10, 10)[:-20]
    cut = scripted.Answer(texts=(text,), finish_reason="length")
    server.script = first_then(scripted.obedient, cut)
    assert claims("generate", parquet(1), "--out", out) == 0
    assert scripted.asked_for(server.seen[1].text) == (0, 1)
    (record,) = read_records(out)
    assert record.rejected == {"cut_off": 1}


def test_an_image_that_stays_short_is_stored_balanced_and_reported(
    claims, server, scripted, parquet, out
):
    server.script = lambda seen, n: scripted.Answer(texts=(scripted.claim_lines(10, 3),))
    assert claims("generate", parquet(1), "--out", out, "--max-attempts", 2) == 0
    (record,) = read_records(out)
    # 3 false claims balance up to 3 * 0.7 / 0.3 = 7 true ones
    assert (record.status, len(record.claims)) == ("short", 10)
    assert sum(claim.label for claim in record.claims) == 7
    assert run_report(out)["short"] == 1


def test_require_full_stores_no_short_record(claims, server, scripted, parquet, out):
    server.script = lambda seen, n: scripted.Answer(texts=(scripted.claim_lines(10, 3),))
    arguments = ("generate", parquet(1), "--out", out, "--max-attempts", 2, "--require-full")
    assert claims(*arguments) == 1
    assert not list(read_records(out))
    assert run_report(out)["failure_reasons"] == {"short": 1}
    server.script = scripted.obedient
    assert claims(*arguments) == 0


def test_transient_faults_are_tried_again(claims, server, scripted, parquet, out):
    server.script = first_then(
        scripted.obedient,
        scripted.Answer(status=500),
        scripted.Answer(status=429, headers={"Retry-After": "0.01"}),
        scripted.Answer(body="<html>busy</html>"),
        scripted.Answer(texts=()),
    )
    assert claims("generate", parquet(1), "--out", out) == 0
    retries = run_report(out)["retries"]
    assert retries["status 500"] == retries["status 429"] == 1
    assert sum(retries.values()) == 4
    (record,) = read_records(out)
    assert record.attempts == 1  # answers, not tries


def test_retry_after_holds_all_requests_back(claims, server, scripted, parquet, out):
    arrivals = []

    def script(seen, num_before):
        arrivals.append(time.monotonic())
        if len(arrivals) == 1:
            return scripted.Answer(status=429, headers={"Retry-After": "0.5"})
        return scripted.obedient(seen, num_before)

    server.script = script
    assert claims("generate", parquet(4), "--out", out, "--max-concurrency", 1) == 0
    assert arrivals[1] - arrivals[0] >= 0.5


def test_requests_keep_to_the_rate(claims, server, parquet, out):
    started = time.monotonic()
    assert claims("generate", parquet(4), "--out", out, "--requests-per-minute", 600) == 0
    assert time.monotonic() - started >= 3 * 0.1


def test_a_request_that_hangs_is_given_up_and_sent_again(claims, server, scripted, parquet, out):
    server.script = first_then(scripted.obedient, scripted.Answer(delay_s=30))
    started = time.monotonic()
    assert claims("generate", parquet(2), "--out", out, "--timeout-s", 1.5) == 0
    assert time.monotonic() - started < 10
    assert run_report(out)["retries"] == {"timeout": 2}


def test_failed_images_are_reported_and_tried_again_by_the_next_run(
    claims, server, scripted, parquet, png, out
):
    bad = image_key(png(1))

    def script(seen, num_before):
        if seen.image_key == bad:
            return scripted.Answer(status=503)
        return scripted.obedient(seen, num_before)

    server.script = script
    source = parquet(3)
    assert claims("generate", source, "--out", out, "--max-retries", 2) == 1
    assert bad not in records_of(out)
    assert server.keys().count(bad) == 3
    (failure,) = run_report(out)["failures"]
    assert failure["source"].endswith("train.parquet row 1")

    server.script, before = scripted.obedient, len(server.seen)
    assert claims("generate", source, "--out", out) == 0
    assert [seen.image_key for seen in server.seen[before:]] == [bad]
    assert len(shard_paths(out)) == 2


def test_a_refused_image_is_not_sent_again(claims, server, scripted, parquet, out):
    server.script = lambda seen, n: scripted.Answer(status=400)
    assert claims("generate", parquet(1), "--out", out) == 1
    assert len(server.seen) == 1
    assert run_report(out)["failure_reasons"] == {"refused with status 400": 1}


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [
        (401, None, "OPENAI_API_KEY"),
        (404, None, "--model"),
        (429, "insufficient_quota", "top it up"),
    ],
)
def test_what_every_image_would_meet_stops_the_run(
    claims, server, scripted, parquet, out, capsys, status, code, fix
):
    headers = {"code": code} if code else {}
    server.script = lambda seen, n: scripted.Answer(status=status, headers=headers)
    assert claims("generate", parquet(40), "--out", out, "--max-concurrency", 4) == 2
    assert len(server.seen) <= 4
    error = capsys.readouterr().err
    assert str(status) in error and fix in error


def test_an_endpoint_that_is_down_stops_the_run(claims, server, scripted, parquet, out, capsys):
    server.script = lambda seen, n: scripted.Answer(status=500)
    arguments = ("--max-retries", 0, "--stop-after-failures", 5, "--max-concurrency", 2)
    assert claims("generate", parquet(40), "--out", out, *arguments) == 2
    assert len(server.seen) <= 7
    assert "5 images failed one after another" in capsys.readouterr().err


def test_the_key_reaches_no_file_and_no_message(claims, server, scripted, parquet, out, capsys):
    def script(seen, num_before):
        echo = json.dumps({"error": {"message": f"bad {seen.headers['Authorization']}"}})
        return scripted.Answer(status=400 if num_before else 401, body=echo)

    server.script = script
    claims("generate", parquet(1), "--out", out)
    server.script = lambda seen, n: script(seen, 1)
    claims("generate", parquet(1), "--out", out)
    printed = "".join(capsys.readouterr())
    assert "bad Bearer ***" in printed
    files = "".join(path.read_text() for path in out.iterdir())
    assert "sk-test-123456" not in printed + files


def test_no_more_requests_at_once_than_allowed(claims, server, scripted, parquet, out):
    def script(seen, num_before):
        answer = scripted.obedient(seen, num_before)
        return scripted.Answer(texts=answer.texts, delay_s=0.02)

    server.script = script
    assert claims("generate", parquet(30), "--out", out, "--max-concurrency", 4) == 0
    assert server.max_in_flight == 4


def test_an_unreadable_image_fails_alone(claims, server, parquet, png, out, capsys):
    source = parquet([[png(0)], [b"no image"], [png(1)]])
    assert claims("generate", source, "--out", out) == 1
    assert len(records_of(out)) == 2
    assert "row 1" in capsys.readouterr().out
    assert claims("generate", source, "--out", out) == 1  # still there, though nothing was asked
    assert len(server.seen) == 2


def test_limit_counts_stored_images(claims, server, parquet, out):
    source = parquet(5)
    for _ in range(2):
        assert claims("generate", source, "--out", out, "--limit", 2) == 0
    assert len(server.seen) == 2


def test_a_dry_run_asks_nothing_and_writes_nothing(claims, server, parquet, out, capsys):
    assert claims("generate", parquet(3), "--out", out, "--dry-run") == 0
    assert not server.seen and not out.exists()
    printed = capsys.readouterr().out
    assert "3 images, 0 stored before, 3 to do" in printed
    # 1,800 completion tokens: 3 images x 20 claims x 30; images of 56 x 28 are 2 tokens each
    assert "1,800 completion tokens in 3 requests" in printed


def test_one_seed_gives_one_order_of_claims(claims, server, parquet, tmp_path):
    source = parquet(2)
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        server.seen.clear()  # its answers hang on what it was asked before
        claims("generate", source, "--out", tmp_path / name, "--seed", seed)
    a, b, c = (records_of(tmp_path / name) for name in "abc")
    assert {key: r.claims for key, r in a.items()} == {key: r.claims for key, r in b.items()}
    assert all(a[key].claims != c[key].claims for key in a)
    assert all(set(a[key].claims) == set(c[key].claims) for key in a)


def test_optional_sampling_settings_reach_the_endpoint(claims, server, parquet, out):
    arguments = ("--temperature", 0.3, "--max-tokens", 99, "--token-limit-name", "max_tokens")
    claims("generate", parquet(1), "--out", out, *arguments)
    body = server.seen[0].body
    assert (body["temperature"], body["max_tokens"]) == (0.3, 99)
    assert "top_p" not in body
    assert "n" not in body and "max_completion_tokens" not in body


def test_a_file_whose_name_is_not_utf8_can_be_reported(claims, png, tmp_path, out, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    (folder / "good.png").write_bytes(png(1))
    assert claims("generate", folder, "--out", out) == 1
    assert "caf\\udce9.png row 0" in capsys.readouterr().out
    (failure,) = run_report(out)["failures"]
    assert os.fsencode(failure["source"]) == os.fsencode(folder) + b"/caf\xe9.png row 0"


def test_a_dry_run_says_why_images_are_unreadable(claims, tmp_path, out, capsys):
    source = tmp_path / "train.parquet"
    pq.write_table(pa.table({"images": [["img/0.png"], ["img/1.png"]]}), source)
    assert claims("generate", source, "--out", out, "--dry-run") == 1
    said = capsys.readouterr().out
    assert "2 unreadable\nthe first unreadable one: " in said
    assert "train.parquet row 0, column 'images': cannot read 'img/0.png'" in said
    assert "give the folder that relative paths start from as --image-root" in said
