import random

import numpy as np
import pytest
import torch

from vapo_verl.digits.model.samples import (
    IGNORED,
    SampleMaker,
    answer_ids,
    by_length,
    collate,
    tree_mask,
    trunk_positions,
)
from vapo_verl.digits.scene import scan_pool


@pytest.fixture(scope="module")
def samples(tokenizer):
    maker = SampleMaker(tokenizer=tokenizer, pool=scan_pool("train"), num_probes=4)
    grids = [(2, 2), (2, 3), (3, 3), (2, 3)]
    return [maker.question(random.Random(i), *g) for i, g in enumerate(grids)]


def test_tree_mask_by_hand():
    # two trunk tokens, one branch of two tokens that sees one trunk token, one padding token
    branch, visible = np.array([0, 0, 1, 1, -1]), np.array([1, 2, 1, 1, 0])
    assert tree_mask(branch, visible).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_trunk_positions_are_the_models(packaged, samples):
    model, processor = packaged
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        images = processor.image_processor([sample.pixels], return_tensors="pt")
        positions, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            image_grid_thw=images["image_grid_thw"],
            attention_mask=torch.ones_like(ids),
        )
        assert positions[:, 0].tolist() == trunk_positions(sample).tolist()


@torch.no_grad()
def test_a_branch_has_the_logits_of_a_sequence_of_its_own(packaged, samples):
    model, processor = packaged
    batch = collate(samples, processor)
    batch.pop("labels")
    together = model(**batch).logits
    for row, sample in enumerate(samples):
        images = processor.image_processor([sample.pixels], return_tensors="pt")
        start = len(sample.prompt_ids) + len(sample.response_ids)
        for probe in sample.probes:
            ids = torch.tensor([sample.prompt_ids + sample.response_ids[: probe.cut] + probe.ids])
            types = (ids == model.config.image_token_id).int()
            mask = torch.ones_like(ids)
            alone = model(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, **images)
            end = start + len(probe.ids)
            torch.testing.assert_close(
                together[row, start:end], alone.logits[0, -len(probe.ids) :], atol=1e-3, rtol=1e-4
            )
            start = end


def test_responses_verdicts_and_the_words_of_true_claims_are_learnt(packaged, samples):
    tokenizer = packaged[1].tokenizer
    yes, _ = answer_ids(tokenizer)
    labels = collate(samples, packaged[1])["labels"]
    for row, sample in zip(labels.tolist(), samples, strict=True):
        learnt = [token for token in row if token != IGNORED]
        probed = [list(filter(lambda token: token != IGNORED, p.labels)) for p in sample.probes]
        assert learnt == [*sample.response_ids, *(token for tokens in probed for token in tokens)]
        for probe, tokens in zip(sample.probes, probed, strict=True):
            claim = tokenizer.decode(probe.ids).split("<anchor>")[1].split(" Is this")[0]
            assert tokenizer.decode(tokens[:-2]) == (claim if probe.ids[-1] == yes else "")
            assert tokens[-2:] == [probe.ids[-1]] * 2  # right behind the claim, and at the end


def test_probes_cut_behind_the_prompt_or_at_a_boundary(tokenizer, samples):
    for sample in samples:
        for probe in sample.probes:
            before = tokenizer.decode(sample.response_ids[: probe.cut])
            assert before == "" or before.endswith(".")
            assert probe.ids[-1] in answer_ids(tokenizer)


def test_batches_by_length_keep_every_sample(samples):
    batches = by_length(samples, batch_size=2)
    lengths = [[sample.length for sample in batch] for batch in batches]
    assert [length for batch in lengths for length in batch] == sorted(
        sample.length for sample in samples
    )
