package workloadattestor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadplugin"
)

const (
	uidOne   = "11111111-2222-3333-4444-555555555551"
	uidTwo   = "11111111-2222-3333-4444-555555555552"
	uidThree = "11111111-2222-3333-4444-555555555553"
	uidFour  = "11111111-2222-3333-4444-555555555554"
)

// machine is one machine with a containerd for each of two nodes.
type machine struct {
	t        *testing.T
	dir      string
	group    *cluster.Group
	registry *node.Registry
	nodes    []*node.Runtime
	api      string           // kubeconfig
	noReview atomic.Bool      // the API reviews no access
	spire    *grpc.ClientConn // the SPIRE server's API
	signed   node.Pushed
	unsigned node.Pushed
	layout   string // OCI layout that holds an image no registry has, with its signature
	imported imported
}

type imported struct{ reference, manifest, config string }

// TestRealContainerd runs the plugin against real containers: of two containerds on one machine, each attested by a plugin of its own.
func TestRealContainerd(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real containerd, which -short leaves out")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: containerd cannot run real containers without")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m := startMachine(ctx, t)
	m.startAPI()
	attestor := m.serve(0, "fra-1")
	other := m.serve(1, "par-1")

	t.Run("a signed image, pulled by tag", func(t *testing.T) {
		pod := m.run(ctx, 0, node.PodSpec{Namespace: "payments", Name: "api", UID: uidOne, Container: "main", Image: m.signed.Repository + ":latest"})
		want := ordinary("payments", "api", uidOne, m.signed.Manifest.String(), m.signed.Config.String())
		want = append(want, "sa:api-account", "signed-by:release-key")
		expect(ctx, t, attestor, m.pid(ctx, 0, pod.ContainerID), want)

		t.Run("another node's attestor refuses it", func(t *testing.T) {
			expect(ctx, t, other, m.pid(ctx, 0, pod.ContainerID), nil)
		})
		t.Run("its sandbox is no workload", func(t *testing.T) {
			expect(ctx, t, attestor, m.sandboxPID(ctx, 0, pod.SandboxID), nil)
		})
	})
	t.Run("an image without a signature, and a pod that the API does not have", func(t *testing.T) {
		pod := m.run(ctx, 1, node.PodSpec{Namespace: "shop", Name: "frontend", UID: uidTwo, Container: "main", Image: m.unsigned.Reference()})
		want := withoutSpec(ordinary("shop", "frontend", uidTwo, m.unsigned.Manifest.String(), m.unsigned.Config.String()))
		expect(ctx, t, other, m.pid(ctx, 1, pod.ContainerID), node2(want))
	})
	t.Run("privileged, with the host's namespaces", func(t *testing.T) {
		container := m.runPrivileged(ctx, 0)
		got := attest(ctx, t, attestor, m.pid(ctx, 0, container))
		for _, want := range []string{"privileged:true", "host-pid:true", "host-net:true", "host-ipc:true", "pod-name:admin", "signed-by:release-key"} {
			if !slices.Contains(got, want) {
				t.Errorf("no selector %s in %v", want, got)
			}
		}
		if slices.Contains(got, "runtime:restricted") {
			t.Errorf("restricted: %v", got)
		}
	})
	t.Run("an imported image, known by its config digest alone", func(t *testing.T) {
		m.importImage(ctx, t, 0)
		container := m.runImported(ctx, 0)
		want := withoutSpec(ordinary("payments", "batch", "batch-uid", m.imported.manifest, m.imported.config))
		expect(ctx, t, attestor, m.pid(ctx, 0, container), append(want, "signed-by:release-key"))
	})
	t.Run("a process of the host", func(t *testing.T) {
		expect(ctx, t, attestor, int32(os.Getpid()), nil)
	})
}

// ordinary lists what every unprivileged container of node fra-1 has.
func ordinary(namespace, pod, uid, manifest, config string) []string {
	return []string{
		"apparmor:unconfined", "capability:none", "container:main", "host-ipc:false", "host-net:false", "host-path:false", "host-pid:false",
		"image-config:" + config, "image-manifest:" + manifest, "no-new-privileges:true", "node:fra-1", "ns:" + namespace, "pod-name:" + pod,
		"pod-uid:" + uid, "privileged:false", "read-only-root:true", "runtime:baseline", "runtime:restricted", "sandbox:runc",
		"seccomp:confined", "seccomp:runtime-default", "user:65532", "user-namespace:false",
	}
}

