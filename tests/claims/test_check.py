"""check: flipped labels are found, figures are right, and it goes on where it stopped."""

import json

import pytest

from vapo_verl.claims.images import image_key
from vapo_verl.claims.making.judge import measure_agreement, read_vote, vote_entropy
from vapo_verl.claims.shards import ClaimRecord, ShardWriter, VoteCount, read_records
from vapo_verl.data.claims_column import Claim


def vote_count(label: bool, num_yes: int, num_no: int, num_unclear: int = 0) -> VoteCount:
    return VoteCount(text="x", label=label, num_yes=num_yes, num_no=num_no, num_unclear=num_unclear)


@pytest.fixture
def stored(tmp_path, png, scripted):
    """Claims of three images: those with an even number are true, and one label is flipped."""
    folder = tmp_path / "made"
    with ShardWriter(folder) as writer:
        for image in range(3):
            claims = [Claim(scripted.good_claim(n), n % 2 == 0) for n in range(4)]
            if image == 1:
                claims[2] = Claim(claims[2].text, False)
            key = image_key(png(image))
            writer.write(
                ClaimRecord(image_key=key, claims=tuple(claims), model="maker", num_wanted=4)
            )
    return folder


@pytest.fixture
def oracle(server, scripted):
    """The server knows: claims with an even number are true. It heeds `n`."""
    number_of = {scripted.good_claim(n): n for n in range(4)}

    def script(seen, num_before):
        (number,) = [n for text, n in number_of.items() if f"Claim: {text}\n" in seen.text]
        word = "Yes" if number % 2 == 0 else "**No**, it is not."
        return scripted.Answer(texts=(word,) * seen.body.get("n", 1))

    server.script = script


def test_flipped_labels_are_found(claims, server, oracle, stored, parquet, png, tmp_path, capsys):
    out = tmp_path / "checked"
    assert claims("check", stored, parquet(3), "--out", out, "--votes", 3) == 0
    records = {record.image_key: record for record in read_records(out)}
    assert [len(records[image_key(png(image))].claims) for image in range(3)] == [4, 3, 4]
    flipped = records[image_key(png(1))]
    assert [vote_count.kept for vote_count in flipped.vote_counts] == [True, True, False, True]
    assert all(claim.text != flipped.vote_counts[2].text for claim in flipped.claims)
    assert (flipped.model, flipped.check_model) == ("maker", "scripted-vlm")
    assert flipped.check_usage.num_requests == 4
    figures = json.loads((out / "report.json").read_text())["folder"]["agreement"]
    # 5 true labels, all confirmed; of 7 false ones 6: rate 11/12.
    # Chance: (5 * 6 + 7 * 6) / 144 = 1/2; kappa = (11/12 - 1/2) / (1/2) = 5/6.
    assert figures["rate"] == pytest.approx(11 / 12)
    assert (figures["rate_true"], figures["rate_false"]) == (1, pytest.approx(6 / 7))
    assert figures["kappa"] == pytest.approx(5 / 6)
    assert figures["fraction_unanimous"] == 1 and figures["mean_vote_entropy"] == 0
    assert "kappa 0.833" in capsys.readouterr().out


def test_no_question_and_one_claim_a_request(claims, server, oracle, stored, parquet, tmp_path):
    claims("check", stored, parquet(3), "--out", tmp_path / "checked")
    assert len(server.seen) == 12
    assert {seen.body["n"] for seen in server.seen} == {3}
    assert {seen.body["temperature"] for seen in server.seen} == {0.7}
    assert not any("SECRET-QUESTION" in json.dumps(seen.body) for seen in server.seen)


def test_separate_votes_and_servers_that_do_not_know_n(
    claims, server, scripted, stored, parquet, tmp_path
):
    server.script = lambda seen, n: scripted.Answer(texts=("Yes",))
    for name, extra in {"ignored": (), "separate": ("--separate-votes",)}.items():
        server.seen.clear()
        claims("check", stored, parquet(1), "--out", tmp_path / name, *extra)
        (record,) = read_records(tmp_path / name)
        assert {vote_count.num_yes for vote_count in record.vote_counts} == {3}
        assert len(server.seen) == 4 * 3
        assert any("n" in seen.body for seen in server.seen) == (name == "ignored")


