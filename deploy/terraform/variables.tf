variable "name" {
  description = "What everything made here is named after; two executors of an account and region need two"
  type        = string
  default     = "datahub-executor"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,39}$", var.name))
    error_message = "name must begin with a letter and consist of at most 40 letters, digits and hyphens."
  }
}

variable "tags" {
  description = "Tags for everything made here, besides the provider's default_tags"
  type        = map(string)
  default     = {}
  nullable    = false
}

# --- network ----------------------------------------------------------------------------------------------------------

variable "vpc_id" {
  description = "The VPC that the tasks run in"
  type        = string
}

variable "subnet_ids" {
  description = "Its subnets for the tasks; they must reach SQS, DataHub, the image's registry and your sources"
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "subnet_ids must name one subnet or more."
  }
}

variable "assign_public_ip" {
  description = "true in public subnets without a NAT gateway; nothing is let in either way"
  type        = bool
  default     = false
  nullable    = false
}

# --- DataHub ----------------------------------------------------------------------------------------------------------

variable "datahub_base_url" {
  description = "DataHub's address, such as https://example.acryl.io/gms"
  type        = string

  validation {
    condition     = can(regex("^(https?://[^\\s?#@]+|[A-Za-z0-9-]+\\.acryl\\.io(/[^\\s?#@]*)?)$", var.datahub_base_url))
    error_message = "datahub_base_url must be an address such as https://datahub.example.com or https://example.acryl.io/gms."
  }
}

variable "datahub_access_token" {
  description = "A DataHub access token, kept in a secret that is made here, not in Terraform's state; a saved plan holds it"
  type        = string
  default     = ""
  sensitive   = true
  nullable    = false

  validation {
    condition     = can(regex("^[!-~]*$", var.datahub_access_token))
    error_message = "datahub_access_token must be a DataHub access token alone, without blanks."
  }

  validation {
    condition     = var.datahub_access_token == "" || var.existing_datahub_access_token_secret_arn == ""
    error_message = "Give either datahub_access_token or existing_datahub_access_token_secret_arn, or neither, but not both."
  }
}

variable "existing_datahub_access_token_secret_arn" {
  description = "The ARN of a secret whose text is the token, or of one key of its JSON object (arn:…:KEY::); neither for a DataHub that asks for none"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+.@-]+((:[^:,=]*){3})?)?$", var.existing_datahub_access_token_secret_arn))
    error_message = "existing_datahub_access_token_secret_arn must be the whole ARN of a secret in Secrets Manager, perhaps followed by :KEY:STAGE:VERSION."
  }
}

variable "executor_pool_id" {
  description = "The executor id that ingestion sources name; each has a queue of its own"
  type        = string
  default     = "remote"
  nullable    = false

  validation {
    condition     = var.executor_pool_id != ""
    error_message = "executor_pool_id must not be empty."
  }
}

# --- queue ------------------------------------------------------------------------------------------------------------

variable "aws_command_queue_arn" {
  description = "The ARN of a queue that is there, in any account and region; empty to make one with its dead-letter queue. In another account it must let the task role in by a policy of its own, and in another account or region min_tasks tasks run, unscaled"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+(\\.fifo)?)?$", var.aws_command_queue_arn))
    error_message = "aws_command_queue_arn must be the ARN of an SQS queue."
  }
}

variable "queue_kms_key_arn" {
  description = "The KMS key that the queue which is there is encrypted with, if it is with one of yours"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.queue_kms_key_arn))
    error_message = "queue_kms_key_arn must be the ARN of a KMS key."
  }

  validation {
    condition     = var.queue_kms_key_arn == "" || var.aws_command_queue_arn != ""
    error_message = "queue_kms_key_arn is for the queue of aws_command_queue_arn; the one that is made here takes kms_key_arn."
  }
}

variable "queue_sender_account" {
  description = "Another account that may send to the queue which is made, such as the one that DataHub runs in"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^([0-9]{12})?$", var.queue_sender_account))
    error_message = "queue_sender_account must be an account's id, 12 digits."
  }

  validation {
    condition     = var.queue_sender_account == "" || var.aws_command_queue_arn == ""
    error_message = "queue_sender_account is for the queue that is made here; who may send to the one of aws_command_queue_arn says that queue's own policy."
  }
}

variable "queue_max_receive_count" {
  description = "How often a message of the queue which is made is received until it goes to the dead-letter queue"
  type        = number
  default     = 10
  nullable    = false

  validation {
    condition     = var.queue_max_receive_count >= 5 && var.queue_max_receive_count <= 1000
    error_message = "queue_max_receive_count must be 5 to 1000."
  }
}

# --- task -------------------------------------------------------------------------------------------------------------