// withoutSpec leaves out what needs the API's word on the pod.
func withoutSpec(selectors []string) []string {
	return slices.DeleteFunc(selectors, func(s string) bool { return s == "host-path:false" || strings.HasPrefix(s, "runtime:") })
}

func node2(selectors []string) []string {
	out := slices.Clone(selectors)
	out[slices.Index(out, "node:fra-1")] = "node:par-1"
	return out
}

func attest(ctx context.Context, t *testing.T, attestor workloadattestorv1.WorkloadAttestorPluginClient, pid int32) []string {
	t.Helper()
	answer, err := attestor.Attest(ctx, &workloadattestorv1.AttestRequest{Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetSelectorValues()
}

func expect(ctx context.Context, t *testing.T, attestor workloadattestorv1.WorkloadAttestorPluginClient, pid int32, want []string) {
	t.Helper()
	want = slices.Clone(want)
	slices.Sort(want)
	got := attest(ctx, t, attestor, pid)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("selectors (-want +got)\n%s", d)
	}
}

func startMachine(ctx context.Context, t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "keelson-wl-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, group: cluster.NewGroup(dir)}
	network, err := node.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	if m.registry, err = node.NewRegistry(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var problems []error
		for _, n := range m.nodes {
			problems = append(problems, n.Close(context.Background()))
		}
		problems = append(problems, m.group.Close(), network.Close(), m.registry.Close(), os.RemoveAll(dir))
		if err := errors.Join(problems...); err != nil {
			t.Error(err)
		}
	})
	m.pushImages(ctx)
	for i, name := range []string{"fra-1", "par-1"} {
		n, err := node.StartContainerd(ctx, m.group, node.ContainerdOptions{
			Name: name, Number: i + 1, Dir: filepath.Join(dir, name), Network: network, Registry: m.registry, Pause: m.unsigned, Log: t.Output(),
		})
		if err != nil {
			t.Fatal(err)
		}
		m.nodes = append(m.nodes, n)
	}
	return m
}

// build builds one of this module's programs, for a container that holds nothing else, and returns its path.
func (m *machine) build(ctx context.Context, pkg string) string {
	m.t.Helper()
	out := filepath.Join(m.dir, filepath.Base(pkg))
	build := exec.CommandContext(ctx, "go", "build", "-o", out, "github.com/keelson-project/keelson/"+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, text)
	}
	return out
}

