"""A start goes on with the run in its folder, or is told that it is another one."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

import vapo_verl
from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl import launch
from vapo_verl.config import COLOCATED
from vapo_verl.preflight import InputError
from vapo_verl.run_folder.checkpoints import checkpoint_folder, latest_complete
from vapo_verl.run_folder.layout import config_file, write_config
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.run_folder.resume import (
    STORAGE_FILES,
    inputs_of,
    references,
    write_inputs,
    write_num_rows,
)


class Run:
    """A run of the smoke recipe in a folder of its own."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.folder = tmp_path / "run"
        self.train, self.val, self.model = (
            tmp_path / name for name in ("train.parquet", "val.parquet", "model")
        )
        for path, num_rows in ((self.train, 40), (self.val, 20)):
            self.rows(path, num_rows)
        self.model.mkdir()
        (self.model / "config.json").write_text('{"model_type": "qwen3_vl"}')
        (self.model / "model.safetensors").write_bytes(b"weights")

    def rows(self, path, num_rows):
        pq.write_table(
            pa.table({"prompt": [f"{path.stem} {row}" for row in range(num_rows)]}), path
        )

    def config(self, **changes):
        config = compose_once("smoke")
        config.trainer.default_local_dir = str(self.folder)
        config.data.train_files, config.data.val_files = str(self.train), str(self.val)
        config.actor_rollout_ref.model.path = str(self.model)
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
        return config

    def train_to(self, step, **changes):
        """What a run leaves: its config, its inputs, and the checkpoint of `step`."""
        config = self.config(**changes)
        launch.settle(config)
        self.folder.mkdir(exist_ok=True)
        write_inputs(self.folder, inputs_of(launch.plain(config)))
        launch.export_attention(config)
        launch.set_environment(config)
        write_config(self.folder, config, latest_complete(self.folder) or 0)
        checkpoint_folder(self.folder, step).mkdir(exist_ok=True)
        mark_complete(self.folder, step)

    def start(self, **changes):
        """Compare as a start does."""
        config = self.config(**changes)
        derived = references(launch.plain(config, resolve=False))
        with launch.input_errors():
            launch.settle(config)
            launch.compare_with_folder(config, derived)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """What a start sets is undone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in launch.CPU_ENVIRONMENT:
            patch.setenv(name, "1")
        yield


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture(scope="module")
def step_3(tmp_path_factory):
    """Where a run has trained to step 3, and a copy of its folder."""
    place = tmp_path_factory.mktemp("step_3")
    run = Run(place)
    run.train_to(3)
    return place, shutil.copytree(run.folder, tmp_path_factory.mktemp("copy") / "run")


@pytest.fixture
def trained(step_3):
    """A run at step 3, in the place that its config names."""
    place, folder = step_3
    shutil.rmtree(place)
    place.mkdir()
    run = Run(place)
    shutil.copytree(folder, run.folder)
    return run


def test_the_same_command_goes_on_without_a_word(run, capsys):
    run.start()  # nothing there
    run.train_to(3)
    run.start()
    run.train_to(6)
    run.start()
    assert capsys.readouterr().out == ""


IDENTITY = [
    ("vapo__seed", 1, "vapo.seed: 0 -> 1"),
    ("vapo__reward__perception_weight", 0.5, "vapo.reward.perception_weight: 0.1 -> 0.5"),
    ("vapo__reward__answer_style", "math", 'vapo.reward.answer_style: "exact" -> "math"'),
    ("vapo__anchors__num_anchors", 4, "vapo.anchors.num_anchors: 8 -> 4"),
    ("data__shuffle", False, "data.shuffle: true -> false"),
    ("data__train_max_samples", 16, "data.train_max_samples: -1 -> 16"),
    ("actor_rollout_ref__model__lora_alpha", 8, "actor_rollout_ref.model.lora_alpha: 16 -> 8"),
    (
        "actor_rollout_ref__model__target_modules",
        ["q_proj"],
        'actor_rollout_ref.model.target_modules: "all-linear" -> ["q_proj"]',
    ),
    (
        "actor_rollout_ref__model__exclude_modules",
        ".*visual.*",
        'actor_rollout_ref.model.exclude_modules: null -> ".*visual.*"',
    ),
    ("vapo__method__name", "papo", 'vapo.method.name: "none" -> "papo"'),
    ("algorithm__adv_estimator", "grpo", 'algorithm.adv_estimator: "vapo" -> "grpo"'),
    (
        "actor_rollout_ref__actor__policy_loss__loss_mode",
        "gspo",
        'actor_rollout_ref.actor.policy_loss.loss_mode: "vanilla" -> "gspo"',
    ),
    ("custom_reward_function__path", "mine.py", 'custom_reward_function.path: null -> "mine.py"'),
]


@pytest.mark.parametrize(("key", "value", "shown"), IDENTITY)
def test_another_seed_reward_or_data_is_refused_and_can_be_accepted(
    trained, capsys, key, value, shown
):
    with pytest.raises(InputError, match=r"holds step 3 of a run with other settings") as refused:
        trained.start(**{key: value})
    assert f"\n  {shown}\n" in str(refused.value)
    assert str(refused.value).count(" -> ") == 1  # not the keys that follow it
    accepted = key.replace("__", ".")
    assert f"add 'vapo.accept_changes=[{accepted}]'" in str(refused.value)
    trained.start(**{key: value, "vapo__accept_changes": [accepted]})
    assert shown in capsys.readouterr().out


def test_what_is_accepted_is_only_what_is_named(trained):
    changes = {"vapo__seed": 1, "vapo__reward__late_emphasis": 0.0}
    with pytest.raises(InputError, match="late_emphasis") as refused:
        trained.start(**changes, vapo__accept_changes=["vapo.seed"])
    assert "vapo.seed: 0" not in str(refused.value)
    assert "[vapo.reward.late_emphasis,vapo.seed]" in str(refused.value)


def test_other_keys_are_a_line_each(trained, capsys):
    trained.start(actor_rollout_ref__actor__clip_ratio=0.1, data__train_batch_size=8)
    said = capsys.readouterr().out
    assert "holds step 3; since its start these settings have changed" in said
    assert "  actor_rollout_ref.actor.clip_ratio: 0.2 -> 0.1\n" in said
    assert "  data.train_batch_size: 16 -> 8\n" in said


OWN_VALUES = {
    "data__seed": 7,
    "actor_rollout_ref__actor__clip_ratio_high": 0.28,
    "actor_rollout_ref__actor__rollout_n": 3,
    "actor_rollout_ref__actor__checkpoint__load_contents": ["model"],
    "actor_rollout_ref__rollout__router_config_path": "/mine/router.yaml",
}
"""Of keys that refer to other keys, or to a file of the package, by default."""


def test_a_value_that_falls_back_to_a_reference_is_compared(run, capsys):
    run.train_to(3, **OWN_VALUES)
    with pytest.raises(InputError, match=r"other settings:\n  data\.seed: 7 -> 0\nTo start"):
        run.start()
    run.start(vapo__accept_changes=["data.seed"])
    changed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    keys = [f"  {key.replace('__', '.')}" for key in OWN_VALUES]
    assert sorted(changed) == sorted(keys)


def test_a_value_equal_to_that_of_its_reference_changes_with_it(run, capsys):
    run.train_to(3, actor_rollout_ref__actor__clip_ratio_high=0.2)
    run.start(actor_rollout_ref__actor__clip_ratio=0.3)
    (_, changed) = capsys.readouterr().out.splitlines()
    assert changed == "  actor_rollout_ref.actor.clip_ratio: 0.2 -> 0.3"


LEARNING_RATE = {"actor_rollout_ref__actor__optim__lr": 1e-6}


def test_a_learning_rate_that_the_checkpoint_would_undo_is_refused(trained, tmp_path):
    """Accepted or not: the run would go on with the old one."""
    accepted = ["actor_rollout_ref.actor.optim.lr"]
    with pytest.raises(InputError, match=r"global_step_3 was written with .*\n.*5e-05 -> 1e-06\n"):
        trained.start(**LEARNING_RATE, vapo__accept_changes=accepted)
    branch = {
        "trainer__resume_mode": "resume_path",
        "trainer__resume_from_path": str(checkpoint_folder(trained.folder, 3)),
        "trainer__default_local_dir": str(tmp_path / "branch"),
    }
    trained.start(**branch)
    with pytest.raises(InputError, match=r"optim\.lr: 5e-05 -> 1e-06"):
        trained.start(**branch, **LEARNING_RATE)


@pytest.mark.parametrize("steps", [3, 6])
def test_a_start_that_only_validates_may_have_other_settings(trained, steps):
    """Other benchmarks, for instance; also on a finished run."""
    other = {"vapo__seed": 1, "trainer__total_training_steps": steps}
    trained.start(trainer__val_only=True, **other, **LEARNING_RATE)


def test_data_are_compared_by_content(trained, capsys):
    trained.rows(trained.train, 30)
    with pytest.raises(InputError, match=r"data\.train_files: .*\(40 rows, .*\(30 rows, "):
        trained.start()
    trained.start(vapo__accept_changes=["data.train_files"])
    trained.rows(trained.train, 40)
    trained.start()


def test_rows_of_the_same_size_with_other_text_are_other_data(trained):
    table = pq.read_table(trained.val).to_pydict()
    pq.write_table(
        pa.table({"prompt": [text.replace("val", "VAL") for text in table["prompt"]]}), trained.val
    )
    with pytest.raises(InputError, match=r"data\.val_files: "):
        trained.start()


def test_files_that_moved_are_the_same_data(trained, capsys):
    moved = trained.tmp_path / "moved"
    moved.mkdir()
    trained.train, trained.model = (
        path.rename(moved / path.name) for path in (trained.train, trained.model)
    )
    trained.start()
    assert "data.train_files" not in capsys.readouterr().out


def test_another_model_is_refused(trained):
    (trained.model / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(InputError, match=r"actor_rollout_ref\.model\.path: .*model\.safetensors"):
        trained.start()


def test_another_chat_template_in_the_model_folder_is_refused(run):
    template = run.model / "chat_template.jinja"
    template.write_text("{{ messages }}")
    run.train_to(3)
    template.write_text("{{ messages[0] }}")
    with pytest.raises(InputError, match=r"model\.tokenizer_path: .*chat_template\.jinja"):
        run.start()
    run.start(vapo__accept_changes=["actor_rollout_ref.model.tokenizer_path"])


def test_another_text_of_the_reward_function_is_refused(run):
    function = run.tmp_path / "mine.py"
    function.write_text("def compute_score(**_): return 0.0\n")
    run.train_to(3, reward__custom_reward_function__path=str(function))
    function.write_text("def compute_score(**_): return 1.0\n")
    with pytest.raises(InputError, match=r"custom_reward_function\.path: .*mine\.py"):
        run.start(reward__custom_reward_function__path=str(function))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref__model__custom_chat_template", "{{ messages }}"),
        ("data__mm_processor_kwargs", {"do_resize": False}),
        ("reward__custom_reward_function__reward_kwargs", {"tolerance": 0.1}),
        ("reward__custom_reward_function__reward_kwargs", {"limit": "${data.max_response_length}"}),
        ("vapo__data__plain_think_tokens", "false"),
    ],
)
def test_what_makes_other_prompts_is_refused(trained, key, value):
    with pytest.raises(InputError, match=key.replace("__", r"\.")):
        trained.start(**{key: value})


def test_an_option_that_is_added_or_left_out_is_a_change(run):
    key = "vapo__method__options"
    run.train_to(3, **{key: {"coef": 0.02}})
    for options, change in (
        ({}, r"coef: 0\.02 -> absent"),
        ({"coef": 0.02, "masked": 0.9}, r"masked: absent -> 0\.9"),
    ):
        with pytest.raises(InputError, match=rf"settings:\n  vapo\.method\.options\.{change}\n"):
            run.start(**{key: options})


def test_a_key_that_has_no_default_is_a_line_where_it_is_added(trained, capsys):
    rollout = "actor_rollout_ref__rollout"
    trained.start(
        **{f"{rollout}__engine_kwargs__vllm__quantization": "fp8"},
        **{f"{rollout}__repetition_penalty": 1.1},
    )
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        '  actor_rollout_ref.rollout.engine_kwargs.vllm.quantization: absent -> "fp8"',
        "  actor_rollout_ref.rollout.repetition_penalty: absent -> 1.1",
    ]


def test_a_default_of_a_later_release_is_no_change(trained, capsys):
    file = trained.folder / "config.yaml"
    config = OmegaConf.load(file)
    for group, key in (
        (config.vapo, "method"),
        (config.actor_rollout_ref.actor, "clip_ratio"),
        (config.actor_rollout_ref.rollout.mtp, "method"),  # from the model's group
    ):
        del group[key]
    OmegaConf.save(config, file)
    trained.start()
    assert capsys.readouterr().out == ""


def test_an_argument_that_refers_to_another_key_changes_with_it(run):
    arguments = {"limit": "${data.max_response_length}", "strict": True}
    key = "reward__custom_reward_function__reward_kwargs"
    run.train_to(3, **{key: arguments})
    run.start(**{key: arguments}, data__max_response_length=128)
    with pytest.raises(InputError, match=r"reward_kwargs\.strict: true -> false"):
        run.start(**{key: {**arguments, "strict": False}})


def test_a_model_of_the_package_in_place_of_another_is_refused(run):
    run.train_to(3, actor_rollout_ref__model__path="Qwen/A")
    with pytest.raises(InputError, match=r'model\.path: "Qwen/A" -> '):
        run.start(actor_rollout_ref__model__path="${vapo.package_file:digits/model/digits}")


def test_another_hub_name_is_refused(run):
    run.train_to(3, actor_rollout_ref__model__path="Qwen/A")
    with pytest.raises(InputError, match=r'model\.path: "Qwen/A" -> "Qwen/B"'):
        run.start(actor_rollout_ref__model__path="Qwen/B")


def test_a_folder_of_an_older_release_is_compared_by_its_config(trained):
    (trained.folder / "inputs.json").unlink()
    trained.start()
    other = trained.tmp_path / "other.parquet"
    trained.rows(other, 5)
    with pytest.raises(InputError, match=r"data\.train_files: .*other\.parquet"):
        trained.start(data__train_files=str(other))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data.train_files": 3}', '{"a": [1]}', "\0"])
def test_damaged_fingerprints_are_none(trained, text):
    (trained.folder / "inputs.json").write_text(text)
    trained.start()


@pytest.mark.parametrize("text", ["a: [", "just text", "", "\xff\xfe", "- 1"])
def test_a_config_that_cannot_be_read_is_named(trained, text):
    (trained.folder / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"config\.yaml cannot be read .*; restore it, or delete it"
    ):
        trained.start()


@pytest.mark.parametrize(
    "changes",
    [
        {"vapo__seed": 1},
        {"vapo__reward__perception_weight": 0.5},
        {"actor_rollout_ref__actor__optim__lr": 1e-6},
        {"vapo__seed": 1, "vapo__accept_changes": ["vapo.seed"]},
    ],
)
def test_a_finished_run_is_not_done_for_other_settings(run, changes):
    run.train_to(6)
    with pytest.raises(
        InputError, match=r"already holds step 6, the last one, of a run with"
    ) as no:
        run.start(**changes)
    assert "trainer.default_local_dir to another folder for each run" in str(no.value)


def test_a_finished_run_is_done_whatever_the_start_shows_or_saves(run):
    run.train_to(6)
    run.start(vapo__logging__console="full", trainer__save_freq=1, trainer__total_training_steps=5)


def test_a_finished_run_is_done_also_from_another_place_of_the_package(run):
    run.train_to(6)
    file = run.folder / "config.yaml"
    file.write_text(
        file.read_text().replace(str(Path(vapo_verl.__file__).parent), "/opt/vapo_verl")
    )
    assert "/opt/vapo_verl/rollout/agent_loops.yaml" in file.read_text()
    run.start()


def begins(run, mode):
    """Settings with which a start begins after step 3 of `run`: in its folder, or in another."""
    if mode == "auto":
        return {}
    return {
        "trainer__resume_mode": mode,
        "trainer__resume_from_path": str(checkpoint_folder(run.folder, 3)),
        "trainer__default_local_dir": str(run.tmp_path / "branch"),
    }


BOTH_MODES = pytest.mark.parametrize("mode", ["auto", "resume_path"])


BY_EPOCHS = {"trainer__total_training_steps": None, "trainer__total_epochs": 2}
"""Of 50 rows in batches of 16: 6 steps."""


@pytest.fixture
def by_epochs(run):
    """A run that ends at step 6 by the number of its rows, and has ended."""
    run.train_to(6, **BY_EPOCHS)
    config = run.config(**BY_EPOCHS)
    launch.settle(config)
    write_num_rows(run.folder, launch.plain(config), 50)
    return run


def test_a_run_whose_length_follows_from_its_data_is_finished_at_its_last_step(by_epochs, capsys):
    by_epochs.start(**BY_EPOCHS)
    shorter = BY_EPOCHS | {"trainer__total_epochs": 1}
    by_epochs.start(**shorter)
    assert capsys.readouterr().out == ""
    MetricsFile(by_epochs.folder / "metrics.jsonl", 6).log({"val-core/digits/acc": 0.5}, 6)
    for changes in (BY_EPOCHS, shorter):
        config = by_epochs.config(**changes)
        launch.settle(config)
        assert launch.is_finished(config)
        assert launch.nothing_is_left(config)
    by_epochs.start(**BY_EPOCHS | {"trainer__total_epochs": 3})
    assert "trainer.total_epochs: 2 -> 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vapo__advantage__attention_coef": 0.3}, "step 6, the last one, of a run with other"),
        ({"actor_rollout_ref__actor__kl_loss_coef": 0.5}, "step 6, the last one, of a run with"),
        ({"data__train_batch_size": 25}, "step 6, beyond the last one here, 4, of a run with"),
        ({"vapo__seed": 1}, "step 6 of a run with other settings"),
    ],
)
def test_such_a_run_is_not_done_for_other_settings(by_epochs, changes, words):
    with pytest.raises(InputError, match=f"already holds {words}|holds {words}"):
        by_epochs.start(**BY_EPOCHS, **changes)


def test_the_number_of_rows_is_that_of_these_data(by_epochs):
    """Accepted data of another length may have steps left: the trainer counts them."""
    by_epochs.rows(by_epochs.train, 90)
    by_epochs.start(**BY_EPOCHS, vapo__accept_changes=["data.train_files"])
    config = by_epochs.config(**BY_EPOCHS)
    launch.settle(config)
    assert not launch.is_finished(config)


@pytest.mark.parametrize("text", ["", "[]", '{"num_rows": 50}', '{"num_rows": "x"}', "\0"])
def test_a_damaged_number_of_rows_is_none(by_epochs, text):
    (by_epochs.folder / "training_rows.json").write_text(text)
    by_epochs.start(**BY_EPOCHS, data__train_batch_size=25)


def test_a_given_checkpoint_of_the_last_step_is_refused(by_epochs):
    given = {
        "trainer__resume_mode": "resume_path",
        "trainer__resume_from_path": str(checkpoint_folder(by_epochs.folder, 6)),
    }
    by_epochs.start(**given, trainer__total_training_steps=7)
    for length in (BY_EPOCHS, {"trainer__total_training_steps": 6}):
        with pytest.raises(InputError, match=r"nothing to train: \S+ is of step 6, .* step is 6 "):
            by_epochs.start(**given, **length)
        by_epochs.start(**given, **length, trainer__val_only=True)


@BOTH_MODES
def test_another_number_of_ranks_is_refused_at_once(trained, mode):
    """Each rank reads its own shard: it would fail after all processes have started."""
    begin = begins(trained, mode)
    actor = checkpoint_folder(trained.folder, 3) / "actor"
    actor.mkdir()
    (actor / "fsdp_config.json").write_text('{"world_size": 2}')
    trained.start(trainer__n_gpus_per_node=2, **begin)
    for only in ({}, {"trainer__val_only": True}):
        with pytest.raises(InputError, match=r"step 3 in .* was written by 2 ranks, and .* is 1; "):
            trained.start(**begin, **only)
    (actor / "fsdp_config.json").write_text("damaged")
    trained.start(**begin)


def test_another_number_of_storage_units_is_refused_where_the_queue_is_loaded(trained):
    queue = checkpoint_folder(trained.folder, 3) / "transfer_queue"
    for unit in ("0_a", "1_b"):
        file = queue / STORAGE_FILES.replace("*", unit)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    trained.start()
    mode = {"trainer__v1__trainer_mode": COLOCATED}
    key = "transfer_queue__backend__SimpleStorage__num_data_storage_units"
    trained.start(**mode, **{key: 2})
    with pytest.raises(InputError, match=r"in 2 storage units, and .*=4; set it to 2, or set"):
        trained.start(**mode, **{key: 4})


@BOTH_MODES
def test_another_arrangement_of_shards_is_refused(run, mode):
    size = "actor_rollout_ref__actor__fsdp_config__fsdp_size"
    ranks = {"trainer__n_gpus_per_node": 4}
    run.train_to(3, **ranks)
    ranks |= begins(run, mode)
    run.start(**ranks, **{size: 4})  # all, as -1
    with pytest.raises(
        InputError, match=r"fsdp_size was -1 in the checkpoint of step 3 in .* is 2"
    ):
        run.start(**ranks, **{size: 2})
    with pytest.raises(InputError, match=r"strategy was .fsdp2. in .*, and is .fsdp.:"):
        run.start(**ranks, actor_rollout_ref__actor__strategy="fsdp")


def test_shards_are_arranged_as_the_config_of_their_own_step_says(run):
    """A later start in the folder, which trained no step, had another one."""
    strategy = {"actor_rollout_ref__actor__strategy": "fsdp"}
    run.train_to(3)
    run.train_to(3, **strategy)
    run.start()
    with pytest.raises(InputError, match=r"strategy was .fsdp2. in .*step 3 in .*, and is .fsdp.:"):
        run.start(**strategy)


@BOTH_MODES
def test_adapters_of_another_rank_are_refused_though_the_change_is_accepted(run, mode):
    rank, accepted = "actor_rollout_ref__model__lora_rank", "actor_rollout_ref.model.lora_rank"
    run.train_to(3, **{rank: 8})
    begin = begins(run, mode)
    actor = checkpoint_folder(run.folder, 3) / "actor"
    actor.mkdir()
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    (actor / "lora_train_meta.json").write_text('{"r": 8, "lora_alpha": 16}')
    run.start(**begin, **{rank: 8})
    with pytest.raises(InputError, match=r"lora_rank: 8 -> 4|lora_rank is 4"):
        run.start(**begin, **{rank: 4})
    with pytest.raises(InputError, match=r"adapters of rank 8, and .*lora_rank is 4; set it to 8"):
        run.start(**begin, **{rank: 4, "vapo__accept_changes": [accepted]})
    (actor / "lora_train_meta.json").unlink()
    with pytest.raises(InputError, match=r"holds no adapters, and .*lora_rank is 8; set it to 0"):
        run.start(**begin, **{rank: 8})


def test_a_finished_run_can_be_prolonged(run, capsys):
    run.train_to(6)
    run.start(trainer__total_training_steps=9)
    assert "trainer.total_training_steps: 6 -> 9" in capsys.readouterr().out


def test_a_start_that_does_not_resume_from_the_folder_is_not_compared(trained):
    path = str(checkpoint_folder(trained.folder, 3))
    trained.start(trainer__resume_mode="resume_path", trainer__resume_from_path=path, vapo__seed=1)


def test_a_start_before_a_saved_step_is_refused_unless_it_only_validates(trained):
    from_step_1 = {"trainer__resume_mode": "disable"}
    with pytest.raises(InputError, match=r"complete checkpoint of step 3, .*=disable begins with"):
        trained.start(**from_step_1)
    trained.start(**from_step_1, trainer__val_only=True)


def test_the_config_of_earlier_steps_is_kept(run):
    run.train_to(3)
    first = (run.folder / "config.yaml").read_text()
    run.train_to(6, actor_rollout_ref__actor__optim__lr=1e-6)
    run.train_to(6, actor_rollout_ref__actor__optim__lr=1e-6)  # the same: nothing to keep
    run.train_to(9, actor_rollout_ref__actor__optim__lr=1e-7)
    run.train_to(9, actor_rollout_ref__actor__optim__lr=1e-8)
    names = sorted(path.name for path in run.folder.glob("config*.yaml"))
    assert names == [
        *("config.step_3.yaml", "config.step_6.yaml", "config.step_9.yaml", "config.yaml"),
    ]
    assert (run.folder / "config.step_3.yaml").read_text() == first
    rates = {
        step: OmegaConf.load(config_file(run.folder, step)).actor_rollout_ref.actor.optim.lr
        for step in (1, 3, 4, 6, 9, 12)
    }
    assert rates == {1: 5e-5, 3: 5e-5, 4: 1e-6, 6: 1e-6, 9: 1e-7, 12: 1e-8}
    write_config(run.folder, OmegaConf.create({"a": 1}), 9)
    assert (run.folder / "config.step_9.2.yaml").is_file()
    assert config_file(run.folder, 9).name == "config.step_9.yaml"


def test_a_file_is_known_by_all_of_its_content(run):
    found = []
    for label in (b"0", b"1"):
        run.train.write_bytes(bytes(2**19) + label + bytes(2**19))
        found.append(inputs_of(launch.plain(run.config()))["data.train_files"])
    assert found[0] != found[1]


def test_fingerprints_say_rows_bytes_and_content(run):
    found = inputs_of(launch.plain(run.config()))
    (train,) = found["data.train_files"]
    assert (train["rows"], train["bytes"]) == (40, run.train.stat().st_size)
    assert len(train["xxh3_128"]) == 32
    assert json.dumps(found)
    run.train.unlink()
    assert "data.train_files" not in inputs_of(launch.plain(run.config()))
