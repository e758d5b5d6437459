"""The slim session's clients go where botocore's own go, and sign as they do."""

import itertools
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import EndpointVariantError
from botocore.loaders import Loader

from executor.queue.endpoints import slim_session

SERVICES = ("sqs", "sts", "sso", "sso-oidc")  # SQS, and those that credentials may come from
PARTITIONS = Loader().load_data("partitions")["partitions"]
REGIONS = [region for partition in PARTITIONS for region in partition["regions"] if "global" not in region]


async def where(session: AioSession, service: str, region: str, config: AioConfig) -> Any:
    """Address, signing name, region and version of a call; None if there is no address of that kind.

    `meta.endpoint_url` is left out: no call goes there, it is a guess from before there were rules.
    """
    try:
        async with session.create_client(
            service, region_name=region, config=config, aws_access_key_id="a", aws_secret_access_key="b"
        ) as client:
            meta, signer = client.meta, client._request_signer
            rules = client._ruleset_resolver
            operation = next(iter(client.meta.service_model.operation_names))
            model = client.meta.service_model.operation_model(operation)
            endpoint = await rules.construct_endpoint(model, {}, {})
            return (
                meta.region_name,
                meta.partition,
                signer.region_name,
                signer.signature_version,
                signer.signing_name,
                endpoint.url,
            )
    except EndpointVariantError:
        return None


@pytest.mark.parametrize("service", SERVICES)
async def test_clients_are_the_same_as_with_all_endpoints_read(service: str) -> None:
    full, slim = get_session(), slim_session()
    regions = REGIONS if service == "sqs" else REGIONS[::8]
    for region, fips, dual in itertools.product(regions, (False, True), (False, True)):
        config = AioConfig(use_fips_endpoint=fips, use_dualstack_endpoint=dual)
        expected = await where(full, service, region, config)
        if expected is None:
            continue  # botocore's own has no such address
        assert await where(slim, service, region, config) == expected, (region, fips, dual)


def test_somebodys_own_data_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", "/somewhere")
    assert type(slim_session().get_component("data_loader")) is Loader
