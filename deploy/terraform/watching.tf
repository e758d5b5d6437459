locals {
  of_queue   = { QueueName = local.queue_name }
  of_service = { ClusterName = local.cluster_name, ServiceName = aws_ecs_service.this.name }

  visible = { namespace = "AWS/SQS", metric_name = "ApproximateNumberOfMessagesVisible", dimensions = local.of_queue }
  hidden  = { namespace = "AWS/SQS", metric_name = "ApproximateNumberOfMessagesNotVisible", dimensions = local.of_queue }
  age     = { namespace = "AWS/SQS", metric_name = "ApproximateAgeOfOldestMessage", dimensions = local.of_queue }
  running = { namespace = "ECS/ContainerInsights", metric_name = "RunningTaskCount", dimensions = local.of_service }
  desired = { namespace = "ECS/ContainerInsights", metric_name = "DesiredTaskCount", dimensions = local.of_service }
  sick = {
    namespace   = "ECS/ContainerInsights"
    metric_name = "UnHealthyContainerHealthStatus"
    dimensions  = merge(local.of_service, { ContainerName = local.container.name })
  }

  topics = compact([var.alarm_topic_arn])
}

resource "aws_cloudwatch_log_metric_filter" "events" {
  for_each = {
    FailedRuns    = "{ ($.event = \"run_settled\") && ($.status = \"FAILURE\") }"
    SucceededRuns = "{ ($.event = \"run_settled\") && ($.status = \"SUCCESS\") }"
    Unreachable   = "{ ($.event = \"server_unavailable\") || ($.event = \"server_still_unavailable\") }"
  }

  name           = "${var.name}-${each.key}"
  log_group_name = aws_cloudwatch_log_group.this.name
  pattern        = each.value

  metric_transformation {
    namespace     = local.metrics
    name          = each.key
    value         = "1"
    default_value = "0"
    unit          = "Count"
  }
}

