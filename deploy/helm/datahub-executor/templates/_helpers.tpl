{{- define "datahub-executor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "datahub-executor.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}{{/* a StatefulSet's pods add to it */}}
{{- end -}}

{{- define "datahub-executor.selectorLabels" -}}
app.kubernetes.io/name: {{ include "datahub-executor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "datahub-executor.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "datahub-executor.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- range $key, $value := .Values.extraLabels }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "datahub-executor.serviceAccountName" -}}
{{- default (ternary (include "datahub-executor.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "datahub-executor.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* The queue's URL, also where its ARN is given: what KEDA knows. */}}
{{- define "datahub-executor.queueUrl" -}}
{{- $queue := .Values.queue.url -}}
{{- if hasPrefix "arn:" $queue -}}
{{- $parts := concat (splitList ":" $queue) (list "" "" "" "" "") -}}
{{- $suffix := ternary "amazonaws.com.cn" "amazonaws.com" (eq (index $parts 1) "aws-cn") -}}
https://sqs.{{ index $parts 3 }}.{{ $suffix }}/{{ index $parts 4 }}/{{ index $parts 5 }}
{{- else -}}
{{ $queue }}
{{- end -}}
{{- end -}}

{{- define "datahub-executor.queueRegion" -}}
{{- $found := regexFind "^https://sqs[.][a-z0-9-]+" (include "datahub-executor.queueUrl" .) -}}
{{- default .Values.queue.region (trimPrefix "https://sqs." $found) -}}
{{- end -}}

{{- define "datahub-executor.workFolder" -}}
{{- /* A volume's own root is open to everybody or to a group; the executor makes this one for itself alone. */ -}}
{{ trimSuffix "/" .Values.persistentVolume.mountPath }}/executor
{{- end -}}

{{- define "datahub-executor.tokenFile" -}}
{{- default "/etc/datahub/auth/token" .Values.global.datahub.auth.tokenFile -}}
{{- end -}}

{{/* The values' own command; none for that of the chart these values were written for, which this image lacks. */}}
{{- define "datahub-executor.ownCommand" -}}
{{- $words := concat (.Values.command | default list) (.Values.args | default list) -}}
{{- if and $words (ne (toJson $words) `["/start_datahub_executor.sh"]`) -}}
{{- join " " $words -}}
{{- end -}}
{{- end -}}

{{/* The environment, less what extraEnvs sets. */}}
{{- define "datahub-executor.env" -}}
{{- $datahub := .Values.global.datahub -}}
{{- $work := include "datahub-executor.workFolder" . -}}
{{- $env := list
    (dict "name" "DATAHUB_GMS_URL" "value" $datahub.gms.url)
    (dict "name" "DATAHUB_EXECUTOR_QUEUE" "value" .Values.queue.url)
    (dict "name" "AWS_REGION" "value" .Values.queue.region)
    (dict "name" "DATAHUB_EXECUTOR_POOL_ID" "value" (toString $datahub.executor.pool_id))
    (dict "name" "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS" "value" (int64 $datahub.executor.ingestions.max_workers | toString))
    (dict "name" "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL" "value" (toString $datahub.executor.ingestions.signal_poll_interval))
    (dict "name" "DATAHUB_EXECUTOR_DRAIN_TIMEOUT" "value" (sub (int64 .Values.terminationGracePeriodSeconds) 20 | toString))
    (dict "name" "DATAHUB_EXECUTOR_METRICS_PORT" "value" (int64 .Values.metrics.port | toString))
    (dict "name" "DATAHUB_EXECUTOR_WORK_DIR" "value" $work)
    (dict "name" "HOME" "value" $work)
    (dict "name" "UV_LINK_MODE" "value" (default "" $datahub.executor.uv_link_mode))
-}}
{{- if $datahub.auth.tokenFileEnabled -}}
{{- $env = append $env (dict "name" "DATAHUB_AUTH_TOKEN_FILE" "value" (include "datahub-executor.tokenFile" .)) -}}
{{- else if $datahub.gms.secretRef -}}
{{- $reference := dict "name" $datahub.gms.secretRef "key" $datahub.gms.secretKey -}}
{{- $env = append $env (dict "name" "DATAHUB_GMS_TOKEN" "valueFrom" (dict "secretKeyRef" $reference)) -}}
{{- end -}}
{{- if .Values.extraCaCerts -}}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" -}}
{{- $env = append $env (dict "name" . "value" "/etc/datahub/ca/ca-certificates.crt") -}}
{{- end -}}
{{- end -}}
{{- $given := list -}}
{{- range .Values.extraEnvs -}}{{- $given = append $given .name -}}{{- end -}}
{{- $kept := list -}}
{{- range $env -}}
{{- if and (not (has .name $given)) (or .value .valueFrom) -}}{{- $kept = append $kept . -}}{{- end -}}
{{- end -}}
{{- toYaml (concat $kept (.Values.extraEnvs | default list)) -}}
{{- end -}}

{{/* Values that can't work together, each in words; a schema can't say these. */}}
{{- define "datahub-executor.validate" -}}
{{- $datahub := .Values.global.datahub -}}
{{- $faults := list -}}
{{- $given := list -}}
{{- range .Values.extraEnvs -}}{{- $given = append $given .name -}}{{- end -}}
{{- if not (or $datahub.gms.url .Values.extraEnvsFrom (has "DATAHUB_GMS_URL" $given) (has "DATAHUB_BASE_URL" $given)) -}}
{{- $faults = append $faults "global.datahub.gms.url is not set: it must be DataHub's address, such as https://datahub.example.com" -}}
{{- end -}}
{{- if not (or .Values.queue.url .Values.extraEnvsFrom (has "DATAHUB_EXECUTOR_QUEUE" $given) (has "AWS_COMMAND_QUEUE_URL" $given) (has "AWS_COMMAND_QUEUE_ARN" $given)) -}}
{{- $faults = append $faults "queue.url is not set: it must be the SQS queue's URL, ARN or name" -}}
{{- end -}}
{{- if and $datahub.gms.url (not (regexMatch `^https?://[^@?#\s]+$|^[A-Za-z0-9-]+[.]acryl[.]io(/[^@?#\s]*)?$` $datahub.gms.url)) -}}
{{- $faults = append $faults (printf "global.datahub.gms.url is %q: it must be DataHub's address, such as https://datahub.example.com" $datahub.gms.url) -}}
{{- end -}}
{{- if and .Values.queue.url (not (regexMatch `^https?://[^\s]+/[^\s/]+$|^arn:aws[a-z-]*:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+([.]fifo)?$|^[A-Za-z0-9_-]{1,80}([.]fifo)?$` .Values.queue.url)) -}}
{{- $faults = append $faults (printf "queue.url is %q: it must be the SQS queue's URL, ARN or name" .Values.queue.url) -}}
{{- else if and .Values.queue.url (not (include "datahub-executor.queueRegion" .)) (not (has "AWS_REGION" $given)) (or .Values.keda.enabled (not (contains ":" .Values.queue.url))) -}}
{{- $faults = append $faults "queue.region is not set: it must be an AWS region, as queue.url names none" -}}
{{- end -}}
{{- if and $datahub.executor.channel (ne (upper $datahub.executor.channel) "SQS") -}}
{{- $faults = append $faults (printf "global.datahub.executor.channel is %q: this executor takes its requests off SQS only" $datahub.executor.channel) -}}
{{- end -}}
{{- if not (has (default "" $datahub.auth.type) (list "" "pat")) -}}
{{- $faults = append $faults (printf "global.datahub.auth.type is %q: this executor knows access tokens only; put one into the Secret global.datahub.gms.secretRef" $datahub.auth.type) -}}
{{- end -}}
{{- if not .Values.image.repository -}}
{{- $faults = append $faults "image.repository is not set: build docker/Dockerfile, push it, and name it here" -}}
{{- else if and (not .Values.image.tag) (eq .Chart.AppVersion "local") -}}
{{- $faults = append $faults "image.tag is not set: it must be the tag that you pushed" -}}
{{- end -}}
{{- if or (contains "795586375822.dkr.ecr" .Values.image.repository) (contains "acryl-prod/" .Values.image.repository) -}}
{{- $faults = append $faults (printf "image.repository is %q, the image of another executor: build docker/Dockerfile, push it, and name it here" .Values.image.repository) -}}
{{- end -}}
{{- $own := include "datahub-executor.ownCommand" . -}}
{{- if contains "start_datahub_executor.sh" $own -}}
{{- $faults = append $faults "command and args start /start_datahub_executor.sh, which the image does not have: in its place put /usr/bin/tini -s -- datahub-executor run" -}}
{{- end -}}
{{- if and $datahub.auth.tokenFileEnabled $own -}}
{{- $faults = append $faults "global.datahub.auth.tokenFileEnabled works with the image's own command only: leave command and args empty" -}}
{{- end -}}
{{- if and $datahub.auth.tokenFileEnabled (not $datahub.auth.tokenFile) (not $datahub.gms.secretRef) -}}
{{- $faults = append $faults "global.datahub.auth.tokenFileEnabled needs a Secret (global.datahub.gms.secretRef) or a file (global.datahub.auth.tokenFile)" -}}
{{- end -}}
{{- if and .Values.persistentVolume.enabled (not .Values.persistentVolume.existingClaim) (ne .Values.workloadKind "StatefulSet") -}}
{{- $faults = append $faults "persistentVolume.enabled needs workloadKind: StatefulSet, or persistentVolume.existingClaim" -}}
{{- end -}}
{{- $group := .Values.podSecurityContext | default dict -}}
{{- if and .Values.persistentVolume.enabled (hasKey $group "fsGroup") (ne (default "Always" $group.fsGroupChangePolicy) "OnRootMismatch") -}}
{{- $faults = append $faults "podSecurityContext.fsGroupChangePolicy must be OnRootMismatch with persistentVolume.enabled: Always, which is Kubernetes' default, opens the work folder to the group at each start" -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.queue.url) -}}
{{- $faults = append $faults "keda.enabled needs queue.url" -}}
{{- end -}}
{{- if and .Values.keda.enabled (gt (int64 .Values.keda.minReplicas) (int64 .Values.keda.maxReplicas)) -}}
{{- $faults = append $faults "keda.minReplicas is greater than keda.maxReplicas" -}}
{{- end -}}
{{- if has "DATAHUB_EXECUTOR_METRICS_PORT" $given -}}
{{- $faults = append $faults "DATAHUB_EXECUTOR_METRICS_PORT is among extraEnvs: set metrics.port, so that the probes follow" -}}
{{- end -}}
{{- if has "DATAHUB_EXECUTOR_DRAIN_TIMEOUT" $given -}}
{{- $faults = append $faults "DATAHUB_EXECUTOR_DRAIN_TIMEOUT is among extraEnvs: set terminationGracePeriodSeconds, of which it is all but 20" -}}
{{- end -}}
{{- if and .Values.pdb.enabled (has .Values.pdb.minAvailable (list nil "")) (has .Values.pdb.maxUnavailable (list nil "")) -}}
{{- $faults = append $faults "pdb.maxUnavailable is not set, nor is pdb.minAvailable: a budget has one of them" -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end -}}
