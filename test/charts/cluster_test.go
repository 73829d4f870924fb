package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster"
)

const (
	trustDomain    = "keelson.test"
	policySyncUser = "system:serviceaccount:keelson-system:keelson-policy-sync"
	spireUser      = "system:serviceaccount:spire-server:spire-server"
)

// world is a real Kubernetes API with Calico's and Istio's, a real SPIRE server, and policy-sync's program.
type world struct {
	t       *testing.T
	cluster *cluster.Cluster
	api     client.Client // the administrator
	spire   *cluster.SpireServer
	dir     string
	binary  string
	sync    *cluster.Process
	job     types.UID // of the last cleanup
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "keelson-charts-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, dir: dir, binary: filepath.Join(dir, "keelson-policy-sync"), cluster: cluster.ForTest(t, cluster.Options{Calico: true, IstioCRDs: true})}
	ctrllog.SetLogger(logr.Discard()) // warnings of the API, which the test provokes
	scheme := runtime.NewScheme()
	w.must(clientscheme.AddToScheme(scheme))
	w.must(v1alpha1.AddToScheme(scheme))
	w.api, err = client.New(w.cluster.RESTConfig(), client.Options{Scheme: scheme})
	w.must(err)
	w.spire, err = cluster.StartSpireServer(t.Context(), w.cluster.Group(), cluster.SpireServerOptions{Dir: dir, Log: t.Output(), TrustDomain: trustDomain,
		Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}}})
	w.must(err)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", w.binary, "./cmd/keelson-policy-sync")
	build.Dir = "../.." // the product's own module, with the versions that it ships
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// eventually fails the test when check does not hold within a time that is generous to a busy machine.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

func (w *world) get(namespace, name string, o client.Object) error {
	return w.api.Get(w.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o)
}

// namespaces makes the namespaces that the README tells an administrator to make, and SPIRE's, in a cluster that has a node.
func (w *world) namespaces() {
	w.t.Helper()
	w.must(w.cluster.Apply(w.t.Context(), []byte(`
apiVersion: v1
kind: Namespace
metadata: {name: keelson-system, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Namespace
metadata: {name: keelson-node, labels: {pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: v1
kind: Namespace
metadata: {name: spire-server}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: spire-server}
---
apiVersion: v1
kind: Node
metadata: {name: old-1}
`)))
}

// installed are the values of this cluster.
func (w *world) installed(more ...string) map[string]any {
	return parse(w.t, append([]string{minimal, `
policySync: {config: {trustDomain: ` + trustDomain + `, calico: required, istio: required, resync: 1s, leaderElection: {leaseDuration: 4s}}}
guards: {calicoAPIServerUsers: ["` + cluster.CalicoAPIServerUser + `"]}
networkPolicy: {enabled: true}
dashboard: {enabled: true}
`}, more...)...)
}

// start runs policy-sync as its service account with the configuration that the chart made, as a pod of it would but for the
// ways to reach the servers.
func (w *world) start() {
	w.t.Helper()
	var err error
	w.sync, err = w.cluster.Group().Start(cluster.Command{Name: "policy-sync", Path: w.binary, Args: []string{"--config", w.config()}})
	w.must(err)
}

func (w *world) config() string {
	w.t.Helper()
	o := &corev1.ConfigMap{}
	w.must(w.get(namespace, "keelson-policy-sync", o))
	c := map[string]any{}
	w.must(yaml.Unmarshal([]byte(o.Data["policy-sync.yaml"]), &c))
	kubeconfig, err := w.cluster.KubeconfigFor(policySyncUser, "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	w.must(err)
	c["kubeconfig"], c["spire"], c["listen"] = kubeconfig, map[string]any{"socket": w.spire.Socket}, map[string]any{"metrics": "0", "health": "0"}
	text, err := yaml.Marshal(c)
	w.must(err)
	path := filepath.Join(w.dir, "policy-sync.yaml")
	w.must(os.WriteFile(path, text, 0o600))
	return path
}

// inventory lists every object of the cluster that can be listed, but for what changes by itself.
func (w *world) inventory() []string {
	w.t.Helper()
	disco, err := discovery.NewDiscoveryClientForConfig(w.cluster.RESTConfig())
	w.must(err)
	lists, err := disco.ServerPreferredResources()
	w.must(err)
	var out []string
	for _, l := range lists {
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") || slices.Contains([]string{"Event", "APIService", "Profile"}, r.Kind) { // a Profile is how Calico shows a namespace or an account
				continue
			}
			list := &unstructured.UnstructuredList{}
			list.SetAPIVersion(l.GroupVersion)
			list.SetKind(r.Kind + "List")
			if err := w.api.List(w.t.Context(), list); apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			} else if err != nil {
				w.t.Fatalf("%s %s: %v", l.GroupVersion, r.Kind, err)
			}
			for i := range list.Items {
				o := &list.Items[i]
				o.SetAPIVersion(l.GroupVersion)
				o.SetKind(r.Kind)
				if r.Kind != "Lease" || o.GetNamespace() != "kube-system" { // the API server's own comes and goes
					out = append(out, id(o))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
