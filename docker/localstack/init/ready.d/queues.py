"""Make the executor's queue and its dead-letter queue. LocalStack runs this in its own Python once it is ready."""

import json
import os

import boto3

NAME = os.environ.get("QUEUE_NAME", "datahub-ingestion")
MAX_RECEIVES = 10  # until a message goes to the dead-letter queue; an interrupted run needs five
FORTNIGHT = 14 * 86400  # seconds, the longest that SQS keeps a message

sqs = boto3.client(
    "sqs",
    endpoint_url=os.environ.get("AWS_ENDPOINT_URL", "http://localhost:4566"),
    region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    aws_access_key_id="test",
    aws_secret_access_key="test",  # noqa: S106 - LocalStack takes any
)
dead = sqs.create_queue(
    QueueName=f"{NAME}-dead-letters", Attributes={"MessageRetentionPeriod": str(FORTNIGHT)}
)
described = sqs.get_queue_attributes(QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"])
redrive = {"deadLetterTargetArn": described["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVES}
sqs.create_queue(QueueName=NAME, Attributes={"RedrivePolicy": json.dumps(redrive)})
