"""cvpeft: adapt pretrained object detectors with few trained parameters."""

import os

__version__ = "0.1.0"

__all__ = ["__version__"]

# ONNX Runtime from 1.29 on sends names and hashes of models to its maker and keeps an identifier in the home folder,
# unless this is set before it is imported (its Privacy.md). Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
