import inspect
import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.paths import ROOT
from vapo_verl.data.cells import RowRules, truths_of
from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.importers.plain import plain_reader
from vapo_verl.data.importers.run import ImportOptions, import_rows
from vapo_verl.data.rows import (
    RESERVED_COLUMNS,
    check_parquet,
    num_duplicates,
    require_same_columns,
)


def message(path, error=RowError, **options) -> str:
    with pytest.raises(error) as caught:
        check_parquet(path, **options)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_good_rows_are_counted(row, write):
    unbalanced = [{"text": f"c{i}", "label": True} for i in range(3)]
    doubled = [{"text": "Red", "label": True}, {"text": " red ", "label": False}]
    path = write([row(), row(claims=None), row(claims=unbalanced), row(claims=doubled)])
    report = check_parquet(path, min_claims=3)
    # claims: 2 + 0 + 3 + 2 = 7; true: 1 + 0 + 3 + 1 = 5
    assert (report.num_rows, report.num_images, report.num_images_opened) == (4, 4, 4)
    assert (report.num_claims, report.num_true_claims) == (7, 5)
    assert (report.rows_without_claims, report.rows_short_of_claims) == (1, 2)
    assert (report.rows_unbalanced, report.rows_with_duplicate_claims) == (1, 1)
    assert report.rows_with_contradiction == 1
    line = str(report)
    assert "\n" not in line
    assert "4 rows" in line and "7 claims (71.4% true)" in line
    assert "1 row without claims, 2 rows with fewer than 3 claims" in line


def test_a_file_without_claims_or_images_columns_is_allowed(row, write):
    plain = row(prompt=[{"role": "user", "content": "2 + 2 ="}])
    del plain["claims"], plain["images"], plain["extra_info"]
    report = check_parquet(write([plain]))
    assert (report.rows_without_claims, report.rows_without_images) == (1, 1)


def test_counts_hold_over_many_batches(row, write):
    report = check_parquet(write([row() for _ in range(100)]), max_images_checked=7)
    assert (report.num_rows, report.num_images, report.num_images_opened) == (100, 100, 7)


@pytest.mark.parametrize(
    ("cells", "column", "found", "fix"),
    [
        ({"images": ["/no/such.png"]}, "images", "no file '/no/such.png'", "correct the path"),
        (
            {"images": [{"bytes": b"gif?", "path": None}]},
            "images",
            "cannot read 4 bytes",
            "replace",
        ),
        ({"images": [{"bytes": None, "path": None}]}, "images", "an image is", "write a path"),
        ({"images": []}, "images", "1 <image> in the prompt, 0 images", "one <image> per entry"),
        ({"prompt": []}, "prompt", "no question in []", "give the row a user turn"),
        (
            {"prompt": [{"role": "system", "content": "Be kind."}], "images": []},
            "prompt",
            "no question",
            "give the row a user turn",
        ),
        (
            {"prompt": [{"role": "user", "content": "<image> "}]},
            "prompt",
            "no question",
            "give the row a user turn",
        ),
        ({"prompt": "What?"}, "prompt", "'What?' (str)", "list of {role: string"),
        (
            {"prompt": [{"role": "user", "content": "<image> or <video>?"}]},
            "prompt",
            "<video> in the prompt",
            "reword it",
        ),
        ({"reward_model": {"ground_truth": None}}, "reward_model", "no answer", "drop the row"),
        ({"reward_model": {"ground_truth": " "}}, "reward_model", "no answer", "drop the row"),
        ({"reward_model": None}, "reward_model", "no answer in null", "drop the row"),
        ({"data_source": ""}, "data_source", "the source is ''", "name the data set"),
        ({"extra_info": "{}"}, "extra_info", "'{}' (str)", "not a JSON string"),
        ({"claims": "It is red."}, "claims", "'It is red.' (str), want a list", "write claims as"),
        ({"claims": [{"text": "a", "label": 1}]}, "claims", "label is 1 (int)", "write claims as"),
        (
            {"claims": [{"text": "a", "label": "WRONG"}]},
            "claims",
            "label is 'WRONG' (str), want true/false",
            "run `python -m vapo_verl.data import-vapo-thinker`",
        ),
        ({"claims": [{"text": " ", "label": True}]}, "claims", "text is blank", "drop the claim"),
    ],
)
def test_each_problem_names_file_row_column_value_and_fix(row, write, cells, column, found, fix):
    path = write([row(**cells)])
    text = message(path)
    assert text.startswith(f"{path} row 0, column '{column}': ")
    assert found in text and fix in text
    assert len(text.splitlines()) == 1


