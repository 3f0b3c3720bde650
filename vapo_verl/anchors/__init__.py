"""Anchors: cuts of a finished response at which the policy is probed about the image."""

from vapo_verl.anchors.plan import SampleKey, plan_anchors, token_texts
from vapo_verl.anchors.probe import Anchor, AnchorResult, ProbeReply, Probes, probe_anchors
from vapo_verl.anchors.question import AnchorQuestion, bind_question

__all__ = [
    "Anchor",
    "AnchorQuestion",
    "AnchorResult",
    "ProbeReply",
    "Probes",
    "SampleKey",
    "bind_question",
    "plan_anchors",
    "probe_anchors",
    "token_texts",
]