resource "aws_cloudwatch_metric_alarm" "oldest_message" {
  count = local.queue_is_local ? 1 : 0

  alarm_name          = "${var.name}-oldest-message"
  alarm_description   = "A request has waited for long. Are there tasks, does their log say why they don't receive, is max_tasks too low? Requests that run count, too, by their age: where runs are long and others wait all the time, raise the limit."
  alarm_actions       = local.topics
  ok_actions          = local.topics
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.oldest_message_alarm_seconds
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  treat_missing_data  = "notBreaching"
  tags                = var.tags

  dynamic "metric_query" {
    for_each = { visible = merge(local.visible, { stat = "Minimum" }), age = merge(local.age, { stat = "Maximum" }) }

    content {
      id          = metric_query.key
      return_data = false

      metric {
        stat        = metric_query.value.stat
        period      = 300
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric_name
        dimensions  = metric_query.value.dimensions
      }
    }
  }

  metric_query {
    id          = "waiting"
    label       = "Seconds that a request has waited"
    return_data = true
    # A long run's message ages, too, as long as it is not deleted: then nothing waits all the time.
    expression = "IF(visible, age, 0)"
  }
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  count = local.makes_queue ? 1 : 0

  alarm_name          = "${var.name}-dead-letters"
  alarm_description   = "A message that nobody could work on lies in the dead-letter queue; the log names it by its id."
  alarm_actions       = local.topics
  ok_actions          = local.topics
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.dead_letters[0].name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "failed_runs" {
  alarm_name          = "${var.name}-failed-runs"
  alarm_description   = "Runs ended as FAILURE; why is in DataHub's page, and in the log's events run_settled."
  alarm_actions       = local.topics
  ok_actions          = local.topics
  namespace           = local.metrics
  metric_name         = "FailedRuns"
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = var.failed_runs_alarm_count
  treat_missing_data  = "notBreaching"
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "unreachable" {
  alarm_name          = "${var.name}-unreachable"
  alarm_description   = "DataHub or the queue can't be reached, or refuses; the log's events server_unavailable say why."
  alarm_actions       = local.topics
  ok_actions          = local.topics
  namespace           = local.metrics
  metric_name         = "Unreachable"
  statistic           = "Sum"
  period              = 300 # it is said again every five minutes, as long as it lasts
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  tags                = var.tags
}

# ECS keeps a task whose health check fails until another is healthy, perhaps for ever.
resource "aws_cloudwatch_metric_alarm" "no_task" {
  count = var.min_tasks > 0 || local.queue_is_local ? 1 : 0 # else none is wanted

  alarm_name          = "${var.name}-no-task"
  alarm_description   = "No healthy task runs, though one should. The service's events say why it starts none, its stopped tasks why they ended."
  alarm_actions       = local.topics
  ok_actions          = local.topics
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  evaluation_periods  = 10
  datapoints_to_alarm = 8
  treat_missing_data  = var.min_tasks == 0 ? "notBreaching" : "breaching"
  tags                = var.tags

  dynamic "metric_query" {
    for_each = merge(
      local.starts_from_zero ? { visible = merge(local.visible, { stat = "Maximum" }) } : {},
      { running = merge(local.running, { stat = "Maximum" }), sick = merge(local.sick, { stat = "Minimum" }) }, # 1 where all are
    )

    content {
      id          = metric_query.key
      return_data = false

      metric {
        stat        = metric_query.value.stat
        period      = 60
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric_name
        dimensions  = metric_query.value.dimensions
      }
    }
  }

  metric_query {
    id          = local.starts_from_zero ? "stuck" : "missing"
    label       = local.starts_from_zero ? "A request waits and no healthy task runs" : "No healthy task runs"
    return_data = true
    expression  = local.starts_from_zero ? "IF(visible, (FILL(running, 0) < 1) + sick, 0)" : "IF(FILL(running, 0) < 1, 1, 0) + sick"
  }
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = "${var.name}-executor"

  dashboard_body = jsonencode({
    widgets = [
      {
        type   = "metric"
        x      = 0
        y      = 0
        width  = 12
        height = 6
        properties = {
          title  = "Requests"
          region = local.queue_region
          stat   = "Maximum"
          period = 60
          metrics = concat(
            [
              ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", local.queue_name, { label = "waiting" }],
              ["AWS/SQS", "ApproximateNumberOfMessagesNotVisible", "QueueName", local.queue_name, { label = "running" }],
              ["AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", local.queue_name, { label = "age of the oldest (s)", yAxis = "right" }],
            ],
            [for queue in aws_sqs_queue.dead_letters : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", queue.name, { label = "dead letters" }]],
          )
        }
      },
      {
        type   = "metric"
        x      = 12
        y      = 0
        width  = 12
        height = 6
        properties = {
          title  = "Tasks"
          region = local.region
          stat   = "Maximum"
          period = 60
          metrics = [
            for name in ["DesiredTaskCount", "PendingTaskCount", "RunningTaskCount"] :
            ["ECS/ContainerInsights", name, "ClusterName", local.cluster_name, "ServiceName", aws_ecs_service.this.name]
          ]
        }
      },
      {
        type   = "metric"
        x      = 0
        y      = 6
        width  = 12
        height = 6
        properties = {
          title   = "Runs that ended"
          region  = local.region
          stat    = "Sum"
          period  = 300
          stacked = true
          metrics = [
            [local.metrics, "SucceededRuns", { label = "SUCCESS", color = "#2ca02c" }],
            [local.metrics, "FailedRuns", { label = "FAILURE", color = "#d62728" }],
          ]
        }
      },
      {
        type   = "metric"
        x      = 12
        y      = 6
        width  = 12
        height = 6
        properties = {
          title  = "Use (%)"
          region = local.region
          stat   = "Maximum"
          period = 60
          metrics = [
            for name in ["CPUUtilization", "MemoryUtilization"] :
            ["AWS/ECS", name, "ClusterName", local.cluster_name, "ServiceName", aws_ecs_service.this.name]
          ]
        }
      },
      {
        type   = "log"
        x      = 0
        y      = 12
        width  = 24
        height = 8
        properties = {
          title  = "Failed runs"
          region = local.region
          view   = "table"
          query  = "SOURCE '${aws_cloudwatch_log_group.this.name}' | fields @timestamp, exec_id, source_type, attempt, words | filter event = 'run_settled' and status = 'FAILURE' | sort @timestamp desc | limit 50"
        }
      },
    ]
  })
}
