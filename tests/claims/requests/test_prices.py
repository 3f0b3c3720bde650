"""The cost meter."""

import pytest

from vapo_verl.claims.requests.prices import Price, describe_cost, load_prices, price_of
from vapo_verl.claims.shards.record import Usage

USAGE = Usage(num_requests=1, prompt_tokens=2_000_000, completion_tokens=500_000)


def test_the_price_by_hand():
    # 2 x 0.4 + 0.5 x 1.6
    assert Price(input=0.4, output=1.6).of(USAGE) == pytest.approx(1.6)


def test_the_packaged_table_is_valid_and_finds_names_with_dates_and_makers():
    table = load_prices()
    mini = table["gpt-4.1-mini"]
    for name in ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", "openai/gpt-4.1-mini"):
        assert price_of(name, table) == mini
    assert price_of("gpt-4.1-mini-custom", table) is None


def test_an_unknown_model_says_so_and_still_counts_tokens():
    line = describe_cost(USAGE, "mystery", None)
    assert "2,000,000 prompt + 500,000 completion tokens" in line
    assert "no price known for 'mystery'" in line


@pytest.mark.parametrize(
    "text", ["- a", "m: 3", "m: {input: 1}", "m: {input: x, output: 1}", "{a: b: c}"]
)
def test_tables_that_are_none(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"--price-table.*USD per million tokens"):
        load_prices(path)