variable "image" {
  description = "The image, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com/datahub-remote-executor:1.0.0"
  type        = string

  validation {
    condition     = var.image != ""
    error_message = "image must not be empty."
  }
}

variable "cpu_architecture" {
  description = "What the image was built for: X86_64 or ARM64"
  type        = string
  default     = "X86_64"
  nullable    = false

  validation {
    condition     = contains(["X86_64", "ARM64"], var.cpu_architecture)
    error_message = "cpu_architecture must be X86_64 or ARM64."
  }
}

variable "task_cpu" {
  description = "CPU units of a task, 1024 a core"
  type        = number
  default     = 2048
  nullable    = false

  validation {
    condition     = contains([256, 512, 1024, 2048, 4096, 8192, 16384], var.task_cpu)
    error_message = "task_cpu must be 256, 512, 1024, 2048, 4096, 8192 or 16384."
  }
}

variable "task_memory" {
  description = "Memory of a task in MiB; 512 and what the sources take, times the runs at a time"
  type        = number
  default     = 8192
  nullable    = false

  validation {
    condition = contains(lookup({
      256   = [512, 1024, 2048]
      512   = range(1024, 4097, 1024)
      1024  = range(2048, 8193, 1024)
      2048  = range(4096, 16385, 1024)
      4096  = range(8192, 30721, 1024)
      8192  = range(16384, 61441, 4096)
      16384 = range(32768, 122881, 8192)
    }, tostring(var.task_cpu), [var.task_memory]), var.task_memory)
    error_message = "task_memory must be one that Fargate takes with this task_cpu: 256 takes 512, 1024 or 2048; 512 takes 1024 to 4096; 1024 takes 2048 to 8192; 2048 takes 4096 to 16384; 4096 takes 8192 to 30720, each in steps of 1024; 8192 takes 16384 to 61440 in steps of 4096; 16384 takes 32768 to 122880 in steps of 8192."
  }
}

variable "task_ephemeral_storage_size_in_gib" {
  description = "Disk of a task in GiB; CLI versions other than bundled take 0.2 to 2 each"
  type        = number
  default     = 50
  nullable    = false

  validation {
    condition     = var.task_ephemeral_storage_size_in_gib >= 21 && var.task_ephemeral_storage_size_in_gib <= 200
    error_message = "task_ephemeral_storage_size_in_gib must be 21 to 200."
  }
}

variable "datahub_ingestions_max_workers" {
  description = "Runs at a time in one task"
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.datahub_ingestions_max_workers >= 1
    error_message = "datahub_ingestions_max_workers must be 1 or more."
  }
}

variable "datahub_ingestions_signal_poll_interval" {
  description = "Seconds between two looks for cancelled runs"
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.datahub_ingestions_signal_poll_interval >= 1
    error_message = "datahub_ingestions_signal_poll_interval must be 1 or more."
  }
}

variable "optional_env_vars" {
  description = "More variables of the executor, any number; they go before the module's own"
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for name in keys(var.optional_env_vars) : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", name))])
    error_message = "optional_env_vars must have names of letters, digits and underscores."
  }

  validation {
    condition     = length(setintersection(keys(var.optional_env_vars), keys(var.optional_secrets))) == 0
    error_message = "optional_env_vars and optional_secrets must have no name in common: ECS takes each once."
  }

  validation {
    condition     = length(setintersection(keys(var.optional_env_vars), ["DATAHUB_GMS_TOKEN", "DATAHUB_ACCESS_TOKEN", "DATAHUB_EXECUTOR_SECRETS"])) == 0
    error_message = "optional_env_vars must not hold DATAHUB_GMS_TOKEN, DATAHUB_ACCESS_TOKEN or DATAHUB_EXECUTOR_SECRETS, which everybody who sees the task definition could read: use datahub_access_token, existing_datahub_access_token_secret_arn or optional_secrets_arn."
  }

  validation {
    condition     = try(tonumber(lookup(var.optional_env_vars, "DATAHUB_EXECUTOR_DRAIN_TIMEOUT", "100")) <= 100, false)
    error_message = "optional_env_vars must have DATAHUB_EXECUTOR_DRAIN_TIMEOUT at most 100: tasks have 120 seconds to stop."
  }
}

