"""The DataHub remote executor: runs ingestion inside a private network."""
