package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// Node is a machine of the cluster with what a Kubernetes node runs.
type Node struct {
	*machine.Machine
	// Services are the node's programs by name: "containerd", "kubelet", "kube-proxy", "felix".
	Services map[string]*Service
	// Runtime speaks CRI to the node's containerd.
	Runtime *node.Runtime
}

// The order in which a node's programs start.
var services = []string{"containerd", "kubelet", "kube-proxy", "felix"}

// startNode makes a machine and lets it join the cluster. It returns as soon as the programs run: Ready waits for the node.
func (f *Fleet) startNode(ctx context.Context, o machine.Options) (*Node, error) {
	files, err := f.nodeFiles(o.Name, o.Number)
	if err != nil {
		return nil, err
	}
	if o.Files == nil {
		o.Files = map[string][]byte{}
	}
	maps.Copy(o.Files, files)
	o.Dir, o.Network, o.Of, o.Program = filepath.Join(f.Dir, o.Name), f.Network, maxNodes, f.machine
	if o.Binds == nil {
		o.Binds = map[string]string{}
	}
	// The plugins lie where the machine cannot write, so that they are programs (files of Options are not).
	o.Binds["/opt/cni"] = f.cni
	// Where Calico keeps the state of endpoints; its node image makes the folder.
	if err := os.MkdirAll(filepath.Join(o.Dir, "files", "run", "calico"), 0o755); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	m, err := machine.Start(ctx, f.Group, o)
	if err != nil {
		return nil, err
	}
	n := &Node{Machine: m, Services: map[string]*Service{}}
	if err := f.runNode(ctx, n); err != nil {
		return nil, errors.Join(fmt.Errorf("fleet: node %s: %w", o.Name, err), n.Close())
	}
	return n, nil
}

func (f *Fleet) runNode(ctx context.Context, n *Node) error {
	if err := node.MakeCgroup(n.Cgroup); err != nil {
		return err
	}
	for _, name := range services {
		s, err := supervise(n, f.command(n, name))
		if err != nil {
			return err
		}
		n.Services[name] = s
		if name != "containerd" {
			continue
		}
		if n.Runtime, err = node.Dial(n.Path("/run/containerd/containerd.sock")); err != nil {
			return err
		}
		ready, cancel := context.WithTimeout(ctx, time.Minute)
		err = s.Process().Until(ready, n.Runtime.Ready)
		cancel()
		if err != nil {
			return err
		}
	}
	return f.givePodCIDR(ctx, n)
}

func (f *Fleet) command(n *Node, service string) cluster.Command {
	c := cluster.Command{Name: service + "-" + n.Name}
	switch service {
	case "containerd":
		c.Path, c.Args = f.parts["containerd"], []string{"--config", "/etc/containerd/config.toml"}
	case "kubelet":
		c.Path, c.Args = f.parts["kubelet"], []string{
			"--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
			"--hostname-override=" + n.Name, "--node-ip=" + n.Address(),
		}
	case "kube-proxy":
		c.Path, c.Args = f.parts["kube-proxy"], []string{"--config=/etc/kubernetes/proxy.yaml", "--hostname-override=" + n.Name}
	case "felix":
		c.Path = f.parts["calico-felix"]
		c.Env = []string{
			"KUBECONFIG=/etc/calico/kubeconfig", "FELIX_DATASTORETYPE=kubernetes", "FELIX_FELIXHOSTNAME=" + n.Name,
			"FELIX_NFTABLESMODE=Enabled", "FELIX_IPV6SUPPORT=false", "FELIX_BPFENABLED=false", "FELIX_XDPENABLED=false",
			"FELIX_DebugSkipCTLBCleanup=true", "FELIX_LOGFILEPATH=none", "FELIX_LOGSEVERITYSYS=none", "FELIX_LOGSEVERITYSCREEN=Info",
			"FELIX_IPINIPENABLED=false", "FELIX_VXLANENABLED=false", "FELIX_USAGEREPORTINGENABLED=false",
			"FELIX_HEALTHENABLED=true", "FELIX_HEALTHHOST=" + n.Address(), "FELIX_HEALTHPORT=9099", "FELIX_DEFAULTENDPOINTTOHOSTACTION=ACCEPT",
		}
	}
	return c
}

