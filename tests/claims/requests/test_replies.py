"""Replies that are no completion: each is one bad reply, and the other images go on."""

import asyncio
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest

from vapo_verl.claims.images import image_key
from vapo_verl.claims.options import EndpointOptions
from vapo_verl.claims.requests import endpoint
from vapo_verl.claims.requests.reply import (
    UNREADABLE,
    FatalFault,
    TransientFault,
    read_reply,
    without_key,
)
from vapo_verl.claims.shards import read_records


def completion(**fields) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion", "choices": [choice], **fields}


def message(**fields) -> dict:
    return completion(choices=[{"message": {"role": "assistant", **fields}}])


TOKENS = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": %s}}'
MALFORMED = {
    "empty": b"",
    "no JSON": b"busy",
    "a page": b"<!doctype html><html><body>502 Bad Gateway</body></html>",
    "cut off": json.dumps(completion()).encode()[:-9],
    "two objects": json.dumps(completion()).encode() * 2,
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "a text": b'"Yes"',
    "nested": b"[" * 100_000,
    "UTF-16": json.dumps(completion()).encode("utf-16"),
    "Latin-1": json.dumps(message(content="un caf\xe9"), ensure_ascii=False).encode("latin-1"),
    "raw surrogate": b'{"choices": [{"message": {"content": "\xed\xa0\x80"}}]}',
    "an error": {"error": {"message": "overloaded", "code": 503}},
    "no choices": {"id": "1"},
    "choices null": completion(choices=None),
    "choices empty": completion(choices=[]),
    "choices a text": completion(choices="Yes"),
    "choices a number": completion(choices=3),
    "choices a mapping": completion(choices={"0": {"message": {"content": "Yes"}}}),
    "choices of texts": completion(choices=["Yes"]),
    "choices of null": completion(choices=[None]),
    "no message": completion(choices=[{"index": 0, "text": "Yes"}]),
    "message null": completion(choices=[{"message": None}]),
    "message a text": completion(choices=[{"message": "Yes"}]),
    "message a list": completion(choices=[{"message": [{"content": "Yes"}]}]),
    "no content": message(),
    "content null": message(content=None),
    "content parts": message(content=[{"type": "text", "text": "Yes"}]),
    "content a number": message(content=1),
    "content a bool": message(content=True),
    "content a mapping": message(content={"text": "Yes"}),
    "lone surrogate": message(content="Yes \ud83d"),
    "usage a text": completion(usage="many"),
    "usage a list": completion(usage=[1, 2]),
    "usage of texts": completion(usage={"prompt_tokens": "100", "completion_tokens": "40"}),
    "usage of fractions": completion(usage={"prompt_tokens": 1.5}),
    "usage of bools": completion(usage={"prompt_tokens": True}),
    "usage below 0": completion(usage={"completion_tokens": -1}),
    "usage infinite": TOKENS % b"Infinity",
    "usage huge": completion(usage={"prompt_tokens": 10**400}),
    "usage of 5,000 digits": TOKENS % (b"1" + b"0" * 5000),
    "one good and one bad": completion(choices=[*completion()["choices"], {"message": None}]),
}


def body(name: str) -> bytes:
    given = MALFORMED[name]
    return given if isinstance(given, bytes) else json.dumps(given).encode()


@pytest.mark.parametrize("name", MALFORMED)
def test_anything_but_a_completion_is_a_transient_fault(name):
    with pytest.raises(TransientFault) as fault:
        read_reply(body(name))
    assert fault.value.reason == UNREADABLE
    assert 0 < len(fault.value.detail) < 320
    fault.value.detail.encode()  # may stand in a report


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (0, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": None, "completion_tokens": 4}, (0, 4)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": "7"}, (3, 4)),
    ],
)
def test_token_counts_may_be_absent(usage, counts):
    usage = read_reply(json.dumps(completion(usage=usage)).encode()).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == counts


def test_an_answer_that_ended_while_thinking_is_an_empty_text():
    given = completion(choices=[{"message": {"content": None}, "finish_reason": "length"}])
    (choice,) = read_reply(json.dumps(given).encode()).choices
    assert (choice.text, choice.cut_off) == ("", True)


def test_a_mark_of_the_byte_order_and_pairs_of_surrogates_are_read():
    given = json.dumps(message(content="\U0001f600")).encode("utf-8-sig")  # as \ud83d\ude00
    assert read_reply(given).choices[0].text == "\U0001f600"


def test_each_malformed_reply_is_asked_again_and_other_images_go_on(
    claims, server, scripted, parquet, png, tmp_path, capsys
):
    """One image gets every malformed reply before a good one, its neighbours good ones."""
    out, names, unlucky = tmp_path / "out", list(MALFORMED), image_key(png(1))

    def script(seen, num_before):
        if seen.image_key == unlucky and num_before < len(names):
            return scripted.Answer(body=body(names[num_before]))
        return scripted.obedient(seen, 0)

    server.script = script
    tries = ("--max-retries", len(names), "--backoff-s", 0)
    assert claims("generate", parquet(3), "--out", out, *tries) == 0
    assert len(list(read_records(out))) == 3
    run = json.loads((out / "report.json").read_text())["run"]
    assert run["retries"] == {UNREADABLE: len(names)}
    assert f"{UNREADABLE} x {len(names)}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["message null", "content parts", "usage of texts", "a page"])
