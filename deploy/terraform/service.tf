locals {
  environment = merge(
    {
      DATAHUB_GMS_URL                                 = var.datahub_base_url
      DATAHUB_EXECUTOR_QUEUE                          = local.queue_arn
      DATAHUB_EXECUTOR_POOL_ID                        = var.executor_pool_id
      DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS          = tostring(var.datahub_ingestions_max_workers)
      DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL = tostring(var.datahub_ingestions_signal_poll_interval)
    },
    var.optional_env_vars,
  )

  secrets = merge(
    local.has_token ? { DATAHUB_GMS_TOKEN = local.token_secret_arn } : {},
    var.optional_secrets_arn == "" ? {} : { DATAHUB_EXECUTOR_SECRETS = var.optional_secrets_arn },
    var.optional_secrets,
  )

  container = {
    name                   = "executor"
    image                  = var.image
    essential              = true
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    # The image brings its init (-s: it adopts orphans where it is not PID 1): initProcessEnabled would be a second.
    entryPoint  = ["/usr/bin/tini", "-s", "--"]
    command     = ["datahub-executor", "run"]
    environment = [for name, value in local.environment : { name = name, value = value }]
    secrets     = [for name, arn in local.secrets : { name = name, valueFrom = arn }]
    mountPoints = [{ sourceVolume = "work", containerPath = "/tmp/datahub", readOnly = false }]
    stopTimeout = 120 # Fargate's limit, and longer than DATAHUB_EXECUTOR_DRAIN_TIMEOUT: runs are handed over
    healthCheck = {
      command     = ["CMD", "python", "-I", "/opt/datahub-executor/healthcheck.py"]
      interval    = 30
      timeout     = 5
      retries     = 3
      startPeriod = 60
    }
    linuxParameters = { capabilities = { drop = ["ALL"] } }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = local.region
        awslogs-stream-prefix = "executor"
        mode                  = "non-blocking"
        max-buffer-size       = "8m"
      }
    }
  }
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338:how long the log is kept is log_retention_in_days; what runs did is kept in DataHub
  name              = "/ecs/${var.name}"
  retention_in_days = var.log_retention_in_days
  kms_key_id        = var.kms_key_arn == "" ? null : var.kms_key_arn
  tags              = var.tags
}

resource "aws_ecs_cluster" "this" {
  count = local.makes_cluster ? 1 : 0

  name = var.name
  tags = var.tags

  setting {
    name  = "containerInsights" # counts tasks that run, and says which are unhealthy
    value = "enhanced"
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  count = local.makes_cluster ? 1 : 0

  cluster_name       = aws_ecs_cluster.this[0].name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]
}

resource "aws_security_group" "this" {
  name_prefix = "${var.name}-"
  description = "The executor of ${var.name} calls out and lets nobody in"
  vpc_id      = var.vpc_id
  tags        = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

# To DataHub, AWS, sources on whatever port they listen, and name servers of your own.
resource "aws_vpc_security_group_egress_rule" "ipv4" {
  security_group_id = aws_security_group.this.id
  description       = "IPv4, any TCP port"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 0
  to_port           = 65535
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv6" {
  security_group_id = aws_security_group.this.id
  description       = "IPv6, any TCP port"
  cidr_ipv6         = "::/0"
  ip_protocol       = "tcp"
  from_port         = 0
  to_port           = 65535
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv4_names" {
  security_group_id = aws_security_group.this.id
  description       = "IPv4, names"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "udp"
  from_port         = 53
  to_port           = 53
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv6_names" {
  security_group_id = aws_security_group.this.id
  description       = "IPv6, names"
  cidr_ipv6         = "::/0"
  ip_protocol       = "udp"
  from_port         = 53
  to_port           = 53
  tags              = var.tags
}

resource "aws_ecs_task_definition" "this" {
  family                   = "${var.name}-executor"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task_cpu
  memory                   = var.task_memory
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn
  container_definitions    = jsonencode([local.container])
  skip_destroy             = true # ECS can't roll back to one that is deregistered
  tags                     = var.tags

  ephemeral_storage {
    size_in_gib = var.task_ephemeral_storage_size_in_gib
  }

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  # An empty volume would be root's. At a path that the image declares as a VOLUME, Fargate copies what the image has
  # there into it, owner and mode included: the executor's own. The rest of the root stays read-only, /tmp included:
  # runs have their TMPDIR in the work folder, and health is asked over HTTP.
  volume {
    name = "work"
  }
}

resource "aws_ecs_service" "this" {
  name            = "${var.name}-executor"
  cluster         = local.cluster_name
  task_definition = aws_ecs_task_definition.this.arn
  desired_count   = var.min_tasks
  tags            = var.tags

  deployment_minimum_healthy_percent = 100 # new tasks first: several executors share a queue
  deployment_maximum_percent         = 200
  availability_zone_rebalancing      = "DISABLED" # it would end tasks for the sake of their places
  enable_ecs_managed_tags            = true
  propagate_tags                     = "SERVICE"
  force_new_deployment               = true # so that another share of Spot is an update, not another service

  # Below 100 percent, one task is never on Spot.
  capacity_provider_strategy {
    capacity_provider = "FARGATE"
    base              = var.spot_percent == 100 ? 0 : 1
    weight            = 100 - var.spot_percent
  }

  capacity_provider_strategy {
    capacity_provider = "FARGATE_SPOT"
    weight            = var.spot_percent
  }

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    assign_public_ip = var.assign_public_ip
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.this.id]
  }

  lifecycle {
    ignore_changes = [desired_count] # scaling's own
  }

  depends_on = [
    aws_ecs_cluster_capacity_providers.this,
    aws_iam_role_policy.task,
    aws_iam_role_policy.execution,
    aws_iam_role_policy_attachment.sources,
    aws_secretsmanager_secret_version.token,
    aws_vpc_security_group_egress_rule.ipv4,
    aws_vpc_security_group_egress_rule.ipv6,
    aws_vpc_security_group_egress_rule.ipv4_names,
    aws_vpc_security_group_egress_rule.ipv6_names,
  ]
}
