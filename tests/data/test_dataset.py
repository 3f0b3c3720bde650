"""The adapter inside veRL: loading, collating, and the way of `claims` to the agent loop."""

import asyncio
import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Image, List
from omegaconf import OmegaConf

from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.importers.plain import plain_reader
from vapo_verl.data.importers.run import ImportOptions, import_rows
from vapo_verl.data.importers.vapo_thinker import vapo_thinker_reader

CLAIMS = [{"text": "It is red.", "label": True}, {"text": "Blue.", "label": False}]


@pytest.fixture
def load(processor, tmp_path):
    """Load parquet files with the class that a configuration names, as veRL's trainer does."""
    from verl.trainer.ppo.utils import create_rl_dataset

    def load_files(*files, custom: bool = True):
        config = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": True}
        config |= {"max_prompt_length": 2048, "filter_overlong_prompts_workers": None}
        if custom:
            config["custom_cls"] = {"path": "pkg://vapo_verl.data.dataset", "name": "VapoDataset"}
        paths, data_config = [str(file) for file in files], OmegaConf.create(config)
        return create_rl_dataset(paths, data_config, processor.tokenizer, processor)

    return load_files


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def test_rows_hold_claims_as_plain_lists_beside_verls_own_fields(load, row, write):
    dataset = load(write([row(), row(claims=None), row(claims=[])]))
    assert type(dataset).__name__ == "VapoDataset"
    assert [dataset[i]["claims"] for i in range(3)] == [CLAIMS, [], []]
    image, question = dataset[0]["raw_prompt"][0]["content"]
    assert image["type"] == "image" and image["image"].size == (56, 56)
    assert question == {"type": "text", "text": "What colour is it?"}


@pytest.mark.parametrize("info", [None, {"split": "train"}])
def test_a_row_without_an_index_has_its_place_as_one(load, row, write, info):
    """0 for all, as veRL has it, would make one prompt of them in a report."""
    dataset = load(write([row(extra_info=info)] * 3))
    assert [dataset[i]["index"] for i in range(3)] == [0, 1, 2]


def test_a_row_holds_its_images_once(load, row, write):
    example = load(write([row()]))[0]
    del example["raw_prompt"]
    assert not {"prompt", "images"} & set(example)
    assert b"StoredImage" not in pickle.dumps(example)


@pytest.mark.parametrize("is_typed", [True, False])
def test_images_beside_those_of_the_prompt_are_left_out(load, row, png, tmp_path, capsys, is_typed):
    """As in a Hugging Face data set whose `image` column was kept beside `images`."""
    image = {"bytes": png(), "path": None}
    table = Dataset.from_list([row(image=image, pages=[image], note="kept")] * 2)
    if is_typed:
        table = table.cast_column("image", Image()).cast_column("pages", List(Image()))
        table = table.cast_column("images", List(Image()))
    table.to_parquet(tmp_path / "original.parquet")
    example = load(tmp_path / "original.parquet")[0]
    assert example["note"] == "kept" and not {"image", "pages"} & example.keys()
    assert example.pop("raw_prompt")[0]["content"][0]["image"].size == (56, 56)
    content = pickle.dumps(example)
    assert b"PIL" not in content and png() not in content
    assert "Columns ['image', 'pages'] of" in capsys.readouterr().out


@pytest.mark.parametrize("claims", ["absent", None, []])
@pytest.mark.parametrize("order", [1, -1])
def test_files_with_and_without_claims_can_be_mixed(load, row, write, claims, order):
    other = row(claims=claims)
    if claims == "absent":
        del other["claims"]
    files = [write([row()], "with.parquet"), write([other], "without.parquet")]
    dataset = load(*files[::order])
    assert [dataset[i]["claims"] for i in range(2)] == [CLAIMS, []][::order]


