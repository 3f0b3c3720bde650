import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.attention import engine_args
from vapo_verl.config import AttentionConfig
from vapo_verl.rollout.engine_args import ENGINE, add_attention

ON = AttentionConfig(enabled=True)


def smoke(*overrides):
    config = compose_once("smoke", overrides)
    OmegaConf.resolve(config)
    return config


def test_the_engines_arguments_join_those_of_the_recipe():
    config = smoke()
    before = OmegaConf.to_container(OmegaConf.select(config, ENGINE))
    attention = AttentionConfig(enabled=True, layers=(1, 2), per_layer=True, max_spans=128)
    add_attention(config, attention)
    after = OmegaConf.to_container(OmegaConf.select(config, ENGINE))
    assert after == {**before, **engine_args([1, 2], per_layer=True, max_spans=128)}
    add_attention(config, attention)  # again: a resolved config may be started from
    assert OmegaConf.to_container(OmegaConf.select(config, ENGINE)) == after


def test_others_additional_config_is_kept():
    config = smoke(f"+{ENGINE}.additional_config={{theirs: {{a: 1}}}}")
    add_attention(config, ON)
    added = OmegaConf.to_container(OmegaConf.select(config, ENGINE).additional_config)
    assert added == {"theirs": {"a": 1}, **engine_args()["additional_config"]}


def test_settings_of_the_capture_that_agree_are_kept():
    config = smoke(f"+{ENGINE}.additional_config={{visual_attention: {{max_spans: 64}}}}")
    add_attention(config, AttentionConfig(enabled=True, max_spans=64))
    added = OmegaConf.to_container(OmegaConf.select(config, ENGINE).additional_config)
    assert added == engine_args(max_spans=64)["additional_config"]


def test_off_changes_nothing():
    config = smoke()
    add_attention(config, AttentionConfig())
    assert config == smoke()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"+{ENGINE}.speculative_config={{method: ngram}}", "speculative_config"),
        (f"+{ENGINE}.pipeline_parallel_size=2", "pipeline_parallel_size=2: .* set 1"),
        (f"+{ENGINE}.decode_context_parallel_size=2", "decode_context_parallel_size=2"),
        (f"+{ENGINE}.enable_dbo=true", "enable_dbo=True"),
        (f"+{ENGINE}.kv_cache_dtype=fp8", "kv_cache_dtype=fp8"),
        (f"+{ENGINE}.additional_config='{{\"theirs\": 1}}'", "is text, .* write it as a mapping"),
        (f"+{ENGINE}.additional_config=[theirs]", "is a list, .* write it as a mapping"),
        (
            f"+{ENGINE}.additional_config={{visual_attention: {{max_spans: 128}}}}",
            r"additional_config.visual_attention.max_spans=128 would be replaced .* 32: "
            r"leave it out, and set vapo.attention.max_spans",
        ),
        (
            f"+{ENGINE}.additional_config={{visual_attention: {{layers: all}}}}",
            "layers='all' would be replaced .* 'spread': .* set vapo.attention.layers",
        ),
        (
            f"+{ENGINE}.additional_config={{visual_attention: {{on_request: true}}}}",
            "on_request=True would be replaced .* False: leave it out$",
        ),
        (
            f"+{ENGINE}.additional_config={{visual_attention: {{on: true}}}}",
            "visual_attention.on=True .* leave it out$",
        ),
        (
            f"+{ENGINE}.additional_config={{visual_attention: false}}",
            "visual_attention=False is no mapping",
        ),
        (f"+{ENGINE}.worker_cls=my.Worker", "worker_cls=my.Worker is taken"),
        (
            "actor_rollout_ref.rollout.enable_rollout_routing_replay=true",
            "enable_rollout_routing_replay=True",
        ),
    ],
)
def test_what_it_does_not_work_with_is_named(override, words):
    with pytest.raises(ValueError, match=words):
        add_attention(smoke(override), ON)
