{{/* Names. A release that is called like the chart does not repeat it. */}}
{{- define "warpdrive.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "warpdrive.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a Deployment or DaemonSet selects: never changes in a release's life. dict root, component */}}
{{- define "warpdrive.selector" -}}
app.kubernetes.io/name: {{ include "warpdrive.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of every object. dict root, component */}}
{{- define "warpdrive.labels" -}}
{{ include "warpdrive.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. dict root, component, name, [namespace], [annotations], [labels] */}}
{{- define "warpdrive.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "warpdrive.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge dict (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* metadata of our own pods. The label keeps injection away from them, whatever their namespace says:
the webhook must not be what its own start waits for. dict root, component, values, [annotations] */}}
{{- define "warpdrive.podMetadata" -}}
labels:
  {{- include "warpdrive.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  warpdrive.io/inject: "false"
{{- with merge dict (default dict .annotations) .values.podAnnotations .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image: a digest wins over a tag, a tag over the chart's appVersion. dict root, [values] */}}
{{- define "warpdrive.image" -}}
{{- $own := default dict .values -}}
{{- $repository := default .root.Values.image.repository $own.repository -}}
{{- $registry := .root.Values.image.registry -}}
{{- $path := ternary (printf "%s/%s" $registry $repository) $repository (not (empty $registry)) -}}
{{- if and .root.Values.image.digest (not $own.tag) (not $own.repository) -}}
{{- printf "%s@%s" $path .root.Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (coalesce $own.tag .root.Values.image.tag .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What every pod of ours has besides its containers. dict root, values */}}
{{- define "warpdrive.podSettings" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The security settings that pass the restricted level. */}}
{{- define "warpdrive.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65534
runAsGroup: 65534
fsGroup: 65534
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "warpdrive.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The account of a component. dict root, component, values */}}
{{- define "warpdrive.serviceAccountName" -}}
{{- if .values.serviceAccountName -}}
{{- .values.serviceAccountName -}}
{{- else if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "warpdrive.fullname" .root) .component -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* What injection may act upon: kept in one place for the webhook and for the policy. */}}
{{- define "warpdrive.excludedNamespaces" -}}
{{- toYaml (.Values.injection.excludedNamespaces | uniq) -}}
{{- end -}}
{{- define "warpdrive.excludedNamespacesAndOwn" -}}
{{- toYaml (append .Values.injection.excludedNamespaces .Release.Namespace | uniq) -}}
{{- end -}}

{{/* The node agent's values: `agent` (the Go project's name for it) wins over `nodeAgent`. */}}
{{- define "warpdrive.nodeAgent" -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.nodeAgent) (deepCopy .Values.agent)) -}}
{{- end -}}