def test_path_only_structs_are_opened_beside_bytes(load, row, write, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png("blue"))
    by_path = row(images=[{"bytes": None, "path": str(tmp_path / "a.png")}])
    dataset = load(write([by_path, row()]))
    assert len(dataset) == 2  # the length filter opened the images of both
    image = dataset[0]["raw_prompt"][0]["content"][0]["image"]
    assert image.source == str(tmp_path / "a.png")
    assert image.size == (56, 56) and image.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "other"), [("run[1]", "run1"), ("run?", "runs"), ("run*", "run2")]
)
def test_a_path_names_one_file(load, row, write, tmp_path, name, other):
    for place, folder in enumerate((name, other)):
        (tmp_path / folder).mkdir()
        write([row(data_source=folder)] * (place + 1), f"{folder}/train.parquet")
    dataset = load(tmp_path / name / "train.parquet")
    assert [dataset[i]["data_source"] for i in range(len(dataset))] == [name]
    dataset.resume_dataset_state()
    assert [dataset[i]["data_source"] for i in range(len(dataset))] == [name]


def test_labels_as_text_are_refused_with_the_row(load, row, write):
    dataset = load(write([row(claims=[{"text": "a", "label": "WRONG"}])]))
    with pytest.raises(RowError, match=r"row 0 of .*train.parquet.*import-vapo-thinker"):
        dataset[0]


def test_files_whose_columns_differ_in_type_are_refused_with_a_fix(load, row, write, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    by_path = write([row(images=[str(tmp_path / "a.png")])], "paths.parquet")
    with pytest.raises(FileError, match="--embed-images"):
        load(by_path, write([row()], "bytes.parquet"))


@pytest.mark.parametrize("custom", [True, False])
@pytest.mark.parametrize("embed", [True, False])
def test_imported_files_load_in_both_of_verls_classes(
    load, thinker_row, write, tmp_path, png, embed, custom
):
    (tmp_path / "a.png").write_bytes(png())
    options = {"data_source": "x", "image_root": tmp_path, "embed_images": embed}
    source = write([{"question": "How many?", "answer": "4", "image": ["a.png"]}])
    plain = ImportOptions(out=tmp_path / "plain.parquet", **options)
    import_rows([source], plain_reader, plain)
    thinker = ImportOptions(out=tmp_path / "thinker.parquet", **options)
    import_rows([write([thinker_row()])], vapo_thinker_reader, thinker)
    files = [plain.out, thinker.out] if embed else [plain.out]
    dataset = load(*files, custom=custom)
    assert [len(dataset[i]["claims"]) for i in range(len(dataset))] == [0, 20][: len(files)]
    assert dataset[0]["reward_model"] == {"style": "rule", "ground_truth": "4"}


def test_claims_reach_the_agent_loop_of_each_row(load, row, write):
    """Through veRL's collate_fn, get_tensordict, chunk and the worker's own dispatch."""
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.rl_dataset import collate_fn

    dataset = load(write([row(), row(claims=None), row(claims=CLAIMS[:1]), row(claims=[])]))
    batch = collate_fn([dataset[i] for i in range(4)])
    assert batch["claims"].dtype == object and batch["claims"].shape == (4,)
    batch["uid"] = np.array(list("abcd"), dtype=object)
    batch = tu.get_tensordict(batch)
    tu.assign_non_tensor_data(batch, "global_steps", 1)
    tu.assign_non_tensor_data(batch, "validate", True)
    received = {}

    async def run_prompt(prompt, sampling_params, trajectory, trace):
        received[prompt["uid"]] = prompt

    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "calculate_log_probs": True}
    rollout = sampling | {"agent": {"default_agent_loop": "vapo"}, "val_kwargs": sampling}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    worker = SimpleNamespace(config=config, background_tasks=set(), _run_prompt=run_prompt)
    generate = AgentLoopWorkerTQ.__ray_metadata__.modified_class.generate_sequences

    async def dispatch():
        for chunk in batch.chunk(2):
            await generate(worker, chunk)
        await asyncio.gather(*worker.background_tasks)

    asyncio.run(dispatch())
    assert [received[uid]["claims"] for uid in "abcd"] == [CLAIMS, [], CLAIMS[:1], []]
    kept = tu.list_of_dict_to_tensordict([{"claims": received[uid]["claims"]} for uid in "abcd"])
    assert list(kept["claims"]) == [CLAIMS, [], CLAIMS[:1], []]


def test_rows_in_numpy_format_are_normalised_too(load, row, write):
    schema = pa.Table.from_pylist([row()]).schema
    dataset = load(write([row()], schema=schema))
    dataset.dataframe = dataset.dataframe.with_format("numpy")
    claims = dataset[0]["claims"]
    assert claims == CLAIMS and all(type(claim["label"]) is bool for claim in claims)