def truth(answer):
    return {"reward_model": {"style": "rule", "ground_truth": answer}}


def index(value):
    return {"extra_info": {"split": "train", "index": value}}


def chat(*turns):
    return {"prompt": [{"role": role, "content": text} for role, text in turns], "images": []}


@pytest.mark.parametrize(
    ("cells", "column", "found", "fix"),
    [
        (truth({"a": 1}), "reward_model", "an answer is {'a': 1} (dict)", "write the answer as"),
        (truth(b"4"), "reward_model", "an answer is 1 bytes", "write the answer as text"),
        (truth(float("nan")), "reward_model", "an answer is nan, no number", "write the answer as"),
        (truth(float("inf")), "reward_model", "an answer is inf, no number", "write the answer as"),
        (truth(True), "reward_model", "an answer is True (bool)", "write the answer as"),
        (truth("\\boxed{}"), "reward_model", "which nothing can match", "write the answer as"),
        (truth("$"), "reward_model", "an answer is '$' (str)", "write the answer as"),
        (truth("$$"), "reward_model", "an answer is '$$' (str)", "write the answer as"),
        (truth([]), "reward_model", "no answer in", "set reward_model to"),
        (truth(["4", ""]), "reward_model", "an answer is '' (str)", "write the answer as"),
        (truth([["4"]]), "reward_model", "an answer is ['4'] (list)", "write the answer as"),
        (
            {"reward_model": {"style": "Math", "ground_truth": "4"}},
            "reward_model",
            "the style is 'Math' (str)",
            "write one of 'rule', 'exact', 'math'",
        ),
        (
            {"reward_model": {"style": "exakt", "ground_truth": "4"}},
            "reward_model",
            "the style is 'exakt' (str)",
            "or leave it null",
        ),
        (index("7"), "extra_info", "index is '7' (str)", "write extra_info.index as a whole"),
        (index(None), "extra_info", "index is null", "leave the field out of all rows"),
        (index(1.5), "extra_info", "index is 1.5 (float)", "write extra_info.index as a whole"),
        (
            chat(("user", "What?"), ("assistant", "It is")),
            "prompt",
            "the last turn is the assistant's",
            "end the prompt with the user's turn",
        ),
        (chat(("human", "What?")), "prompt", "the role 'human' (str)", "use the roles system"),
        (chat(("user", "What?"), ("", "x")), "prompt", "the role '' (str)", "use the roles system"),
        ({"images": [[b"x"]]}, "images", "an image is", "write a path"),
        ({"images": [{"url": "a.png"}]}, "images", "an image is", "write a path"),
        ({"images": b"x"}, "images", "the cell is 1 bytes", "write a list of images"),
        ({"images": ["data:image/png;base64,@@"]}, "images", "a data URI", "write data:image/png"),
        ({"images": ["data:image/png;base64,"]}, "images", "it is empty", "write data:image/png"),
        ({"images": ["s3://bucket/a.png"]}, "images", "an address of an unknown", "download the"),
        ({"images": ["iVBORw0KGgo" * 500]}, "images", "(5500 characters)", "images"),
        (
            {"images": [{"bytes": b"x", "path": None, "max_pixels": 0}]},
            "images",
            "max_pixels of an image is 0 (int)",
            "write a number of 1 to 12845056, or null",
        ),
        ({"videos": ["a.mp4"]}, "videos", "0 <video> in the prompt, 1 videos", "write one <video>"),
    ],
)
def test_what_would_end_a_run_later_is_refused_with_its_fix(row, write, cells, column, found, fix):
    path = write([row(**cells)])
    text = message(path)
    assert text.startswith(f"{path} row 0, column '{column}': ")
    assert found in text and fix in text
    assert len(text.splitlines()) == 1
    assert len(text) < len(str(path)) + 600


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (3.0, ("3",)),
        (2.5, ("2.5",)),
        (7, ("7",)),
        (["4", "four"], ("4", "four")),
        ([3, 4], ("3", "4")),
        ("\\boxed{4}", ("\\boxed{4}",)),
        ("None", ("None",)),
    ],
)
def test_an_answer_is_a_text_a_number_or_any_of_a_list(row, write, answer, texts):
    path = write([row(**truth(answer))])
    check_parquet(path)
    [stored] = pq.read_table(path).to_pylist()
    assert truths_of(stored["reward_model"]) == texts


