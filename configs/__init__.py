"""Configuration files: each has a `get_config()`, whose fields `--config.field=value` overrides."""
