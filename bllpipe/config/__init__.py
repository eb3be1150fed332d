"""The configuration of a run, from strict YAML and overrides."""

from bllpipe.config.loader import load_config, parse_config, to_mapping, to_yaml
from bllpipe.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "to_mapping", "to_yaml"]