func (m *machine) pushImages(ctx context.Context) {
	m.t.Helper()
	content, err := os.ReadFile(m.build(ctx, "test/demo/workload"))
	if err != nil {
		m.t.Fatal(err)
	}
	push := func(repository, note string) node.Pushed {
		pushed, err := m.registry.Push(ctx, repository, node.Image{
			Files: map[string][]byte{"/workload": content, "/note": []byte(note)}, Entrypoint: []string{"/workload"}, Cmd: []string{"pause"},
		})
		if err != nil {
			m.t.Fatal(err)
		}
		return pushed
	}
	m.unsigned, m.signed = push("keelson/unsigned", "unsigned"), push("keelson/signed", "signed")
	key, public, err := imagetest.NewKey()
	if err != nil {
		m.t.Fatal(err)
	}
	third := push("keelson/imported", "imported")
	m.layout = filepath.Join(m.dir, "layout")
	m.imported = imported{reference: "registry.example/keelson/imported:v1", manifest: third.Manifest.String(), config: third.Config.String()}
	for _, err := range []error{
		os.WriteFile(filepath.Join(m.dir, "release.pub"), public, 0o600),
		imagetest.Sign(ctx, m.signed.Repository, m.signed.Manifest.String(), key, name.Insecure),
		imagetest.AddToLayout(m.layout, m.imported.reference, third.Image),
		imagetest.SignInLayout(m.layout, m.imported.reference, m.imported.manifest, key),
	} {
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// startAPI answers for the pods of namespace payments, except batch; a real API has its tests in test/cluster.
func (m *machine) startAPI() {
	m.t.Helper()
	pods := map[string]string{"api": uidOne, "admin": "admin-uid", "greedy": uidThree, "pair": uidFour}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/apis/authorization.k8s.io/v1/subjectaccessreviews" {
			m.review(w, r)
			return
		}
		pod, found := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/payments/pods/")
		if !found || pods[pod] == "" {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
			return
		}
		more := ""
		if pod == "pair" {
			more = `,{"name":"sidecar","securityContext":` + hardened + `}`
		}
		_, _ = fmt.Fprintf(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"payments","name":%q,"uid":%q},"spec":{"nodeName":"fra-1","serviceAccountName":%q,
			"containers":[{"name":"main","securityContext":%s}%s]}}`,
			pod, pods[pod], pod+"-account", hardened, more)
	}))
	m.t.Cleanup(server.Close)
	m.api = filepath.Join(m.dir, "kubeconfig")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":""}}]}`, server.URL)
	if err := os.WriteFile(m.api, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// hardened is what level restricted asks of a container.
const hardened = `{"allowPrivilegeEscalation":false,"runAsNonRoot":true,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}`

// serve runs a plugin for one of the nodes.
func (m *machine) serve(number int, nodeName string) workloadattestorv1.WorkloadAttestorPluginClient {
	m.t.Helper()
	plugin := workloadplugin.New(time.Now)
	var attestor workloadattestorv1.WorkloadAttestorPluginClient
	var config configv1.ConfigServiceClient
	plugintest.ServeInBackground(m.t, plugintest.Config{
		PluginServer:   workloadattestorv1.WorkloadAttestorPluginServer(plugin),
		PluginClient:   &attestor,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{&config},
	})
	m.t.Cleanup(func() {
		if err := plugin.Close(); err != nil {
			m.t.Error(err)
		}
	})
	if _, err := config.Configure(m.t.Context(), &configv1.ConfigureRequest{HclConfiguration: m.config(number, nodeName)}); err != nil {
		m.t.Fatal(err)
	}
	return attestor
}

// config is the plugin's configuration on one of the nodes.
func (m *machine) config(number int, nodeName string) string {
	return fmt.Sprintf(`
node_name = %q
cri_socket = %q
kubelet_root = %q
kubeconfig = %q
insecure_registries = [%q]
oci_layouts = [%q]
verifiers "release-key" { public_key_path = %q }
`, nodeName, m.nodes[number].Socket, m.nodes[number].KubeletRoot(), m.api, m.registry.Host, m.layout, filepath.Join(m.dir, "release.pub"))
}

func (m *machine) run(ctx context.Context, number int, spec node.PodSpec) *node.Pod {
	m.t.Helper()
	pod, err := m.nodes[number].Run(ctx, spec)
	if err != nil {
		m.t.Fatal(err)
	}
	return pod
}

func (m *machine) cri(number int) criv1.RuntimeServiceClient {
	m.t.Helper()
	conn, err := grpc.NewClient("unix:"+m.nodes[number].Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	return criv1.NewRuntimeServiceClient(conn)
}

// pid asks the runtime for a container's process.
func (m *machine) pid(ctx context.Context, number int, container string) int32 {
	m.t.Helper()
	answer, err := m.cri(number).ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: container, Verbose: true})
	if err != nil {
		m.t.Fatal(err)
	}
	return m.pidIn(answer.GetInfo())
}

func (m *machine) sandboxPID(ctx context.Context, number int, sandbox string) int32 {
	m.t.Helper()
	answer, err := m.cri(number).PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	if err != nil {
		m.t.Fatal(err)
	}
	return m.pidIn(answer.GetInfo())
}

func (m *machine) pidIn(info map[string]string) int32 {
	m.t.Helper()
	var content struct {
		Pid int32 `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &content); err != nil || content.Pid == 0 {
		m.t.Fatalf("no pid in %s: %v", info["info"], err)
	}
	return content.Pid
}
