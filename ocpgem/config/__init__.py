"""Typed configuration: YAML files with includes and overrides, validated as a whole."""

from ocpgem.config.load import Section, dump_config, load_config, parse_config

__all__ = ["Section", "dump_config", "load_config", "parse_config"]
