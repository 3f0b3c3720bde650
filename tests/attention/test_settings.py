import json
import subprocess
import sys

import pytest

from vapo_verl.attention import engine_args
from vapo_verl.attention.settings import Settings


def test_the_default_subset_is_one_layer_in_eight_evenly_spread():
    assert Settings().select(range(28)) == [3, 10, 17, 24]
    assert Settings().select(range(36)) == [4, 13, 22, 31]
    assert Settings().select(range(12)) == [3, 9]
    assert Settings().select(range(6)) == [1, 4]
    assert Settings().select(range(1)) == [0]
    # a hybrid model: only every fourth layer has attention
    assert Settings().select(range(3, 48, 4)) == [15, 39]


def test_all_and_a_list():
    assert Settings(layers="all").select([2, 0, 1]) == [0, 1, 2]
    assert Settings(layers=(5, 1)).select(range(6)) == [1, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "some"}, "layers='some': use 'spread', 'all' or a list"),
        ({"layers": []}, r"layers=\[\]"),
        ({"layers": [1, 1]}, r"layers=\[1, 1\]: give distinct"),
        ({"layers": [-1]}, "counted from 0"),
        ({"layers": [10**30]}, r"layers=\[\.\.\.\]: give distinct layer indices"),
        ({"layers": [10**5000]}, r"layers=\[\.\.\.\]: give distinct layer indices"),
        ({"layers": range(10**5)}, r"layers=\[0, 1, .*, \.\.\.\]: give distinct layer indices"),
        ({"layers": [1.5]}, r"layers=\[1.5\]: an index is a whole number"),
        ({"layers": [True]}, "an index is a whole number"),
        ({"layers": ["1"]}, "an index is a whole number"),
        ({"max_spans": 0}, "max_spans=0 must be at least 1"),
        ({"max_spans": 10**9}, "max_spans is above 4096"),
        ({"max_spans": 10**5000}, "max_spans is above 4096"),
        ({"max_spans": 2.5}, "max_spans=2.5 is no whole number"),
        ({"max_spans": True}, "max_spans=True is no whole number"),
        ({"per_layer": "no"}, "per_layer='no' is a str: use a bool"),
        ({"on_request": 1}, "on_request=1 is a int: use a bool"),
        ({"additional_config": "a"}, "additional_config='a' is a str: give a mapping"),
        ({"additional_config": [1]}, r"additional_config=\[1\] is a list: give a mapping"),
        (
            {"additional_config": {"visual_attention": {"layers": "all"}}},
            r"additional_config\['visual_attention'\]=.* contradicts the other arguments",
        ),
    ],
)
def test_bad_arguments_name_the_key(arguments, words):
    with pytest.raises(ValueError, match=words):
        engine_args(**arguments)


def test_other_additional_config_is_merged_and_stays_as_it_was():
    given = {"other_plugin": {"level": 2}}
    arguments = engine_args("all", additional_config=given)["additional_config"]
    assert arguments["other_plugin"] == {"level": 2}
    assert Settings.from_additional_config(arguments) == Settings(layers="all")
    assert given == {"other_plugin": {"level": 2}}
    assert engine_args("all", additional_config=arguments)["additional_config"] == arguments


def test_an_additional_config_that_replaced_ours_says_where_it_belongs():
    replaced = {**engine_args(), "additional_config": {"other": 1}}
    with pytest.raises(ValueError, match=r"engine_args\(additional_config=\.\.\.\)"):
        Settings.from_additional_config(replaced["additional_config"])


def test_a_layer_the_model_lacks_is_named():
    with pytest.raises(ValueError, match=r"no attention layer \[6\]; it has \[0, 1"):
        Settings(layers=(0, 6)).select(range(6))


def test_settings_survive_the_way_through_a_command_line():
    arguments = engine_args([3, 1], per_layer=True, on_request=True, max_spans=7)
    read = Settings.from_additional_config(json.loads(json.dumps(arguments["additional_config"])))
    assert read == Settings(layers=(3, 1), per_layer=True, on_request=True, max_spans=7)


def test_a_worker_without_its_settings_says_where_they_come_from():
    with pytest.raises(ValueError, match=r"vapo_verl\.attention\.engine_args\(\)"):
        Settings.from_additional_config({})
    with pytest.raises(ValueError, match=r"unknown keys \['layer'\]"):
        Settings.from_additional_config({"visual_attention": {"layer": 3}})


def test_the_arguments_are_made_without_a_heavy_import():
    code = (
        "import sys, vapo_verl.attention as a; a.engine_args()\n"
        "print([m for m in ('torch', 'vllm', 'ray', 'verl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
