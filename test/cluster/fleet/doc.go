// Package fleet makes a whole Kubernetes cluster on one computer, as root on Linux and without any container engine: etcd, the API
// servers of Kubernetes and Calico, controllers and scheduler, a registry; and nodes, each a machine of its own (package machine)
// with containerd, kubelet, kube-proxy, Calico's Felix and CNI plugin; CoreDNS. Everything is the real program.
//
//	f, err := fleet.Start(ctx, fleet.Options{Log: os.Stderr})
//	defer f.Close()
//	n, err := f.AddNode(ctx, machine.Options{Name: "fra-1"})
//	err = f.Ready(ctx)                                          // nodes are Ready and policies are enforced
//	image, err := f.Push(ctx, "team/app", node.Image{…})        // nodes pull image.Reference()
//	_, err = f.Kubernetes.CoreV1().Pods("default").Create(…)    // as in any cluster
//	err = f.InstallCSI(ctx, "examples/spire/csi.yaml")          // the SPIFFE CSI driver, where pods want it
//
// It knows nothing of Keelson's policies and may be used by other projects' tests; package stage adds SPIRE, Istio and Keelson.
// The control plane takes some 20 s, nodes 6 s more. Clusters do not meet: several may stand at once.
//
// However the program ends, nothing is left: Close takes everything away, the kernel takes machines away with their maker, and a
// janitor process, which outlives the maker, does the rest. List and Owner.Down end clusters from elsewhere.
//
// What differs from a cluster of production: pods' ranges are given by this package and routed statically (no BGP, no overlay), so
// IPAM is host-local; one control plane, without leader election.
package fleet
