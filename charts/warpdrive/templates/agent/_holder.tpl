{{/* The pod that holds a node's mount. Nothing of it may change that need not: no version, no common label. What has
changed is what an upgrade must not do unasked. dict root, agent, image */}}
{{- define "warpdrive.holderPod" -}}
{{- $agent := .agent -}}
{{- $point := clean $agent.mountPoint -}}
{{- $who := dict "root" .root "component" "node-agent-holder" -}}
metadata:
  labels:
    {{- include "warpdrive.selector" $who | nindent 4 }}
    {{- with $agent.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    warpdrive.io/inject: "false"
  {{- with $agent.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "warpdrive.serviceAccountName" (merge (dict "component" "node-agent" "values" $agent) $who) }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 30
  {{- with include "warpdrive.podSettings" (dict "root" .root "values" $agent) }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: warpdrive-mountd
      image: {{ .image }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command:
        - /usr/local/bin/warpdrive
        - mountd
        - --mount-point
        - /host/{{ base $point }}
        - --socket
        - /run/warpdrive/mount.sock
        - --allow-other
        {{- if $agent.runAsUser }}
        - --allow-uid
        - {{ $agent.runAsUser | quote }}
        {{- end }}
        - --patience
        - {{ $agent.patience }}
        - --grace
        - {{ $agent.grace }}
      startupProbe:
        exec: {command: [/usr/local/bin/warpdrive, probe, --holder, /run/warpdrive/mount.sock, --wait, 20s]}
        periodSeconds: 1
        timeoutSeconds: 25
        failureThreshold: 6
      resources:
        {{- toYaml $agent.holderResources | nindent 8 }}
      securityContext:
        # What mount propagation takes, by the API's own rule.
        privileged: true
        runAsUser: 0
        runAsGroup: 0
        runAsNonRoot: false
        readOnlyRootFilesystem: true
      volumeMounts:
        # The folder above the mount point, never the point: a container cannot be started again while the root of
        # one of its volumes is a dead mount.
        - {name: above, mountPath: /host, mountPropagation: Bidirectional}
        - {name: run, mountPath: /run/warpdrive}
  volumes:
    - name: above
      hostPath: {path: {{ dir $point }}, type: DirectoryOrCreate}
    - name: run
      hostPath: {path: /run/warpdrive/{{ include "warpdrive.fullname" .root }}, type: DirectoryOrCreate}
{{- end -}}
