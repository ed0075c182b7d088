"""The settings: every key with its default, YAML files, overrides, messages."""
