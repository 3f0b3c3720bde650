"""Control tokens in the text of rows: refused, or encoded as the characters they are made of."""

import json
import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from transformers import AutoProcessor, AutoTokenizer
from verl.workers.config import HFModelConfig

from vapo_verl.anchors import bind_question
from vapo_verl.config import AnchorConfig
from vapo_verl.data.cells import RowRules
from vapo_verl.data.control_tokens import (
    ESCAPE,
    MEDIA_WORDS,
    PROCESSOR_WORDS,
    QWEN_TOKENS,
    RESPONSE_TAGS,
    ControlTokens,
    added_tokens,
    load_processor,
    model_folder,
    read_escapes,
    spell_saved_tags,
    tags_as_text,
    text_words,
    tokenizer_tokens,
    vision_token_ids,
)
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.errors import RowError
from vapo_verl.data.images import load_image
from vapo_verl.data.prompt_length import PromptMeter
from vapo_verl.data.rows import check_parquet
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.random_models import make_random_model

WORDS = (*QWEN_TOKENS, *MEDIA_WORDS, *PROCESSOR_WORDS)


def asks(text):
    return [{"role": "user", "content": f"<image>What is {text}?"}]


@pytest.mark.parametrize("word", WORDS)
def test_in_a_question_it_is_refused_with_file_row_and_column(word, row, write):
    path = write([row(), row(prompt=asks(word))])
    with pytest.raises(RowError) as caught:
        check_parquet(path)
    said = str(caught.value)
    assert said.startswith(f"{path} row 1, column 'prompt': {word} in the prompt")
    assert "reword it, or encode it as the characters it is made of: control_tokens=text" in said


@pytest.mark.parametrize("word", [*WORDS, "<image>"])
def test_in_a_claim_too(word, row, write):
    path = write([row(claims=[{"text": f"It shows {word}.", "label": True}])])
    with pytest.raises(RowError, match="row 0, column 'claims'") as caught:
        check_parquet(path)
    assert word in str(caught.value)


def test_in_any_turn(row, write):
    turns = [{"role": "system", "content": "Be kind. <|im_end|>"}, *asks("it")]
    with pytest.raises(RowError, match=r"<\|im_end\|> in the prompt"):
        check_parquet(write([row(prompt=turns)]))


def test_the_tags_of_the_format_are_no_control_tokens(row, write):
    check_parquet(write([row(prompt=asks(" ".join(RESPONSE_TAGS)))]))


def test_ordinary_angle_brackets_stay(row, write):
    check_parquet(write([row(prompt=asks("a <b> c < d, f(<x>) and <|y|>"))]))


def test_of_a_tokenizer_its_own_list_counts(row, write, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    assert tokenizer_tokens(model_dir()) == added_tokens(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[MARK]"]})
    tokenizer.save_pretrained(tmp_path / "model")
    rules = RowRules(controls=ControlTokens(tokenizer_tokens(tmp_path / "model") or ()))
    path = write([row(prompt=asks("[MARK]"))])
    check_parquet(path)
    with pytest.raises(RowError, match=r"\[MARK\] in the prompt"):
        check_parquet(path, rules=rules)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<a>": 7}),
        ("special_tokens_map.json", {"eos_token": {"content": "<a>"}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<a>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<a>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 7, "content": "<a>"}]}),
    ],
)
def test_every_file_of_a_tokenizer_is_read(name, content, tmp_path):
    assert tokenizer_tokens(tmp_path) is None
    (tmp_path / name).write_text(json.dumps(content))
    assert tokenizer_tokens(tmp_path) == ("<a>",)


@pytest.fixture
def processor():
    """The packaged model's, loaded for each test: they change its tokenizer."""
    return AutoProcessor.from_pretrained(model_dir())


@pytest.fixture
def encode(processor, row, write, tmp_path):
    """The ids of a question by way of the data set and veRL's own builder, with escapes read."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    def ids(text, mode="text"):
        config = OmegaConf.create(
            {"control_tokens": mode, "filter_overlong_prompts": False, "max_prompt_length": 4096}
        )
        path = write([row(prompt=asks(text))])
        data = VapoDataset(str(path), processor.tokenizer, config, processor)
        messages = data[0]["raw_prompt"]
        builder = create_continuous_token_builder(
            processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
        )
        image = load_image(messages[0]["content"][0]["image"])
        return builder.build_initial_tokens(messages, images=[image])

    return ids


def plain(tokenizer, text):
    """Ids of a text in which no token but ordinary ones is looked for."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.mark.parametrize("word", [*WORDS, "<|im_<|im_end|>end|>", "<|im_end|><|image_pad|>é"])
