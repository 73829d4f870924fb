package revocations_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/flows"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/revocations"
	"github.com/keelson-project/keelson/test/cluster"
)

const account = "system:serviceaccount:keelson-node:keelson-node"

// real is one Kubernetes API for all tests of this package; nil with -short.
var real *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // as keelson-node does
	if testing.Short() {
		return m.Run()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{Log: os.Stderr, Calico: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if err := install(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	real = c
	return m.Run()
}

// behind is the address behind the API server's Service. This API server listens on a loopback address, so it publishes none.
const behind = "198.51.100.1"

func install(ctx context.Context, c *cluster.Cluster) error {
	documents := [][]byte{[]byte(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default}
addressType: IPv4
endpoints: [{addresses: [` + behind + `]}]
`)}
	for _, o := range kube.NodeRBAC("keelson-node", "keelson-node") {
		d, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		documents = append(documents, d)
	}
	return c.Apply(ctx, documents...)
}

// api is a real Kubernetes API with Calico's, in which keelson-node has its own rights alone.
type api struct {
	*testing.T
	cluster *cluster.Cluster
	admin   dynamic.Interface
	core    kubernetes.Interface
}

func newAPI(t *testing.T) *api {
	if real == nil {
		t.Skip("needs a real kube-apiserver, which -short leaves out")
	}
	c := real
	a := &api{T: t, cluster: c}
	var err error
	if a.admin, err = dynamic.NewForConfig(c.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	if a.core, err = kubernetes.NewForConfig(c.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		remove := func(resource schema.GroupVersionResource, names ...string) {
			for _, name := range names {
				if err := a.admin.Resource(resource).Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
					t.Error(err)
				}
			}
		}
		remove(sets, "other", v1alpha1.RevokedSet)
		remove(felix, "default", "node.fra-1")
		if err := a.core.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
	return a
}

// own is the client configuration of keelson-node's service account.
func (a *api) own() *rest.Config {
	a.Helper()
	config, err := a.cluster.RESTConfigFor(account, "system:serviceaccounts", "system:authenticated")
	if err != nil {
		a.Fatal(err)
	}
	return config
}

var (
	sets  = schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworksets"}
	felix = schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "felixconfigurations"}
)

// set writes a GlobalNetworkSet, and returns the time just before.
func (a *api) set(name string, nets ...string) time.Time {
	a.Helper()
	return a.write(sets, "GlobalNetworkSet", name, map[string]any{"nets": toAny(nets)})
}

func toAny(texts []string) []any {
	out := []any{}
	for _, s := range texts {
		out = append(out, s)
	}
	return out
}

func (a *api) write(resource schema.GroupVersionResource, kind, name string, spec map[string]any) time.Time {
	a.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	o.SetAPIVersion(resource.GroupVersion().String())
	o.SetKind(kind)
	o.SetName(name)
	client := a.admin.Resource(resource)
	at := time.Now()
	live, err := client.Get(a.Context(), name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		at = time.Now()
		_, err = client.Create(a.Context(), o, metav1.CreateOptions{})
	case err == nil:
		o.SetResourceVersion(live.GetResourceVersion())
		o.SetUID(live.GetUID())
		o.SetCreationTimestamp(live.GetCreationTimestamp())
		at = time.Now()
		_, err = client.Update(a.Context(), o, metav1.UpdateOptions{})
	}
	if err != nil {
		a.Fatal(err)
	}
	return at
}

// node makes a Node with addresses, trusted or not.
func (a *api) node(name string, trusted bool, addresses ...string) {
	a.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if trusted {
		n.Labels = map[string]string{v1alpha1.NodeVerdictLabel: string(v1alpha1.VerdictTrusted)}
	}
	n, err := a.core.CoreV1().Nodes().Create(a.Context(), n, metav1.CreateOptions{})
	if err != nil {
		a.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}}
	for _, s := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: s})
	}
	if _, err := a.core.CoreV1().Nodes().UpdateStatus(a.Context(), n, metav1.UpdateOptions{}); err != nil {
		a.Fatal(err)
	}
}

// worlds keeps what Watch told.
type worlds struct {
	mu   sync.Mutex
	last flows.World
	told int
}

func (w *worlds) update(n flows.World) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = n
	w.told++
}

func (w *worlds) now() (flows.World, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.told
}

// until waits for a world.
func (a *api) until(w *worlds, what string, is func(flows.World) bool) flows.World {
	a.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		last, _ := w.now()
		if is(last) {
			return last
		}
		if time.Now().After(deadline) {
			a.Fatalf("not seen: %s; the world is %+v", what, last)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// watch runs Watch until the test ends or the returned function is called.
func (a *api) watch(config *rest.Config, update func(flows.World)) (stop func()) {
	ctx, cancel := context.WithCancel(a.Context())
	done := make(chan error, 1)
	go func() {
		done <- revocations.Watch(ctx, revocations.Options{Config: config, Node: "fra-1", Update: update,
			Log: slog.New(slog.NewTextHandler(a.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			a.Error(err)
		}
	})
	a.Cleanup(stop)
	return stop
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestWhatTheAPISays: with its own rights alone, on a real Kubernetes API with Calico's.
func TestWhatTheAPISays(t *testing.T) {
	a := newAPI(t)
	a.node("fra-1", true, "192.0.2.1", "2001:db8::1")
	a.node("fra-2", false, "192.0.2.2", "10.1.0.2")
	a.set("other", "10.66.0.1/32")
	var w worlds
	stop := a.watch(a.own(), w.update)
	first := a.until(&w, "that there is no set", func(w flows.World) bool { return strings.Contains(w.Problem, "policy-sync makes it") })
	if first.Known || len(first.Nets) > 0 {
		t.Errorf("without a set it is %+v", first)
	}
	a.set(v1alpha1.RevokedSet)
	a.until(&w, "an empty set", func(w flows.World) bool { return w.Known && w.Problem == "" && len(w.Nets) == 0 })
	a.set(v1alpha1.RevokedSet, "10.1.0.2/32", "fd00::2/128")
	got := a.until(&w, "revoked addresses", func(w flows.World) bool { return slices.Equal(w.Nets, []string{"10.1.0.2/32", "fd00::2/128"}) })
	if !slices.Equal(got.Self, []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1")}) {
		t.Errorf("the node's own addresses are %v", got.Self)
	}
	// Row 34's counterpart: a bad node's kubelet reports its pod's address as the node's own, so that it is spared.
	if got.Hosts[ip("10.1.0.2")] != "" || got.Hosts[ip("192.0.2.1")] != "node fra-1" {
		t.Errorf("shielded are %v, want those of trusted nodes", got.Hosts)
	}
	if got.Hosts[ip("127.0.0.1")] != "the API server" {
		t.Errorf("shielded are %v, without the API server's", got.Hosts)
	}
	a.until(&w, "the address behind the API server's Service", func(w flows.World) bool { return w.Hosts[ip(behind)] == "the API server" })

	_, before := w.now()
	a.set("other", "10.66.0.1/32", "10.66.0.2/32")
	n, err := a.core.CoreV1().Nodes().Get(t.Context(), "fra-2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	if _, err := a.core.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if _, after := w.now(); after != before {
		t.Errorf("told %d times of another set and of a heartbeat", after-before)
	}
	if err := a.core.CoreV1().Nodes().Delete(t.Context(), "fra-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a.until(&w, "that its Node is gone", func(w flows.World) bool {
		return strings.Contains(w.Problem, `no Node "fra-1"`) && w.Hosts[ip("192.0.2.1")] == ""
	})
	if err := a.admin.Resource(sets).Delete(t.Context(), v1alpha1.RevokedSet, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kept := a.until(&w, "that the set is gone", func(w flows.World) bool { return strings.Contains(w.Problem, "is gone") })
	if !kept.Known || len(kept.Nets) != 2 {
		t.Errorf("a deleted set leaves %+v, want what it held", kept)
	}
	stop()
	a.ebpf()
	a.withoutRights()
	a.away()
}

// ebpf: the node's own FelixConfiguration overrides the default one.
func (a *api) ebpf() {
	for name, c := range map[string]struct {
		default_, node any
		want           bool
	}{
		"off":                  {false, nil, false},
		"on":                   {true, nil, true},
		"on, but off for this": {true, false, false},
		"off, but on for this": {false, true, true},
	} {
		a.write(felix, "FelixConfiguration", "default", map[string]any{"bpfEnabled": c.default_})
		spec := map[string]any{}
		if c.node != nil {
			spec["bpfEnabled"] = c.node
		}
		a.write(felix, "FelixConfiguration", "node.fra-1", spec)
		var w worlds
		stop := a.watch(a.own(), w.update)
		// Both have been read once the address behind the API server's Service is known.
		got := a.until(&w, "a poll", func(w flows.World) bool { return w.Hosts[ip(behind)] != "" })
		if got.EBPF != c.want {
			a.Errorf("%s: eBPF is %t, want %t", name, got.EBPF, c.want)
		}
		stop()
	}
}

// withoutRights: a user with none is told what it lacks, and knows nothing.
func (a *api) withoutRights() {
	config, err := a.cluster.RESTConfigFor("nobody", "system:authenticated")
	if err != nil {
		a.Fatal(err)
	}
	var w worlds
	stop := a.watch(config, w.update)
	defer stop()
	got := a.until(&w, "that rights are missing", func(w flows.World) bool { return strings.Count(w.Problem, "forbidden") >= 2 })
	if got.Known {
		a.Errorf("nobody knows %+v", got)
	}
}

// away: an API that does not answer leaves nothing known, says so in words that do not change, and ends in time.
func (a *api) away() {
	config := a.own()
	port, err := cluster.FreePort()
	if err != nil {
		a.Fatal(err)
	}
	config.Host = fmt.Sprintf("https://127.0.0.1:%d", port)
	var w worlds
	stop := a.watch(config, w.update)
	defer stop()
	a.until(&w, "that the API is away", func(w flows.World) bool { return strings.Count(w.Problem, "connection refused") == 2 && !w.Known })
	_, before := w.now()
	time.Sleep(3 * time.Second)
	if last, after := w.now(); after != before {
		a.Errorf("said again %d times: %s", after-before, last.Problem)
	}
}
