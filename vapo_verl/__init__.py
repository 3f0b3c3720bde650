"""Vision-Anchored Policy Optimization (arXiv 2509.25848) on veRL, Ray and vLLM."""

from vapo_verl.version import __version__

__all__ = ["__version__"]
