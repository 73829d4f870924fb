// Package attestors compares the workload attestor with SPIRE's own for Kubernetes (spire, workloadattestor/k8s) on one machine, and a
// first attestation with cosign's verification of the same image. It is a module of its own, so that nothing of the project depends
// on a peer.
//
// The processes are real and are in cgroups of their own, named as a kubelet and containerd name them. The kubelet's list of pods,
// the container runtime's answers, the Kubernetes API and the registry come from servers of the test, so both sides are spared what
// the real ones take to answer.
package attestors

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/hashicorp/go-hclog"
	"github.com/sigstore/cosign/v3/pkg/cosign"
	ociremote "github.com/sigstore/cosign/v3/pkg/oci/remote"
	"github.com/sigstore/sigstore/pkg/signature"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"github.com/spiffe/spire/pkg/agent/plugin/workloadattestor/k8s"

	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/runtime/runtimetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadplugin"
)

// node is a node with pods of one container each.
type node struct {
	b    *testing.B
	dir  string
	pods []runtimetest.Pod
	pids []int32

	image    name.Digest
	key      crypto.Signer
	kubelet  int // port
	insecure string
}

func check(b *testing.B, errs ...error) {
	b.Helper()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}

func newNode(b *testing.B, pods int) *node {
	b.Helper()
	dir, err := os.MkdirTemp("", "keelson-bench-") // b.TempDir is too long for a Unix socket
	check(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{b: b, dir: dir}
	config := n.startRegistry()
	server, stop, err := runtimetest.Serve(filepath.Join(dir, "cri.sock"))
	check(b, err)
	b.Cleanup(stop)
	for i := range pods {
		uid := fmt.Sprintf("%08x-2222-3333-4444-555555555555", i)
		id := fmt.Sprintf("%064x", 0x1000+i)
		p := runtimetest.Pod{
			Namespace: "payments", Name: fmt.Sprintf("api-%d", i), UID: uid, Container: "main", ContainerID: id, SandboxID: fmt.Sprintf("%064x", 0x2000+i),
			ImageID: config, ImageRef: n.image.Name(), Image: n.image.Context().Name() + ":v1", Hardened: true,
			CgroupsPath: fmt.Sprintf("/keelson-bench-%d/kubepods/pod%s/%s", os.Getpid(), uid, id),
		}
		check(b, server.Add(p))
		n.pods, n.pids = append(n.pods, p), append(n.pids, n.process(p.CgroupsPath))
	}
	n.startKubelet()
	n.startAPI()
	return n
}

// process starts a process in a cgroup.
func (n *node) process(cgroup string) int32 {
	n.b.Helper()
	command := exec.Command("sleep", "3600")
	check(n.b, command.Start())
	folders, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // version 1: a folder for each hierarchy
	check(n.b, err)
	roots := []string{"/sys/fs/cgroup"}
	if len(folders) > 0 && filepath.Base(filepath.Dir(folders[0])) != "init.scope" {
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil {
			roots = []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/pids"}
		}
	}
	var made []string
	for _, root := range roots {
		dir := filepath.Join(root, cgroup)
		check(n.b, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "%d", command.Process.Pid), 0o600))
		for ; dir != root; dir = filepath.Dir(dir) {
			made = append(made, dir)
		}
	}
	n.b.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // it was killed
		for range 50 {
			left := false
			for _, dir := range made {
				if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
					left = true // another pod's process is in a folder above, or the kernel has not noticed the end of this one
				}
			}
			if !left {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	return int32(command.Process.Pid)
}

func (n *node) startRegistry() (config string) {
	n.b.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	n.b.Cleanup(server.Close)
	n.insecure = strings.TrimPrefix(server.URL, "http://")
	img, err1 := random.Image(64, 1)
	repository, err2 := name.NewRepository(n.insecure+"/payments/api", name.Insecure)
	check(n.b, err1, err2)
	manifest, err1 := img.Digest()
	id, err2 := img.ConfigName()
	key, public, err3 := imagetest.NewKey()
	check(n.b, err1, err2, err3, remote.Write(repository.Tag("v1"), img))
	check(n.b, imagetest.Sign(n.b.Context(), repository.Name(), manifest.String(), key, name.Insecure), os.WriteFile(filepath.Join(n.dir, "release.pub"), public, 0o600))
	n.image, n.key = repository.Digest(manifest.String()), key
	return id.String()
}

