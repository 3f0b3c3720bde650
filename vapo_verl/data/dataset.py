"""veRL's data set with the `claims` of every row; choose it in the configuration with

    data.custom_cls.path=pkg://vapo_verl.data.dataset
    data.custom_cls.name=VapoDataset

veRL 0.9.1 loads the class (`get_dataset_class`) in the trainer and in every agent loop worker. It
takes `pkg://a.b.c` or a file path; a file path is loaded as an anonymous module, must exist at the
same place on every node, and a relative one depends on the working directory: prefer `pkg://`.

A column becomes a keyword argument of the agent loop: `collate_fn` makes an object array of it,
`get_tensordict` a NonTensorStack, and each row's entry is passed to `AgentLoop.run(claims=...)`.
It travels on with the rollout into the replay buffer, which takes the field names of a batch from
its first row: a row without the field would fail there. So every row has it, in training and in
validation.
"""

from verl.utils.dataset.rl_dataset import RLHFDataset

from vapo_verl.data.claims_column import read_claims
from vapo_verl.data.errors import BadCell, FileError, RowError
from vapo_verl.data.image_cell import loadable_image

_UNALIGNED = "can't be aligned"
"""In the ValueError of datasets.concatenate_datasets on columns of different types."""


class VapoDataset(RLHFDataset):
    """RLHFDataset whose rows all hold `claims`: a plain list of {"text", "label"}, [] for none.

    And `prompt_uid`: the row's place in the data set, from which its anchors are seeded.

    Files with and without a `claims` column may be mixed. Image structs that hold only a path are
    opened too, which RLHFDataset does not do.
    """

    def __getitem__(self, item: int) -> dict:
        row = super().__getitem__(item)
        try:
            claims = read_claims(row.get("claims"))
        except BadCell as problem:
            raise RowError(f"row {item} of {self.data_files}, {problem}") from problem
        row["claims"] = [claim.as_dict() for claim in claims]
        row["prompt_uid"] = str(item)  # the same in every run over the same files
        return row

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        images = example.get(self.image_key) or []
        example[self.image_key] = [self._sized(loadable_image(image)) for image in images]
        return super()._build_messages(example, key)

    def _read_files_and_tokenize(self) -> None:
        try:
            super()._read_files_and_tokenize()
        except ValueError as error:
            if _UNALIGNED not in str(error):
                raise
            raise FileError(
                f"data files {self.data_files} cannot be read together, a column has another type"
                f" in each: {error}; give it the same type (for images: import with --embed-images)"
            ) from error

    def _sized(self, image: object) -> object:
        """The image with the pixel limits of the configuration, as qwen_vl_utils reads them."""
        wanted = {name: self.config.get(name) for name in ("min_pixels", "max_pixels")}
        limits = {name: pixels for name, pixels in wanted.items() if pixels is not None}
        if not limits:
            return image
        return {**(image if isinstance(image, dict) else {"image": image}), **limits}
