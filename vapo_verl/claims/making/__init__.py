"""Claims of one image: prompts, parsing, selection and votes."""
