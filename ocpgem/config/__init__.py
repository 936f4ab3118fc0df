"""Typed configuration: YAML files with includes and overrides, validated as a whole."""

from ocpgem.config.load import dump_config, load_config, parse_config
from ocpgem.config.section import Contradiction, Section

__all__ = ["Contradiction", "Section", "dump_config", "load_config", "parse_config"]
