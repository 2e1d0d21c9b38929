{{/* The name of everything that the chart makes. */}}
{{- define "spigate.fullname" -}}
{{- if contains "spigate" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-spigate" (.Release.Name | trunc 55 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "spigate.selector" -}}
app.kubernetes.io/name: spigate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "spigate.labels" -}}
{{ include "spigate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the pod has to say about security, for all of its containers. */}}
{{- define "spigate.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# Makes the Secret's files and the journal's volume readable for that group.
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The container, without what only a sidecar has. Its context is the chart's. */}}
{{- define "spigate.container" -}}
name: spigate
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["serve", "--config", "/etc/spigate/spigate.toml"]
ports:
  {{- if .Values.companion }}
  - name: companion
    containerPort: {{ .Values.ports.companion }}
  {{- else }}
  - name: spi
    containerPort: {{ .Values.ports.spi }}
  {{- end }}
  - name: admin
    containerPort: {{ .Values.ports.admin }}
{{- with .Values.journal.existingSecret }}
env:
  - name: SPIGATE_JOURNAL__URL
    valueFrom:
      secretKeyRef:
        name: {{ . }}
        key: url
{{- end }}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
{{- end }}

{{- define "spigate.mounts" -}}
# Directories, not subPath: a file mounted with subPath never changes.
- name: {{ .config }}
  mountPath: /etc/spigate
  readOnly: true
- name: {{ .keys }}
  mountPath: /run/secrets/spigate
  readOnly: true
{{- end }}

{{/*
The gateway as a native sidecar: an entry of `initContainers` in the pod of a backend. Its context
is that of the subchart, `.Subcharts.spigate`. The pod brings a volume "spigate-journal" if
journal.existingSecret is empty, the volumes of "spigate.sidecarVolumes" and the security context of
"spigate.podSecurityContext".
*/}}
{{- define "spigate.sidecar" -}}
{{ include "spigate.container" . }}
restartPolicy: Always
volumeMounts:
  {{- include "spigate.mounts" (dict "config" "spigate-config" "keys" "spigate-keys") | nindent 2 }}
  {{- if not .Values.journal.existingSecret }}
  - name: spigate-journal
    mountPath: /var/lib/spigate
  {{- end }}
{{- end }}

{{- define "spigate.sidecarVolumes" -}}
{{ include "spigate.sources" (dict "chart" . "config" "spigate-config" "keys" "spigate-keys") }}
{{- end }}

{{- define "spigate.sources" -}}
- name: {{ .config }}
  configMap:
    name: {{ include "spigate.fullname" .chart }}
- name: {{ .keys }}
  secret:
    secretName: {{ .chart.Values.keys.existingSecret }}
    defaultMode: 0440
{{- end }}
