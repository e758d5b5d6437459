# Requests, waiting and running, per running task. For a queue elsewhere the target holds the number of tasks at
# min_tasks, and no policy changes it.
resource "aws_appautoscaling_target" "this" {
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${local.cluster_name}/${aws_ecs_service.this.name}"
  min_capacity       = var.min_tasks
  max_capacity       = local.queue_is_local ? var.max_tasks : var.min_tasks
  tags               = var.tags
}

resource "aws_appautoscaling_policy" "backlog" {
  count = local.queue_is_local ? 1 : 0

  name               = "backlog-per-task"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = var.backlog_per_task == 0 ? var.datahub_ingestions_max_workers : var.backlog_per_task
    scale_in_cooldown  = var.scale_in_cooldown
    scale_out_cooldown = 300

    customized_metric_specification {
      dynamic "metrics" {
        for_each = { visible = local.visible, hidden = local.hidden, running = local.running }

        content {
          id          = metrics.key
          return_data = false

          metric_stat {
            stat = "Maximum"

            metric {
              namespace   = metrics.value.namespace
              metric_name = metrics.value.metric_name

              dynamic "dimensions" {
                for_each = metrics.value.dimensions

                content {
                  name  = dimensions.key
                  value = dimensions.value
                }
              }
            }
          }
        }
      }

      metrics {
        id          = "backlog"
        label       = "Requests per task"
        return_data = true
        # No point where no task runs, and none of a minute of which one metric has not come: the newest would always be 0.
        expression = "(visible + hidden) / IF(visible, running, running)"
      }
    }
  }
}

# Target tracking multiplies the number of tasks, and a multiple of none is none: the first one is added.
resource "aws_appautoscaling_policy" "first_task" {
  count = local.starts_from_zero ? 1 : 0

  name               = "first-task"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  step_scaling_policy_configuration {
    adjustment_type         = "ChangeInCapacity"
    cooldown                = 300 # longer than a task takes to start
    metric_aggregation_type = "Maximum"

    step_adjustment {
      metric_interval_lower_bound = 0
      scaling_adjustment          = 1
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "first_task" {
  count = local.starts_from_zero ? 1 : 0

  alarm_name          = "${var.name}-first-task"
  alarm_description   = "A request waits and no task is wanted; the first one is started. No reason to worry."
  alarm_actions       = [aws_appautoscaling_policy.first_task[0].arn]
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  evaluation_periods  = 3
  datapoints_to_alarm = 2 # where the tasks' metrics come later than the queue's, the newest point takes none to be wanted
  treat_missing_data  = "notBreaching"
  tags                = var.tags

  dynamic "metric_query" {
    for_each = { visible = local.visible, desired = local.desired }

    content {
      id          = metric_query.key
      return_data = false

      metric {
        stat        = "Maximum"
        period      = 60
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric_name
        dimensions  = metric_query.value.dimensions
      }
    }
  }

  metric_query {
    id          = "stuck"
    label       = "A request waits and no task is wanted"
    return_data = true
    # A task that is starting counts, once it has metrics at all.
    expression = "IF(visible, FILL(desired, 0) < 1, 0)"
  }
}
