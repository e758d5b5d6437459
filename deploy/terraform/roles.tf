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

  # Secrets alone, without the key of a JSON object, stage and version that ECS takes after the ARN.
  secret_arns = distinct([for arn in values(local.secrets) : join(":", slice(split(":", arn), 0, 7))])
  via_secrets = { StringEquals = { "kms:ViaService" = "secretsmanager.${local.region}.${data.aws_partition.current.dns_suffix}" } }
  # <account>.dkr.ecr[-fips].<region>.amazonaws.com[.cn]/<repository>[:<tag>][@<digest>], also <account>.dkr-ecr[-fips].<region>.on.aws/…
  ecr = try(regex("^(?P<account>[0-9]{12})\\.dkr[.-]ecr(?:-fips)?\\.(?P<region>[a-z0-9-]+)\\.[a-z.]+/(?P<repository>[^:@]+)", var.image), null)
}

# Each role has one policy, whose statements may depend on what is known only after `apply`: how many policies there
# are must be known before.

# What the executor itself may do: what its code calls, on its queue and on its own tasks.
resource "aws_iam_role" "task" {
  name_prefix          = "${substr(var.name, 0, 24)}-task-"
  description          = "What the executor of ${var.name} may do"
  assume_role_policy   = local.assumed_by_tasks
  permissions_boundary = var.permissions_boundary_arn == "" ? null : var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy" "task" {
  name = "executor"
  role = aws_iam_role.task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid    = "Queue"
          Effect = "Allow"
          Action = [
            "sqs:ReceiveMessage",
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:SendMessage", # the fresh message of a run that takes more than six hours
          ]
          Resource = local.queue_arn
        },
        {
          Sid      = "ProtectionFromScaleIn"
          Effect   = "Allow"
          Action   = "ecs:UpdateTaskProtection"
          Resource = "arn:${local.partition}:ecs:${local.region}:${local.account}:task/${local.cluster_name}/*"
        },
      ],
      [
        for key in compact([local.makes_queue ? var.kms_key_arn : var.queue_kms_key_arn]) : {
          Sid       = "KeyOfTheQueue"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource  = key
          Condition = { StringLike = { "kms:ViaService" = "sqs.*.amazonaws.com*" } }
        }
      ],
    )
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

resource "aws_iam_role_policy" "execution" {
  name = "start"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "Log"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.this.arn}:*"
      }],
      local.ecr == null ? [] : [
        {
          Sid      = "Registry"
          Effect   = "Allow"
          Action   = ["ecr:GetAuthorizationToken"]
          Resource = "*" # it is for no resource
        },
        {
          Sid      = "Image"
          Effect   = "Allow"
          Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
          Resource = "arn:${local.partition}:ecr:${local.ecr.region}:${local.ecr.account}:repository/${local.ecr.repository}"
        },
      ],
      length(local.secret_arns) == 0 ? [] : [{
        Sid      = "Secrets"
        Effect   = "Allow"
        Action   = "secretsmanager:GetSecretValue"
        Resource = local.secret_arns
      }],
      [
        for key in distinct(compact([local.makes_token_secret ? var.kms_key_arn : "", var.secrets_kms_key_arn])) : {
          Effect    = "Allow"
          Action    = "kms:Decrypt"
          Resource  = key
          Condition = local.via_secrets
        }
      ],
    )
  })
}
