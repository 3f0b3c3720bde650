r"""Numbers and quantities in an answer: exact values, and the units behind them. Pure.

`number("1 1/2")` is `Fraction(3, 2)`; `quantity("5 cm")` has the value `5` and the unit `cm`.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from vapo_verl.reward.answers import normalised

MAX_DIGITS = 400
"""Most digits of a number, and the largest exponent; a number beyond is read as text."""

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN = re.compile(rf"(?P<base>{_DECIMAL})(?:[eE](?P<e>[+-]?\d+))?")
_SCIENTIFIC = re.compile(
    rf"(?:(?P<base>{_DECIMAL}) ?[×xX*·] ?)?10\^(?:\{{ ?(?P<e>[+-]?\d+) ?\}}|(?P<digit>\d))"
)
_RATIO = re.compile(
    rf"(?P<over>{_DECIMAL}) ?/ ?(?P<under>{_DECIMAL})"
    rf"|\\frac\{{ ?(?P<top>-?{_DECIMAL}) ?\}} ?\{{ ?(?P<bottom>-?{_DECIMAL}) ?\}}"
)
_MIXED = re.compile(r"(?P<units>\d+)(?: (?P<slash>\d+ ?/ ?\d+)| ?(?P<frac>\\frac\{\d+\} ?\{\d+\}))")
_REPEATING = re.compile(
    r"(?P<base>\d*\.(?P<digits>\d*))(?:\\(?:overline|dot|bar)\{(?P<over>\d+)\}|\((?P<round>\d+)\))"
)
_POWERS = {
    **{"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12},
    **{"千": 3, "万": 4, "亿": 8},
}
_SCALED = re.compile(rf"(?P<base>{_DECIMAL}) ?(?P<power>{'|'.join(_POWERS)})s?", re.I)


def number(text: str) -> Fraction | None:
    r"""The exact value of a plain number, None for anything else.

    Plain are decimals (`-3`, `.5`, `1,000.0`), `1e3`, `1.5 \times 10^3`, `5 million`, fractions
    of numbers (`1/2`, `\frac{1}{2}`), mixed numbers (`1 1/2`) and repeating decimals
    (`0.\overline{3}`, `0.(3)`), in brackets or not.
    """
    text = normalised(text)
    return _number(text) if len(text) <= 2 * MAX_DIGITS else None


def _number(text: str) -> Fraction | None:
    while text[:1] == "(" and text[-1:] == ")":
        text = text[1:-1].strip()
    sign = -1 if text.startswith("-") else 1
    text = text[1:].strip() if text[:1] in ("-", "+") else text
    if plain := _PLAIN.fullmatch(text):
        return _scaled(plain["base"], plain["e"] or "0", sign)
    if scientific := _SCIENTIFIC.fullmatch(text):
        return _scaled(scientific["base"] or "1", scientific["e"] or scientific["digit"], sign)
    if scaled := _SCALED.fullmatch(text):
        return _scaled(scaled["base"], str(_POWERS[scaled["power"].lower()]), sign)
    if (repeating := _REPEATING.fullmatch(text)) and len(text) <= MAX_DIGITS:
        period = repeating["over"] or repeating["round"]
        last = Fraction(int(period), 10 ** len(repeating["digits"]) * (10 ** len(period) - 1))
        return sign * (Fraction(f"{repeating['base']}0") + last)
    if ratio := _RATIO.fullmatch(text):
        return _quotient(ratio["over"] or ratio["top"], ratio["under"] or ratio["bottom"], sign)
    if mixed := _MIXED.fullmatch(text):
        part = _number(mixed["slash"] or mixed["frac"])
        if part is not None and part < 1:
            return sign * (int(mixed["units"]) + part)
    return None


def _scaled(base: str, exponent: str, sign: int) -> Fraction | None:
    """None for a size that would take memory: digits are counted before they are read."""
    digits = exponent.lstrip("+-").lstrip("0")
    if len(base) > MAX_DIGITS or len(digits) > 3 or int(digits or 0) > MAX_DIGITS:
        return None
    return sign * Fraction(base) * Fraction(10) ** int(exponent)


def _quotient(over: str, under: str, sign: int) -> Fraction | None:
    if max(len(over), len(under)) > MAX_DIGITS or not (bottom := Fraction(under)):
        return None
    return sign * Fraction(over) / bottom


_DIGITS = re.compile(r"([+-]?) ?(\d*)\.?(\d*)(?:[eE]([+-]?\d{1,18}))?")


def decimal_key(text: str) -> str | None:
    """Equal for decimals of one value, of any length: `007`, `7.0` and `0.7e1`; None for others."""
    match = _DIGITS.fullmatch(normalised(text))
    if match is None or not match[2] + match[3]:
        return None
    digits = (match[2] + match[3]).lstrip("0")
    significant = digits.rstrip("0")
    exponent = int(match[4] or 0) - len(match[3]) + len(digits) - len(significant)
    sign = "-" if match[1] == "-" else ""
    return f"{sign}{significant}e{exponent}" if significant else "0"


def same_number(a: Fraction, b: Fraction) -> bool:
    """Equal, or equal to 6 decimals and within a relative 1e-5: 0.333333 is 1/3, 0.333 is not."""
    if a == b:
        return True
    return abs(a - b) <= max(abs(a), abs(b)) / 100_000 and round(a, 6) == round(b, 6)


_PREFIXES = {"": "", "milli": "m", "centi": "c", "deci": "d", "kilo": "k", "mega": "M"} | {
    "micro": "μ",
    "nano": "n",
}
_PREFIXED = {
    **{"metre": "m", "meter": "m", "gram": "g", "gramme": "g", "litre": "L", "liter": "L"},
    **{"second": "s", "watt": "W", "volt": "V", "amp": "A", "ampere": "A", "hertz": "Hz"},
    **{"newton": "N", "joule": "J", "pascal": "Pa", "ohm": "Ω", "calorie": "cal", "byte": "B"},
}
_SYMBOL_NAMES = (
    "nm μm mm cm dm m km in ft yd mi mg g kg t lb oz ml mL dl cl L l s ms min h ha cc Hz kHz MHz "
    "GHz N kN J kJ MJ W mW kW MW kWh V kV A Ω kΩ Pa kPa hPa MPa K mol cal kcal eV rad deg "
    "dB px rpm mph kph kmh C F °C °F °T °K ° % ‰ ' \" USD EUR GBP JPY CNY RMB INR € £ ¥ ₹ ₩ "
    "GB MB KB kB TB kbps Mbps"
)
_EXACT_NAMES = (
    "T mT Wb H mH μH mC μC nC mF μF nF pF μA μV μW μs ns keV MeV GeV Bq lx lm cd mmHg AU Å μg μL "
    "μl μJ mJ μmol mmol mV MV mA mΩ MΩ GΩ GPa Nm"
)
_EXACT = frozenset(_EXACT_NAMES.split())
"""Symbols that count as written and behind a number only: `2CD` and `2πT` are products."""
_SYMBOLS = [*_SYMBOL_NAMES.split(), *_EXACT]
_SAME = {
    **{"l": "L", "ml": "mL", "dl": "dL", "cl": "cL", "cc": "cm^3", "deg": "°", "C": "°C"},
    **{"F": "°F", "°K": "K", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₩": "KRW"},
    **{"RMB": "CNY", "kph": "km/h", "mph": "mi/h", "kmh": "km/h", "KB": "kB", "'": "ft", '"': "in"},
    **{"μl": "μL", "Nm": "N·m"},
}
_WORDS = {
    **{"inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi"},
    **{"lbs": "lb", "pound": "lb", "ounce": "oz", "tonne": "t", "ton": "t", "hectare": "ha"},
    **{"sec": "s", "secs": "s", "mins": "min", "minute": "min", "hr": "h", "hrs": "h", "hour": "h"},
    **{"day": "day", "week": "week", "month": "month", "year": "year", "yr": "year", "yrs": "year"},
    **{"kgs": "kg", "cms": "cm", "kms": "km", "mole": "mol", "kelvin": "K", "radian": "rad"},
    **{"degree": "°", "degree celsius": "°C", "degrees celsius": "°C", "celsius": "°C"},
    **{"degree fahrenheit": "°F", "degrees fahrenheit": "°F", "fahrenheit": "°F"},
    **{"degrees c": "°C", "degrees f": "°F", "percent": "%", "per cent": "%", "pct": "%"},
    **{"dollar": "USD", "euro": "EUR", "cent": "cent", "rupee": "INR", "yen": "JPY", "yuan": "CNY"},
    **{"unit": "unit", "percentage point": "pp", "pixel": "px"},
    **{"kilohm": "kΩ", "kohm": "kΩ", "megohm": "MΩ", "microfarad": "μF", "nanofarad": "nF"},
    **{"microcoulomb": "μC", "nanocoulomb": "nC", "micromole": "μmol", "millimole": "mmol"},
    "angstrom": "Å",
    **{"毫米": "mm", "厘米": "cm", "分米": "dm", "米": "m", "千米": "km", "公里": "km", "克": "g"},
    **{"千克": "kg", "公斤": "kg", "吨": "t", "毫升": "mL", "升": "L", "秒": "s", "分钟": "min"},
    **{
        "小时": "h",
        "天": "day",
        "年": "year",
        "度": "°",
        "摄氏度": "°C",
        "元": "CNY",
        "美元": "USD",
    },
}
_SQUARE = {"平方": "2", "立方": "3", "square": "2", "sq": "2", "sq.": "2", "cubic": "3", "cu": "3"}
_SQUARE |= {"cu.": "3"}
_UNITS = {symbol: _SAME.get(symbol, symbol) for symbol in _SYMBOLS}
_UNITS_BY_WORD = {
    **{
        f"{p}{word}": f"{s}{unit}" for p, s in _PREFIXES.items() for word, unit in _PREFIXED.items()
    },
    **_WORDS,
}
_UNITS_BY_WORD |= {f"{word}s": unit for word, unit in _UNITS_BY_WORD.items() if word.isascii()}
_UNITS_BY_WORD |= {
    symbol.casefold(): unit
    for symbol, unit in _UNITS.items()
    if len(symbol) > 1
    and symbol not in _EXACT
    and sum(other.casefold() == symbol.casefold() for other in _UNITS) == 1
}


def _either(names: set[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_ATOM = rf"(?:(?:{_either(set(_UNITS))})|(?i:{_either(set(_UNITS_BY_WORD))}))(?![^\W\d_])"
_POWER = r"(?:\^?[1-4]|\^\{ ?-?[1-4] ?\}|(?i: squared| cubed))?"
_UNIT = re.compile(
    rf"(?:(?P<dimension>(?i:{_either(set(_SQUARE))})) ?)?(?P<atom>{_ATOM})(?P<power>{_POWER})"
    rf"(?P<more>(?:(?: ?[/·*] ?|(?i: per )| (?={_ATOM}\^\{{-)){_ATOM}{_POWER})*)"
)
_FACTOR = re.compile(rf"(?P<joint>[/·*]|(?i:per )|^) ?(?P<atom>{_ATOM})(?P<power>{_POWER})")
_WITH_UNIT = re.compile(rf"(?P<value>.+?)(?P<space> ?)(?P<unit>{_UNIT.pattern})")
_IN_BRACKETS = re.compile(rf"(?P<value>.*\d.*?)(?<![/·*]) ?[(\[] ?(?P<unit>{_UNIT.pattern}) ?[)\]]")
_WITH_MONEY = re.compile(
    r"(?P<sign>-?) ?(?P<unit>USD|EUR|GBP|JPY|CNY|RMB|INR|[€£¥₹₩]) ?(?P<value>.+)"
)
_WITH_NOUN = re.compile(r"(?P<value>.*\d\}?) (?P<noun>[a-z]{3,})")
_NO_NOUN_NAMES = (
    "and the plus minus times over sin cos tan cot sec csc log exp sqrt div mod noon midnight "
    "oclock east west north south left right only not both none hundred thousand million billion "
    "trillion dozen half third quarter percent exactly about max min lim then for from with "
    "one two three four five six seven eight nine ten eleven twelve above below"
)
_NO_NOUN = frozenset(_NO_NOUN_NAMES.split())
_NUMERIC = re.compile(r"(?:[\d.+\-*/×·()π√^{}! ]|\\frac|\\sqrt|\\pi)+")
_WORDY = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A value and its unit."""

    value: str
    """The normalised text before the unit: a number or an expression."""
    unit: str
    """The unit's canonical name, as `cm^2` of `square centimetres`."""
    is_sure: bool
    """False where it may be a code or a product: capitals close to a number, as in `3A` or `2MV`,
    or what `loose_quantity` says."""


