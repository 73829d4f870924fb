package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const trustDomain = "keelson.test"

// world is a real Kubernetes API with Calico's and Istio's, a real SPIRE server, and the policy-sync binary.
type world struct {
	t       *testing.T
	cluster *cluster.Cluster
	api     client.Client // the administrator
	// verifier is the SPIRE server's account, which writes verdicts.
	verifier client.Client
	dir      string
	spire    *cluster.SpireServer
	binary   string
	config   string
	text     string // of the configuration, listen addresses apart
	metrics  string // URL of the last start
	health   string
	sync     *cluster.Process
	starts   int
	// imageID is what the kubelet would report of a good image.
	imageID string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "keelson-ps-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, dir: dir, cluster: cluster.ForTest(t, cluster.Options{Calico: true, IstioCRDs: true})}
	scheme, err := kube.Scheme()
	w.must(err)
	w.api, err = client.New(w.cluster.RESTConfig(), client.Options{Scheme: scheme})
	w.must(err)
	w.startSPIRE()
	w.build()
	w.install()
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) startSPIRE() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Minute)
	defer cancel()
	var err error
	w.spire, err = cluster.StartSpireServer(ctx, w.cluster.Group(), cluster.SpireServerOptions{
		Dir: w.dir, Log: w.t.Output(), TrustDomain: trustDomain, Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}},
	})
	w.must(err)
}

// build compiles the program, an image in an OCI layout, and writes the configuration.
func (w *world) build() {
	w.t.Helper()
	w.binary = filepath.Join(w.dir, "keelson-policy-sync")
	if out, err := exec.CommandContext(w.t.Context(), "go", "build", "-o", w.binary, ".").CombinedOutput(); err != nil {
		w.t.Fatalf("go build: %v\n%s", err, out)
	}
	layout := filepath.Join(w.dir, "layout")
	img, err := random.Image(64, 1)
	w.must(err)
	w.must(imagetest.AddToLayout(layout, "registry.test/payments/api:1", img))
	config, err := img.ConfigName()
	w.must(err)
	manifest, err := img.Digest()
	w.must(err)
	w.imageID = config.String()
	kubeconfig, err := w.cluster.KubeconfigFor(policySyncUser, "system:authenticated")
	w.must(err)
	w.config = filepath.Join(w.dir, "policy-sync.yaml")
	w.text = fmt.Sprintf(`
kubeconfig: %s
trustDomain: %s
x509SVIDTTL: 20s
spire: {socket: %s, timeout: 2s}
calico: required
istio: required
resync: 1s
taintExisting: true # the first Nodes may be there before the API server acts on the guard that taints new ones
images:
  recheck: 1s
  ociLayouts: [%s]
  verifiers:
  - name: release
    manifests: ["%s"]
leaderElection: {leaseDuration: 4s}
`, kubeconfig, trustDomain, w.spire.Socket, layout, manifest)
}