// spec is a pod as the API and the kubelet have it. Real ones have some ten environment variables and mounts, and conditions.
func (n *node) spec(p runtimetest.Pod) map[string]any {
	env := []any{}
	for i := range 30 {
		env = append(env, map[string]any{"name": fmt.Sprintf("VARIABLE_%d", i), "value": strings.Repeat("v", 40)})
	}
	return map[string]any{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": map[string]any{"namespace": p.Namespace, "name": p.Name, "uid": p.UID, "labels": map[string]any{"app": "api", "pod-template-hash": "5f9c"},
			"ownerReferences": []any{map[string]any{"kind": "ReplicaSet", "name": "api", "uid": "x", "apiVersion": "apps/v1"}}},
		"spec": map[string]any{"nodeName": "fra-1", "serviceAccountName": "api", "containers": []any{map[string]any{
			"name": "main", "image": p.Image, "env": env, "securityContext": map[string]any{"allowPrivilegeEscalation": false, "runAsNonRoot": true,
				"capabilities": map[string]any{"drop": []string{"ALL"}}, "seccompProfile": map[string]any{"type": "RuntimeDefault"}}}}},
		"status": map[string]any{"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": []any{map[string]any{
			"name": "main", "ready": true, "started": true, "image": p.Image, "imageID": p.ImageRef, "containerID": "containerd://" + p.ContainerID,
			"state": map[string]any{"running": map[string]any{"startedAt": "2026-11-29T00:00:00Z"}}}}},
	}
}

func (n *node) startKubelet() {
	n.b.Helper()
	items := []any{}
	for _, p := range n.pods {
		items = append(items, n.spec(p))
	}
	raw, err := json.Marshal(map[string]any{"kind": "PodList", "apiVersion": "v1", "items": items})
	check(n.b, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw) }))
	n.b.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	check(n.b, err)
	_, err = fmt.Sscan(u.Port(), &n.kubelet)
	check(n.b, err)
}

