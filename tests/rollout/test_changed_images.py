"""Responses generated from changed images: what the engine sees, and what the actor reads."""

import asyncio

import numpy as np
import pytest
import torch
from PIL import Image

from vapo_verl.rollout.prompts import PREPARED, SERVER, open_prompt

UID = "000001-00000"
NOISY = (
    "vapo.method.name=noisy_rollout",
    "actor_rollout_ref.actor.optim.total_training_steps=60",
    "vapo.anchors.num_anchors=2",
    "vapo.anchors.gate=always",
)


@pytest.fixture(autouse=True)
def _own_prompts(server):
    """The server is that of all tests."""
    server.opened.clear()
    yield
    server.opened.clear()


def pixels(images):
    return [np.asarray(image.convert("RGB")) for image in images]


async def responses(run_loop, row, samples, *overrides, is_training=True, step=1):
    """Outputs of some responses to a prompt, and the prompt they shared."""
    with open_prompt(UID, is_training=is_training) as prompt:
        runs = [
            run_loop({**row, "uid": UID}, *NOISY, *overrides, session_id=i, step=step)
            for i in samples
        ]
        return await asyncio.gather(*runs), prompt


async def test_the_last_responses_see_noise_and_the_actor_reads_the_clean_image(
    run_loop, dataset, server
):
    (clean, one, two), prompt = await responses(run_loop, dataset[0], [0, 3, 4])
    [image], [noised] = pixels(server.opened[UID]), pixels(server.opened[f"{UID}/changed"])
    assert image.shape == noised.shape and not np.array_equal(image, noised)
    for output, seen in ((clean, image), (one, noised), (two, noised)):
        assert np.array_equal(pixels(output.multi_modal_data["images"])[0], seen)
        assert output.prompt is prompt, "what the actor reads is the prompt's own"
        assert output.prompt_ids == clean.prompt_ids
    inputs = prompt.result(PREPARED).model_inputs
    [read] = inputs.pixels.images(inputs.plain["image_grid_thw"])
    resized = Image.fromarray(image).resize(read.shape[1::-1], Image.Resampling.BICUBIC)
    assert torch.equal(read, torch.from_numpy(np.asarray(resized).copy()))


async def test_each_form_of_the_prompt_is_closed_on_its_server(run_loop, dataset):
    _, prompt = await responses(run_loop, dataset[0], [0, 4])
    assert [form.uid for form in prompt.forms()] == [UID, f"{UID}/changed"]
    assert all(form.result(SERVER) is not None for form in prompt.forms())


async def test_the_probes_of_a_response_see_what_it_saw(run_loop, dataset, server):
    await responses(run_loop, dataset[0], [4])
    keys = {request["image_data"].key for request in server.requests}
    assert len(server.requests) == 3 and keys == {f"{UID}/changed"}


async def test_the_noise_is_that_of_the_prompt_and_the_step(run_loop, dataset, server):
    seen = []
    for step in (1, 1, 2):
        await responses(run_loop, dataset[0], [4], step=step)
        seen += pixels(server.opened[f"{UID}/changed"])
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


async def test_the_noise_fades_over_steps_of_several_updates_too(run_loop, dataset, server):
    """veRL's schedule of the separate trainer counts the updates, here 3 a step."""
    separate = (
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=3",
        "actor_rollout_ref.actor.optim.total_training_steps=180",
    )
    seen = []
    for overrides in ((), separate):
        await responses(run_loop, dataset[0], [4], *overrides, step=45)
        seen += pixels(server.opened[f"{UID}/changed"])
    assert np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("options", "is_training"),
    [
        ((), False),
        (("+vapo.method.options.noise_step=0",), True),
        (("+vapo.method.options.noisy_fraction=0",), True),
        (("vapo.method.name=none",), True),
    ],
    ids=["validation", "no noise", "no responses", "no method"],
)
async def test_without_noise_a_response_is_grpos(run_loop, dataset, server, options, is_training):
    [noiseless], prompt = await responses(
        run_loop, dataset[0], [4], *options, is_training=is_training
    )
    [plain], _ = await responses(run_loop, dataset[0], [4], "vapo.method.name=none")
    assert noiseless.response_ids == plain.response_ids
    assert noiseless.response_logprobs == plain.response_logprobs
    assert [form.uid for form in prompt.forms()] == [UID]
