"""A checkpoint of a run as a model folder that transformers and vLLM load."""