def quantity(text: str) -> Quantity | None:
    r"""The value and unit of `5 cm`, `$5`, `50\%`, `60^\circ`, `9\pi\text{ m}^2`, `5 apples`.

    None without a unit, and for what has words, several units (`5 ft 3 in`) or a clock's `3 pm`.
    A noun in small letters behind a number is a unit of its own.
    """
    text = normalised(text)
    if len(text) > MAX_DIGITS:
        return None
    if bracketed := _IN_BRACKETS.fullmatch(text):
        text = f"{bracketed['value']} {bracketed['unit']}"
    if money := _WITH_MONEY.fullmatch(text):
        name = _UNITS[money["unit"]]
        value = money["sign"] + money["value"]
        return Quantity(value=value, unit=name, is_sure=True) if _is_numeric(value) else None
    if match := _WITH_UNIT.fullmatch(text):
        value, unit, space = match["value"], match["unit"], match["space"]
        is_letter = len(match["atom"]) == 1 and match["atom"].isalpha()
        is_exact = match["atom"] in _EXACT
        may_be_factor = ((is_letter and not space) or is_exact) and _number(value) is None  # 1+2m
        has_letters = not space or len(unit) == 1 or _WORDY.search(value)
        is_prefix = value[-1] == "μ" and f"μ{match['atom']}" in _UNITS  # 5 μ mol
        is_expression = not (has_letters or is_prefix or value[-1] in "=<>+-/·*")
        is_value = _is_numeric(value) or is_expression
        if is_value and not may_be_factor:
            is_code = (is_letter or is_exact) and not space and unit.isupper() and unit.isascii()
            return Quantity(value=value, unit=_unit_name(match), is_sure=not is_code)
    counted = _WITH_NOUN.fullmatch(text)
    if counted and counted["noun"] not in _NO_NOUN and _is_numeric(counted["value"]):
        noun = counted["noun"].removesuffix("s")
        return Quantity(value=counted["value"], unit=noun, is_sure=True)
    return None


