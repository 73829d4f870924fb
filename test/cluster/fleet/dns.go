package fleet

import (
	"context"
	"fmt"

	"github.com/keelson-project/keelson/test/cluster/node"
)

// clusterDNS is the address of the cluster's name server, a Service.
const clusterDNS = "10.96.0.10"

// installDNS installs CoreDNS as clusters have it: two labels that everybody selects it by, an address that every kubelet knows.
func (f *Fleet) installDNS(ctx context.Context) error {
	files, err := Files(map[string]string{"/coredns": f.parts["coredns"]})
	if err != nil {
		return err
	}
	image, err := f.Push(ctx, "coredns", node.Image{Files: files, Entrypoint: []string{"/coredns"}})
	if err != nil {
		return err
	}
	return f.Cluster.Apply(ctx, fmt.Appendf(nil, dnsObjects, image.Reference(), clusterDNS))
}

const dnsObjects = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health :8080
        ready :8181
        kubernetes cluster.local in-addr.arpa
        cache 5
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      # A node that has not attested yet needs names to attest.
      tolerations: [{key: trust.keelson.io/untrusted, operator: Exists}]
      containers:
      - name: coredns
        image: %s
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
        volumeMounts: [{name: config, mountPath: /etc/coredns, readOnly: true}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: %s
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
`
