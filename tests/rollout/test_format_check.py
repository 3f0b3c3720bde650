"""The format check on the packaged model: quiet on the shipped question, loud on a broken one."""

import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.anchors import bind_question
from vapo_verl.config import AnchorConfig
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.errors import RowError
from vapo_verl.rollout.agent_loop import run_format_check


def make_loop(processor, server):
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    from vapo_verl.rollout.agent_loop import VapoAgentLoop

    config = compose_once("smoke")
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


async def test_a_row_that_training_would_leave_out_is_left_out(
    processor, server, dataset, monkeypatch, capfd
):
    loop = make_loop(processor, server)
    prompt = loop.prompt

    async def unreadable(row):
        if row is rows[0]:
            raise RowError("row 7, images[0]: not an image")
        return await prompt(row)

    monkeypatch.setattr(loop, "prompt", unreadable)
    rows = [dataset[0], dataset[1]]
    result = await run_format_check(loop, rows)
    assert result.num_probes == 8
    assert "row 0 left out: RowError: row 7, images[0]" in "".join(capfd.readouterr())


async def test_an_error_of_the_system_ends_it(processor, server, dataset, monkeypatch):
    loop = make_loop(processor, server)

    async def no_server(_):
        raise ConnectionError("no server")

    monkeypatch.setattr(loop, "prompt", no_server)
    with pytest.raises(ConnectionError):
        await run_format_check(loop, [dataset[0]])


async def test_rows_without_claims_have_none(processor, server, dataset):
    row = {**dataset[0], "claims": []}
    assert await run_format_check(make_loop(processor, server), [row]) is None
