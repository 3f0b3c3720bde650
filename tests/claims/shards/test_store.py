"""Shards: what is written is read, torn lines, and one writer at a time."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.paths import ROOT
from vapo_verl.claims.__main__ import main
from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import (
    ClaimRecord,
    RecordIndex,
    ShardWriter,
    Usage,
    VoteCount,
    read_records,
    shard_paths,
    unique_records,
)
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import FileError
from vapo_verl.files import FolderLocked


def make(key: str = "a" * 64, **fields) -> ClaimRecord:
    claims = (Claim("The cat “sleeps”.", True), Claim("The dog sleeps.", False))
    return ClaimRecord(**{"image_key": key, "claims": claims, "model": "m"} | fields)


def write(folder: Path, *records: ClaimRecord) -> None:
    with ShardWriter(folder) as writer:
        for record in records:
            writer.write(record)


def test_a_record_comes_back_as_it_was(tmp_path):
    vote_count = VoteCount(text="x", label=True, num_yes=2, num_no=1, num_unclear=0)
    usage = Usage(num_requests=2, prompt_tokens=3, completion_tokens=4)
    record = make(
        num_wanted=2,
        attempts=3,
        usage=usage,
        rejected={"hedge": 2},
        vote_counts=(vote_count,),
        check_model="judge",
        check_usage=usage,
    )
    write(tmp_path, record, make("b" * 64))
    assert list(read_records(tmp_path)) == [record, make("b" * 64)]
    assert [r.status for r in read_records(tmp_path)] == ["full", "short"]


def test_votes_under_their_older_name_are_read(tmp_path):
    count = VoteCount(text="x", label=True, num_yes=2, num_no=1, num_unclear=0)
    write(tmp_path, make(vote_counts=(count,)))
    (path,) = shard_paths(tmp_path)
    path.write_text(path.read_text().replace('"vote_counts"', '"verdicts"'))
    assert list(read_records(tmp_path)) == [make(vote_counts=(count,))]


def test_a_writer_begins_its_own_shard_and_none_without_a_record(tmp_path):
    write(tmp_path, make("a" * 64))
    write(tmp_path)
    write(tmp_path, make("b" * 64))
    assert [path.name for path in shard_paths(tmp_path)] == [
        "shard-00000.jsonl",
        "shard-00001.jsonl",
    ]
    assert [record.image_key[0] for record in read_records(tmp_path)] == ["a", "b"]


def test_no_folder_has_no_records(tmp_path):
    assert list(read_records(tmp_path / "absent")) == []


@pytest.mark.parametrize("length", [1, 40, -1])
def test_a_torn_last_line_is_passed_over_in_every_shard(tmp_path, length):
    for key in "ab":
        write(tmp_path, make(key * 64), make(key.upper() * 64))
    for path in shard_paths(tmp_path):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:length])
    assert [record.image_key[0] for record in read_records(tmp_path)] == ["a", "b"]


def test_a_damaged_line_elsewhere_is_an_error_with_its_place(tmp_path):
    write(tmp_path, make("a" * 64), make("b" * 64))
    (path,) = shard_paths(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:40] + b"\n" + lines[1])
    with pytest.raises(FileError, match=r"shard-00000.jsonl:1: not a record"):
        list(read_records(tmp_path))


def test_a_second_writer_is_refused_with_the_process_that_holds_the_folder(tmp_path):
    with (
        ShardWriter(tmp_path),
        pytest.raises(FolderLocked, match=f"process {os.getpid()} on .* is writing here"),
    ):
        ShardWriter(tmp_path).__enter__()
    write(tmp_path, make())


def test_a_killed_writer_leaves_no_lock(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from vapo_verl.claims.shards import ShardWriter
        with ShardWriter(Path(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=60)
    assert child.returncode == -9
    write(tmp_path, make())
    assert len(list(read_records(tmp_path))) == 1


@pytest.mark.parametrize(
    ("votes", "majority", "kept"),
    [((2, 1, 0), True, True), ((1, 2, 0), False, False), ((1, 1, 1), None, False)],
)
def test_the_majority_of_a_true_claim(votes, majority, kept):
    num_yes, num_no, num_unclear = votes
    vote_count = VoteCount(
        text="x", label=True, num_yes=num_yes, num_no=num_no, num_unclear=num_unclear
    )
    assert (vote_count.majority, vote_count.kept) == (majority, kept)


@pytest.mark.parametrize(
    ("written", "named"),
    [(r"The \ud83d sleeps.", "U+D83D"), (r"The \u0007 sleeps.", "U+0007"), ("  ", "blank")],
)
@pytest.mark.parametrize("command", ["attach", "check", "audit"])
def test_a_stored_claim_that_no_row_can_hold_is_named_with_its_image(
    tmp_path, parquet, claims, server, png, capsys, command, written, named
):
    folder, key = tmp_path / "claims", image_key(png(0))
    write(folder, make(key))
    (path,) = shard_paths(folder)
    path.write_text(path.read_text().replace("The dog sleeps.", written))
    out = tmp_path / {"attach": "out.parquet", "check": "out", "audit": "out.html"}[command]
    run = claims if command == "check" else lambda *words: main([str(word) for word in words])
    assert run(command, folder, parquet(1), "--out", out) == 2
    said = capsys.readouterr().err
    assert f"{path.name}:1" in said and f"image {key}" in said and named in said
    assert not server.seen and not out.is_file()


def test_a_line_of_another_program_needs_image_claims_and_model(tmp_path):
    """The example of docs/claims.md."""
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith('{"image_key"')]
    (tmp_path / "shard-00000.jsonl").write_text(line + "\n", encoding="utf-8")
    [record] = read_records(tmp_path)
    assert record.claims == (Claim(text="The sign is red.", label=True),)
    assert record.vote_counts is None and record.usage == Usage()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("null", "the line is null, want an object"),
        ("5", "the line is 5 (int), want an object"),
        ('"abc"', "the line is 'abc' (str), want an object"),
        ("[1]", "the line is [1] (list), want an object"),
        ('{"image_key": [1], "claims": [], "model": "m"}', "image_key is [1] (list), want str"),
        ('{"image_key": "a", "claims": [], "model": null}', "model is null, want str"),
        (
            '{"image_key": "a", "claims": [], "model": "m", "num_wanted": "20"}',
            "num_wanted is '20' (str), want int",
        ),
        ("[" * 200_000, "not a record"),
    ],
)
def test_a_line_that_is_no_record_is_named(line, found, tmp_path):
    (tmp_path / "shard-00000.jsonl").write_text(make().to_json() + "\n" + line + "\n")
    with pytest.raises(FileError) as caught:
        list(read_records(tmp_path))
    assert "shard-00000.jsonl:2: not a record" in str(caught.value)
    assert found in str(caught.value)


def test_two_lines_of_an_image_are_refused_where_claims_go_by_the_image(tmp_path):
    write(tmp_path, make("a"), make("b"))
    write(tmp_path, make("c"), make("b"))
    with pytest.raises(FileError, match=r"shard-00001.jsonl:2: image b is also in shard-00000.*:2"):
        list(unique_records(tmp_path))
    with pytest.raises(FileError, match="put the claims of an image into one line, or delete"):
        RecordIndex(tmp_path)


def test_an_image_asked_again_after_a_kill_is_in_one_line(tmp_path):
    """Its line in the first shard has no end."""
    write(tmp_path, make("a"), make("b"))
    shard = tmp_path / "shard-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-1])
    write(tmp_path, make("b"))
    assert [record.image_key for *_, record in unique_records(tmp_path)] == ["a", "b"]
    assert len(RecordIndex(tmp_path)) == 2
