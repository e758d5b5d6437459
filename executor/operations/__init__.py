"""Log, metrics and health."""
