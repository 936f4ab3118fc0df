"""Typed configuration: YAML files with includes and overrides, validated as a whole."""

from ocpgem.config.load import dump_config, load_config, parse_config
from ocpgem.config.section import Contradiction, Name, Section

__all__ = ["Contradiction", "Name", "Section", "dump_config", "load_config", "parse_config"]
