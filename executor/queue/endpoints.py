"""Keeps botocore from reading the endpoints of all AWS services: 7 MB of memory, for one service.

SQS's address comes from the rules in its own service model. Of `endpoints.json` botocore only needs, beside them,
what all services of a partition have in common, and that much is in its much smaller `partitions.json` as well.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from aiobotocore.session import AioSession, get_session
from botocore.loaders import Loader


def slim_session() -> AioSession:
    """A session whose clients have the same addresses and signatures as botocore's own, for less memory."""
    session = get_session()
    if session.get_config_variable("data_path") is None:  # somebody's own data is taken as it is
        session.register_component("data_loader", _SlimLoader())
    return session


class _SlimLoader(Loader):  # type: ignore[misc]  # botocore has no types
    def load_data_with_path(self, name: str) -> tuple[Any, str]:
        if name != "endpoints":
            found: tuple[Any, str] = super().load_data_with_path(name)
            return found
        partitions, path = super().load_data_with_path("partitions")
        return {"version": 3, "partitions": list(map(_partition, partitions["partitions"]))}, path


def _partition(partition: Mapping[str, Any]) -> dict[str, Any]:
    outputs = partition["outputs"]
    return {
        "partition": partition["id"],
        "dnsSuffix": outputs["dnsSuffix"],
        "regionRegex": partition["regionRegex"],
        "regions": partition["regions"],
        "services": {},
        "defaults": {
            "hostname": "{service}.{region}.{dnsSuffix}",
            "protocols": ["https"],
            "signatureVersions": ["v4"],
            "variants": [
                _variant(["fips"], outputs["dnsSuffix"]),
                _variant(["dualstack", "fips"], outputs["dualStackDnsSuffix"]),
                _variant(["dualstack"], outputs["dualStackDnsSuffix"]),
            ],
        },
    }


def _variant(tags: Iterable[str], suffix: str) -> dict[str, Any]:
    service = "{service}-fips" if "fips" in tags else "{service}"
    return {"tags": tags, "dnsSuffix": suffix, "hostname": f"{service}.{{region}}.{{dnsSuffix}}"}
