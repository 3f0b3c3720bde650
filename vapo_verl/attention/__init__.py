"""Visual attention of every generated token, out of vLLM: docs/attention.md.

llm = vllm.LLM(model, **engine_args())
visual_attention(llm.generate(...)[0].outputs[0])  # [T], each in [0, 1]
"""

from vapo_verl.attention.api import decode_visual_attention, engine_args, visual_attention

__all__ = ["decode_visual_attention", "engine_args", "visual_attention"]
