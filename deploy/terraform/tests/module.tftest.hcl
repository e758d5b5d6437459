# `terraform test`: what the module comes to, with a provider that answers of its own accord. Nothing is created.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_region" {
    defaults = { id = "eu-central-1" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = {
      arn = "arn:aws:sqs:eu-central-1:123456789012:made"
      url = "https://sqs.eu-central-1.amazonaws.com/123456789012/made"
    }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:made-AbCdEf" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:made" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = { arn = "arn:aws:ecs:eu-central-1:123456789012:task-definition/made:1" }
  }
  mock_resource "aws_appautoscaling_policy" {
    defaults = { arn = "arn:aws:autoscaling:eu-central-1:123456789012:scalingPolicy:made" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-00000000000a" }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/made" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-central-1:123456789012:made" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/made" }
  }
}

variables {
  vpc_id           = "vpc-0123456789abcdef0"
  subnet_ids       = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  datahub_base_url = "https://datahub.example.com"
  image            = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/team/datahub-remote-executor:1.0.0@sha256:00"
}

run "minimal" {
  assert {
    condition     = output.queue_arn == "arn:aws:sqs:eu-central-1:123456789012:made" && output.token_secret_arn == null
    error_message = "A queue is made, and no secret."
  }
  assert {
    condition     = aws_ecs_task_definition.this.skip_destroy
    error_message = "The task definition before stays: ECS rolls back to it."
  }
  assert {
    condition     = output.cluster_name == "datahub-executor" && length(aws_appautoscaling_policy.first_task) == 0
    error_message = "A cluster is made, and one task always runs."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.execution.policy, "arn:aws:ecr:eu-central-1:123456789012:repository/team/datahub-remote-executor\"")
    error_message = "ECS may pull this image's repository, and no other."
  }
  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Sid] == ["Log", "Registry", "Image"]
    error_message = "No rights on secrets and keys where there are none."
  }
}

run "everything" {
  variables {
    name                                    = "warehouse"
    tags                                    = { team = "data" }
    assign_public_ip                        = true
    datahub_access_token                    = "t0ken"
    executor_pool_id                        = "warehouse"
    queue_sender_account                    = "210987654321"
    queue_max_receive_count                 = 5
    cpu_architecture                        = "ARM64"
    task_cpu                                = 4096
    task_memory                             = 30720
    task_ephemeral_storage_size_in_gib      = 200
    datahub_ingestions_max_workers          = 8
    datahub_ingestions_signal_poll_interval = 5
    optional_env_vars                       = { DATAHUB_EXECUTOR_TASK_TIMEOUT = "3600", DATAHUB_EXECUTOR_POOL_ID = "another", WITH = "a,comma=" }
    optional_secrets = {
      PASSWORD = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:password-AbCdEf"
      USERNAME = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:both-AbCdEf:user::"
      OTHER    = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:both-AbCdEf:other::"
    }
    optional_secrets_arn         = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:many-AbCdEf:::"
    min_tasks                    = 0
    max_tasks                    = 30
    backlog_per_task             = 2
    scale_in_cooldown            = 60
    spot_percent                 = 75
    source_policy_arns           = ["arn:aws:iam::123456789012:policy/glue", "arn:aws:iam::123456789012:policy/s3"]
    permissions_boundary_arn     = "arn:aws:iam::123456789012:policy/boundary"
    kms_key_arn                  = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
    secrets_kms_key_arn          = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000001"
    log_retention_in_days        = 7
    alarm_topic_arn              = "arn:aws:sns:eu-central-1:123456789012:alarms"
    oldest_message_alarm_seconds = 600
    failed_runs_alarm_count      = 3
  }

  assert {
    condition     = output.token_secret_arn == "arn:aws:secretsmanager:eu-central-1:123456789012:secret:made-AbCdEf"
    error_message = "The token is kept in a secret."
  }
  assert {
    condition     = !strcontains(nonsensitive(aws_ecs_task_definition.this.container_definitions), "t0ken")
    error_message = "The token is not in the task definition."
  }
  assert {
    condition     = length(aws_appautoscaling_policy.first_task) == 1 && aws_cloudwatch_metric_alarm.no_task[0].treat_missing_data == "notBreaching"
    error_message = "From zero, the first task is started by an alarm."
  }
  assert {
    condition     = aws_appautoscaling_policy.backlog[0].target_tracking_scaling_policy_configuration[0].target_value == 2
    error_message = "The backlog that was asked for is the target."
  }
  assert {
    condition = sort(one([for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if try(statement.Sid, "") == "Secrets"])) == tolist([
      "arn:aws:secretsmanager:eu-central-1:123456789012:secret:both-AbCdEf",
      "arn:aws:secretsmanager:eu-central-1:123456789012:secret:made-AbCdEf",
      "arn:aws:secretsmanager:eu-central-1:123456789012:secret:many-AbCdEf",
      "arn:aws:secretsmanager:eu-central-1:123456789012:secret:password-AbCdEf",
    ])
    error_message = "ECS may read these secrets, each once, and no others."
  }
  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Resource if statement.Action == "kms:Decrypt"] == [var.kms_key_arn, var.secrets_kms_key_arn]
    error_message = "ECS may use the keys of the token and of the secrets."
  }
  assert {
    condition     = tolist(aws_iam_role_policy_attachment.sources[*].policy_arn) == var.source_policy_arns
    error_message = "The task's role has the policies for sources."
  }
  assert {
    condition     = aws_iam_role.task.permissions_boundary != null && aws_iam_role.execution.permissions_boundary != null
    error_message = "Both roles have the boundary."
  }
}

