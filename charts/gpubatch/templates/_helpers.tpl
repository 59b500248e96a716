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
