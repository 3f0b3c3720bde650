import random

import numpy as np
import pytest

from vapo_verl.digits.scene import (
    SPLITS,
    Cell,
    Scene,
    load_scans,
    parse_grid,
    render,
    sample_scene,
    scan_pool,
)


def make_scene(rows: int, cols: int, seed: int = 0) -> Scene:
    return sample_scene(random.Random(seed), scan_pool("test"), rows, cols)


def test_splits_share_no_scan_and_cover_all():
    pools = {split: sum(scan_pool(split).by_digit, ()) for split in SPLITS}
    everything = sorted(sum(pools.values(), ()))
    assert everything == list(range(len(load_scans()[1])))


def test_splits_are_stratified():
    _, digits = load_scans()
    for digit, scans in enumerate(scan_pool("train").by_digit):
        assert set(digits[list(scans)]) == {digit}
        assert len(scans) == pytest.approx(0.7 * (digits == digit).sum(), abs=1)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='dev'"):
        scan_pool("dev")


def test_json_round_trip():
    scene = make_scene(2, 3)
    assert Scene.from_json(scene.to_json()) == scene


def test_places_and_lines():
    cells = tuple(Cell(digit=digit, color="red", scan=0) for digit in range(6))
    scene = Scene(rows=2, cols=3, cells=cells)
    assert [scene.positions[name].digit for name in ("top left", "top center", "bottom right")] == [
        0,
        1,
        5,
    ]
    assert scene.lines["bottom row"] == ("bottom left", "bottom center", "bottom right")
    assert scene.lines["center column"] == ("top center", "bottom center")


@pytest.mark.parametrize("text", ["2", "4x2", "2x2x2", "ax3", ""])
def test_bad_grid_is_refused(text):
    with pytest.raises(ValueError, match="grid="):
        parse_grid(text)


def test_cells_fill_their_squares_in_their_colour():
    cells = tuple(
        Cell(digit=0, color=color, scan=scan_pool("test").by_digit[0][0])
        for color in ("red", "green", "blue", "yellow")
    )
    pixels = np.asarray(render(Scene(rows=2, cols=2, cells=cells), seed=0)).astype(int)
    assert pixels.shape == (56, 56, 3)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    assert red[:28, :28].sum() > 2 * green[:28, :28].sum()
    assert green[:28, 28:].sum() > 2 * red[:28, 28:].sum()
    assert blue[28:, :28].sum() > 2 * red[28:, :28].sum()
    assert min(red[28:, 28:].sum(), green[28:, 28:].sum()) > 2 * blue[28:, 28:].sum()


def test_jitter_is_seeded():
    scene = make_scene(2, 3)
    same, again, other = (render(scene, seed).tobytes() for seed in (1, 1, 2))
    assert same == again
    assert same != other
