{{/* The settings file of injection (cluster::inject's Defaults). What is not said is left to the program. */}}
{{- define "warpdrive.settings" -}}
{{- $injection := .Values.injection -}}
{{- $settings := dict "image" (include "warpdrive.image" (dict "root" . "values" $injection.image)) "image_pull_policy" .Values.image.pullPolicy -}}
{{- with $injection.imagePullSecrets }}{{ $_ := set $settings "image_pull_secrets" . }}{{ end -}}
{{- with $injection.meshContainers }}{{ $_ := set $settings "mesh_containers" . }}{{ end -}}
{{- with $injection.resources }}{{ $_ := set $settings "resources" . }}{{ end -}}
{{- $annotations := dict -}}
{{- range $name, $value := $injection.annotations }}
{{- if kindIs "float64" $value }}{{ $value = ternary (int64 $value) $value (eq (floor $value) $value) }}{{ end -}}
{{- $_ := set $annotations $name (toString $value) -}}
{{- end -}}
{{- with $annotations }}{{ $_ := set $settings "annotations" . }}{{ end -}}
{{- toYaml $settings -}}
{{- end -}}
