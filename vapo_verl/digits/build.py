"""Write the digits world as parquet files in veRL's row layout."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.digits.claims import CLAIM_KINDS, NUM_CLAIMS, LabeledClaim, sample_claims
from vapo_verl.digits.questions import Question, question_kinds, sample_question
from vapo_verl.digits.scene import (
    SPLITS,
    Scene,
    parse_grid,
    png_bytes,
    render,
    sample_scene,
    scan_pool,
)

_CONFIG_FILE = "digits.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsConfig:
    """Settings of a digits data set."""

    train: int = 512
    """Rows of train.parquet."""
    val: int = 64
    test: int = 256
    seed: int = 0
    """Seed of scenes, questions and claims; the split of the scans does not depend on it."""
    grids: tuple[str, ...] = ("2x2", "2x3")
    """Grid shapes as ROWSxCOLS, taken in turn."""
    questions: str = "standard"
    """A key of `questions.QUESTION_SETS`."""
    claim_kinds: tuple[str, ...] | None = None
    """Kinds of claims; None: all four. Identity and colour alone are too few for 2x2."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise ValueError(f"{split}={getattr(self, split)}: a number of rows is 0 or more")
        if not self.grids:
            raise ValueError("grids=(): name at least one grid, such as 2x2")
        for grid in self.grids:
            parse_grid(grid)
        _check_claim_kinds(self)
        question_kinds(self.questions)


def _check_claim_kinds(config: DigitsConfig) -> None:
    """Refuse kinds of claims that are unknown, or that yield too few claims in some grid.

    A row has 20 claims, half of them true. Each of n cells has one true claim and several false
    ones about its digit, and likewise about its colour. Each row and column has a true claim of the
    kind position.
    """
    kinds = config.claim_kinds
    if kinds is None:
        return
    if not kinds or not {*kinds} <= {*CLAIM_KINDS}:
        raise ValueError(f"claim_kinds={kinds}: name some of {', '.join(CLAIM_KINDS)}")
    of_cells = ("identity" in kinds) + ("color" in kinds)
    for grid in config.grids:
        rows, cols = parse_grid(grid)
        num_true = rows * cols * of_cells + (rows + cols) * ("position" in kinds)
        if num_true < NUM_CLAIMS // 2 or not of_cells:
            raise ValueError(
                f"claim_kinds={kinds}: a grid of {grid} may have too few claims of these kinds for "
                f"{NUM_CLAIMS} a row; add identity and color, or use 3x3"
            )


def write_dataset(out_dir: str | Path, config: DigitsConfig) -> dict[str, Path]:
    """Write {train,val,test}.parquet and `digits.json`, and return the parquet paths by split.

    Files of the same configuration are kept; files of another are replaced.
    """
    out_dir = Path(out_dir)
    paths = {split: out_dir / f"{split}.parquet" for split in SPLITS}
    stamp = json.dumps({"format": _FORMAT, **asdict(config)}, indent=2) + "\n"
    stamp_path = out_dir / _CONFIG_FILE
    if (
        stamp_path.is_file()
        and stamp_path.read_text() == stamp
        and all(map(Path.is_file, paths.values()))
    ):
        return paths
    out_dir.mkdir(parents=True, exist_ok=True)
    stamp_path.unlink(missing_ok=True)
    for split, path in paths.items():
        pq.write_table(pa.Table.from_pylist(build_split(config, split), schema=SCHEMA), path)
    stamp_path.write_text(stamp)
    return paths


def build_split(config: DigitsConfig, split: str) -> list[dict]:
    """Return the rows of one split; row i depends on (seed, split, i) and its grid only."""
    return [_build_row(config, split, index) for index in range(getattr(config, split))]


def _build_row(config: DigitsConfig, split: str, index: int) -> dict:
    grid = config.grids[index % len(config.grids)]
    key = f"{config.seed}/{split}/{index}"
    rng = random.Random(key)
    scene = sample_scene(rng, scan_pool(split), *parse_grid(grid))
    question = sample_question(rng, scene, config.questions)
    claims = sample_claims(rng, scene, kinds=config.claim_kinds)
    image = png_bytes(render(scene, seed=key))
    info = {"split": split, "index": index, "grid": grid, "kind": question.kind}
    return _row(scene, question, claims, image, info)


def _row(
    scene: Scene, question: Question, claims: tuple[LabeledClaim, ...], image: bytes, info: dict
) -> dict:
    return {
        "data_source": "digits",
        "prompt": [{"role": "user", "content": f"<image>{question.text}"}],
        "images": [{"bytes": image, "path": None}],
        "ability": "vqa",
        "reward_model": {"style": "rule", "ground_truth": question.answer},
        "extra_info": {**info, "question": question.text, "scene": scene.to_json()},
        "claims": [{"text": item.claim.text, "label": item.label} for item in claims],
    }


_EXTRA_INFO = {"split": pa.string(), "index": pa.int64()} | dict.fromkeys(
    ("grid", "kind", "question", "scene"), pa.string()
)
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(_EXTRA_INFO),
        "claims": pa.list_(pa.struct({"text": pa.string(), "label": pa.bool_()})),
    }
)
"""Columns of every file: veRL's fields plus `claims`."""
