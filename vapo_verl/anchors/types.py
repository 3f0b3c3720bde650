"""Types shared by planning, probing and scoring."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A cut of a response and the claim that is probed there."""

    position: int
    """a_k: response tokens before the cut, 1..T."""
    claim: str
    label: bool
    """Whether the claim is true; kept with its claim from the data row to the score."""
    own_boundary: bool
    """False if the response had no logical boundary left for this anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorResult:
    """An anchor with the policy's answer."""

    anchor: Anchor
    answer: bool
    """True for yes: the likelier of the two answer tokens, the greedy answer."""
    p_yes: float
    """Probability of yes, normalised over the two answer tokens."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the engine's KV cache."""

    @property
    def correct(self) -> bool:
        """s_k of Eq. 3."""
        return self.answer == self.anchor.label

    @property
    def p_label(self) -> float:
        """Probability of the correct answer: the soft s_k."""
        return self.p_yes if self.anchor.label else 1.0 - self.p_yes
