"""What it takes to run the `datahub` CLI well."""