def test_it_goes_on_where_it_stopped(claims, server, oracle, stored, parquet, png, tmp_path):
    out = tmp_path / "checked"
    source = parquet(3)
    claims("check", stored, source, "--out", out, "--limit", 1)
    before = len(server.seen)
    assert claims("check", stored, source, "--out", out) == 0
    assert {seen.image_key for seen in server.seen[before:]} == {
        image_key(png(1)),
        image_key(png(2)),
    }
    assert len(list(read_records(out))) == 3


def test_images_without_claims_and_claims_without_images(
    claims, server, oracle, stored, parquet, png, tmp_path, capsys
):
    source = parquet([[png(0)], [png(7)]])
    assert claims("check", stored, source, "--out", tmp_path / "checked") == 0
    assert len(list(read_records(tmp_path / "checked"))) == 1
    assert "not checked yet: 2" in capsys.readouterr().out


def test_a_dry_run_estimates_every_claim(claims, server, stored, parquet, tmp_path, capsys):
    arguments = ("check", stored, parquet(3), "--out", tmp_path / "checked", "--dry-run")
    assert claims(*arguments) == 0
    assert not server.seen
    # 3 images x 4 claims x 3 votes x 2 tokens
    assert "72 completion tokens" in capsys.readouterr().out


def test_bad_input(claims, stored, parquet, tmp_path, capsys):
    source = parquet(1)
    assert claims("check", stored, source, "--out", stored) == 2
    assert "--out" in capsys.readouterr().err
    assert claims("check", tmp_path / "absent", source, "--out", tmp_path / "b") == 2
    assert "holds no records" in capsys.readouterr().err
    assert claims("check", stored, source, "--out", tmp_path / "b", "--votes", 0) == 2
    assert "--votes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("Yes", True),
        (" **yes**.", True),
        ("No, the cat sleeps.", False),
        ("<think>yes? no.</think>\nNO", False),
        ("<think>yes", None),
        ("I look: no.\n</think>\n\nYes", True),
        ("Nothing", None),
        ("The claim is correct: yes", None),
        ("", None),
    ],
)
def test_votes(text, vote):
    assert read_vote(text) is vote


def test_agreement_by_hand():
    figures = measure_agreement(
        [
            vote_count(True, 3, 0),
            vote_count(True, 2, 1),
            vote_count(True, 0, 3),
            vote_count(False, 0, 2, 1),
            vote_count(False, 2, 1),
            vote_count(False, 1, 1, 1),
        ]
    )
    assert (figures.num_claims, figures.num_undecided) == (6, 1)
    # label true: 2 of 3 majorities yes; label false: 1 of 2 no; the tie is left out
    assert figures.rate == pytest.approx(3 / 5)
    assert (figures.rate_true, figures.rate_false) == (pytest.approx(2 / 3), 1 / 2)
    # chance = (3 * 3 + 2 * 2) / 25 = 13/25; kappa = (15/25 - 13/25) / (12/25) = 1/6
    assert figures.kappa == pytest.approx(1 / 6)
    assert figures.fraction_unanimous == pytest.approx(2 / 6)
    # 2:1 is 0.9183 bits, twice; 1:1 is 1 bit; the other three are 0
    assert figures.mean_vote_entropy == pytest.approx((2 * 0.918296 + 1) / 6, abs=1e-6)


def test_agreement_without_anything_to_divide_by():
    nothing = measure_agreement([])
    assert nothing.rate is nothing.kappa is nothing.mean_vote_entropy is None
    unclear = measure_agreement([vote_count(True, 0, 0, 3)])
    assert unclear.num_undecided == 1 and unclear.rate is None and unclear.fraction_unanimous == 0
    assert measure_agreement([vote_count(True, 3, 0)]).kappa is None  # chance is 1
    assert vote_entropy(vote_count(True, 0, 0, 3)) == 0