func (n *node) startAPI() {
	n.b.Helper()
	objects := map[string][]byte{}
	for _, p := range n.pods {
		raw, err := json.Marshal(n.spec(p))
		check(n.b, err)
		objects["/api/v1/namespaces/payments/pods/"+p.Name] = raw
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(objects[r.URL.Path])
	}))
	n.b.Cleanup(server.Close)
	check(n.b, os.WriteFile(filepath.Join(n.dir, "kubeconfig"), fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
		"clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"token":"t"}}]}`, server.URL), 0o600))
}

// attestor is either side.
type attestor interface {
	Attest(ctx context.Context, req *workloadattestorv1.AttestRequest) (*workloadattestorv1.AttestResponse, error)
	Configure(ctx context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error)
}

func (n *node) configure(a attestor, hcl string) {
	n.b.Helper()
	_, err := a.Configure(n.b.Context(), &configv1.ConfigureRequest{CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: hcl})
	check(n.b, err)
}

func (n *node) ours() *workloadplugin.Plugin {
	p := workloadplugin.New(time.Now)
	p.SetLogger(hclog.NewNullLogger())
	n.b.Cleanup(func() { _ = p.Close() })
	n.configure(p, n.hcl())
	return p
}

func (n *node) hcl() string {
	return fmt.Sprintf("node_name = \"fra-1\"\ncri_socket = %q\nkubeconfig = %q\ninsecure_registries = [%q]\nverifiers \"release-key\" { public_key_path = %q }\n",
		filepath.Join(n.dir, "cri.sock"), filepath.Join(n.dir, "kubeconfig"), n.insecure, filepath.Join(n.dir, "release.pub"))
}

func (n *node) theirs() *k8s.Plugin {
	p := k8s.New()
	p.SetLogger(hclog.NewNullLogger())
	n.b.Cleanup(func() { _ = p.Close() })
	n.configure(p, fmt.Sprintf("kubelet_read_only_port = %d\nnode_name = \"127.0.0.1\"\n", n.kubelet))
	return p
}

// once attests one process, which has to have a selector.
func (n *node) once(a attestor, i int, want string) time.Duration {
	begun := time.Now()
	got, err := a.Attest(n.b.Context(), &workloadattestorv1.AttestRequest{Pid: n.pids[i%len(n.pids)]})
	took := time.Since(begun)
	if err != nil || !slices.Contains(got.GetSelectorValues(), want) {
		n.b.Fatalf("%v, want %s, %v", got.GetSelectorValues(), want, err)
	}
	return took
}

const signed, namespace = "signed-by:release-key", "ns:payments"

func quantile(times []time.Duration, q float64) float64 {
	slices.Sort(times)
	return float64(times[int(q*float64(len(times)-1))].Nanoseconds()) / 1000
}

// BenchmarkWarm attests processes of 5 and 50 pods, ours and SPIRE's in turns, and asks our CRI questions alone. SPIRE's attestor asks
// the kubelet for all pods at most once in half a second (poll_retry_interval): "apart" leaves that much between attestations, as they
// come on a quiet node, and "in-a-row" does not.
func BenchmarkWarm(b *testing.B) {
	for _, pods := range []int{5, 50} {
		for _, apart := range []time.Duration{0, 510 * time.Millisecond} {
			b.Run(fmt.Sprintf("pods=%d/%s", pods, map[bool]string{true: "in-a-row", false: "apart"}[apart == 0]), func(b *testing.B) {
				n := newNode(b, pods)
				ours, theirs := n.ours(), n.theirs()
				client, err := runtime.Dial(filepath.Join(n.dir, "cri.sock"), time.Second)
				check(b, err)
				defer func() { _ = client.Close() }()
				for i := range pods {
					n.once(ours, i, signed)
				}
				var mine, spires, cri []time.Duration
				for i := 0; b.Loop(); i++ {
					time.Sleep(apart)
					spires = append(spires, n.once(theirs, i, namespace))
					mine = append(mine, n.once(ours, i, signed))
					begun := time.Now()
					_, err := client.Container(b.Context(), n.pods[i%pods].ContainerID)
					cri = append(cri, time.Since(begun))
					check(b, err)
				}
				b.ReportMetric(quantile(mine, 0.5), "ours-p50-µs")
				b.ReportMetric(quantile(mine, 0.99), "ours-p99-µs")
				b.ReportMetric(quantile(spires, 0.5), "SPIRE-p50-µs")
				b.ReportMetric(quantile(spires, 0.99), "SPIRE-p99-µs")
				b.ReportMetric(quantile(spires, 0.5)/quantile(mine, 0.5), "x-faster")
				b.ReportMetric(quantile(mine, 0.5)/quantile(cri, 0.5), "x-CRI")
			})
		}
	}
}

// BenchmarkCold is an attestation by a plugin that knows nothing of the image yet, and cosign's verification of the same image
// by the same key, in turns.
func BenchmarkCold(b *testing.B) {
	n := newNode(b, 1)
	verifier, err := signature.LoadVerifier(n.key.Public(), crypto.SHA256)
	check(b, err)
	ours := n.ours()
	var mine, cosigns []time.Duration
	for b.Loop() {
		n.configure(ours, n.hcl()) // a new configuration knows nothing
		mine = append(mine, n.once(ours, 0, signed))
		begun := time.Now()
		connects := remote.WithTransport(http.DefaultTransport.(*http.Transport).Clone()) // as each run of cosign does
		found, _, err := cosign.VerifyImageSignatures(b.Context(), n.image, &cosign.CheckOpts{SigVerifier: verifier, IgnoreTlog: true,
			ClaimVerifier: cosign.SimpleClaimVerifier, RegistryClientOpts: []ociremote.Option{ociremote.WithRemoteOptions(connects)}})
		cosigns = append(cosigns, time.Since(begun))
		if err != nil || len(found) != 1 {
			b.Fatalf("cosign: %d signatures, %v", len(found), err)
		}
	}
	b.ReportMetric(quantile(mine, 0.5), "ours-p50-µs")
	b.ReportMetric(quantile(cosigns, 0.5), "cosign-p50-µs")
	b.ReportMetric(quantile(mine, 0.5)/quantile(cosigns, 0.5), "x-cosign")
}
