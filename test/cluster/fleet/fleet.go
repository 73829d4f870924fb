package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// maxNodes is how many machines have a place in the network.
const maxNodes = 9

// Options says what cluster to make.
type Options struct {
	// Dir is where everything lives. When empty it is a fresh temporary folder that Close removes. Another folder stays, with the logs in
	// it; it holds one cluster at a time.
	Dir string
	// Log receives progress for people; nil is silence.
	Log io.Writer
	// CNIPrograms are further CNI plugins by name, CNIChained their elements in every node's network configuration.
	CNIPrograms map[string]string
	CNIChained  []any
}

// Fleet is a running cluster. It begins with the control plane alone; AddNode brings the nodes.
type Fleet struct {
	Options
	Group      *cluster.Group
	Network    *machine.Network
	Registry   *node.Registry
	Cluster    *cluster.Cluster
	Kubernetes kubernetes.Interface
	// Client knows Keelson's types as well.
	Client client.Client
	Nodes  []*Node

	ownDir           bool
	janitor          *janitor
	parts            map[string]string
	runc             string
	cni              string
	pause            node.Pushed
	calicoKubeconfig []byte
	cniKubeconfig    []byte
	machine          string

	mu       sync.Mutex
	images   map[string]node.Pushed
	machines int // how many were begun
}

// CanRun tells whether this computer can hold such a cluster, and what it lacks when not.
func CanRun() error { return node.CanRun() }

// Start makes the control plane: etcd, the API servers, the controllers, the network, the registry. On error nothing is left.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	if err := CanRun(); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	f := &Fleet{Options: o, images: map[string]node.Pushed{}}
	if err := f.start(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// partNames are the programs of other projects that the cluster is made of.
var partNames = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "containerd",
	"containerd-shim-runc-v2", "calico-apiserver", "calico-felix", "calico-cni", "coredns", "spire-server", "spire-agent",
}

func (f *Fleet) start(ctx context.Context) error {
	var err error
	if f.parts, err = parts.Ensure(ctx, f.Log, partNames...); err != nil {
		return err
	}
	system, err := parts.EnsureSystem(ctx, f.Log, "runc", "cni", "nft")
	if err != nil {
		return err
	}
	f.runc = system["runc"]
	if f.machine, err = machine.Build(ctx, f.Log); err != nil {
		return err
	}
	begun := time.Now()
	if err := f.open(ctx); err != nil {
		return err
	}
	f.Cluster, err = cluster.Start(ctx, cluster.Options{
		Dir: filepath.Join(f.Dir, "k8s"), Log: f.Log, Address: f.Network.Host().String(), Calico: true, IstioCRDs: true, Controllers: true,
	})
	if err != nil {
		return err
	}
	if err := f.clients(); err != nil {
		return err
	}
	if err := f.installCNI(filepath.Dir(system["cni"])); err != nil {
		return err
	}
	if err := f.installCalico(ctx); err != nil {
		return err
	}
	if err := f.installDNS(ctx); err != nil {
		return err
	}
	f.say("control plane is up after %.1f s", time.Since(begun).Seconds())
	return nil
}

// open makes what everything else stands on, and first of all whoever cleans up if this program cannot.
func (f *Fleet) open(ctx context.Context) error {
	var err error
	if f.Dir == "" {
		if f.Dir, err = os.MkdirTemp("", "klsn-"); err != nil {
			return fmt.Errorf("fleet: %w", err)
		}
		f.ownDir = true
	}
	if f.Dir, err = filepath.Abs(f.Dir); err != nil { // processes are known by it, whatever folder they are asked for from
		return fmt.Errorf("fleet: %w", err)
	}
	if o, err := readOwner(f.Dir); err == nil && o.Alive() {
		return fmt.Errorf("fleet: %s is in use: process %d has a cluster there", f.Dir, o.PID)
	}
	if err := os.MkdirAll(f.Dir, 0o755); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	if err := os.Chmod(f.Dir, 0o755); err != nil { // pods' users pass through it
		return fmt.Errorf("fleet: %w", err)
	}
	f.Group = cluster.NewGroup(f.Dir)
	if f.Network, err = machine.NewNetwork(); err != nil {
		return err
	}
	if err := f.writeOwner(); err != nil {
		return err
	}
	if f.janitor, err = startJanitor(ctx, f.Log, f.Dir, f.Network.Bridge); err != nil {
		return err
	}
	if f.Registry, err = node.NewRegistryAt(f.Network.Host().String()); err != nil {
		return err
	}
	return f.pushPause(ctx)
}

func (f *Fleet) clients() error {
	var err error
	if f.Kubernetes, err = kubernetes.NewForConfig(f.Cluster.RESTConfig()); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	if f.Client, err = client.New(f.Cluster.RESTConfig(), client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	return nil
}

// AddNode makes a machine and lets it join. Its number follows from how many there are. Use Ready to wait for it.
func (f *Fleet) AddNode(ctx context.Context, o machine.Options) (*Node, error) {
	f.mu.Lock()
	f.machines++
	o.Number = f.machines
	f.mu.Unlock()
	if o.Number > maxNodes {
		return nil, fmt.Errorf("fleet: node %s: there is room for %d nodes", o.Name, maxNodes)
	}
	n, err := f.startNode(ctx, o)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Nodes = append(f.Nodes, n)
	return n, nil
}

// Node is the node of that name, nil when there is none.
func (f *Fleet) Node(name string) *Node {
	for _, n := range f.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Close ends everything, nodes first, and leaves nothing behind.
func (f *Fleet) Close() error {
	var errs []error
	var ending sync.WaitGroup
	ended := make([]error, len(f.Nodes))
	for i, n := range f.Nodes {
		ending.Go(func() { ended[i] = n.Close() })
	}
	ending.Wait()
	errs = append(errs, ended...)
	if f.Cluster != nil {
		errs = append(errs, f.Cluster.Close())
	}
	if f.Group != nil {
		errs = append(errs, f.Group.Close())
	}
	if f.Registry != nil {
		errs = append(errs, f.Registry.Close())
	}
	if f.Network != nil {
		errs = append(errs, f.Network.Close(), node.Cleanup(f.Dir, "/"+f.Network.Bridge+"/none"))
	}
	switch {
	case f.ownDir:
		errs = append(errs, os.RemoveAll(f.Dir))
	case f.janitor != nil: // the note is ours
		errs = append(errs, disown(f.Dir))
	}
	if f.janitor != nil {
		errs = append(errs, f.janitor.dismiss())
	}
	return errors.Join(errs...)
}

func (f *Fleet) say(format string, args ...any) {
	_, _ = fmt.Fprintf(f.Log, format+"\n", args...) // progress for people; losing it loses nothing
}
