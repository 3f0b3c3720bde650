"""Draw one sampled response of a run as the README shows it.

    python docs/pictures/response.py RUN_DIR [--step 3 --uid 000003-00002 --sample 4]
        [--out docs/pictures/response.svg]

Tokens are coloured by their visual attention; numbered marks are the anchors, listed below with
claim, label and prediction. Without a choice the response that shows most is drawn: a correct one
with many distinct anchors and one or two incorrect predictions. The run needs
vapo.attention.enabled=true. Text becomes paths, which look the same with any fonts, and the card
has a background of its own, which stays readable on dark pages.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath
from PIL import Image

OUT = Path(__file__).with_name("response.svg")
COLUMNS = [
    "step",
    "uid",
    "sample",
    "prompt",
    "images",
    "tokens",
    "visual_attention",
    "ground_truth",
    "reward",
    "anchors",
]
Row = dict[str, Any]

WIDTH, MARGIN = 980.0, 26.0
"""Pixels of the picture at scale 1."""
IMAGE = 168.0
LEFT = MARGIN + IMAGE + 28.0
"""Where the text beside the image begins."""
LINE, TOKEN_HEIGHT, CHART = 29.0, 21.0, 58.0
TEXT, SOFT, RULE, CARD = "#1f2328", "#57606a", "#d0d7de", "#ffffff"
CORRECT, INCORRECT = "#1a7f37", "#cf222e"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fed7aa", "#fb923c", "#ea580c"])
HEAT_MAX = 0.85
"""Highest point of the scale in use: black text stays readable on it."""
SANS = FontProperties(family="DejaVu Sans")
BOLD = FontProperties(family="DejaVu Sans", weight="bold")
MONO = FontProperties(family="DejaVu Sans Mono")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which response to draw; None leaves it open."""

    step: int | None = None
    uid: str | None = None
    sample: int | None = None


def read_rows(run_dir: Path) -> list[Row]:
    """All sampled responses of a run.

    Raises:
        FileNotFoundError: the run has none.
    """
    files = sorted((run_dir / "rollouts").glob("step_*.parquet"))
    if not files:
        raise FileNotFoundError(f"{run_dir} has no rollouts/step_*.parquet")
    return [row for file in files for row in pq.read_table(file, columns=COLUMNS).to_pylist()]


def choose(rows: list[Row], choice: Choice) -> Row:
    """The chosen response, or the one that shows most.

    Raises:
        ValueError: no response fits that has attention, an image and anchors.
    """
    fitting = [row for row in rows if _fits(row, choice) and _is_drawable(row)]
    if not fitting:
        raise ValueError("no such response with visual attention, an image and anchors")
    return max(fitting, key=_interest)


def _fits(row: Row, choice: Choice) -> bool:
    wanted = {"step": choice.step, "uid": choice.uid, "sample": choice.sample}
    return all(value is None or row[name] == value for name, value in wanted.items())


def _is_drawable(row: Row) -> bool:
    attention = row["visual_attention"] or []
    return bool(row["anchors"] and row["images"] and row["images"][0]) and any(
        map(math.isfinite, attention)
    )


def _interest(row: Row) -> tuple[float, ...]:
    anchors = row["anchors"]
    num_incorrect = sum(not anchor["correct"] for anchor in anchors)
    return (
        row["reward"]["accuracy"],
        len({anchor["position"] for anchor in anchors}),
        float(1 <= num_incorrect <= 2),
        row["step"],
        -len(row["tokens"]),
    )