// nodeFiles are the configuration files of a node's programs, by their paths in the machine.
func (f *Fleet) nodeFiles(name string, number int) (map[string][]byte, error) {
	kubelet, err := f.kubeconfig("system:node:"+name, "system:nodes")
	if err != nil {
		return nil, err
	}
	proxy, err := f.kubeconfig("system:kube-proxy")
	if err != nil {
		return nil, err
	}
	cert, key, err := f.Cluster.ServerCertificate(name, f.Network.Machine(number).String())
	if err != nil {
		return nil, err
	}
	cni, err := json.Marshal(map[string]any{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": append([]any{map[string]any{
		"type": "calico", "datastore_type": "kubernetes", "nodename": name, "nodename_file_optional": true, "mtu": 1500,
		"log_level": "Warning", "log_file_path": "/var/log/calico-cni.log",
		"ipam":       map[string]any{"type": "host-local", "subnet": "usePodCidr"},
		"policy":     map[string]any{"type": "k8s"},
		"kubernetes": map[string]any{"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
	}}, f.CNIChained...)})
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	hosts := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+f.Registry.Host, "http://"+f.Registry.Host)
	return map[string][]byte{
		"/etc/kubernetes/kubelet.conf": kubelet, "/etc/kubernetes/proxy.conf": proxy,
		"/etc/kubernetes/ca.crt": f.Cluster.CA(), "/etc/kubernetes/kubelet.crt": cert, "/etc/kubernetes/kubelet.key": key,
		"/etc/kubernetes/kubelet.yaml":                               fmt.Appendf(nil, kubeletConfig, f.Network.Bridge+"/"+name),
		"/etc/kubernetes/proxy.yaml":                                 []byte(proxyConfig),
		"/etc/calico/kubeconfig":                                     f.calicoKubeconfig,
		"/etc/cni/net.d/calico-kubeconfig":                           f.cniKubeconfig,
		"/etc/cni/net.d/10-calico.conflist":                          cni,
		"/etc/containerd/config.toml":                                fmt.Appendf(nil, containerdConfig, f.pause.Reference(), f.parts["containerd-shim-runc-v2"], f.runc),
		"/etc/containerd/certs.d/" + f.Registry.Host + "/hosts.toml": []byte(hosts),
		"/etc/resolv.conf":                                           []byte("# no name server: pods use the cluster's\n"),
	}, nil
}

// givePodCIDR waits for the kubelet to register its Node and gives that its range of addresses. It is this cluster's node IPAM:
// the ranges are known before the machines, and so are the routes.
func (f *Fleet) givePodCIDR(ctx context.Context, n *Node) error {
	cidr := f.Network.PodCIDR(n.Number).String()
	patch := fmt.Appendf(nil, `{"spec":{"podCIDR":%q,"podCIDRs":[%q]}}`, cidr, cidr)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return n.Services["kubelet"].Process().Until(ctx, func(ctx context.Context) error {
		_, err := f.Kubernetes.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}

// Ready waits until the kubelets of all nodes say that they are ready, and Felix that it enforces policies.
func (f *Fleet) Ready(ctx context.Context) error {
	for _, n := range f.Nodes {
		ready, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := n.Services["kubelet"].Process().Until(ready, func(ctx context.Context) error { return nodeReady(ctx, f.Kubernetes, n.Name) })
		cancel()
		if err != nil {
			return err
		}
		ready, cancel = context.WithTimeout(ctx, time.Minute)
		err = n.Services["felix"].Process().Until(ready, func(ctx context.Context) error {
			return cluster.Get(ctx, "http://"+n.Address()+":9099/readiness")
		})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func nodeReady(ctx context.Context, client kubernetes.Interface, name string) error {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s: %s", name, c.Message)
		}
	}
	return fmt.Errorf("node %s says nothing of its state", name)
}

// Close ends the node's programs and its machine. Containers end with the machine.
func (n *Node) Close() error {
	var errs []error
	for i := len(services) - 1; i >= 0; i-- {
		if s := n.Services[services[i]]; s != nil {
			s.Stop()
		}
	}
	if n.Runtime != nil {
		errs = append(errs, n.Runtime.Disconnect())
	}
	return errors.Join(append(errs, n.Machine.Close())...)
}

// kubeconfig is the content of a kubeconfig.
func (f *Fleet) kubeconfig(user string, groups ...string) ([]byte, error) {
	path, err := f.Cluster.KubeconfigFor(user, groups...)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	return content, nil
}

// installCNI collects the plugins in one folder, where containerd looks for them: Calico's own, and host-local and loopback.
func (f *Fleet) installCNI(plugins string) error {
	f.cni = filepath.Join(f.Dir, "cni")
	if err := os.MkdirAll(filepath.Join(f.cni, "bin"), 0o755); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	programs := map[string]string{
		"calico": f.parts["calico-cni"], "host-local": filepath.Join(plugins, "host-local"), "loopback": filepath.Join(plugins, "loopback"),
	}
	maps.Copy(programs, f.CNIPrograms)
	for name, from := range programs {
		content, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("fleet: CNI plugin %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(f.cni, "bin", name), content, 0o755); err != nil { // #nosec G306 -- it is a program
			return fmt.Errorf("fleet: CNI plugin %s: %w", name, err)
		}
	}
	return nil
}

// containerdConfig: paths are containerd's defaults, since the machine's folders are its own. restrict_oom_score_adj is for
// computers whose root lacks CAP_SYS_RESOURCE; no_sync is safe because nothing outlives the run.
const containerdConfig = `version = 3
[plugins."io.containerd.metadata.v1.bolt"]
  no_sync = true
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "%[1]s"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = "%[2]s"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "%[3]s"
        SystemdCgroup = false
`

// kubeletConfig: eviction and image collection by disk pressure are off, because the disk is the computer's.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
clusterDNS: [` + clusterDNS + `]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
makeIPTablesUtilChains: false
evictionHard: {nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%", memory.available: "0%%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
nodeLeaseDurationSeconds: 20
serializeImagePulls: false
registryPullQPS: 0
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /etc/kubernetes/proxy.conf}
mode: nftables
bindAddress: 0.0.0.0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
`
