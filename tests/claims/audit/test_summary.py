import json
from pathlib import Path

import pytest

from vapo_verl.claims.audit.page import summarise
from vapo_verl.data.errors import FileError


def export(folder: Path, person: str, *answers: str, **fields) -> Path:
    """Answers on claims 0, 1, ...: `answers` to "label right"; all else is answered with yes."""
    verdicts = [
        {
            "image_key": "a" * 64,
            "claim": f"Claim {number}.",
            "label": True,
            "visually_dependent": "yes",
            "label_right": answer,
        }
        for number, answer in enumerate(answers)
    ]
    content = {"format": "vapo-claims-audit", "version": 1, "auditor": person, "verdicts": verdicts}
    path = folder / f"{person or 'nobody'}.json"
    path.write_text(json.dumps(content | fields))
    return path


def test_one_person(tmp_path):
    lines = summarise([export(tmp_path, "Ada", "yes", "yes", "no", "unsure")]).splitlines()
    assert lines == [
        "Ada:",
        "  visually dependent  100.0%  (95 % interval 51.0% to 100.0%; 4 of 4)",
        "  answerable          no answers",
        "  label right          50.0%  (95 % interval 15.0% to 85.0%; 2 of 4, 1 unsure)",
    ]


def test_two_people_are_compared_on_the_claims_both_judged(tmp_path):
    ada = export(tmp_path, "Ada", "yes", "yes", "no", "no", "yes")
    bob = export(tmp_path, "Bob", "yes", "no", "no", "no")
    text = summarise([ada, bob])
    # p_o = 3/4, p_e = (2 * 1 + 2 * 3) / 16 = 1/2, kappa = (3/4 - 1/2) / (1/2) = 0.50
    assert "  label right          75.0%  the same (3 of 4), Cohen's kappa 0.50" in text
    assert "Cohen's kappa undefined: both gave one answer throughout" in text
    assert "answerable          no claim that both judged" in text
    # yes, yes/no: unsure, no, no, yes (of one): 2 of 5
    assert "majority of 2 people:" in text
    assert "40.0%  (95 % interval 11.8% to 76.9%; 2 of 5, 1 unsure)" in text


def test_three_people_give_three_pairs_and_a_majority(tmp_path):
    paths = [
        export(tmp_path, "Ada", "yes", "no"),
        export(tmp_path, "Bob", "yes", "no"),
        export(tmp_path, "Cy", "no", "yes"),
    ]
    text = summarise(paths)
    for pair in ("Ada and Bob:", "Ada and Cy:", "Bob and Cy:", "majority of 3 people:"):
        assert pair in text
    assert "(95 % interval 9.5% to 90.5%; 1 of 2)" in text


def test_a_person_without_a_name_is_named_by_the_file(tmp_path):
    assert summarise([export(tmp_path, "", "yes")]).startswith("nobody:")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("{}", "no 'format'"),
        ('{"format": "vapo-claims-audit", "version": 2}', "version 2"),
        ('{"format": "vapo-claims-audit", "version": 1, "verdicts": [{}]}', "no 'image_key'"),
        ('{"format": "vapo-claims-audit", "version": 1, "verdicts": [7]}', "not subscriptable"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path, content, reason):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(FileError, match=rf"v.json is no export \(.*{reason}.*export it again"):
        summarise([tmp_path / "v.json"])


def test_an_unknown_answer_is_refused(tmp_path):
    with pytest.raises(FileError, match="an answer is 'maybe'"):
        summarise([export(tmp_path, "Ada", "maybe")])
    with pytest.raises(FileError, match=r"gone.json is no export \(.*No such file"):
        summarise([tmp_path / "gone.json"])