// install applies what the program says it needs, and gives it a user that has no other rights.
func (w *world) install() {
	w.t.Helper()
	w.must(w.cluster.Apply(w.t.Context(), []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: keelson-system}\n")))
	out, err := exec.CommandContext(w.t.Context(), w.binary, "manifests", "--calico-apiserver", cluster.CalicoAPIServerUser,
		"--spire-server", spireUser).Output()
	w.must(err)
	w.must(w.cluster.Apply(w.t.Context(), out))
	cfg, err := w.cluster.RESTConfigFor(spireUser, "system:authenticated")
	w.must(err)
	w.verifier, err = client.New(cfg, client.Options{Scheme: w.api.Scheme()})
	w.must(err)
	w.must(w.cluster.Apply(w.t.Context(), []byte(spireRights)))
}

const (
	policySyncUser = "system:serviceaccount:keelson-system:keelson-policy-sync"
	spireUser      = "system:serviceaccount:spire:spire-server"
	spireRights    = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nodetrusts}
rules: [{apiGroups: [trust.keelson.io], resources: [nodetrusts], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodetrusts}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nodetrusts}
subjects: [{kind: User, name: "` + spireUser + `"}]
`
)

func (w *world) start() {
	w.t.Helper()
	w.starts++
	var ports [2]int
	for i := range ports {
		port, err := cluster.FreePort()
		w.must(err)
		ports[i] = port
	}
	w.metrics, w.health = fmt.Sprintf("http://127.0.0.1:%d/metrics", ports[0]), fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[1])
	w.must(os.WriteFile(w.config, fmt.Appendf(nil, "%slisten: {metrics: '127.0.0.1:%d', health: '127.0.0.1:%d'}\n", w.text, ports[0], ports[1]), 0o600))
	var err error
	w.sync, err = w.cluster.Group().Start(cluster.Command{Name: fmt.Sprintf("policy-sync-%d", w.starts), Path: w.binary,
		Args: []string{"--config", w.config, "--log-level", "debug"}})
	w.must(err)
}

// eventually fails the test when check does not hold within a time that is generous to a busy machine, and returns how long
// it took.
func (w *world) eventually(what string, check func() error) time.Duration {
	w.t.Helper()
	begun := time.Now()
	var err error
	for time.Since(begun) < 60*time.Second {
		if err = check(); err == nil {
			took := time.Since(begun)
			w.t.Logf("%s: after %s", what, took.Round(time.Millisecond))
			return took
		}
		select {
		case <-w.sync.Done():
			w.t.Fatalf("policy-sync ended:\n%s", w.sync.Tail(4))
		case <-time.After(5 * time.Millisecond):
		}
	}
	w.t.Fatalf("%s: %v\n%s", what, err, w.sync.Tail(4))
	return 0
}

// createOne creates an object. An API server that was just given the guards may hold a Node to the
// taint before it has begun to add that taint itself: its admission policies take effect one by one.
func (w *world) createOne(writer client.Client, o client.Object) error {
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := writer.Create(w.t.Context(), o)
		_, isNode := o.(*corev1.Node)
		if err == nil || !isNode || !strings.Contains(err.Error(), "keelson-node-taint") || time.Since(begun) > 30*time.Second {
			return err
		}
	}
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		status, _ := o.DeepCopyObject().(client.Object)
		writer := w.api
		if trust, ok := o.(*v1alpha1.NodeTrust); ok {
			writer = w.verifier
			live := &corev1.Node{} // whose UID the verifier writes down
			w.must(w.api.Get(w.t.Context(), client.ObjectKey{Name: trust.Name}, live))
			trust.Spec.NodeUID = string(live.UID)
		}
		if err := w.createOne(writer, o); err != nil {
			w.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
		}
		if pod, ok := status.(*corev1.Pod); ok { // creation drops the status that a kubelet reports
			pod.ResourceVersion = o.GetResourceVersion()
			live, _ := o.(*corev1.Pod)
			live.Status = pod.Status
			w.must(w.api.Status().Update(w.t.Context(), live))
		}
	}
}

func (w *world) namespace(name, mode string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.ModeLabel: mode}}}
}

func node(name, podCIDR string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}}}
}

func (w *world) pod(namespace, name, sa, nodeName, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{NodeName: nodeName, ServiceAccountName: sa,
			Containers: []corev1.Container{{Name: "main", Image: "registry.test/payments/api:1", SecurityContext: snapshottest.Hardened()}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Image: "registry.test/payments/api:1", ImageID: w.imageID, Ready: true}}},
	}
}

// ek is a made-up endorsement key's hash.
func ek(nodeName string) string {
	return strings.Repeat(fmt.Sprintf("%02x", len(nodeName)), 31) + fmt.Sprintf("%02x", nodeName[0])
}

func trusted(nodeName string, valid time.Duration, tags map[string]string) *v1alpha1.NodeTrust {
	now := time.Now()
	return &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: v1alpha1.NodeTrustSpec{
		Verdict: v1alpha1.VerdictTrusted, Reference: "prod", Tags: tags, EKHash: ek(nodeName),
		AgentID:    "spiffe://" + trustDomain + "/spire/agent/keelson_tpm/" + ek(nodeName),
		AttestedAt: metav1.NewMicroTime(now), ValidUntil: metav1.NewMicroTime(now.Add(valid))}}
}

// verdict updates a node's NodeTrust as the SPIRE server's plugin would.
func (w *world) verdict(nodeName string, change func(*v1alpha1.NodeTrustSpec)) {
	w.t.Helper()
	// policy-sync writes the status of the same object.
	w.must(retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		o := &v1alpha1.NodeTrust{}
		if err := w.verifier.Get(w.t.Context(), client.ObjectKey{Name: nodeName}, o); err != nil {
			return err
		}
		o.Spec.AttestedAt = metav1.NewMicroTime(time.Now())
		o.Spec.ValidUntil = metav1.NewMicroTime(time.Now().Add(time.Hour))
		change(&o.Spec)
		return w.verifier.Update(w.t.Context(), o)
	}))
}

func bad(s *v1alpha1.NodeTrustSpec) {
	s.Verdict, s.Reference = v1alpha1.VerdictUntrusted, ""
	s.Reasons = []v1alpha1.Reason{{Check: "ima.file", Reason: "a file was run that reference set prod does not know"}}
}

func good(s *v1alpha1.NodeTrustSpec) {
	s.Verdict, s.Reference, s.Reasons = v1alpha1.VerdictTrusted, "prod", nil
}

// bears checks a node's label and taint.
func (w *world) bears(nodeName string, trustedNow bool) func() error {
	return func() error {
		n := &corev1.Node{}
		if err := w.api.Get(w.t.Context(), client.ObjectKey{Name: nodeName}, n); err != nil {
			return err
		}
		label := n.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted)
		taint := false
		for _, t := range n.Spec.Taints {
			taint = taint || t.Key == v1alpha1.UntrustedTaint
		}
		if label != trustedNow || taint == trustedNow {
			return fmt.Errorf("node %s: trusted label %t, taint %t, want trusted %t", nodeName, label, taint, trustedNow)
		}
		return nil
	}
}

// attested checks a pod's trust label.
func (w *world) attested(namespace, name string, want bool) func() error {
	return func() error {
		p := &corev1.Pod{}
		if err := w.api.Get(w.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
			return err
		}
		if got := p.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True; got != want {
			return fmt.Errorf("pod %s/%s: attested %t, want %t; labels %v", namespace, name, got, want, p.Labels)
		}
		return nil
	}
}

// programmed checks a policy's condition and, when it is not empty, its count of attested pods.
func (w *world) programmed(namespace, name string, want metav1.ConditionStatus, attested int32) func() error {
	return func() error {
		p := &v1alpha1.TrustPolicy{}
		if err := w.api.Get(w.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionProgrammed && c.Status == want && p.Status.Attested == attested {
				return nil
			}
		}
		return fmt.Errorf("policy %s/%s: status %+v", namespace, name, p.Status)
	}
}

// kinds are what policy-sync writes or looks at, and what it could touch by mistake.
func kinds() []schema.GroupVersionKind {
	out := []schema.GroupVersionKind{
		{Version: "v1", Kind: "Node"}, {Version: "v1", Kind: "Pod"}, {Version: "v1", Kind: "Namespace"},
		{Group: "events.k8s.io", Version: "v1", Kind: "Event"},
		v1alpha1.GroupVersion.WithKind("TrustPolicy"), v1alpha1.GroupVersion.WithKind("NodeTrust"),
	}
	for _, k := range snapshot.Kinds(snapshot.Config{Calico: true, Istio: true}) {
		out = append(out, k.GroupVersionKind)
	}
	return out
}

// versions is the resourceVersion of every object; two equal ones mean that nothing was written in between.
func (w *world) versions() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, k := range kinds() {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind + "List"})
		w.must(w.api.List(w.t.Context(), list))
		for _, o := range list.Items {
			version := o.GetResourceVersion()
			switch {
			case k.Kind == "Event" && o.GetNamespace() == "keelson-system":
				continue // who leads
			case k.Kind == "Event":
				version = "there" // the recorder counts repetitions when it likes
			}
			out[k.Kind+" "+o.GetNamespace()+"/"+o.GetName()] = version
		}
	}
	for _, e := range w.spireState().Entries {
		out["entry "+e.ID] = fmt.Sprint(e)
	}
	return out
}

// owned lists the objects that bear our owner label.
func (w *world) owned() []string {
	w.t.Helper()
	var out []string
	for _, k := range kinds() {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind + "List"})
		w.must(w.api.List(w.t.Context(), list, client.MatchingLabels{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}))
		for _, o := range list.Items {
			out = append(out, strings.TrimPrefix(k.Kind+" "+o.GetNamespace()+"/"+o.GetName(), "/"))
		}
	}
	return out
}

func (w *world) spireState() *snapshot.SPIRE {
	w.t.Helper()
	c, err := spireapi.Dial(w.t.Context(), spireapi.Options{TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain), Socket: w.spire.Socket})
	w.must(err)
	defer func() { w.must(c.Close()) }()
	state, err := c.Read(w.t.Context())
	w.must(err)
	return state
}
