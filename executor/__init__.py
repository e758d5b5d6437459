"""The DataHub remote executor: runs ingestion inside a private network."""

__version__ = "0.1.0"
