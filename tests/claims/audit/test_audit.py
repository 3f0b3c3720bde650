"""The `audit` command: which images a page shows, and what stands in its file."""

import argparse
import base64
import hashlib
import html.parser
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vapo_verl.claims import audit
from vapo_verl.claims.audit.page import MAX_SIDE, draw_sample, page_id, page_image
from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import ClaimRecord, ShardWriter
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import FileError
from vapo_verl.data.parquet_stream import row_schema

EVIL = (
    """</script><script>alert(1)</script> <img src=x onerror="alert('2')"> & &lt; " ' `${x}` <!--"""
)


def encoded(level: int, size: tuple[int, int] = (8, 6), kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, 7)).save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = [encoded(level) for level in range(30)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"images": [{"bytes": data, "path": None}]} for data in IMAGES]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows, row_schema(embedded_images=True)), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Write a claims folder: store(name, [image, ...], text=...)."""

    def write(name: str, images: list[bytes], text: str = "It is grey.") -> Path:
        with ShardWriter(tmp_path / name) as shards:
            for data in images:
                claims = (Claim(text, True), Claim("It is pink.", False))
                shards.write(ClaimRecord(image_key=image_key(data), claims=claims, model="m-7b"))
        return tmp_path / name

    return write


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    return audit.run(parser.parse_args([str(word) for word in words]))


def test_relative_paths_start_from_the_root(store, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(IMAGES[0])
    path, page = tmp_path / "rows.parquet", tmp_path / "audit.html"
    pq.write_table(pa.table({"images": [["a.png"]]}), path)
    words = (store("claims", IMAGES), path, "--out", page, "--num-images", 1)
    with pytest.raises(FileError, match="SOURCE: no image of"):
        run(*words)
    said = capsys.readouterr().err
    assert "1 unreadable image passed over, the first: " in said
    assert "cannot read 'a.png': No such file or directory; correct the path, or give" in said
    assert run(*words, "--image-root", tmp_path / "photos") == 0
    assert page.is_file()


def test_a_seed_draws_the_same_sample_whatever_the_order(source, store):
    shuffled = random.Random(1).sample(IMAGES, k=len(IMAGES))
    one = draw_sample(store("one", IMAGES), source, num_images=8, seed=3)
    two = draw_sample(store("two", shuffled), source, num_images=8, seed=3)
    assert one == two
    assert len({image.key for image in one}) == 8
    assert draw_sample(store("one", []), source, num_images=5, seed=3) == one[:5]
    other = draw_sample(store("one", []), source, num_images=8, seed=4)
    assert {image.key for image in other} != {image.key for image in one}


def test_only_images_with_claims_are_drawn_and_keep_theirs(source, store):
    with ShardWriter(store("claims", IMAGES[:3])) as shards:
        shards.write(ClaimRecord(image_key=image_key(IMAGES[9]), claims=(), model="m"))
    images = draw_sample(store("claims", []), source, num_images=50, seed=0)
    assert {image.data for image in images} == set(IMAGES[:3])
    assert all(image.claims[0] == Claim("It is grey.", True) for image in images)
    assert {image.source for image in images} == {f"{source} row {row}" for row in range(3)}


def test_a_sample_needs_claims_and_their_images(source, store, tmp_path):
    with pytest.raises(FileError, match=r"CLAIMS_DIR: .* has no claims; give the --out"):
        draw_sample(tmp_path / "none", source, num_images=5, seed=0)
    with pytest.raises(FileError, match=r"SOURCE: no image of .* has claims in"):
        draw_sample(store("other", [encoded(99)]), source, num_images=5, seed=0)


class Page(html.parser.HTMLParser):
    """The scripts, styles and attributes of a page, as an HTML parser sees them."""

    def __init__(self, text: str):
        super().__init__()
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._inside: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside = {"script": self.scripts, "style": self.styles}.get(tag)
        if self._inside is not None:
            self._inside.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self._inside[-1] += data

    @property
    def policy(self) -> str:
        return next(
            value for _, name, value in self.attributes if name == "content" and "'" in value
        )


def written(tmp_path: Path, *words: object) -> Page:
    assert run(*words, "--out", tmp_path / "audit.html") == 0
    return Page((tmp_path / "audit.html").read_text(encoding="utf-8"))


def test_what_a_model_wrote_is_data_and_not_markup(source, store, tmp_path):
    page = written(tmp_path, store("claims", IMAGES[:2], EVIL), source)
    sample, script = page.scripts  # a claim has not ended its element, nor begun another
    assert json.loads(sample)["images"][0]["claims"][0] == {"text": EVIL, "label": True}
    assert "<" not in sample
    assert "&" not in sample
    assert "alert" not in script


def test_the_page_asks_for_nothing_and_runs_its_own_script_only(source, store, tmp_path):
    page = written(tmp_path, store("claims", IMAGES), source)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert links == ["data:,"]  # no icon is asked for
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    code = page.scripts[1]
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "fetch",
    ):
        assert forbidden not in code
    directives = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": csp_hash(page.styles[0]),
        "script-src": csp_hash(code),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_same_sample_has_the_same_page_id_and_other_claims_another(source, store):
    def sampled(name: str, text: str) -> str:
        return page_id(draw_sample(store(name, IMAGES, text), source, num_images=4, seed=0))

    one = sampled("one", "It is grey.")
    assert one == sampled("two", "It is grey.")
    assert one != sampled("three", "It is blue.")
    assert re.fullmatch("[0-9a-f]{16}", one)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_small_drawings_stay_lossless_and_large_photographs_shrink():
    small = page_image(encoded(9, (40, 30)))
    assert small.uri.startswith("data:image/png;base64,")
    assert (small.width, small.height) == (40, 30)
    large = page_image(encoded(9, (3000, 1500), "JPEG"))
    assert large.uri.startswith("data:image/jpeg;base64,")
    assert decoded(large.uri).size == (large.width, large.height) == (MAX_SIDE, MAX_SIDE // 2)
    noise = Image.effect_noise((900, 900), 90)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert page_image(buffer.getvalue()).uri.startswith("data:image/jpeg;base64,")


def test_the_pixels_shown_are_those_the_model_saw():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees": done once, here as for the model, and not by browsers
    turned = page_image(encoded(9, (40, 20), "JPEG", exif=exif))
    assert decoded(turned.uri).size == (20, 40)
    assert not decoded(turned.uri).getexif()
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(buffer, "PNG")
    assert decoded(page_image(buffer.getvalue()).uri).getpixel((0, 0)) == (255, 255, 255)


def test_an_image_that_cannot_be_shown_is_named(store, tmp_path):
    (tmp_path / "cut.png").write_bytes(IMAGES[0][:40])
    claims = store("claims", [IMAGES[0][:40]])
    with pytest.raises(
        FileError, match=r"SOURCE: .*cut.png.*: cannot decode an image: .*; replace"
    ):
        run(claims, tmp_path / "cut.png", "--out", tmp_path / "audit.html")
    assert not (tmp_path / "audit.html").exists()


def test_fewer_images_than_asked_for_are_all_taken_and_said(source, store, tmp_path, capsys):
    written(tmp_path, store("claims", IMAGES[:3]), source)
    output = capsys.readouterr()
    assert output.out.endswith("audit.html: 3 images, 6 claims; open it in a browser\n")
    assert f"--num-images is 50, but only 3 images of {source} have claims: all taken" in output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give CLAIMS_DIR, SOURCE and --out for a page, or --summary"),
        (["claims", "source"], "give CLAIMS_DIR, SOURCE and --out"),
        (["--summary", "v.json", "--out", "x.html"], "--summary reads exported .*; leave out out"),
        (
            ["claims", "source", "--out", "x.html", "--num-images", "0"],
            "--num-images is 0, want at",
        ),
        (["claims", "rows.parquet", "--out", "rows.parquet"], "--out: rows.parquet is the input"),
    ],
)
def test_arguments_that_do_not_fit_together(words, message):
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_the_summary_is_printed(tmp_path, capsys):
    export = {"format": "vapo-claims-audit", "version": 1, "auditor": "Ada", "verdicts": []}
    (tmp_path / "v.json").write_text(json.dumps(export))
    assert run("--summary", tmp_path / "v.json") == 0
    assert capsys.readouterr().out.startswith("Ada:\n  visually dependent  no answers\n")


def test_images_that_cannot_be_read_are_passed_over_with_a_count(store, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(IMAGES[:3]):
        (folder / f"{number}.png").write_bytes(data)
    for name in ("empty.png", "page.png"):
        (folder / name).write_bytes(b"<html>")
    page = tmp_path / "audit.html"
    assert run(store("claims", IMAGES), folder, "--out", page, "--num-images", 3) == 0
    told = capsys.readouterr()
    assert "3 images, 6 claims" in told.out
    assert "2 unreadable images passed over, the first: " in told.err and "empty.png" in told.err


def test_a_folder_as_the_page_is_refused_before_the_source_is_read(store, source, tmp_path):
    with pytest.raises(FileError, match=r"--out: .* is a folder; give the path"):
        run(store("claims", IMAGES), tmp_path / "none.parquet", "--out", tmp_path)
