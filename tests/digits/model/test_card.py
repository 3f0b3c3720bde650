from vapo_verl.digits.model.evaluate import Figures, model_card

FOUND = Figures(
    format_rate=1.0,
    accuracy=0.5,
    claims_at_start=0.75,
    claims_at_end=0.7,
    yes_rate=0.5,
    mean_tokens=90.4,
    p10_tokens=72.0,
    p90_tokens=117.0,
)
FACTS = {
    "parameters": 2344192,
    "command": "make it",
    "date": "2026-01-01",
    "machine": "a 2-core CPU",
    "minutes": 9.6,
    "seed": 0,
    "num_rows": 128,
}


def card(tower):
    shares = {name: getattr(FOUND, name) for name in Figures.__dataclass_fields__}
    figures = {"3x3": {"responses": {"greedy": shares}, "chance": 0.062, "mixed_groups": 0.8}}
    first = {"tower": tower, "warm_up": [{"response": 2.72, "prediction": 0.949}]}
    return model_card(figures, first, **FACTS)


def test_card_holds_the_figures():
    text = card(tower=[9.4123, 9.3])
    assert "2,344,192 parameters" in text
    assert "| 3x3 | greedy | 1.000 | 0.500 | 0.750 | 0.700 | 0.500 | 90 | 72 | 117 |" in text
    assert "| 3x3 | 0.062 | 0.800 |" in text
    assert "First steps of the tower: 9.412, 9.300." in text
    assert "response / prediction: 2.720 / 0.949." in text


def test_card_of_a_recipe_without_tower_names_none():
    assert "tower" not in card(tower=[])
