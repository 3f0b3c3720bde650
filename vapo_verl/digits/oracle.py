"""An oracle that checks a claim's text against the scene."""

import re

from vapo_verl.digits.scene import Cell, Scene

_DIGIT = re.compile(r"The (\w+ \w+) digit is (\d)\.")
_COLOR = re.compile(r"The (\w+ \w+) digit is ([a-z]+)\.")
_LARGER = re.compile(r"The (\w+ \w+) digit is larger than the (\w+ \w+) digit\.")
_PRESENCE = re.compile(r"There is a (\w+) (\d) in the (\w+) (row|column)\.")
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "center", "right")}


def judge(claim: str, scene: Scene) -> bool:
    """Say whether a claim, given as text, is true of a scene.

    Shares no code with `claims`, so that either can be checked by the other.

    Raises:
        ValueError: the text is not a claim of the digits world, or its position is missing.
    """
    if match := _DIGIT.fullmatch(claim):
        return _cell(scene, match[1]).digit == int(match[2])
    if match := _COLOR.fullmatch(claim):
        return _cell(scene, match[1]).color == match[2]
    if match := _LARGER.fullmatch(claim):
        return _cell(scene, match[1]).digit > _cell(scene, match[2]).digit
    if match := _PRESENCE.fullmatch(claim):
        wanted = (match[1], int(match[2]))
        return wanted in [(cell.color, cell.digit) for cell in _line(scene, match[3], match[4])]
    raise ValueError(
        f"claim={claim!r} is not a sentence of the digits world; pass a row's claim text unchanged"
    )


def _cell(scene: Scene, position: str) -> Cell:
    row, column = position.split()
    row_index = _index(_ROWS[scene.rows], row)
    return scene.cells[row_index * scene.cols + _index(_COLUMNS[scene.cols], column)]


def _line(scene: Scene, name: str, axis: str) -> tuple[Cell, ...]:
    if axis == "row":
        start = _index(_ROWS[scene.rows], name) * scene.cols
        return scene.cells[start : start + scene.cols]
    return scene.cells[_index(_COLUMNS[scene.cols], name) :: scene.cols]


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise ValueError(f"position={name!r} is not in this grid; it has {', '.join(names)}")
    return names.index(name)
