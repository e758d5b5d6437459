data "aws_partition" "current" {}
data "aws_caller_identity" "current" {}
data "aws_region" "current" {}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  region    = data.aws_region.current.id # `name` in version 5 of the provider, `region` in 6; this in both

  makes_queue = var.aws_command_queue_arn == ""
  queue_arn   = local.makes_queue ? aws_sqs_queue.requests[0].arn : var.aws_command_queue_arn
  queue_name  = local.makes_queue ? aws_sqs_queue.requests[0].name : split(":", var.aws_command_queue_arn)[5]
  # The metrics of a queue are where it is: one elsewhere can't be scaled on.
  queue_is_local   = local.makes_queue ? true : startswith("${var.aws_command_queue_arn}:", "arn:${local.partition}:sqs:${local.region}:${local.account}:")
  queue_region     = local.makes_queue ? local.region : split(":", var.aws_command_queue_arn)[3]
  starts_from_zero = var.min_tasks == 0 && local.queue_is_local

  makes_token_secret = nonsensitive(var.datahub_access_token != "")
  token_secret_arn   = local.makes_token_secret ? aws_secretsmanager_secret.token[0].arn : var.existing_datahub_access_token_secret_arn
  has_token          = local.makes_token_secret || var.existing_datahub_access_token_secret_arn != ""

  makes_cluster = var.existing_cluster_name == ""
  cluster_name  = local.makes_cluster ? aws_ecs_cluster.this[0].name : var.existing_cluster_name
  metrics       = "DataHubExecutor/${var.name}"
}

# --- queue ------------------------------------------------------------------------------------------------------------

resource "aws_sqs_queue" "requests" {
  count = local.makes_queue ? 1 : 0

  name                       = var.name
  message_retention_seconds  = 1209600 # fourteen days, SQS's limit
  visibility_timeout_seconds = 120     # for consumers that ask for none; the executor sets it with each receive
  receive_wait_time_seconds  = 20
  kms_master_key_id          = var.kms_key_arn == "" ? null : var.kms_key_arn
  sqs_managed_sse_enabled    = var.kms_key_arn == "" ? true : null
  tags                       = var.tags

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters[0].arn
    maxReceiveCount     = var.queue_max_receive_count
  })
}

resource "aws_sqs_queue" "dead_letters" {
  count = local.makes_queue ? 1 : 0

  name                      = "${var.name}-dead-letters"
  message_retention_seconds = 1209600
  kms_master_key_id         = var.kms_key_arn == "" ? null : var.kms_key_arn
  sqs_managed_sse_enabled   = var.kms_key_arn == "" ? true : null
  tags                      = var.tags
}

resource "aws_sqs_queue_policy" "sender" {
  count = var.queue_sender_account == "" ? 0 : 1

  queue_url = aws_sqs_queue.requests[0].url
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Sender"
      Effect    = "Allow"
      Principal = { AWS = "arn:${local.partition}:iam::${var.queue_sender_account}:root" }
      Action    = "sqs:SendMessage"
      Resource  = aws_sqs_queue.requests[0].arn
    }]
  })
}

# --- token ------------------------------------------------------------------------------------------------------------

resource "aws_secretsmanager_secret" "token" {
  #checkov:skip=CKV2_AWS_57:only DataHub can make another token
  count = local.makes_token_secret ? 1 : 0

  name_prefix = "${var.name}-token-"
  description = "The DataHub access token of ${var.name}"
  kms_key_id  = var.kms_key_arn == "" ? null : var.kms_key_arn
  tags        = var.tags
}

resource "aws_secretsmanager_secret_version" "token" {
  count = local.makes_token_secret ? 1 : 0

  secret_id        = aws_secretsmanager_secret.token[0].id
  secret_string_wo = var.datahub_access_token # not in the state
  # Another token is another number: 28 bits of its hash, which tell nothing of it.
  secret_string_wo_version = nonsensitive(parseint(substr(sha256(var.datahub_access_token), 0, 7), 16))
}