def test_an_image_whose_replies_stay_malformed_fails_alone(
    claims, server, scripted, parquet, png, tmp_path, name
):
    out, unlucky = tmp_path / "out", image_key(png(1))

    def script(seen, num_before):
        bad = seen.image_key == unlucky
        return scripted.Answer(body=body(name)) if bad else scripted.obedient(seen, 0)

    server.script = script
    assert claims("generate", parquet(3), "--out", out, "--max-retries", 2) == 1
    assert len(list(read_records(out))) == 2
    run = json.loads((out / "report.json").read_text())["run"]
    assert run["failure_reasons"] == {UNREADABLE: 1}
    (failure,) = run["failures"]
    assert failure["what"].startswith(f"{UNREADABLE}: 3 tries, the last: ")


def once(scripted, *answers):
    """Each image gets `answers` first, then good ones."""
    return lambda seen, n: answers[n] if n < len(answers) else scripted.obedient(seen, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_asked_again(
    claims, server, scripted, parquet, tmp_path, status
):
    elsewhere = {"Location": f"{server.url}/login?x=\x1b[31m".replace("\x1b", "%1b")}
    server.script = once(scripted, scripted.Answer(status=status, headers=elsewhere))
    assert claims("generate", parquet(2), "--out", tmp_path / "out") == 0
    assert len(server.seen) == 4
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    assert run["retries"] == {f"redirect with status {status}": 2}


def test_a_lasting_redirect_says_which_address_to_set(
    claims, server, scripted, parquet, tmp_path, capsys
):
    headers = {"Location": "https://other.example/v1/chat/completions"}
    server.script = lambda seen, n: scripted.Answer(status=308, headers=headers)
    assert claims("generate", parquet(1), "--out", tmp_path / "out", "--max-retries", 1) == 1
    said = capsys.readouterr().out
    assert (
        "to https://other.example/v1/chat/completions; if that is the endpoint, set OPENAI" in said
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 204, "body": b""},
        {"status": 206, "body": b'{"choices": ['},
        {"headers": {"Content-Encoding": "gzip"}, "body": b"no gzip"},
        {"headers": {"Content-Type": "text/event-stream"}, "body": b"data: [DONE]\n\n"},
        {"body": b" " * (1 << 16)},
        {"body": gzip.compress(b" " * (1 << 20)), "headers": {"Content-Encoding": "gzip"}},
    ],
    ids=["204", "206", "no gzip", "event stream", "large", "compressed"],
)
def test_statuses_encodings_and_sizes(
    claims, server, scripted, parquet, tmp_path, monkeypatch, answer
):
    monkeypatch.setattr(endpoint, "MAX_REPLY_BYTES", 1 << 15)
    server.script = once(scripted, scripted.Answer(**answer))
    assert claims("generate", parquet(2), "--out", tmp_path / "out") == 0
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    assert run["retries"] == {UNREADABLE: 2}


def test_a_huge_error_page_is_not_read_to_its_end(
    claims, server, scripted, parquet, tmp_path, monkeypatch
):
    monkeypatch.setattr(endpoint, "MAX_REPLY_BYTES", 1 << 12)
    server.script = once(scripted, scripted.Answer(status=500, body=b"<p>" * (1 << 14)))
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 0
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    assert sum(run["retries"].values()) == 1


def test_an_error_with_half_a_surrogate_and_control_characters_can_be_reported(
    claims, server, scripted, parquet, tmp_path, capsys
):
    said = json.dumps({"error": {"message": "no \ud800 \u001b[31m"}})
    server.script = lambda seen, n: scripted.Answer(status=400, body=said)
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 1
    assert "refused with status 400" in capsys.readouterr().out
    assert "\x1b" not in (tmp_path / "out" / "report.json").read_text()


def test_a_claim_with_a_control_character_is_turned_down_and_the_others_stay(
    claims, server, scripted, parquet, tmp_path
):
    """Both in JSON inside of JSON, so that the reply itself is sound."""
    lines = scripted.claim_lines(10, 10).splitlines()
    lines[0] = lines[0].replace("The ", r"The \ud83d ")
    lines[1] = lines[1].replace("The ", r"The \u001b[31m ")
    server.script = once(scripted, scripted.Answer(texts=("\n".join(lines),)))
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 0
    (record,) = read_records(tmp_path / "out")
    assert record.rejected["control_character"] == 2
    assert len(record.claims) == 20