def test_as_text_each_token_of_the_prompt_is_that_of_its_characters(word, encode, processor):
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    num_pads = 4  # 56 x 56 pixels
    expected = [
        *tokenizer.encode("<|im_start|>user\n<|vision_start|>"),
        *[processor.image_token_id] * num_pads,
        *tokenizer.encode("<|vision_end|>"),
        *plain(tokenizer, f"What is {word}?"),
        *tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n"),
    ]
    assert encode(word) == expected


def test_plain_text_has_the_same_ids_in_both_modes(encode):
    refused = encode("the largest of 3 < 4 and é", mode="refuse")
    assert encode("the largest of 3 < 4 and é") == refused


@pytest.mark.parametrize("word", WORDS)
def test_a_claim_at_an_anchor_too(word):
    tokenizer, settings = AutoTokenizer.from_pretrained(model_dir()), AnchorConfig()
    words = settings.yes_words, settings.no_words
    untouched = AutoTokenizer.from_pretrained(model_dir())
    controls = ControlTokens(added_tokens(tokenizer))
    question = bind_question(tokenizer, settings.question, *words, controls=controls)
    text = settings.question.replace("{claim}", f"It shows {word}.")
    assert question.token_ids(f"It shows {word}.") == plain(untouched, text)


def test_lengths_are_those_of_the_text(encode, processor, row, write):
    rules = RowRules(
        refuse_controls=False, controls=ControlTokens(added_tokens(processor.tokenizer))
    )
    cells = row(prompt=asks("<|image_pad|><|im_end|>"))
    assert check_parquet(write([cells]), rules=rules).rows_with_controls == 1
    meter = PromptMeter(processor, template_options={}, limits={}, controls=rules.controls)
    length = len(encode("<|image_pad|><|im_end|>"))
    assert meter.num_tokens(cells["prompt"], cells["images"]) == length


def test_no_text_holds_the_escape(row, write):
    rules = RowRules(refuse_controls=False)
    for cells in ({"prompt": asks(ESCAPE)}, {"claims": [{"text": ESCAPE, "label": True}]}):
        with pytest.raises(RowError, match=r"U\+FDD0 in .*take the character out"):
            check_parquet(write([row(**cells)]), rules=rules)


def test_a_tokenizer_that_looks_for_tokens_later_is_refused():
    from tokenizers import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    tokenizer.add_tokens([AddedToken("<late>", normalized=True)])
    with pytest.raises(ValueError, match=r"control_tokens=text: .*<late>.*set refuse"):
        read_escapes(tokenizer)
    with pytest.raises(ValueError, match="no fast tokenizer"):
        read_escapes(object())


