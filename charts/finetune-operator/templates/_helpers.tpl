{{/* Name of everything that the chart makes; at most 53 characters, as a release's. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of objects without a namespace: releases of one name in two namespaces must not meet. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{/* Labels by which the pods are found; they can never change. */}}
{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{- define "finetune-operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The account that the roles are bound to. */}}
{{- define "finetune-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "finetune-operator.fullname" . }}
  namespace: {{ .Release.Namespace | quote }}
{{- end -}}

{{/* A claim's settings: an empty class means none, not the class without a name. */}}
{{- define "finetune-operator.claim" -}}
{{- set (deepCopy .) "className" (.className | default nil) | toJson -}}
{{- end -}}

{{/* The operator's settings: exactly the keys of finetune_operator/settings.py. */}}
{{- define "finetune-operator.settings" -}}
{{- $values := .Values -}}
{{- $trainer := $values.images.trainer | default (printf "finetune-trainer:%s" .Chart.AppVersion) -}}
{{- $settings := pick $values "namespaces" "sources" "networkPolicies" "logTail" "logFormat" "healthPort" "metricsPort" -}}
{{- $_ := set $settings "images" (merge (dict "trainer" $trainer) $values.images) -}}
{{- $_ := set $settings "work" (include "finetune-operator.claim" $values.work | fromJson) -}}
{{- $_ := set $settings "output" (include "finetune-operator.claim" $values.output | fromJson) -}}
{{- $url := "" -}}
{{- if $values.progress.port -}}
{{- $url = printf "https://%s-progress.%s.svc:%v" (include "finetune-operator.fullname" .) .Release.Namespace $values.progress.port -}}
{{- end -}}
{{- $_ := set $settings "progress" (merge (dict "url" $url) $values.progress) -}}
{{- $lease := dict "namespace" .Release.Namespace "name" (include "finetune-operator.fullname" .) -}}
{{- $_ := set $settings "lease" $lease -}}
{{- toYaml $settings -}}
{{- end -}}
