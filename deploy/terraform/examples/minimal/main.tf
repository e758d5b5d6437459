# One executor with a queue of its own: terraform init && terraform apply
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.88"
    }
  }
}

provider "aws" {
  region = "eu-central-1"
}

variable "vpc_id" {
  description = "The VPC that the tasks run in"
  type        = string
}

variable "subnet_ids" {
  description = "Its private subnets, with a way out"
  type        = list(string)
}

variable "image" {
  description = "Where you pushed what docker/Dockerfile builds"
  type        = string
}

variable "token_secret_arn" {
  description = "The secret that holds a DataHub access token"
  type        = string
}

module "executor" {
  source = "../.."

  vpc_id                                   = var.vpc_id
  subnet_ids                               = var.subnet_ids
  image                                    = var.image
  datahub_base_url                         = "https://datahub.example.com"
  existing_datahub_access_token_secret_arn = var.token_secret_arn

  min_tasks = 0
  max_tasks = 4
}

output "queue_url" {
  description = "Where DataHub's requests are to be sent"
  value       = module.executor.queue_url
}
