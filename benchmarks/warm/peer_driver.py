"""DataHub's own executor, put together as DataHub Actions does it, for requests on standard input, one a line.

Run by the Python of the CLI's venv: the executor is part of its package. Ends when its input does.
"""

import sys
from dataclasses import replace
from pathlib import Path

from datahub.emitter.mcp import MetadataChangeProposalWrapper
from datahub.executor.dispatcher.default_dispatcher import DefaultDispatcher
from datahub.executor.execution.reporting_executor import ReportingExecutor, ReportingExecutorConfig
from datahub.executor.execution.task import TaskConfig
from datahub.executor.request.execution_request import ExecutionRequest
from datahub.ingestion.graph.client import DataHubGraph, get_default_graph
from datahub.secret.datahub_secret_store import DataHubSecretStoreConfig
from datahub.secret.secret_store import SecretStoreConfig

EXECUTOR_ID = "remote"
TASKS = "datahub.executor.execution"


class Graph(DataHubGraph):  # type: ignore[misc]  # its package is in another venv
    """DataHub's client, whose proposals name the entity by its URN.

    The executor names it by its key, from which the real server makes the URN; the stand-in does not.
    """

    def emit_mcp(self, mcp: MetadataChangeProposalWrapper, **how: object) -> None:
        urn = f"urn:li:{mcp.entityType}:{mcp.entityKeyAspect.id}"
        super().emit_mcp(replace(mcp, entityUrn=urn, entityKeyAspect=None), **how)


def main(folder: Path) -> None:
    """Hand each request to the dispatcher; `folder` is for what runs write."""
    graph = Graph(get_default_graph().config)
    ingestion = {"tmp_dir": str(folder / "runs"), "log_dir": str(folder / "logs")}
    tested = {"tmp_dir": str(folder / "tests")}
    config = ReportingExecutorConfig(
        id=EXECUTOR_ID,
        task_configs=[
            TaskConfig(
                name="RUN_INGEST",
                type=f"{TASKS}.sub_process_ingestion_task.SubProcessIngestionTask",
                configs=ingestion,
            ),
            TaskConfig(
                name="TEST_CONNECTION",
                type=f"{TASKS}.sub_process_test_connection_task.SubProcessTestConnectionTask",
                configs=tested,
            ),
        ],
        secret_stores=[
            SecretStoreConfig(type="env", config={}),
            SecretStoreConfig(
                type="datahub", config=DataHubSecretStoreConfig(graph_client=graph).model_dump()
            ),
        ],
        graph_client=graph,
    )
    dispatcher = DefaultDispatcher([ReportingExecutor(config)])
    print("ready", flush=True)
    for line in sys.stdin:
        dispatcher.dispatch(ExecutionRequest.model_validate_json(line))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
