"""Export a run's checkpoint as a model folder that transformers and vLLM load."""
