"""The format check on the packaged model: quiet on the shipped question, loud on a broken one."""

from omegaconf import OmegaConf

from vapo_verl.anchors import bind_question
from vapo_verl.config import AnchorConfig
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.rollout.agent_loop import run_format_check


def make_loop(processor, server):
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    from vapo_verl.rollout.agent_loop import VapoAgentLoop

    config = compose_recipe("smoke")
    OmegaConf.resolve(config)
    return VapoAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=server,
        tokenizer=processor.tokenizer,
        processor=processor,
        dataset_cls=VapoDataset,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen2_5_vl",
    )


async def test_the_shipped_question_passes(processor, server, dataset):
    result = await run_format_check(make_loop(processor, server), [dataset[i] for i in range(4)])
    assert result.num_probes == 4 * 8
    assert result.free_fraction == 1.0
    assert result.accuracy > 0.6
    assert result.warnings() == []


async def test_each_row_has_a_session_of_its_own(processor, server, dataset):
    server.requests.clear()
    await run_format_check(make_loop(processor, server), [dataset[0], dataset[1], dataset[0]])
    assert len({request["request_id"] for request in server.requests}) == 3


async def test_a_trailing_space_trips_it(processor, server, dataset):
    """Defect of the released code: behind the space something else than an answer is likelier."""
    loop = make_loop(processor, server)
    settings = AnchorConfig()
    loop.question = bind_question(
        processor.tokenizer, settings.question + " ", settings.yes_words, settings.no_words
    )
    result = await run_format_check(loop, [dataset[i] for i in range(3)])
    assert any("a trailing space" in warning for warning in result.warnings()), result.summary()


async def test_rows_without_claims_have_none(processor, server, dataset):
    row = {**dataset[0], "claims": []}
    assert await run_format_check(make_loop(processor, server), [row]) is None
