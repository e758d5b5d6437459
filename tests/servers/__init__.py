"""The servers that the integration and system tests talk to, each a real process on a free local port."""

from tests.servers.localstack import LocalStack, run_localstack
from tests.servers.postgres import TABLES, Postgres, run_postgres
from tests.servers.process import ServerUnavailableError

__all__ = ["TABLES", "LocalStack", "Postgres", "ServerUnavailableError", "run_localstack", "run_postgres"]
