output "queue_arn" {
  description = "Where requests are sent"
  value       = local.queue_arn
}

output "queue_url" {
  description = "The address of the queue that was made, else null"
  value       = one(aws_sqs_queue.requests[*].url)
}

output "dead_letter_queue_url" {
  description = "The address of the queue for messages that nobody could work on, else null"
  value       = one(aws_sqs_queue.dead_letters[*].url)
}

output "dead_letter_queue_arn" {
  description = "Its ARN, else null"
  value       = one(aws_sqs_queue.dead_letters[*].arn)
}

output "cluster_name" {
  description = "The cluster that the tasks run in"
  value       = local.cluster_name
}

output "service_name" {
  description = "The service that keeps them running"
  value       = aws_ecs_service.this.name
}

output "task_definition_arn" {
  description = "The task definition, with its revision"
  value       = aws_ecs_task_definition.this.arn
}

output "security_group_id" {
  description = "What your databases must let in"
  value       = aws_security_group.this.id
}

output "task_role_arn" {
  description = "What the policy of a queue in another account must let in"
  value       = aws_iam_role.task.arn
}

output "execution_role_arn" {
  description = "What reads the secrets"
  value       = aws_iam_role.execution.arn
}

output "log_group_name" {
  description = "Where the log goes"
  value       = aws_cloudwatch_log_group.this.name
}

output "token_secret_arn" {
  description = "The secret that holds the token which was given, else null"
  value       = one(aws_secretsmanager_secret.token[*].arn)
}

output "dashboard_name" {
  description = "The dashboard in CloudWatch"
  value       = aws_cloudwatch_dashboard.this.dashboard_name
}
