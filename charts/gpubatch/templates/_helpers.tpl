{{- define "gpubatch.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "gpubatch.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "gpubatch.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* What the operator's own objects are named by; it makes them itself. */}}
{{- define "gpubatch.instance" -}}
{{- .Values.settings.instance | default (include "gpubatch.fullname" .) }}
{{- end }}

{{/* The namespaces that are watched, as JSON; none: all. */}}
{{- define "gpubatch.watched" -}}
{{- include "gpubatch.listed" .Values.settings.watchNamespaces }}
{{- end }}

{{/* The namespaces in which there may be batches. */}}
{{- define "gpubatch.gatewayNamespaces" -}}
{{- .Values.gateway.settings.watchNamespaces | default .Values.settings.watchNamespaces }}
{{- end }}

{{/* The parts of a comma-separated text, as JSON. */}}
{{- define "gpubatch.listed" -}}
{{- $names := list }}
{{- range splitList "," . }}
{{- with trim . }}{{ $names = append $names . }}{{ end }}
{{- end }}
{{- $names | uniq | toJson }}
{{- end }}

{{- define "gpubatch.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "gpubatch.selectorLabels" -}}
app.kubernetes.io/name: gpubatch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "gpubatch.gatewayLabels" -}}
app.kubernetes.io/name: gpubatch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "gpubatch.gatewayMeta" -}}
{{ include "gpubatch.labels" . | replace "component: operator" "component: gateway" }}
{{- end }}

{{/* The rights of the gateway in jobs: everywhere, or in the namespaces that are served. */}}
{{- define "gpubatch.gatewayRules" }}
- apiGroups: [gpubatch.dev]
  resources: [gpubatchjobs]
  verbs: [get, list, watch, create, patch]
{{- end }}

{{- define "gpubatch.testLabels" -}}
app.kubernetes.io/name: gpubatch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- define "gpubatch.labels" -}}
{{ include "gpubatch.selectorLabels" . }}
app.kubernetes.io/part-of: gpubatch
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* A number of values.yaml is a float64 to Helm, which would print a million as 1e+06. A map becomes JSON. */}}
{{- define "gpubatch.plain" -}}
{{- if kindIs "map" . }}{{ toJson . }}{{ else if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* The rights in jobs and their pods: everywhere, or in the namespaces that are watched. */}}
{{- define "gpubatch.jobRules" }}
- apiGroups: [gpubatch.dev]
  resources: [gpubatchjobs]
  verbs: [get, list, watch]
# The jobs' spec belongs to their users: the operator writes status, and nothing else.
- apiGroups: [gpubatch.dev]
  resources: [gpubatchjobs/status]
  verbs: [get, patch]
# patch: to take the finalizer off a pod whose outcome is recorded.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- with .Values.rbac.webhookSecrets }}
{{- if and .enabled (not .namespaces) }}
# One by name, to sign a webhook: rbac.webhookSecrets.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- end }}
{{- end }}