class Picture:
    """A figure whose axes count pixels from the top left."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.tokens = [token.replace("\n", "⏎") for token in row["tokens"]]
        self.attention = np.array(row["visual_attention"], dtype=float)[: len(self.tokens)]
        self.top = max(float(np.nanmax(self.attention)), 1e-6)
        self.anchors = sorted(row["anchors"], key=lambda anchor: anchor["position"])
        self.words, self.response_height = self._flow()
        self.chart_top = MARGIN + 84.0 + self.response_height + 26.0
        self.table_top = max(self.chart_top + CHART + 42.0, MARGIN + IMAGE + 70.0)
        self.height = self.table_top + 24.0 * len(self.anchors) + MARGIN

    def draw(self) -> Figure:
        figure = Figure(figsize=(WIDTH / 100, self.height / 100), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        _box(axes, 1, 1, WIDTH - 2, self.height - 2, CARD, edge=RULE, radius=10)
        self._image(axes)
        self._question(axes)
        self._response(axes)
        self._chart(axes)
        self._table(axes)
        return figure

    def _image(self, axes: Axes) -> None:
        with Image.open(io.BytesIO(self.row["images"][0])) as image:
            pixels = image.convert("RGB")
        side = IMAGE / max(pixels.size)
        width, height = pixels.width * side, pixels.height * side
        axes.imshow(
            np.asarray(pixels),
            extent=(MARGIN, MARGIN + width, MARGIN + height, MARGIN),
            interpolation="nearest" if max(pixels.size) < IMAGE else "antialiased",
            aspect="auto",
            zorder=2,
        )
        frame = Rectangle((MARGIN, MARGIN), width, height, fill=False, edgecolor=RULE, zorder=3)
        axes.add_patch(frame)
        axes.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        row = self.row
        right = "correct" if row["reward"]["accuracy"] == 1 else "incorrect"
        lines = [
            f"answer {row['ground_truth']}: {right}",
            f"R_perc {row['reward']['perception']:.2f}   R {row['reward']['total']:.2f}",
            f"step {row['step']}, {len(self.tokens)} tokens",
        ]
        for i, line in enumerate(lines):
            _text(axes, MARGIN, MARGIN + height + 20 + 18 * i, line, size=11, color=SOFT)

    def _question(self, axes: Axes) -> None:
        _text(axes, LEFT, MARGIN + 9, "Question", size=11, color=SOFT)
        asked = question_of(self.row["prompt"])
        _text(axes, LEFT, MARGIN + 29, asked, size=13)
        label = "Response: tokens coloured by the fraction of attention on the image at that step"
        _text(axes, LEFT, MARGIN + 62, label, size=11, color=SOFT)
        self._scale(axes, WIDTH - MARGIN - 128, MARGIN + 53)

    def _scale(self, axes: Axes, x: float, y: float) -> None:
        for i in range(32):
            colour = HEAT(HEAT_MAX * i / 31)
            axes.add_patch(Rectangle((x + 18 + 2 * i, y), 2.3, 10, color=colour, linewidth=0))
        axes.add_patch(Rectangle((x + 18, y), 65, 10, fill=False, edgecolor=RULE, linewidth=0.6))
        _text(axes, x + 6, y + 9, "0", size=10.5, color=SOFT)
        _text(axes, x + 90, y + 9, f"{self.top:.2f}", size=10.5, color=SOFT)

    def _flow(self) -> tuple[list[tuple[float, float, int | None, str]], float]:
        """(x, y, token or None for a mark, text) of what stands in the response; its height."""
        marks = dict.fromkeys((anchor["position"] for anchor in self.anchors), "")
        for number, anchor in enumerate(self.anchors, start=1):
            marks[anchor["position"]] += f",{number}"
        placed: list[tuple[float, float, int | None, str]] = []
        x, y = LEFT, 0.0
        for at in range(len(self.tokens) + 1):
            words = [(None, _span(marks[at][1:]))] if at in marks else []
            words += [(at, self.tokens[at])] if at < len(self.tokens) else []
            needed = sum(_width_of(token, text) for token, text in words)
            if x + needed > WIDTH - MARGIN:
                x, y = LEFT, y + LINE
            for token, text in words:
                placed.append((x, y, token, text))
                x += _width_of(token, text)
        return placed, y + LINE

    def _response(self, axes: Axes) -> None:
        top = MARGIN + 78.0
        for x, y, token, text in self.words:
            y += top
            if token is None:
                self._mark(axes, x + 2, y + 1, text)
                continue
            width = _token_width(text)
            _box(axes, x, y, width - 0.8, TOKEN_HEIGHT, self._colour(token), radius=2)
            _text(axes, x, y + 15, text, size=13, font=MONO)

    def _mark(self, axes: Axes, x: float, y: float, numbers: str) -> None:
        first = int(numbers.replace("–", ",").split(",")[0]) - 1
        at = self.anchors[first]["position"]
        here = [anchor for anchor in self.anchors if anchor["position"] == at]
        colour = CORRECT if all(anchor["correct"] for anchor in here) else INCORRECT
        _box(axes, x, y, _mark_width(numbers) - 4, TOKEN_HEIGHT - 2, colour, radius=8)
        _text(axes, x + 5.5, y + 14, numbers, size=11, color="#ffffff", font=BOLD)

    def _chart(self, axes: Axes) -> None:
        width, top = WIDTH - MARGIN - LEFT, self.chart_top
        label = "Visual attention along the response, and where its anchors are"
        _text(axes, LEFT, top - 10, label, size=11, color=SOFT)
        step = width / len(self.tokens)
        for i, value in enumerate(self.attention):
            if math.isfinite(value):
                height = CHART * value / self.top
                bar = Rectangle(
                    (LEFT + i * step, top + CHART - height),
                    max(step - 0.8, 0.5),
                    height,
                    color=self._colour(i),
                    linewidth=0,
                )
                axes.add_patch(bar)
        axes.plot([LEFT, LEFT + width], [top + CHART] * 2, color=RULE, linewidth=1)
        for position, group in groupby(self.anchors, key=lambda anchor: anchor["position"]):
            colour = CORRECT if all(anchor["correct"] for anchor in group) else INCORRECT
            x = LEFT + position * step
            axes.plot([x, x], [top + CHART, top + CHART + 5], color=colour, linewidth=2)
        _text(axes, LEFT, top + CHART + 19, "first token", size=10.5, color=SOFT)
        _text(axes, LEFT + width - 58, top + CHART + 19, "last token", size=10.5, color=SOFT)

    def _table(self, axes: Axes) -> None:
        columns = (
            (MARGIN, "anchor"),
            (MARGIN + 74, "after token"),
            (LEFT, "claim about the image"),
            (LEFT + 430, "label"),
            (LEFT + 500, "prediction"),
            (LEFT + 610, "p(yes)"),
        )
        y = self.table_top
        for x, name in columns:
            _text(axes, x, y, name, size=11, color=SOFT)
        axes.plot([MARGIN, WIDTH - MARGIN], [y + 7] * 2, color=RULE, linewidth=1)
        for number, anchor in enumerate(self.anchors, start=1):
            y += 24.0
            colour = CORRECT if anchor["correct"] else INCORRECT
            _box(axes, MARGIN, y - 13, _mark_width(str(number)) - 4, 18, colour, radius=8)
            _text(axes, MARGIN + 5.5, y, str(number), size=11, color="#ffffff", font=BOLD)
            answer = ("yes" if anchor["answer"] else "no") + ("  ✓" if anchor["correct"] else "  ✗")
            cells = (
                (str(anchor["position"]), TEXT),
                (anchor["claim"], TEXT),
                ("true" if anchor["label"] else "false", TEXT),
                (answer, colour),
                (f"{anchor['p_yes']:.2f}", TEXT),
            )
            for (x, _), (text, shade) in zip(columns[1:], cells, strict=True):
                _text(axes, x, y, text, size=12, color=shade)

    def _colour(self, token: int) -> Any:
        value = self.attention[token]
        if not math.isfinite(value):
            return CARD
        return HEAT(HEAT_MAX * min(value / self.top, 1.0))


def question_of(prompt: str) -> str:
    """The question in a decoded chat prompt: its longest line that asks something."""
    lines = [line.strip() for line in prompt.splitlines() if "?" in line]
    asked = max(lines, key=len) if lines else prompt.strip()
    return asked[: asked.index("?") + 1] if "?" in asked else asked


def _span(numbers: str) -> str:
    """`3`, `3,4`, or `3–8` for more than two."""
    parts = numbers.split(",")
    return numbers if len(parts) < 3 else f"{parts[0]}–{parts[-1]}"


def _measure(text: str, size: float, font: FontProperties) -> float:
    """Width of a text in pixels; of spaces at its ends, too."""
    ends = TextPath((0, 0), "||", size=size, prop=font).get_extents().width
    return TextPath((0, 0), f"|{text}|", size=size, prop=font).get_extents().width - ends


def _token_width(text: str) -> float:
    return _measure(text, 13, MONO) + 0.8


def _mark_width(numbers: str) -> float:
    return _measure(numbers, 11, BOLD) + 15.0


def _width_of(token: int | None, text: str) -> float:
    return _mark_width(text) if token is None else _token_width(text)


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: Any,
    *,
    edge: str = "none",
    radius: float,
) -> None:
    style = f"round,pad=0,rounding_size={min(radius, width / 2, height / 2)}"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=edge)
    )


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = TEXT,
    font: FontProperties = SANS,
) -> None:
    """`size` in pixels, `y` of the baseline."""
    points = 72 * size / 100
    text = text.replace("$", r"\$")
    axes.text(x, y, text, fontsize=points, fontproperties=_sized(font, points), color=color)


def _sized(font: FontProperties, points: float) -> FontProperties:
    sized = font.copy()
    sized.set_size(points)
    return sized


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--step", type=int)
    parser.add_argument("--uid", help="the prompt, as in the rollout file")
    parser.add_argument("--sample", type=int, help="the response among those to the prompt")
    parser.add_argument("--out", type=Path, default=OUT, help=".svg or .png (%(default)s)")
    options = parser.parse_args()
    choice = Choice(step=options.step, uid=options.uid, sample=options.sample)
    try:
        row = choose(read_rows(options.run_dir), choice)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # The same input gives the same file: no date, no random ids.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "vapo_verl"}):
        figure = Picture(row).draw()
        kind = options.out.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(options.out, format=kind, metadata=metadata, transparent=True, dpi=160)
    size_kb = options.out.stat().st_size / 1000
    print(
        f"{options.out}: step {row['step']}, {row['uid']}, sample {row['sample']}; {size_kb:.0f} kB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