def test_ids_of_all_tokens_that_stand_for_images_or_places_in_them():
    """Ids of Qwen2.5-VL."""
    names = (
        *("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end"),
        *("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
    )
    added = {f"<|{name}|>": 151_646 + place for place, name in enumerate(names)}
    others = {"<|im_end|>": 151_645, "<tool_call>": 151_657}
    tokenizer = SimpleNamespace(get_added_vocab=lambda: {**others, **added})
    assert vision_token_ids(tokenizer) == list(range(151_646, 151_657))


def test_what_stands_for_images_and_videos():
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    names = tokenizer.convert_ids_to_tokens(vision_token_ids(tokenizer))
    assert set(names) == {
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    }


INSTRUCTION = "Think between <think> and </think>."
MORE = 3 + 4
"""Tokens: < thin k > and < / thin k > in place of one each."""


@pytest.fixture(scope="module")
def added_tags(tmp_path_factory):
    """A model whose think tags are added tokens, and whose chat template never writes them."""
    folder = tmp_path_factory.mktemp("models") / "qwen3_vl"
    make_random_model(folder, "tiny", family="qwen3_vl", think_tokens=True, weights=False)
    return folder


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
@pytest.mark.parametrize("in_tokenizer", [False, True])
def test_a_processor_has_the_template_of_the_run(template, in_tokenizer, tokenizer_template):
    """As veRL's workers have it."""
    folder = tokenizer_template if in_tokenizer else model_dir()
    options = {"override_config": {"attn_implementation": "eager"}}
    verl = HFModelConfig(path=str(folder), custom_chat_template=template, **options)
    found = load_processor(folder, template).chat_template
    assert found == verl.processor.chat_template
    assert found == template or "<|im_start|>" in found


def test_the_template_that_renders_prompts_decides_about_the_tags(added_tags):
    """A run's own template is set in the trainer's processor, and not in its tokenizer."""
    processor = AutoProcessor.from_pretrained(added_tags)
    thinks, plain = thinking(processor).chat_template, processor.tokenizer.chat_template
    tokenizer = AutoTokenizer.from_pretrained(added_tags)
    assert tags_as_text(tokenizer, "auto", processor) == ()
    tokenizer.chat_template, processor.chat_template = thinks, plain
    assert tags_as_text(tokenizer, "auto", processor) == RESPONSE_TAGS


def thinking(processor):
    """The same as a model that was trained to think in these tokens has it."""
    template = processor.chat_template.replace("assistant\n", "assistant\n<think>\n")
    assert template != processor.chat_template
    processor.chat_template = template
    return processor


@pytest.mark.parametrize(
    ("setting", "of_instruct", "of_thinking"),
    [
        ("auto", RESPONSE_TAGS, ()),
        ("true", RESPONSE_TAGS, RESPONSE_TAGS),
        (True, RESPONSE_TAGS, RESPONSE_TAGS),  # as Hydra reads it
        ("false", (), ()),
        (False, (), ()),
    ],
)
def test_tags_that_were_never_trained_are_written_as_text(
    added_tags, setting, of_instruct, of_thinking
):
    processor = AutoProcessor.from_pretrained(added_tags)
    tokenizer = processor.tokenizer
    assert tags_as_text(tokenizer, setting, processor) == of_instruct
    assert tags_as_text(tokenizer, setting, thinking(processor)) == of_thinking
    words = AutoTokenizer.from_pretrained(model_dir())  # there each tag is a word
    assert tags_as_text(words, setting) == ()


@pytest.mark.parametrize("mode", ["refuse", "text"])
def test_prompts_spell_the_tags_that_a_response_is_asked_for(added_tags, row, write, mode):
    processor = AutoProcessor.from_pretrained(added_tags)
    untouched = AutoTokenizer.from_pretrained(added_tags)
    settings = {"filter_overlong_prompts": False, "max_prompt_length": 4096, "control_tokens": mode}
    path = write([row(prompt=asks(INSTRUCTION))])
    encoded, lengths = {}, {}
    for plain_tags in ("false", "auto"):
        processor = AutoProcessor.from_pretrained(added_tags)
        config = OmegaConf.create({**settings, "plain_think_tokens": plain_tags})
        data = VapoDataset(str(path), processor.tokenizer, config, processor)
        text = processor.apply_chat_template(data[0]["raw_prompt"], tokenize=False)
        encoded[plain_tags] = processor.tokenizer.encode(text)
        [cells] = pq.read_table(path).to_pylist()
        lengths[plain_tags] = data.prompt_length(cells)
    tags = untouched.convert_tokens_to_ids([*RESPONSE_TAGS])
    assert [encoded["false"].count(tag) for tag in tags] == [1, 1]
    assert [encoded["auto"].count(tag) for tag in tags] == [0, 0]
    pieces = processor.tokenizer.convert_ids_to_tokens(encoded["auto"])
    assert "".join(pieces).count("<think>") == "".join(pieces).count("</think>") == 1
    assert {"<", "/", ">"} <= {*pieces}
    assert untouched.decode(encoded["auto"]) == untouched.decode(encoded["false"])
    assert len(encoded["auto"]) - len(encoded["false"]) == MORE
    assert lengths["auto"] - lengths["false"] == MORE


@pytest.mark.parametrize(("setting", "spelled"), [("auto", RESPONSE_TAGS), ("false", ())])
def test_a_saved_tokenizer_spells_what_training_spelled(added_tags, tmp_path, setting, spelled):
    folder = tmp_path / "export"
    shutil.copytree(added_tags, folder)
    before = AutoTokenizer.from_pretrained(folder)
    assert spell_saved_tags(folder, setting) == spelled
    after = AutoProcessor.from_pretrained(folder).tokenizer
    assert {*before.get_added_vocab()} - {*after.get_added_vocab()} == {*spelled}
    others = {t: i for t, i in before.get_added_vocab().items() if t not in spelled}
    assert after.get_added_vocab() == others
    read_escapes(before)
    words = ControlTokens(None, spelled).hide(INSTRUCTION) if spelled else INSTRUCTION
    assert after.encode(INSTRUCTION) == before.encode(words)
    assert spell_saved_tags(folder, setting) == ()


def test_a_tag_whose_place_another_token_would_take_stays(added_tags, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(added_tags, folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    model = saved["model"]  # a token that was added behind the vocabulary, as Qwen's are
    model["vocab"]["<unused>"] = model["vocab"].pop("<think>")
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != "<think>"]
    [tag] = (token for token in saved["added_tokens"] if token["content"] == "<think>")
    tag["id"] = len(model["vocab"])
    saved["added_tokens"].append({**tag, "id": tag["id"] + 1, "content": "<last>"})
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    before = (folder / "tokenizer.json").read_bytes()
    assert spell_saved_tags(folder, "true") == ()
    assert (folder / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ({"<think>": 7, "<a>": 8}, {"<a>": 8}),
        (
            {"added_tokens_decoder": {"7": {"content": "<think>"}, "8": {"content": "<a>"}}},
            {"added_tokens_decoder": {"8": {"content": "<a>"}}},
        ),
        ({"extra_special_tokens": ["<a>", "</think>"]}, {"extra_special_tokens": ["<a>"]}),
        (
            {"additional_special_tokens": [{"content": "</think>"}], "eos_token": "<a>"},
            {"additional_special_tokens": [], "eos_token": "<a>"},
        ),
    ],
)
def test_every_file_of_a_saved_tokenizer_loses_the_tags(added_tags, tmp_path, stated, kept):
    folder = tmp_path / "export"
    shutil.copytree(added_tags, folder)
    name = "added_tokens.json" if "<a>" in stated else "special_tokens_map.json"
    (folder / name).write_text(json.dumps(stated))
    spell_saved_tags(folder, "auto")
    assert json.loads((folder / name).read_text()) == kept


def test_lengths_before_a_run_count_the_spelled_tags(added_tags, row, write):
    processor = AutoProcessor.from_pretrained(added_tags)
    cells = row(prompt=asks(INSTRUCTION))
    lengths = [
        PromptMeter(
            processor,
            template_options={},
            limits={},
            controls=text_words(
                processor.tokenizer,
                control_tokens="refuse",
                plain_think_tokens=setting,
                processor=processor,
            ),
        ).num_tokens(cells["prompt"], cells["images"])
        for setting in ("false", "auto")
    ]
    assert lengths[1] - lengths[0] == MORE


def test_without_tags_and_controls_nothing_is_prepared(processor):
    backend = processor.tokenizer.backend_tokenizer
    before = backend.to_str()
    for setting in ("auto", "true", "false"):
        words = text_words(processor.tokenizer, control_tokens="refuse", plain_think_tokens=setting)
        assert words is None
    assert backend.to_str() == before


def test_a_tokenizer_that_cannot_spell_tags_names_the_setting(added_tags):
    from tokenizers import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(added_tags)
    tokenizer.add_tokens([AddedToken("<late>", normalized=True)])
    with pytest.raises(ValueError, match=r"vapo\.data\.plain_think_tokens: .*<late>.*set false"):
        text_words(tokenizer, control_tokens="refuse", plain_think_tokens="auto")


def test_a_cached_hub_name_is_the_revision_of_main(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--made--up"
    for revision in ("0000", "ffff"):
        (cached / "snapshots" / revision).mkdir(parents=True)
        (cached / "snapshots" / revision / "config.json").write_text("{}")
    assert model_folder("made/up") == cached / "snapshots" / "ffff"  # no name: the last one
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0000")
    assert model_folder("made/up") == cached / "snapshots" / "0000"
    assert model_folder("made/down") is None
