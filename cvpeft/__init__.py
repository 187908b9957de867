"""cvpeft: adapt pretrained object detectors with few trained parameters."""

__version__ = "0.1.0"

__all__ = ["__version__"]