def test_a_reply_that_echoes_the_key_does_not_bring_it_into_the_report(
    claims, server, scripted, parquet, tmp_path, capsys
):
    def script(seen, num_before):
        return scripted.Answer(body=f"<html>{dict(seen.headers)}</html>".encode())

    server.script, out = script, tmp_path / "out"
    assert claims("generate", parquet(1), "--out", out, "--max-retries", 1) == 1
    told = capsys.readouterr()
    assert "sk-test" not in (out / "report.json").read_text() + told.out + told.err


def test_a_short_key_changes_no_completion(
    claims, server, scripted, parquet, tmp_path, monkeypatch
):
    """Servers without keys are often given one such as `x`, which is in many words."""
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    lines = scripted.claim_lines(10, 10).replace("kettle", "box of wax")
    server.script = lambda seen, n: scripted.Answer(texts=(lines,))
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 0
    (record,) = read_records(tmp_path / "out")
    assert any("box of wax" in claim.text for claim in record.claims)
    assert not any("*" in claim.text for claim in record.claims)


KEY = 'sk-ab/cd+ef"=='
ECHOES = {
    "an error in 200": {"body": json.dumps({"error": {"message": f"{'.' * 290} {KEY}"}})},
    "no JSON": {"body": f"{'.' * 290} {KEY}"},
    "JSON with escapes": {"body": json.dumps({"detail": KEY}).replace("/", "\\/"), "status": 400},
    "a refusal": {"body": json.dumps({"choices": [{"message": {"refusal": f"no {KEY}"}}]})},
    "a choice": {"body": json.dumps({"choices": [KEY]})},
    "a redirect": {"status": 302, "headers": {"Location": f"https://a.b/?{quote(KEY)}"}},
    "a cookie": {"status": 400, "headers": {"Set-Cookie": f"{KEY[:8]} b=1"}},
    "a header": {"headers": {"X-Sent": f"{'.' * 20000} {KEY}"}},
}


@pytest.mark.parametrize("echo", ECHOES)
def test_no_form_in_which_a_server_echoes_the_key_reaches_a_message(
    claims, server, scripted, parquet, tmp_path, capfd, caplog, monkeypatch, echo
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # aiohttp reads no cookies of a numeric address
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("127.0.0.1", "localhost"))
    server.script, out = lambda seen, n: scripted.Answer(**{"body": ""} | ECHOES[echo]), tmp_path
    assert claims("generate", parquet(1), "--out", out / "out", "--max-retries", 0) == 1
    told = "".join(capfd.readouterr()) + (out / "out" / "report.json").read_text() + caplog.text
    assert "sk-ab" not in told


def test_a_fault_has_no_cause_whose_text_could_hold_the_key(server, scripted):
    server.script = lambda seen, n: scripted.Answer(headers={"X-Sent": "." * 20000}, body="")

    async def ask():
        options = EndpointOptions(model="m", base_url=server.url, api_key=KEY)
        async with endpoint.Endpoint(options) as client:
            await client.ask([{"role": "user", "content": "?"}])

    with pytest.raises(TransientFault) as fault:
        asyncio.run(ask())
    assert fault.value.__cause__ is None and fault.value.__suppress_context__


def test_a_key_is_found_in_the_spellings_of_json_and_addresses():
    for text in (KEY, json.dumps(KEY), json.dumps(KEY).replace("/", "\\/"), quote(KEY, safe="")):
        assert "ab" not in without_key(f"<{text}>", KEY)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"error": {"message": "rate limit", "code": 429}}, "an error: rate limit (code 429)"),
        ({"error": "overloaded"}, "an error: overloaded"),
        (message(content=None, refusal="I cannot."), "content is null, refusal is 'I cannot.'"),
        (
            completion(choices=[{"message": {}, "finish_reason": "content_filter"}]),
            "content is null, finish_reason is 'content_filter'",
        ),
    ],
)
def test_what_the_endpoint_says_in_a_reply_without_text_is_in_the_detail(given, said):
    with pytest.raises(TransientFault) as fault:
        read_reply(json.dumps(given).encode())
    assert fault.value.detail == said


@pytest.fixture
def refusing_proxy():
    """The port of a proxy that answers 407 to all."""

    class Refusal(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_error(407)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy.server_port
        proxy.shutdown()


def test_a_proxy_that_refuses_its_password_ends_the_run_without_telling_it(
    refusing_proxy, monkeypatch
):
    monkeypatch.setenv("https_proxy", f"http://alice:hunter2@127.0.0.1:{refusing_proxy}")
    monkeypatch.setenv("no_proxy", "")

    async def ask():
        options = EndpointOptions(model="m", base_url="https://endpoint.invalid/v1")
        async with endpoint.Endpoint(options) as client:
            await client.ask([{"role": "user", "content": "?"}])

    with pytest.raises(FatalFault, match=r"proxy answers 407; .* HTTPS_PROXY") as fault:
        asyncio.run(ask())
    assert "hunter2" not in str(fault.value)