def test_images_are_counted_against_the_limit_of_the_engine(row, write, png):
    three = [{"bytes": png(), "path": None}] * 3
    path = write([row(prompt=chat(("user", "<image>" * 3 + "?"))["prompt"], images=three)])
    check_parquet(path)
    rules = RowRules(max_images=2, max_images_key="limit_mm_per_prompt.image")
    text = message(path, rules=rules)
    assert "row 0, column 'images': 3 images, limit_mm_per_prompt.image=2; raise the limit" in text


def test_an_index_that_several_rows_have_is_told(row, write):
    path = write([row(**index(n)) for n in (0, 1, 1, 2, 2, 2)])
    report = check_parquet(path)
    assert report.rows_with_shared_index == 5
    assert "5 rows with the extra_info.index of another row" in str(report)


def test_columns_that_a_run_makes_itself_are_refused(row, write):
    text = message(write([row(responses="x", agent_name="tool_agent", output="4")]), FileError)
    assert "columns ['responses', 'agent_name', 'output']" in text and "rename them" in text


def test_reserved_names_are_those_beside_which_a_row_is_passed():
    """A column would be passed twice, or would replace a field of the response."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    from vapo_verl.rollout.agent_loop import VapoAgentLoop, VapoAgentLoopOutput
    from vapo_verl.rollout.agent_loop_worker import DONE_FIELD, VapoAgentLoopWorker
    from vapo_verl.rollout.transfer import LAYERS_FIELD

    workers = (AgentLoopWorker, AgentLoopWorkerTQ.__ray_metadata__.modified_class)
    calls = [SingleTurnAgentLoop.run, VapoAgentLoop.run]
    for worker in (*workers, VapoAgentLoopWorker):
        calls += [worker._run_agent_loop, worker._agent_loop_postprocess]
    parameters = [each for call in calls for each in inspect.signature(call).parameters.values()]
    named = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}
    named = {name for name in named if not name.startswith("_ray")}  # of Ray's tracing
    assert {"output", "validate", "sampling_params", "priority"} <= named
    assert named | {DONE_FIELD} <= {*RESERVED_COLUMNS}
    renamed = {"prompt_ids": "prompts", "response_ids": "responses", "reward_score": "rm_scores"}
    renamed |= {"response_logprobs": "rollout_log_probs", "multi_modal_data": "metrics"}
    fields = {renamed.get(name, name) for name in VapoAgentLoopOutput.model_fields}
    assert fields | {LAYERS_FIELD} <= {*RESERVED_COLUMNS}


def test_an_address_is_told_and_not_opened(row, write):
    report = check_parquet(write([row(images=["https://example.org/a.png"])]))
    assert (report.num_images_opened, report.images_remote) == (0, 1)
    assert "1 image at an address, not opened" in str(report)


def test_text_that_is_no_utf8_is_a_problem_of_its_row(row, write):
    path = write([row(), row(data_source="ABCDEFGH")])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ABCDEFGH", b"ABC\xff\xfeFGH"))
    assert "row 1, column 'data_source': the source is unreadable" in message(path)


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        (
            "rows.jsonl",
            b"{}\n",
            "import it: python -m vapo_verl.data import-plain FOLDER/rows.jsonl",
        ),
        ("rows.jsonl", b"{}\n", "--out FOLDER/rows.parquet --data-source rows --image-root FOLDER"),
        (
            "rows.ndjson",
            b"{}\n",
            "import it: python -m vapo_verl.data import-plain FOLDER/rows.ndjson",
        ),
        (
            "rows.json",
            b'{"question": "?"}\n{"question": "?"}\n',
            "it holds JSON lines: rename it to rows.jsonl and import it: python -m vapo_verl.data "
            "import-plain FOLDER/rows.jsonl --out FOLDER/rows.parquet",
        ),
        ("rows.csv", b"a\n", "read_csv('FOLDER/rows.csv', dtype=str, keep_default_na=False)"),
        ("rows", b"a\n", "give one that ends in .parquet"),
        ("rows.pq", b"PAR1", "veRL goes by that; rename it"),
        ("rows.parquet", b"", "is empty, 0 bytes; download or make it again"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_reason(tmp_path, name, content, fix):
    (tmp_path / name).write_bytes(content)
    assert fix.replace("FOLDER", str(tmp_path)) in message(tmp_path / name, FileError)


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("a.csv", "a,b\n007,x\n1.50,\nN/A,None\n", ["007", "1.50", "N/A"]),
        ("a.tsv", "a\tb\n007\tx\n1.50\t\nNone\tx\n", ["007", "1.50", "None"]),
    ],
)
def test_the_command_that_converts_keeps_answers(name, content, answers, tmp_path):
    """As it is printed, pasted into a shell in another folder."""
    folder = tmp_path / 'my $HOME\'s "rows"'
    folder.mkdir()
    (folder / name).write_text(content)
    command = message(folder / name, FileError).partition("convert it: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd="/", check=True)
    assert pq.read_table(folder / "a.parquet")["a"].to_pylist() == answers


def test_the_command_for_a_json_array_keeps_answers(tmp_path, png):
    """Images of some rows in a list; answers as text and as numbers."""
    folder = tmp_path / 'my $HOME\'s "FILE" rows'
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    written = ['"007"', "1.50", "12345678901234567890123", '"2024-01-02"', '"\\u00e9"']
    images = ['"a.png"', '["a.png"]', '["a.png", "a.png"]', "null", '"a.png"']
    rows = [
        f'{{"question": "?!", "answer": {answer}, "image": {image}}}'
        for answer, image in zip(written, images, strict=True)
    ]
    (folder / "mine.json").write_text("[\n" + ",\n".join(rows) + "]")
    command = message(folder / "mine.json", FileError).partition("convert it: ")[2]
    words = command.replace("python ", f"{sys.executable} ")
    done = subprocess.run(words, shell=True, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "arning" not in done.stderr
    imported = pq.read_table(folder / "mine.parquet").to_pylist()
    truths = [row["reward_model"]["ground_truth"] for row in imported]
    assert truths == ["007", "1.50", "12345678901234567890123", "2024-01-02", "\u00e9"]
    assert [len(row["images"]) for row in imported] == [1, 1, 2, 0, 1]


def test_json_lines_of_either_name_are_read(tmp_path):
    path, out = tmp_path / "mine.ndjson", tmp_path / "out.parquet"
    path.write_text('{"question": "2 + 2?", "answer": 4, "image": null}\n')
    import_rows([path], plain_reader, ImportOptions(out=out, data_source="mine"))
    assert pq.read_table(out).num_rows == 1


def test_the_command_that_imports_keeps_answers(tmp_path, png):
    folder = tmp_path / "my rows"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "mine.jsonl").write_text('{"question": "?!", "answer": 1.50, "image": "a.png"}\n')
    command = message(folder / "mine.jsonl", FileError).partition("import it: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd=ROOT, check=True)
    report = check_parquet(folder / "mine.parquet")
    assert (report.num_rows, report.num_images_opened) == (1, 1)
    (row,) = pq.read_table(folder / "mine.parquet").to_pylist()
    assert row["reward_model"]["ground_truth"] == "1.50"


def test_relative_paths_start_from_the_root(row, write, tmp_path, png):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    absolute = str(tmp_path / "images" / "a.png")
    path = write([row(images=["a.png"]), row(images=[absolute])])
    report = check_parquet(path, image_root=tmp_path / "images")
    assert (report.num_images, report.num_images_decoded) == (2, 2)
    assert num_duplicates(report, report) == 2
    assert report.fingerprints[0] == report.fingerprints[1]
    assert "row 0, column 'images': no file 'a.png'" in message(path)
    assert f"no file '{tmp_path}/a.png'" in message(path, image_root=tmp_path)


def test_files_of_differing_columns_are_named(row, write, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    paths = [
        write([row()], "a.parquet"),
        write([row(claims=None)], "b.parquet"),  # all null: fits any type
        write([row(images=[str(tmp_path / "a.png")])], "c.parquet"),
    ]
    require_same_columns(paths[:2], key="data.train_files")
    with pytest.raises(FileError, match=r"data.train_files: column 'images' is .*a.parquet, but"):
        require_same_columns(paths, key="data.train_files")


def test_questions_on_the_same_images_are_found_wherever_they_are_stored(row, write, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png("red", (64, 64)))
    stored = write(
        [row(images=[{"bytes": png("red", (64, 64)), "path": None}]), row()], "a.parquet"
    )
    asked = [{"role": "user", "content": "<image>what colour  is it?"}]
    other = write(
        [
            row(images=[str(tmp_path / "a.png")], prompt=asked),
            row(images=[str(tmp_path / "a.png")], prompt=[{**asked[0], "content": "<image>Why?"}]),
        ],
        "b.parquet",
    )
    assert num_duplicates(check_parquet(stored), check_parquet(other)) == 1


def test_the_row_number_is_that_of_the_file_beyond_the_first_batch(row, write):
    rows = [row() for _ in range(90)]
    rows[77]["reward_model"] = {"style": "rule", "ground_truth": ""}
    assert "train.parquet row 77, column 'reward_model'" in message(write(rows))


def test_problems_of_a_kind_are_bounded_and_kinds_do_not_hide_each_other(row, write):
    rows = [row(reward_model={"style": "rule", "ground_truth": ""}) for _ in range(8)]
    rows.append(row(images=[]))
    lines = message(write(rows)).splitlines()
    assert [line for line in lines if "row 4," in line] and not any("row 5," in x for x in lines)
    assert "... and 3 more like these (column 'reward_model'" in lines[5]
    assert "row 8, column 'images'" in lines[6]
    assert len(lines) == 7


def test_extreme_aspect_ratio_is_refused(row, write, png):
    wide = row(images=[{"bytes": png("red", (402, 2)), "path": None}])
    assert "402 x 2 pixels" in message(write([wide]))


def noise(kind, **options):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "ICO"]
)
@pytest.mark.parametrize("decode", [True, False])
def test_a_cut_off_image_is_found_from_its_end_alone(row, write, kind, decode):
    data = noise(kind)
    good = write([row(images=[{"bytes": data, "path": None}])])
    assert check_parquet(good, decode_images=decode).num_images_opened == 1
    cut = write([row(images=[{"bytes": data[:-800], "path": None}])])
    assert "column 'images': cannot read" in message(cut, decode_images=decode)


def test_a_damaged_image_is_found_by_decoding(row, write):
    data = bytearray(noise("PNG"))
    data[len(data) // 2] ^= 255
    path = write([row(), row(images=[{"bytes": bytes(data), "path": None}])])
    report = check_parquet(path, decode_images=False)
    assert (report.num_images_opened, report.num_images_decoded) == (2, 0)
    assert "row 1, column 'images'" in message(path)


def test_a_sample_is_decoded_and_stated(row, write):
    report = check_parquet(write([row() for _ in range(100)]), decode_images=4)
    assert (report.num_images_opened, report.num_images_decoded) == (100, 4)
    assert "100 images (100 opened, 4 decoded)" in str(report)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_image_paths_are_opened_and_addresses_are_not(row, write, tmp_path, png, form):
    (tmp_path / "a.png").write_bytes(png())
    local = row(images=[form.format(tmp_path / "a.png")])
    report = check_parquet(write([local, row(images=["https://example.org/a.png"])]))
    assert (report.num_images, report.num_images_opened) == (2, 1)


def test_struct_with_a_path_only_is_opened(row, write, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    path = str(tmp_path / "a.png")
    rows = [row(images=[{"bytes": None, "path": path}]), row()]
    assert check_parquet(write(rows)).num_images_opened == 2


def test_missing_file_names_the_key(tmp_path):
    text = message(tmp_path / "no.parquet", FileError, key="data.train_files")
    assert text.startswith("data.train_files: ") and "does not exist" in text
    assert "is a directory" in message(tmp_path, FileError)


def test_name_that_verl_refuses(row, write):
    assert "does not end in .parquet" in message(write([row()], name="train.pq"), FileError)


def test_not_parquet_and_cut_off_parquet(row, write, tmp_path):
    pointer = tmp_path / "pointer.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in message(pointer, FileError)
    broken = write([row() for _ in range(50)])
    content = bytearray(broken.read_bytes())
    content[4:400] = b"\0" * 396
    broken.write_bytes(content)
    assert "cannot read" in message(broken, FileError)


def test_no_rows_and_missing_columns(row, tmp_path, write, thinker_row):
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), empty)
    assert "has no rows" in message(empty, FileError)
    text = message(write([thinker_row()]), FileError)
    assert "missing columns ['prompt', 'data_source', 'reward_model']" in text
    assert "import-vapo-thinker" in text


def test_checks_and_importers_load_neither_torch_nor_verl():
    code = (
        "import sys, vapo_verl, vapo_verl.data, vapo_verl.data.__main__;"
        "print([name for name in ('torch', 'verl', 'datasets', 'ray') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_images_past_the_limit_are_looked_for_and_not_opened(row, write, tmp_path, png):
    paths = [tmp_path / name for name in ("a.png", "b.png", "absent.png")]
    paths[0].write_bytes(png())
    paths[1].write_text("no image")
    first, second, third = (row(images=[str(path)]) for path in paths)
    report = check_parquet(write([first, second]), max_images_checked=1)
    assert (report.num_images, report.num_images_opened) == (2, 1)
    with pytest.raises(RowError, match=r"row 1, column 'images': no file .*absent.png"):
        check_parquet(write([first, third]), max_images_checked=1)
