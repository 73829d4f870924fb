package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

const (
	trustDomain    = "scale.test"
	policySyncUser = "system:serviceaccount:keelson-system:keelson-policy-sync"
	spireUser      = "system:serviceaccount:spire:spire-server"
	imageName      = "registry.test/team/app:1"
	// maxNodes is how many blocks of 256 addresses 10.0.0.0/8 has.
	maxNodes       = 1 << 16
	maxPodsPerNode = 240
	writers        = 24
)

// world is the API, what was put into it so far, and policy-sync.
type world struct {
	out      io.Writer
	dir      string
	cluster  *cluster.Cluster
	api      client.WithWatch
	verifier client.Client
	sync     *cluster.Process
	metrics  string
	manifest string   // its digest
	imageID  string   // as a kubelet reports it
	uids     []string // of the nodes, by number
	pods     int
	policies int
	rolled   int // how many pods have taken another's place
	started  time.Time
	grown    time.Time
	// generation counts the pods that each place has had.
	generation map[int]int
	homes      []home // of the pods, by number
}

func newWorld(ctx context.Context, out io.Writer) (*world, error) {
	dir, err := os.MkdirTemp("", "keelson-scale-")
	if err != nil {
		return nil, err
	}
	w := &world{out: out, dir: dir, generation: map[int]int{}}
	for _, step := range []func(context.Context) error{w.makeImage, w.startAPI, w.install} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, w.close(""))
		}
	}
	return w, nil
}

func (w *world) close(keepLog string) error {
	var err error
	if keepLog != "" && w.sync != nil {
		err = os.WriteFile(keepLog, []byte(w.sync.Tail(1_000_000)), 0o600)
	}
	if w.cluster != nil {
		err = errors.Join(err, w.cluster.Close())
	}
	return errors.Join(err, os.RemoveAll(w.dir))
}

func (w *world) say(format string, args ...any) { _, _ = fmt.Fprintf(w.out, format+"\n", args...) }

func (w *world) startAPI(ctx context.Context) error {
	c, err := cluster.Start(ctx, cluster.Options{Log: w.out, Calico: true, IstioCRDs: true,
		APIServerArgs: []string{"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"}})
	if err != nil {
		return err
	}
	w.cluster = c
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	config := c.RESTConfig()
	config.QPS = -1
	if w.api, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	config, err = c.RESTConfigFor(spireUser, "system:authenticated")
	if err != nil {
		return err
	}
	config.QPS = -1
	w.verifier, err = client.New(config, client.Options{Scheme: scheme})
	return err
}

// install builds policy-sync and applies what it says it needs.
func (w *world) install(ctx context.Context) error {
	binary := filepath.Join(w.dir, "keelson-policy-sync")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/keelson-project/keelson/cmd/keelson-policy-sync") // #nosec G204 -- fixed words
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	if err := w.cluster.Apply(ctx, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: keelson-system}\n")); err != nil {
		return err
	}
	manifests, err := exec.CommandContext(ctx, binary, "manifests", "--calico-apiserver", cluster.CalicoAPIServerUser,
		"--spire-server", spireUser).Output() // #nosec G204 -- our own program
	if err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	return w.cluster.Apply(ctx, manifests, []byte(spireRights))
}

const spireRights = `
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

// start starts policy-sync.
func (w *world) start(ctx context.Context) error {
	spire, err := cluster.StartSpireServer(ctx, w.cluster.Group(), cluster.SpireServerOptions{Dir: w.dir, Log: w.out,
		TrustDomain: trustDomain, Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}}})
	if err != nil {
		return err
	}
	kubeconfig, err := w.cluster.KubeconfigFor(policySyncUser, "system:authenticated")
	if err != nil {
		return err
	}
	port, err := cluster.FreePort()
	if err != nil {
		return err
	}
	w.metrics = fmt.Sprintf("http://127.0.0.1:%d/metrics", port)
	config := filepath.Join(w.dir, "policy-sync.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, configuration, kubeconfig, trustDomain, spire.Socket, w.layout(), w.manifest, port), 0o600); err != nil {
		return err
	}
	w.started = time.Now()
	w.sync, err = w.cluster.Group().Start(cluster.Command{Name: "policy-sync", Path: filepath.Join(w.dir, "keelson-policy-sync"),
		Args: []string{"--config", config}})
	return err
}

const configuration = `
kubeconfig: %s
trustDomain: %s
spire: {socket: %s, timeout: 10s}
calico: required
istio: required
resync: 5s
taintExisting: true
images:
  ociLayouts: [%s]
  verifiers:
  - name: release
    manifests: ["%s"]
