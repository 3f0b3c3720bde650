"""What transformers computes for a row of a rollout file: the system is compared with it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor

from tests.system.smoke import Smoke
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.digits.model import model_dir
from vapo_verl.hydra_config import compose_recipe


def train_set(smoke: Smoke) -> VapoDataset:
    """The rows that a run of the smoke recipe trains on."""
    processor = AutoProcessor.from_pretrained(model_dir())
    path = smoke.data["train"]
    return VapoDataset(str(path), processor.tokenizer, compose_recipe("smoke").data, processor)


def images_of(dataset: VapoDataset, row: dict[str, Any]) -> list[Any]:
    """The images of a row's prompt, in order."""
    messages = dataset[row["index"]]["raw_prompt"]
    parts = [part for message in messages for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


@torch.no_grad()
def eager_forward(
    model: Any, dataset: VapoDataset, row: dict[str, Any], images: list[Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [tokens, vocabulary] of prompt and response, and visual attention [tokens, layers].

    Args:
        images: those of the prompt as the model is to see them; None: as they are in the data.
    """
    images = images_of(dataset, row) if images is None else images
    pixels = dataset.processor.image_processor(images=images, return_tensors="pt")
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    visual = (ids == model.config.image_token_id)[0]
    assert visual.sum() == pixels["image_grid_thw"].prod(1).sum() // 4
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=visual[None].int(),
        output_attentions=True,
        use_cache=False,
        **pixels,
    )
    layers = [layer[0][:, :, visual].sum(-1).mean(0) for layer in output.attentions]
    return output.logits[0], torch.stack(layers, 1)