variable "optional_secrets" {
  description = "Secrets that become variables of the executor, which recipes can refer to, any number: a name, and the ARN of a secret in Secrets Manager, or of one key of its JSON object (arn:…:KEY::)"
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition = alltrue([
      for name, arn in var.optional_secrets : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", name)) && can(regex("^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+.@-]+((:[^:,=]*){3})?$", arn))
    ])
    error_message = "optional_secrets must map names to whole ARNs of secrets in Secrets Manager, perhaps followed by :KEY:STAGE:VERSION."
  }

  validation {
    condition = length(setintersection(keys(var.optional_secrets), [
      "DATAHUB_GMS_URL", "DATAHUB_GMS_TOKEN", "DATAHUB_EXECUTOR_SECRETS", "DATAHUB_EXECUTOR_QUEUE", "DATAHUB_EXECUTOR_POOL_ID",
      "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS", "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL",
    ])) == 0
    error_message = "optional_secrets must have none of the module's own names, which ECS takes once: datahub_base_url, existing_datahub_access_token_secret_arn, optional_secrets_arn, aws_command_queue_arn and the like are for these."
  }
}

variable "optional_secrets_arn" {
  description = "A secret whose text is a JSON object, {\"NAME\":\"value\"}, of any number of keys; each is a name that recipes can refer to. For variables of the executor itself see optional_secrets"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+.@-]+((:[^:,=]*){3})?)?$", var.optional_secrets_arn))
    error_message = "optional_secrets_arn must be the whole ARN of a secret in Secrets Manager, perhaps followed by :KEY:STAGE:VERSION."
  }
}

# --- scaling ----------------------------------------------------------------------------------------------------------

variable "min_tasks" {
  description = "Tasks at least, 0 to pay for none while no message waits; the number of tasks where the queue is elsewhere"
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.min_tasks >= 0
    error_message = "min_tasks must be 0 or more."
  }
}

variable "max_tasks" {
  description = "Tasks at most"
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.max_tasks >= 1 && var.max_tasks >= var.min_tasks
    error_message = "max_tasks must be 1 or more, and no less than min_tasks."
  }
}

variable "backlog_per_task" {
  description = "Requests, waiting and running, that a task is to have on average; 0 for the runs at a time"
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.backlog_per_task >= 0
    error_message = "backlog_per_task must be 0 or more."
  }
}

variable "scale_in_cooldown" {
  description = "Seconds from one scale-in to the next"
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.scale_in_cooldown >= 0
    error_message = "scale_in_cooldown must be 0 or more."
  }
}

variable "spot_percent" {
  description = "Percentage of tasks on Fargate Spot, which may end with two minutes' notice; below 100, the first one is not"
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.spot_percent >= 0 && var.spot_percent <= 100 && floor(var.spot_percent) == var.spot_percent
    error_message = "spot_percent must be a whole number from 0 to 100."
  }
}

# --- surroundings -----------------------------------------------------------------------------------------------------

variable "existing_cluster_name" {
  description = "A cluster that is there, with the capacity providers FARGATE and FARGATE_SPOT, and enhanced Container Insights (scaling and alarms count tasks by it); empty to make one"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{0,255}$", var.existing_cluster_name))
    error_message = "existing_cluster_name must be a cluster's name, not its ARN."
  }
}

variable "source_policy_arns" {
  description = "IAM policies for sources that are AWS's own (Glue, S3, Athena), which find the task's role"
  type        = list(string)
  default     = []
  nullable    = false
}

variable "permissions_boundary_arn" {
  description = "The permissions boundary of the two roles, where your account asks for one"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:iam::([0-9]{12}|aws):policy/.+)?$", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn must be the ARN of an IAM policy."
  }
}

variable "kms_key_arn" {
  description = "The KMS key for what is made here: queues, token, log; empty for AWS's own. Its policy must let CloudWatch Logs use it, and the account that sends"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a KMS key."
  }
}

variable "secrets_kms_key_arn" {
  description = "The KMS key that the secrets which are there are encrypted with, if they are with one of yours"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.secrets_kms_key_arn))
    error_message = "secrets_kms_key_arn must be the ARN of a KMS key."
  }
}

# --- watching it ------------------------------------------------------------------------------------------------------

variable "log_retention_in_days" {
  description = "Days that the log is kept"
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_in_days)
    error_message = "log_retention_in_days must be a number of days that CloudWatch Logs knows, such as 7, 30, 90 or 365."
  }
}

variable "alarm_topic_arn" {
  description = "An SNS topic that the alarms go to"
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+)?$", var.alarm_topic_arn))
    error_message = "alarm_topic_arn must be the ARN of an SNS topic."
  }
}

variable "oldest_message_alarm_seconds" {
  description = "Seconds of the oldest request, while others wait, that are an alarm; more than your runs take, which count, too"
  type        = number
  default     = 1800
  nullable    = false

  validation {
    condition     = var.oldest_message_alarm_seconds >= 60
    error_message = "oldest_message_alarm_seconds must be 60 or more."
  }
}

variable "failed_runs_alarm_count" {
  description = "Failed runs within five minutes that are an alarm"
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.failed_runs_alarm_count >= 1
    error_message = "failed_runs_alarm_count must be 1 or more."
  }
}