_WITH_LOOSE_UNIT = re.compile(
    rf"(?P<value>.*?[\d}})])(?P<space> ?)(?P<unit>(?:{_ATOM}|[μkMG] |\\frac\{{).*)"
)
_PREFIX_APART = re.compile(r"(?<![^\W\d_])(μ|[kMG](?= Ω)) ")
_FRACTION_OF_UNITS = re.compile(
    r"\\frac\{ ?(?P<over>[^{}/]+?) ?\} ?\{ ?(?P<under>[^{}/]+?) ?\}"
    r"|(?<=/)\( ?(?P<product>[^(){}/]+?) ?\)"
)
_BETWEEN_UNITS = re.compile(r"(?<=[\w}]) (?=[^\W\d_])")
_LONG_SYMBOL = re.compile(r"[A-Za-z]{2}")


def loose_quantity(text: str) -> Quantity | None:
    r"""The quantity of `5 \mu m`, `5 k \Omega`, `5 \frac{m}{s}`, `5 J/(kg·K)`, `5 N m`.

    In normal form these may be products of variables too: `quantity` leaves them alone, and they
    are quantities only where the other side is a quantity or a number. None without a plain
    number in front. Against a number the result is not sure where variables are written alike:
    with a space between two units, or with one letter close to the number, as in `5\mu m`.
    """
    text = normalised(text)
    match = _WITH_LOOSE_UNIT.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None or number(match["value"]) is None:
        return None
    joined = _PREFIX_APART.sub(r"\1", match["unit"])
    joined = _FRACTION_OF_UNITS.sub(_divided, joined)
    unit, num_spaces = _BETWEEN_UNITS.subn("·", joined)
    found = quantity(f"{match['value']} {unit}")
    if found is None or found.value != match["value"]:
        return None
    is_apart = bool(match["space"] or _LONG_SYMBOL.search(match["unit"].replace("frac", "")))
    return replace(found, is_sure=is_apart and not num_spaces)


