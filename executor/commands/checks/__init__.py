"""What `datahub-executor check` looks at, one module for each place."""