run "queue_that_is_there" {
  variables {
    aws_command_queue_arn                    = "arn:aws:sqs:eu-central-1:123456789012:there.fifo"
    queue_kms_key_arn                        = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000002"
    existing_datahub_access_token_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:token-AbCdEf:token::"
    existing_cluster_name                    = "shared"
    image                                    = "registry.example.com/datahub-remote-executor:1.0.0"
    spot_percent                             = 100
  }

  assert {
    condition     = output.queue_url == null && output.queue_arn == var.aws_command_queue_arn && length(aws_sqs_queue.dead_letters) == 0
    error_message = "No queue is made."
  }
  assert {
    condition     = length(aws_appautoscaling_policy.backlog) == 1 && length(aws_cloudwatch_metric_alarm.oldest_message) == 1
    error_message = "A queue of this account and region is scaled on and watched."
  }
  assert {
    condition     = !strcontains(aws_iam_role_policy.execution.policy, "ecr:") && length(aws_ecs_cluster.this) == 0
    error_message = "No rights on ECR for an image elsewhere; no cluster where there is one."
  }
  assert {
    condition     = jsondecode(aws_iam_role_policy.task.policy).Statement[2].Resource == var.queue_kms_key_arn
    error_message = "The task may use the queue's key."
  }
  assert {
    condition = (
      jsondecode(aws_iam_role_policy.execution.policy).Statement[1].Resource == ["arn:aws:secretsmanager:eu-central-1:123456789012:secret:token-AbCdEf"]
      && jsondecode(aws_ecs_task_definition.this.container_definitions)[0].secrets[0].valueFrom == var.existing_datahub_access_token_secret_arn
    )
    error_message = "ECS reads one key of a secret, by a right on the secret."
  }
}

run "queue_elsewhere" {
  variables {
    aws_command_queue_arn = "arn:aws:sqs:us-west-2:210987654321:theirs"
    min_tasks             = 2
  }

  assert {
    condition     = aws_appautoscaling_target.this.max_capacity == 2 && length(aws_appautoscaling_policy.backlog) == 0
    error_message = "The number of tasks is min_tasks."
  }
  assert {
    condition     = length(aws_cloudwatch_metric_alarm.oldest_message) == 0
    error_message = "What has its metrics elsewhere is not watched here."
  }
}

run "nothing_elsewhere" {
  variables {
    aws_command_queue_arn = "arn:aws:sqs:us-west-2:210987654321:theirs"
    min_tasks             = 0
    image                 = "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com/team/datahub-remote-executor:1.0.0"
    task_cpu              = 16384
    task_memory           = 122880
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.no_task) == 0
    error_message = "Where no task is wanted, none is missed."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.execution.policy, "arn:aws:ecr:us-east-1:123456789012:repository/team/datahub-remote-executor\"")
    error_message = "ECS may pull from the registry's FIPS address, too."
  }
}

# What is made in the same configuration has no ARN while planning.
run "made_along" {
  module {
    source = "./tests/made_along"
  }

  assert {
    condition     = output.executor.queue_arn == "arn:aws:sqs:eu-central-1:123456789012:made"
    error_message = "A queue is made."
  }
}

run "faulty" {
  command = plan

  variables {
    datahub_base_url                         = "datahub:8080"
    datahub_access_token                     = "t0ken"
    existing_datahub_access_token_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:token-AbCdEf"
    queue_kms_key_arn                        = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
    task_cpu                                 = 256
    max_tasks                                = 0
    spot_percent                             = 33.5
    optional_secrets                         = { "A B" = "secret" }
  }

  expect_failures = [
    var.datahub_base_url, var.datahub_access_token, var.queue_kms_key_arn, var.task_memory, var.max_tasks, var.spot_percent,
    var.optional_secrets,
  ]
}

run "token_for_everybody_to_see" {
  command = plan

  variables {
    optional_env_vars = { DATAHUB_GMS_TOKEN = "t0ken" }
  }

  expect_failures = [var.optional_env_vars]
}

run "runs_beyond_the_task" {
  command = plan

  variables {
    optional_env_vars = { DATAHUB_EXECUTOR_DRAIN_TIMEOUT = "101" }
  }

  expect_failures = [var.optional_env_vars]
}

run "names_that_come_twice" {
  command = plan

  variables {
    optional_secrets = { DATAHUB_GMS_URL = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:url-AbCdEf" }
  }

  expect_failures = [var.optional_secrets]
}

run "cluster_by_its_arn" {
  command = plan

  variables {
    existing_cluster_name = "arn:aws:ecs:eu-central-1:123456789012:cluster/data"
  }

  expect_failures = [var.existing_cluster_name]
}