def _divided(fraction: re.Match[str]) -> str:
    """One division for each factor below the line, as units are read from left to right."""
    factors = re.split(" ?[·*] ?| ", fraction["under"] or fraction["product"])
    divisors = "/".join(factors)
    return f"{fraction['over']}/{divisors}" if fraction["over"] else divisors


def _is_numeric(value: str) -> bool:
    has_digit = any(sign.isdigit() or sign == "π" for sign in value)
    return _number(value) is not None or (has_digit and bool(_NUMERIC.fullmatch(value)))


_NO_SIGN = re.compile(r"(?<=[\w}])(?<!(?i:per)) (?=[^\W\d_]+\^\{-)")
"""The space of `m s^{-1}`, where a product has no sign."""


def _unit_name(match: re.Match[str]) -> str:
    """Factors with their powers, in sorted order."""
    powers: dict[str, int] = {}
    dimension = _SQUARE.get((match["dimension"] or "").casefold(), "")
    product = f"{match['atom']}{match['power'] or dimension}{match['more']}"
    for factor in _FACTOR.finditer(_NO_SIGN.sub("·", product)):
        name = _UNITS.get(factor["atom"]) or _UNITS_BY_WORD[factor["atom"].casefold()]
        power = factor["power"].strip("^{} ").replace("squared", "2").replace("cubed", "3")
        sign = -1 if factor["joint"].casefold() in ("/", "per ") else 1
        for part in name.split("/")[0].split("·"):
            base, _, own = part.partition("^")
            powers[base] = powers.get(base, 0) + sign * int(power or 1) * int(own or 1)
        for part in name.split("/")[1:]:
            powers[part] = powers.get(part, 0) - sign
    return " ".join(
        f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items())
    )