listen: {metrics: '127.0.0.1:%d', health: "0"}
leaderElection: {enabled: false}
`

func (w *world) layout() string { return filepath.Join(w.dir, "layout") }

// makeImage makes the one image that all pods run.
func (w *world) makeImage(context.Context) error {
	img, err := random.Image(64, 1)
	if err != nil {
		return err
	}
	if err := imagetest.AddToLayout(w.layout(), imageName, img); err != nil {
		return err
	}
	manifest, err := img.Digest()
	if err != nil {
		return err
	}
	config, err := img.ConfigName()
	w.manifest, w.imageID = manifest.String(), config.String()
	return err
}

// grow adds what is missing to a size. The first size is there before policy-sync starts.
func (w *world) grow(ctx context.Context, s size, first bool) error {
	begun := time.Now()
	if first { // Istio's root namespace, where policies for the whole mesh stand
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}
		if err := w.api.Create(ctx, ns); err != nil {
			return err
		}
	}
	if err := w.growPolicies(ctx, s.policies); err != nil {
		return err
	}
	for len(w.uids) < s.nodes {
		w.uids = append(w.uids, "")
	}
	err := w.each(ctx, 0, s.nodes, func(ctx context.Context, i int) error {
		if w.uids[i] != "" {
			return nil
		}
		return w.createNode(ctx, i)
	})
	if err != nil {
		return err
	}
	w.place(s)
	err = w.each(ctx, w.pods, s.pods, func(ctx context.Context, i int) error { return w.createPod(ctx, w.pod(i, 0)) })
	if err != nil {
		return err
	}
	w.pods, w.grown = s.pods, time.Now()
	w.say("%s: made in %s", s, time.Since(begun).Round(time.Second))
	if first {
		return w.start(ctx)
	}
	return nil
}

// each calls f for the numbers in [from, to), side by side.
func (w *world) each(ctx context.Context, from, to int, f func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := from; i < to; i++ {
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}

func namespace(i int) string { return fmt.Sprintf("team-%04d", i) }

// growPolicies makes namespaces of two policies each: api, which web may call, and web.
func (w *world) growPolicies(ctx context.Context, n int) error {
	err := w.each(ctx, w.policies/2, n/2, func(ctx context.Context, i int) error {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace(i), Labels: map[string]string{v1alpha1.ModeLabel: v1alpha1.ModeEnforce}}}
		if err := w.retry(ctx, ns, func() error { return w.api.Create(ctx, ns) }); err != nil {
			return err
		}
		for _, account := range []string{"default", "api", "web"} {
			sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: account}}
			if err := w.retry(ctx, sa, func() error { return w.api.Create(ctx, sa) }); err != nil {
				return err
			}
		}
		for _, account := range []string{"api", "web"} {
			p := policy(ns.Name, account)
			if err := w.retry(ctx, p, func() error { return w.api.Create(ctx, p) }); err != nil {
				return err
			}
		}
		return nil
	})
	w.policies = n
	return err
}

func policy(namespace, account string) *v1alpha1.TrustPolicy {
	p := &v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	p.Spec.Workloads.ServiceAccount = account
	p.Spec.Require.Image.VerifiedBy = []string{"release"}
	if account == "api" {
		p.Spec.Ingress = []v1alpha1.IngressRule{{From: []v1alpha1.Peer{{ServiceAccount: "web"}}, Ports: []int32{8443}}}
	}
	return p
}

func block(i int) string { return fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255) }

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

// patience is for how long one object is tried again.
const patience = 3 * time.Minute

// retry creates an object, again where the API server had no time for it. Admission policies take effect
// one by one while the API server is new. One that is there already was created by a try without an answer.
func (w *world) retry(ctx context.Context, o client.Object, create func() error) error {
	for begun, tries := time.Now(), 0; ; tries++ {
		err := create()
		if tries > 0 && apierrors.IsAlreadyExists(err) {
			return w.api.Get(ctx, client.ObjectKeyFromObject(o), o)
		}
		busy := apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsInternalError(err)
		young := err != nil && strings.Contains(err.Error(), "keelson-node-taint")
		if err == nil || !busy && !young || time.Since(begun) > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (w *world) createNode(ctx context.Context, i int) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}, Spec: corev1.NodeSpec{PodCIDR: block(i), PodCIDRs: []string{block(i)}}}
	if err := w.retry(ctx, n, func() error { return w.api.Create(ctx, n) }); err != nil {
		return err
	}
	w.uids[i] = string(n.UID)
	trust := &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: n.Name}, Spec: w.trusted(i)}
	return w.retry(ctx, trust, func() error { return w.verifier.Create(ctx, trust) })
}

func (w *world) trusted(i int) v1alpha1.NodeTrustSpec {
	ek := fmt.Sprintf("%064x", i+1)
	now := time.Now()
	return v1alpha1.NodeTrustSpec{NodeUID: w.uids[i], Verdict: v1alpha1.VerdictTrusted, Reference: "prod", EKHash: ek,
		AgentID:    "spiffe://" + trustDomain + "/spire/agent/keelson_tpm/" + ek,
		AttestedAt: metav1.NewMicroTime(now), ValidUntil: metav1.NewMicroTime(now.Add(24 * time.Hour))}
}

// pod is the i-th pod; a generation after the first takes the place of the one before.
func (w *world) pod(i, generation int) *corev1.Pod {
	home := w.homes[i]
	node, slot, account := home.node, home.slot, home.account
	ip := fmt.Sprintf("10.%d.%d.%d", node>>8, node&255, slot+10)
	name := fmt.Sprintf("%s-%06d-%d", account, i, generation)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: home.namespace, Name: name},
		Spec: corev1.PodSpec{NodeName: nodeName(node), ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "main", Image: imageName}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Image: imageName, ImageID: w.imageID, Ready: true,
				ContainerID: fmt.Sprintf("containerd://%064x", i), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}}}},
	}
}

// createPod creates a pod and reports its status, as a kubelet would.
func (w *world) createPod(ctx context.Context, p *corev1.Pod) error {
	status := p.Status
	if err := w.retry(ctx, p, func() error { return w.api.Create(ctx, p) }); err != nil {
		return err
	}
	for range 5 {
		p.Status = status
		err := w.retry(ctx, p, func() error { return w.api.Status().Update(ctx, p) })
		if err == nil {
			return nil
		}
		if !strings.Contains(err.Error(), "modified") {
			return err
		}
		if err := w.api.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
	}
	return fmt.Errorf("pod %s: its status could not be written", p.Name)
}

// home is where a pod runs and for whom.
type home struct {
	namespace, account string
	node, slot         int
}

// place gives every pod up to the size a home: the emptiest node, and namespaces in turn.
func (w *world) place(s size) {
	used := make([]int, s.nodes)
	for _, h := range w.homes {
		used[h.node]++
	}
	namespaces := max(1, w.policies/2)
	node := 0
	for i := len(w.homes); i < s.pods; i++ {
		for most := (i + s.nodes) / s.nodes; used[node] >= most; {
			node = (node + 1) % s.nodes
		}
		w.homes = append(w.homes, home{namespace(i % namespaces), []string{"api", "web"}[(i/namespaces)%2], node, used[node]})
		used[node]++
		node = (node + 1) % s.nodes
	}
}

// podsOf is how many pods a node has.
func (w *world) podsOf(node int) int {
	n := 0
	for _, h := range w.homes {
		if h.node == node {
			n++
		}
	}
	return n
}
