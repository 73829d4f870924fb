{{- /* Labels of every object. The name of a pod's own label is what its selector matches. */ -}}
{{- define "keelson.labels" -}}
app.kubernetes.io/part-of: keelson
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Image of a component: list of the root and the component's image values. */ -}}
{{- define "keelson.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{ $root.Values.image.registry }}/{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Guards outlive an uninstallation that leaves doors closed: without them anybody could open these with a label. */ -}}
{{- define "keelson.keep" -}}
{{- if not .Values.uninstall.removeObjects -}}
helm.sh/resource-policy: keep
{{- end }}
{{- end }}

{{- /* Elements of a CEL list of texts. values.schema.json refuses quotes, backslashes and line ends in them. */ -}}
{{- define "keelson.celList" -}}
{{- range $i, $text := . }}{{ if $i }}, {{ end }}"{{ $text }}"{{ end }}
{{- end }}

{{- define "keelson.celSPIREServers" -}}
{{- range $i, $a := .Values.spire.servers }}{{ if $i }}, {{ end }}"system:serviceaccount:{{ $a.namespace }}:{{ $a.serviceAccount }}"{{ end }}
{{- end }}

{{- /* Folder and socket of SPIRE in policy-sync's container. */ -}}
{{- define "keelson.spireSocket" -}}
/run/spire/mounted/{{ .Values.policySync.spire.socketName }}
{{- end }}

{{- define "keelson.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "keelson.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "keelson.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* policy-sync.yaml: the values, and what the chart knows itself. */ -}}
{{- define "keelson.config" -}}
{{- $c := deepCopy .Values.policySync.config }}
{{- $spire := omit $c.spire "address" }}
{{- if eq .Values.policySync.spire.access "serverSocket" }}
{{- $_ := set $spire "socket" (include "keelson.spireSocket" .) }}
{{- else }}
{{- $_ := set $spire "address" $c.spire.address }}
{{- $_ := set $spire "workloadAPI" (printf "unix://%s" (include "keelson.spireSocket" .)) }}
{{- end }}
{{- $_ := set $c "spire" $spire }}
{{- /* A key that is named, not placed, is one of the values. */ -}}
{{- range $v := $c.images.verifiers }}
{{- if and $v.publicKey (not (hasPrefix "/" $v.publicKey)) }}
{{- if not (hasKey $.Values.policySync.verifierKeys $v.publicKey) }}
{{- fail (printf "policySync.config.images.verifiers: verifier %q names key %q, but policySync.verifierKeys has none of that name: add its PEM text there" $v.name $v.publicKey) }}
{{- end }}
{{- $_ := set $v "publicKey" (printf "/etc/keelson/keys/%s" $v.publicKey) }}
{{- end }}
{{- if and $v.keyless (not (hasPrefix "/" $v.keyless.trustedRoot)) }}
{{- if not (hasKey $.Values.policySync.trustedRoots $v.keyless.trustedRoot) }}
{{- fail (printf "policySync.config.images.verifiers: verifier %q names trusted root %q, but policySync.trustedRoots has none of that name: add its JSON text there" $v.name $v.keyless.trustedRoot) }}
{{- end }}
{{- $_ := set $v.keyless "trustedRoot" (printf "/etc/keelson/roots/%s" $v.keyless.trustedRoot) }}
{{- end }}
{{- end }}
{{- range $host, $name := $c.images.registryCAs }}
{{- if not (hasPrefix "/" $name) }}
{{- if not (hasKey $.Values.policySync.registryCAs $name) }}
{{- fail (printf "policySync.config.images.registryCAs: registry %q names %q, but policySync.registryCAs has none of that name: add its PEM text there" $host $name) }}
{{- end }}
{{- $_ := set $c.images.registryCAs $host (printf "/etc/keelson/cas/%s" $name) }}
{{- end }}
{{- end }}
{{- if .Values.pullSecrets.policySync }}
{{- $_ := set $c.images "pullSecrets" true }}
{{- end }}
{{- if .Values.policySync.registryAuthSecret }}
{{- $_ := set $c.images "registryAuth" "/etc/keelson/registry/config.json" }}
{{- end }}
{{- /* Helm reads an unquoted off as false. */ -}}
{{- range $plane := list "calico" "istio" }}
{{- $_ := set $c $plane (ternary (index $c $plane) "off" (kindIs "string" (index $c $plane))) }}
{{- end }}
{{- $ports := .Values.policySync.ports }}
{{- $_ := set $c "listen" (dict "metrics" (printf ":%d" (int $ports.metrics)) "health" (printf ":%d" (int $ports.health))) }}
{{- $_ := set $c "leaderElection" (dict "enabled" true "namespace" .Release.Namespace "name" "keelson-policy-sync" "leaseDuration" $c.leaderElection.leaseDuration) }}
{{- toYaml $c }}
{{- end }}

{{- /* Volumes that policy-sync's pods need, and where they are mounted. */ -}}
{{- define "keelson.volumes" -}}
- name: config
  projected:
    sources:
    - configMap:
        name: keelson-policy-sync
        items: [{key: policy-sync.yaml, path: policy-sync.yaml}]
    {{- if .Values.policySync.verifierKeys }}
    - configMap:
        name: keelson-policy-sync-keys
        items:
        {{- range $name, $_ := .Values.policySync.verifierKeys }}
        - {key: {{ $name | quote }}, path: {{ printf "keys/%s" $name | quote }}}
        {{- end }}
    {{- end }}
    {{- range $what, $files := dict "roots" .Values.policySync.trustedRoots "cas" .Values.policySync.registryCAs }}
    {{- with $files }}
    - configMap:
        name: keelson-policy-sync-{{ $what }}
        items:
        {{- range $name, $_ := . }}
        - {key: {{ $name | quote }}, path: {{ printf "%s/%s" $what $name | quote }}}
        {{- end }}
    {{- end }}
    {{- end }}
    {{- with .Values.policySync.registryAuthSecret }}
    - secret:
        name: {{ . | quote }}
        items: [{key: .dockerconfigjson, path: registry/config.json}]
    {{- end }}
- name: spire
  {{- if eq .Values.policySync.spire.access "csi" }}
  csi: {driver: {{ .Values.policySync.spire.csiDriver | quote }}, readOnly: true}
  {{- else }}
  hostPath: {path: {{ .Values.policySync.spire.hostPath | quote }}, type: Directory}
  {{- end }}
{{- with .Values.policySync.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keelson.mounts" -}}
- {name: config, mountPath: /etc/keelson, readOnly: true}
- {name: spire, mountPath: /run/spire/mounted, readOnly: true}
{{- with .Values.policySync.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keelson.affinity" -}}
{{- /* The operator's own, with one more expression in each of its terms, for terms are ORed: no machine that is proved bad. */ -}}
{{- $good := dict "key" "keelson.node-restriction.kubernetes.io/verdict" "operator" "NotIn" "values" (list "untrusted") -}}
{{- $affinity := deepCopy (.Values.policySync.affinity | default dict) -}}
{{- $node := get $affinity "nodeAffinity" | default dict -}}
{{- $required := get $node "requiredDuringSchedulingIgnoredDuringExecution" | default dict -}}
{{- $terms := list -}}
{{- range get $required "nodeSelectorTerms" | default (list (dict "matchExpressions" list)) -}}
{{- if . -}}{{- /* an empty one matches no node, and stays so */ -}}
{{- $terms = append $terms (set . "matchExpressions" (append (get . "matchExpressions" | default list) $good)) -}}
{{- else -}}
{{- $terms = append $terms . -}}
{{- end -}}
{{- end -}}
{{- /* Where its own identity is for named machines, it runs on them. A term names one, and terms are ORed. */ -}}
{{- with .Values.policySync.config.spire.adminNodes -}}
{{- $named := list -}}
{{- range $term := $terms -}}
{{- range $name := $.Values.policySync.config.spire.adminNodes -}}
{{- if $term -}}
{{- $field := dict "key" "metadata.name" "operator" "In" "values" (list $name) -}}
{{- $copy := deepCopy $term -}}
{{- $named = append $named (set $copy "matchFields" (append (get $copy "matchFields" | default list) $field)) -}}
{{- end -}}
{{- end -}}
{{- if not $term -}}
{{- $named = append $named $term -}}
{{- end -}}
{{- end -}}
{{- $terms = $named -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (set $required "nodeSelectorTerms" $terms) -}}
{{- toYaml (set $affinity "nodeAffinity" $node) -}}
{{- end }}

{{- define "keelson.uninstallAffinity" -}}
{{- /* As that of policy-sync, but a preference: where all machines are proved bad, an operator still wants to get out. */ -}}
{{- $good := dict "key" "keelson.node-restriction.kubernetes.io/verdict" "operator" "NotIn" "values" (list "untrusted") -}}
{{- $affinity := deepCopy (.Values.policySync.affinity | default dict) -}}
{{- $node := get $affinity "nodeAffinity" | default dict -}}
{{- $preferred := get $node "preferredDuringSchedulingIgnoredDuringExecution" | default list -}}
{{- $preferred = append $preferred (dict "weight" 100 "preference" (dict "matchExpressions" (list $good))) -}}
{{- $_ := set $node "preferredDuringSchedulingIgnoredDuringExecution" $preferred -}}
{{- /* To delete entries it needs policy-sync's own identity, which is issued on named machines alone: elsewhere it could only fail. */ -}}
{{- $names := .Values.policySync.config.spire.adminNodes -}}
{{- if and .Values.uninstall.spireEntries $names -}}
{{- $required := get $node "requiredDuringSchedulingIgnoredDuringExecution" | default dict -}}
{{- $terms := list -}}
{{- range $term := get $required "nodeSelectorTerms" | default (list (dict "matchFields" list)) -}}
{{- if not $term -}}{{- /* an empty one matches no node, and stays so */ -}}
{{- $terms = append $terms $term -}}
{{- else -}}
{{- range $name := $names -}}
{{- $field := dict "key" "metadata.name" "operator" "In" "values" (list $name) -}}
{{- $copy := deepCopy $term -}}
{{- $terms = append $terms (set $copy "matchFields" (append (get $copy "matchFields" | default list) $field)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (set $required "nodeSelectorTerms" $terms) -}}
{{- end -}}
{{- toYaml (set $affinity "nodeAffinity" $node) -}}
{{- end }}

{{- define "keelson.tolerations" -}}
- {key: trust.keelson.io/untrusted, operator: Exists}
{{- with .Values.policySync.tolerations }}
{{ toYaml . }}
{{- end }}
{{- end }}
