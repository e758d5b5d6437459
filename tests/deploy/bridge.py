"""The bridge of docs/deploy.md at work: `python bridge.py QUEUE_URL` is given its code and events of Kafka as JSON.

Run with the interpreter of .cache/cli, which has DataHub's own class of these events, and boto3. The framework is
not there: all that the bridge needs of it is a base class, and the calls that are made here.
"""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from datahub.metadata.schema_classes import MetadataChangeLogClass


def main(queue_url: str, code: str, events: list[dict[str, Any]]) -> None:
    """Hand the events over, each as Kafka's consumer does."""
    framework = ModuleType("datahub_actions.action.action")
    framework.__dict__["Action"] = object
    path = ("datahub_actions", "datahub_actions.action", framework.__name__)
    sys.modules |= dict.fromkeys(path, framework)
    names: dict[str, Any] = {}
    exec(code, names)
    action = names["ToQueue"].create({"queue_url": queue_url}, None)
    for event in events:
        aspect = {**event["aspect"], "value": event["aspect"]["value"].encode()}
        change = MetadataChangeLogClass.from_obj({**event, "aspect": aspect}, tuples=True)
        handed_over = SimpleNamespace(as_json=lambda change=change: json.dumps(change.to_obj()))
        action.act(SimpleNamespace(event=handed_over))
    action.close()


if __name__ == "__main__":
    main(sys.argv[1], **json.load(sys.stdin))
