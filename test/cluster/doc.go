// Package cluster runs real servers for tests and for the demo: etcd, kube-apiserver, Calico's aggregated API server for
// projectcalico.org/v3, Istio's custom resource definitions, SPIRE servers and agents. No kubelet, scheduler or controller
// manager runs, so tests create Nodes, Pods and ServiceAccounts themselves, with the status that a kubelet would report.
//
//	func TestGuards(t *testing.T) {
//		c := cluster.ForTest(t, cluster.Options{Calico: true, IstioCRDs: true})
//		admin := c.RESTConfig()                                        // *rest.Config, group system:masters
//		kubelet, err := c.RESTConfigFor("system:node:fra-1", "system:nodes")
//		path, err := c.KubeconfigFor("alice", "developers")            // for a program's --kubeconfig
//		err = c.Apply(ctx, crdYAML)                                    // any YAML documents, then waits for CRDs to be served
//		…
//	}
//
// Outside of `go test`:
//
//	c, err := cluster.Start(ctx, cluster.Options{Log: os.Stderr, Calico: true})
//	defer c.Close()
//
// Start takes about ten seconds once package parts has built the programs (minutes on a cold cache, with a line per build).
// Everything listens on 127.0.0.1 only, lives under one folder, and ends with Close, also when Start fails halfway; the kernel
// kills the servers when this process dies without Close. Two clusters in one process, or ten on one machine, do not meet.
//
// A service account's token comes from the API (TokenRequest through client-go); RBAC is enforced as in a real cluster, so a
// user from KubeconfigFor may do nothing until a test binds a role. Default service accounts and the usual controllers' work
// (garbage collection, ReplicaSets) are absent.
package cluster
