{{/* warpdrive.yaml of the node agent: the chart's names (the Go project's) become the program's; what else is
below config.cache, and config.extra, is the program's own and goes through as it is. */}}
{{- define "warpdrive.nodeAgentConfig" -}}
{{- if not .Values.config.backends }}
{{- fail "config.backends: the node agent needs at least one origin" }}
{{- end }}
{{- $cache := dict "path" "/var/cache/warpdrive" }}
{{- $names := dict "maxSize" "max_size" "blockSize" "block_size" "readaheadBlocks" "readahead_blocks" "maxParallelFetch" "max_parallel_fetch" }}
{{- range $key, $value := .Values.config.cache }}
{{- if not (kindIs "invalid" $value) }}
{{- if kindIs "float64" $value }}
{{- $value = ternary (int64 $value) $value (eq (floor $value) $value) }}
{{- end }}
{{- $_ := set $cache (default $key (get $names $key)) $value }}
{{- end }}
{{- end }}
{{- $ours := dict
  "allow_other" true
  "state_dir" "/run/warpdrive/worker"
  "cache" $cache
  "s3" (dict "enabled" false)
  "metrics" (dict "enabled" true "addr" (printf ":%d" (int .Values.metrics.port)))
  "log" (dict "format" "json")
  "backends" .Values.config.backends }}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.config.extra)) }}
{{- end -}}
