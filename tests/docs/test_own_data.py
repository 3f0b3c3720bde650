"""The commands of "Your own data" in docs/data.md, on four images; a model's claims are made up."""

import json
import re
import shlex

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.paths import ROOT
from vapo_verl.claims.__main__ import main as claims
from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import ClaimRecord, ShardWriter
from vapo_verl.data.__main__ import main as data
from vapo_verl.data.claims_column import Claim

PAGE = (ROOT / "docs" / "data.md").read_text()
SECTION = PAGE.partition("\n## Your own data\n")[2].partition("\n## ")[0]


def block(language: str) -> list[str]:
    """Lines of the only block of a language."""
    (body,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return body.replace("\\\n", " ").splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """mine.jsonl as the page has it, some more rows, and the images."""
    lines = block("json")
    for number in range(2):
        row = {"question": "Which digit?", "answer": str(number), "image": f"{number}.png"}
        lines.append(json.dumps(row))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    for line in lines:
        names = json.loads(line)["image"]
        for name in [names] if isinstance(names, str) else names:
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store_claims(folder):
    with ShardWriter(folder / "claims") as shards:
        for path in sorted((folder / "photos").rglob("*.*")):
            made = tuple(Claim(f"Claim {n}.", n % 2 == 0) for n in range(20))
            key = image_key(path.read_bytes())
            shards.write(ClaimRecord(image_key=key, claims=made, model="m"))


def test_the_commands_make_files_for_a_run(folder, monkeypatch, capsys):
    monkeypatch.setenv("VAPO_CLAIMS_MODEL", "m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    done = []
    for words in (shlex.split(line, comments=True) for line in block("bash")):
        match words:
            case ["vapo", "data", *rest]:
                # 2 % of four rows would be none
                rest = ["0.5" if word == "0.02" else word for word in rest]
                assert data(rest) == 0, capsys.readouterr().err
            case ["vapo", "claims", "generate", *rest]:
                assert claims(["generate", *rest, "--dry-run"]) == 0, capsys.readouterr().err
                store_claims(folder)
            case ["vapo", "claims", *rest]:
                assert claims(rest) == 0, capsys.readouterr().err
            case _:
                assert words[0] == "export" or words[:2] == ["vapo", "train"]
        done.append(words[:3])
    assert [words[2] for words in done if words[1] in ("data", "claims")] == [
        *("import-plain", "generate", "attach", "attach", "check", "grade", "grade"),
    ]
    rows = pq.read_table("data/train.parquet").to_pylist()
    rows += pq.read_table("data/val.parquet").to_pylist()
    assert [len(row["claims"]) for row in rows if len(row["images"]) == 1] == [20] * 3
    assert "cannot be used" not in capsys.readouterr().out
