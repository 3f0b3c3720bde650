"""The files of a run together: enough rows for a batch, lengths, and rows in both sets."""

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import AutoProcessor

from vapo_verl.data.cells import RowRules
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.prompt_length import PromptMeter
from vapo_verl.data.run_files import RunData, check_run_files, files_of
from vapo_verl.digits.model import model_dir

LONG = "What is " + "very " * 300 + "red?"


@pytest.fixture
def run(row, write):
    """A run of three short rows and one long one, and a validation of another."""
    rows = [row(prompt=asks(text)) for text in ("One?", "Two?", "Three?", LONG)]
    return RunData(
        files={
            "train_files": [write(rows, "train.parquet")],
            "val_files": [write([row(prompt=asks("Four?"))], "val.parquet")],
        },
        needed={"train_files": (3, "data.train_batch_size=3"), "val_files": (1, "a validation")},
        max_samples={"train_files": -1, "val_files": -1},
        rules=RowRules(),
        min_claims=2,
        model=str(model_dir()),
        max_prompt_length=100,
        filters_long=True,
    )


def asks(text):
    return [{"role": "user", "content": f"<image>{text}"}]


def test_a_run_with_enough_rows_is_described(run):
    train, val = check_run_files(run)
    assert "train.parquet: 4 rows, 4 images (4 opened)" in train
    assert "val.parquet: 1 row" in val


def test_too_few_rows_for_a_batch(run):
    short = replace(run, needed={**run.needed, "train_files": (5, "data.train_batch_size=5")})
    with pytest.raises(FileError) as caught:
        list(check_run_files(short))
    assert str(caught.value) == (
        "data.train_files: 4 rows, but data.train_batch_size=5 takes 5 at a time; "
        "give more rows, or set it to 4 or less"
    )


def test_too_few_rows_after_the_filter(run):
    short = replace(run, needed={**run.needed, "train_files": (4, "data.train_batch_size=4")})
    with pytest.raises(
        FileError, match=r"3 rows of at most data.max_prompt_length=100 tokens, but"
    ):
        list(check_run_files(short))
    none = replace(run, max_prompt_length=5)
    with pytest.raises(FileError, match=r"data.train_files: 0 rows of at most .*set it to 1"):
        list(check_run_files(none))


def test_too_few_rows_under_a_limit_of_samples(run):
    short = replace(run, max_samples={**run.max_samples, "train_files": 2})
    with pytest.raises(
        FileError, match=r"2 rows under data.train_max_samples=2, but data.train_ba"
    ):
        list(check_run_files(short))


def test_without_the_filter_long_prompts_are_named(run):
    with pytest.raises(
        RowError, match=r"train.parquet row 3, column 'prompt': \d+ tokens, data.max"
    ):
        list(check_run_files(replace(run, filters_long=False)))
    list(check_run_files(replace(run, filters_long=False, max_prompt_length=2000)))


@pytest.mark.parametrize(("draws", "seed"), [(False, None), (True, 0), (True, 1)])
def test_long_prompts_are_named_by_their_place_among_all_rows(run, row, write, draws, seed):
    rows = [row(prompt=asks(LONG if number in (3, 5) else "One?")) for number in range(8)]
    files = [write(rows[:4], "first.parquet"), write(rows[4:], "second.parquet")]
    used = range(6)
    if draws:
        used = np.random.default_rng(seed).choice(8, size=6, replace=False).tolist()
    some = replace(
        run,
        files={**run.files, "train_files": files},
        max_samples={**run.max_samples, "train_files": 6},
        draws_subset=draws,
        subset_seed=seed,
        filters_long=False,
    )
    with pytest.raises(RowError) as caught:
        list(check_run_files(some))
    message = str(caught.value)
    assert ("first.parquet row 3," in message) == (3 in used)
    assert ("second.parquet row 1," in message) == (5 in used)
    assert message.count(" row ") == len({3, 5} & {*used})


def test_a_path_that_no_data_set_can_be_read_from_is_refused(run, row, write, tmp_path):
    (tmp_path / "a::b").mkdir()
    path = write([row()], "a::b/train.parquet")
    chained = replace(run, files={**run.files, "train_files": [path]})
    with pytest.raises(FileError, match=r"data\.train_files=.*a::b/train\.parquet: .*'::'; rename"):
        list(check_run_files(chained))


def test_rows_in_both_sets_are_a_warning(run, row, write):
    val = write([row(prompt=asks("two?")), row(prompt=asks("Five?"))], "val.parquet")
    *_, said = check_run_files(replace(run, files={**run.files, "val_files": [val]}))
    assert said.startswith("warning: 1 of 2 rows of ") and "leave them out of one" in said


def test_a_model_that_is_not_here_is_told(run):
    *_, said = check_run_files(replace(run, model="Org/absent"))
    assert said == "prompts are not measured: Org/absent is not on this machine yet"


@pytest.mark.parametrize("limits", [{}, {"max_pixels": 3136}, {"min_pixels": 50176}])
def test_lengths_are_those_of_the_data_set(run, row, write, png, limits):
    processor = AutoProcessor.from_pretrained(model_dir())
    images = [{"bytes": png("red", size), "path": None} for size in ((56, 56), (300, 90))]
    turns = [{"role": "system", "content": "Be kind."}, *asks("What <image> is it?")]
    path = write([row(prompt=turns, images=images)])
    config = OmegaConf.create({"filter_overlong_prompts": False, **limits})
    data = VapoDataset(str(path), processor.tokenizer, config, processor)
    meter = PromptMeter(processor, template_options={}, limits=limits)
    assert meter.num_tokens(turns, images) == data.prompt_length(data.dataframe[0])


def test_lengths_are_those_under_the_template_of_the_run(run):
    assert list(check_run_files(run))
    own = (model_dir() / "chat_template.jinja").read_text()
    with pytest.raises(FileError, match=r"0 rows of at most data.max_prompt_length=100 tokens"):
        list(check_run_files(replace(run, chat_template=own + "and " * 100)))


def test_a_template_may_be_in_the_tokenizers_config_only(run, tokenizer_template):
    assert len(list(check_run_files(replace(run, model=str(tokenizer_template))))) == 2


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}"])
def test_a_template_that_fails_is_named(run, template):
    key = "actor_rollout_ref.model.custom_chat_template: the chat template fails"
    with pytest.raises(ValueError, match=key):
        list(check_run_files(replace(run, chat_template=template)))


@pytest.mark.parametrize("files", [None, [], "", [""], [7]])
def test_files_must_be_given(files):
    with pytest.raises(FileError, match=r"data.train_files.*give "):
        files_of(files, "train_files")
