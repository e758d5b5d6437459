locals {
  assumed_by_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = local.account }
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:ecs:${local.region}:${local.account}:*" }
      }
    }]
  })

  queue_keys = compact([local.makes_queue ? var.kms_key_arn : "", var.queue_kms_key_arn])
  # The secret alone, without the key of its object.
  optional_secret_arns = [for arn in values(var.optional_secrets) : join(":", slice(split(":", arn), 0, 7))]
  secret_arns = distinct(concat(
    local.has_token ? [local.token_secret_arn] : [],
    var.optional_secrets_arn == "" ? [] : [var.optional_secrets_arn],
    local.optional_secret_arns,
  ))
  has_secrets = local.has_token || var.optional_secrets_arn != "" || length(var.optional_secrets) > 0
  via_secrets = { StringEquals = { "kms:ViaService" = "secretsmanager.${local.region}.${data.aws_partition.current.dns_suffix}" } }
  # <account>.dkr.ecr.<region>.amazonaws.com[.cn]/<repository>[:<tag>][@<digest>]
  ecr = try(regex("^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.[a-z.]+/(?P<repository>[^:@]+)", var.image), null)
}

# What the executor itself may do: what its code calls, on its queue and on its own tasks.
resource "aws_iam_role" "task" {
  name_prefix          = "${substr(var.name, 0, 24)}-task-"
  description          = "What the executor of ${var.name} may do"
  assume_role_policy   = local.assumed_by_tasks
  permissions_boundary = var.permissions_boundary_arn == "" ? null : var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy" "task" {
  for_each = {
    "queue" = jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect = "Allow"
        Action = [
          "sqs:ReceiveMessage",
          "sqs:ChangeMessageVisibility",
          "sqs:DeleteMessage",
          "sqs:GetQueueAttributes",
          "sqs:SendMessage", # the fresh message of a run that takes more than six hours
        ]
        Resource = local.queue_arn
      }]
    })
    "protection-from-scale-in" = jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect   = "Allow"
        Action   = "ecs:UpdateTaskProtection"
        Resource = "arn:${local.partition}:ecs:${local.region}:${local.account}:task/${local.cluster_name}/*"
      }]
    })
  }

  name   = each.key
  role   = aws_iam_role.task.id
  policy = each.value
}

resource "aws_iam_role_policy" "task_key" {
  count = length(local.queue_keys) > 0 ? 1 : 0

  name = "key-of-the-queue"
  role = aws_iam_role.task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource  = local.queue_keys
      Condition = { StringLike = { "kms:ViaService" = "sqs.*.amazonaws.com*" } }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "sources" {
  count = length(var.source_policy_arns) # a number: the policies may be made along with this

  role       = aws_iam_role.task.name
  policy_arn = var.source_policy_arns[count.index]
}

# What ECS needs to start the executor: its image, its secrets, its log.
resource "aws_iam_role" "execution" {
  name_prefix          = "${substr(var.name, 0, 24)}-start-"
  description          = "What ECS may do to start the executor of ${var.name}"
  assume_role_policy   = local.assumed_by_tasks
  permissions_boundary = var.permissions_boundary_arn == "" ? null : var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy" "execution_log" {
  name = "log"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = "${aws_cloudwatch_log_group.this.arn}:*"
    }]
  })
}

resource "aws_iam_role_policy" "execution_image" {
  count = local.ecr == null ? 0 : 1

  name = "image"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*" # it is for no resource
      },
      {
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = "arn:${local.partition}:ecr:${local.ecr.region}:${local.ecr.account}:repository/${local.ecr.repository}"
      },
    ]
  })
}

resource "aws_iam_role_policy" "execution_secrets" {
  count = local.has_secrets ? 1 : 0

  name = "secrets"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = "secretsmanager:GetSecretValue"
      Resource = local.secret_arns
    }]
  })
}

resource "aws_iam_role_policy" "execution_token_key" {
  count = local.makes_token_secret && var.kms_key_arn != "" ? 1 : 0

  name = "key-of-the-token"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "kms:Decrypt"
      Resource  = var.kms_key_arn
      Condition = local.via_secrets
    }]
  })
}

resource "aws_iam_role_policy" "execution_secrets_key" {
  count = var.secrets_kms_key_arn == "" ? 0 : 1

  name = "key-of-the-secrets"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "kms:Decrypt"
      Resource  = var.secrets_kms_key_arn
      Condition = local.via_secrets
    }]
  })
}
