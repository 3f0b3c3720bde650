"""What tokens cost, from a table of list prices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from vapo_verl.claims.shards.record import Usage

_DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")
_FORM = "write `model: {input: 0.4, output: 1.6}`, in USD per million tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """List price of a model, in USD per million tokens."""

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        """USD. Discounts for cached tokens and batches are not known here."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


def load_prices(path: Path | None = None) -> dict[str, Price]:
    """Read a price table; None is the one that ships with the package.

    Raises:
        ValueError: not a YAML mapping of model to {input, output}; names file, model and form.
    """
    name = "--price-table" if path else "prices.yaml"
    text = (path or files("vapo_verl.claims.requests") / "prices.yaml").read_text(encoding="utf-8")
    try:
        table = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: {path} is no YAML ({reason}); {_FORM}") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"{name}: {path} holds no mapping; {_FORM}")
    return {str(model): _price(name, model, entry) for model, entry in table.items()}


def price_of(model: str, table: Mapping[str, Price]) -> Price | None:
    """The model's price: under its name, its name without a date, or without a maker's prefix."""
    names = [model, _DATED.sub("", model)]
    names += [name.rpartition("/")[2] for name in names]
    return next((table[name] for name in names if name in table), None)


def describe_cost(usage: Usage, model: str, price: Price | None) -> str:
    """One line for a person: tokens, and USD where the price is known."""
    tokens = f"{usage.prompt_tokens:,} prompt + {usage.completion_tokens:,} completion tokens"
    if price is None:
        return f"{tokens}; no price known for {model!r}, add it with --price-table"
    return f"{tokens}; about {price.of(usage):.4g} USD"


def _price(name: str, model: object, entry: object) -> Price:
    if not isinstance(entry, Mapping) or set(entry) != {"input", "output"}:
        raise ValueError(f"{name}: {model} is {entry!r}; {_FORM}")
    try:
        return Price(input=float(entry["input"]), output=float(entry["output"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {model} is {entry!r}; {_FORM}") from error
