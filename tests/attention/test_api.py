import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest

from vapo_verl.attention import decode_visual_attention, visual_attention


def output(tokens, values):
    return SimpleNamespace(token_ids=list(range(tokens)), routed_experts=values)


def test_one_value_a_token():
    values = np.array([0.5, 0.25], dtype=np.float32)
    assert visual_attention(output(2, values)) is values


def test_an_output_without_tokens_has_none():
    assert visual_attention(output(0, None)).shape == (0,)


def test_an_engine_without_capture_is_named():
    with pytest.raises(ValueError, match="engine_args"):
        visual_attention(output(2, None))


def test_another_use_of_the_field_is_seen():
    """MoE routing is exported for the prompt too: more values than tokens."""
    with pytest.raises(ValueError, match="of 5 tokens for an output of 2"):
        visual_attention(output(2, np.zeros((5, 3, 2))))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(50, dtype=np.float32),  # of all tokens, beside those of the last chunk
        None,  # vLLM merges the chunks that a slow consumer missed, without their values
    ],
)
def test_an_output_of_its_last_tokens_alone_names_the_setting(values):
    with pytest.raises(ValueError, match=r"output_kind=.*CUMULATIVE or FINAL_ONLY"):
        visual_attention(output(1, values))


def test_values_of_a_served_response():
    values = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    file = io.BytesIO()
    np.save(file, values)
    encoded = base64.b64encode(file.getvalue()).decode()
    np.testing.assert_array_equal(decode_visual_attention(encoded), values)


def test_pickles_are_not_opened():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        decode_visual_attention(base64.b64encode(file.getvalue()).decode())


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        header("(1000000000000,)"),
        header("(1000000000, 1000000000)") + b"\0" * 16,
        header("(3,)") + b"\0" * 11,
        header("(3,)") + b"\0" * 13,
        header("(-1,)") + b"\0" * 4,
        header("(1,)", "|O") + b"\0" * 8,
        header("(2,")[:40],
        b"PK\x03\x04",
        b"",
        b"values",
    ],
)
def test_a_claimed_size_takes_no_memory(data):
    with pytest.raises(ValueError):
        decode_visual_attention(encoded(data))
