# An executor whose image, keys, secrets, policies and topic are made along with it.
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.88"
    }
  }
}

resource "aws_ecr_repository" "images" {
  name = "made"
}

resource "aws_kms_key" "ours" {
  enable_key_rotation = true
}

resource "aws_secretsmanager_secret" "token" {
  name = "token"
}

resource "aws_secretsmanager_secret" "recipes" {
  for_each = toset(["password", "many"])

  name = each.key
}

resource "aws_sns_topic" "alarms" {
  name = "alarms"
}

resource "aws_iam_policy" "glue" {
  name = "glue"
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "glue:GetTables", Resource = "*" }]
  })
}

variable "vpc_id" {
  type = string
}

variable "subnet_ids" {
  type = list(string)
}

variable "datahub_base_url" {
  type = string
}

module "executor" {
  source = "../.."

  vpc_id                                   = var.vpc_id
  subnet_ids                               = var.subnet_ids
  image                                    = "${aws_ecr_repository.images.repository_url}:1.0.0"
  datahub_base_url                         = var.datahub_base_url
  existing_datahub_access_token_secret_arn = aws_secretsmanager_secret.token.arn
  optional_secrets                         = { PASSWORD = "${aws_secretsmanager_secret.recipes["password"].arn}:password::" }
  optional_secrets_arn                     = aws_secretsmanager_secret.recipes["many"].arn
  kms_key_arn                              = aws_kms_key.ours.arn
  secrets_kms_key_arn                      = aws_kms_key.ours.arn
  alarm_topic_arn                          = aws_sns_topic.alarms.arn
  source_policy_arns                       = [aws_iam_policy.glue.arn]
  min_tasks                                = 0
}

output "executor" {
  value = module.executor
}
