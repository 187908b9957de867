"""YAML -> typed, frozen settings."""

from cvpeft.config.describe import keys
from cvpeft.config.load import dump, load
from cvpeft.config.schema import Settings

__all__ = ["Settings", "dump", "keys", "load"]
