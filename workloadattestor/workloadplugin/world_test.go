package workloadplugin_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/runtime/runtimetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadplugin"
)

const podUID = "11111111-2222-3333-4444-555555555555"

var (
	idA = strings.Repeat("a", 64)
	idB = strings.Repeat("b", 64)
)

// logBuffer is what the plugin logged; the plugin writes while the test reads.
type logBuffer struct {
	mu      sync.Mutex
	content bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// world is everything around the plugin: a proc file system, a runtime, an API and a registry.
type world struct {
	t           testing.TB
	dir         string
	runtime     *runtimetest.Server
	stopRuntime func()
	pod         runtimetest.Pod
	api         atomic.Pointer[string] // the API's answer about any pod
	registry    string
	down        atomic.Bool
	objects     sync.Map     // further objects of the API, by their paths
	allowed     sync.Map     // what the API lets brokers do: "user verb resource namespace/name"
	password    atomic.Value // that the registry wants, where it is set
	manifest    string
	log         *logBuffer

	attestor workloadattestorv1.WorkloadAttestorPluginClient
	config   configv1.ConfigServiceClient
}

const apiPod = `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"payments","name":"api-0","uid":"` + podUID + `"},"spec":{"nodeName":"fra-1","serviceAccountName":"api","containers":[{"name":"main","securityContext":` + hardened + `}]}}`

// hardened is what level restricted asks of a container.
const hardened = `{"allowPrivilegeEscalation":false,"runAsNonRoot":true,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}`

func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "keelson-plugin-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, log: &logBuffer{}}
	w.startRuntime()
	w.startAPI()
	w.startRegistry()
	w.process(42, "0::"+w.pod.CgroupsPath+"\n")
	if err := w.runtime.Add(w.pod); err != nil {
		t.Fatal(err)
	}
	w.serve()
	return w
}

func (w *world) startRuntime() {
	server, stop, err := runtimetest.Serve(filepath.Join(w.dir, "cri.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(stop)
	w.runtime, w.stopRuntime = server, stop
	w.pod = runtimetest.Pod{
		Namespace: "payments", Name: "api-0", UID: podUID, Container: "main", ContainerID: idA, SandboxID: idB,
		CgroupsPath: "/kubepods/pod" + podUID + "/" + idA, Hardened: true,
	}
}

func (w *world) startAPI() {
	answer := apiPod
	w.api.Store(&answer)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		body := *w.api.Load()
		if r.URL.Path == "/apis/authorization.k8s.io/v1/subjectaccessreviews" {
			w.review(rw, r)
			return
		}
		if other, ok := w.objects.Load(r.URL.Path); ok {
			_, _ = fmt.Fprint(rw, other)
			return
		}
		if body == "" || r.URL.Path != "/api/v1/namespaces/payments/pods/api-0" {
			rw.WriteHeader(http.StatusNotFound)
			body = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`
		}
		_, _ = io.WriteString(rw, body)
	}))
	w.t.Cleanup(server.Close)
	w.write("kubeconfig", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"token":"t"}}]}`, server.URL))
}

func (w *world) startRegistry() {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.down.Load() {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		if want := w.password.Load(); want != nil {
			if _, got, _ := r.BasicAuth(); got != want {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		handler.ServeHTTP(rw, r)
	}))
	w.t.Cleanup(server.Close)
	w.registry = strings.TrimPrefix(server.URL, "http://")
	img, err := random.Image(64, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	repo, err := name.NewRepository(w.registry+"/payments/api", name.Insecure)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("v1"), img); err != nil {
		w.t.Fatal(err)
	}
	manifest, err1 := img.Digest()
	config, err2 := img.ConfigName()
	key, public, err3 := imagetest.NewKey()
	if err := errors.Join(err1, err2, err3); err != nil {
		w.t.Fatal(err)
	}
	if err := imagetest.Sign(w.t.Context(), repo.Name(), manifest.String(), key, name.Insecure); err != nil {
		w.t.Fatal(err)
	}
	w.write("release.pub", string(public))
	w.manifest = manifest.String()
	w.pod.ImageID, w.pod.Image, w.pod.ImageRef = config.String(), repo.Name()+":v1", repo.Name()+"@"+manifest.String()
}

func (w *world) write(path, content string) string {
	w.t.Helper()
	path = filepath.Join(w.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) process(pid int, cgroup string) {
	w.t.Helper()
	w.write(fmt.Sprintf("proc/%d/cgroup", pid), cgroup)
	w.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (app) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1\n", pid))
}

// serve runs the plugin behind real gRPC.
func (w *world) serve() {
	plugin := workloadplugin.New(time.Now)
	t, isTest := w.t.(*testing.T)
	if !isTest {
		w.serveBench(plugin)
		w.t.Cleanup(func() { _ = plugin.Close() })
		return
	}
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   workloadattestorv1.WorkloadAttestorPluginServer(plugin),
		PluginClient:   &w.attestor,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{&w.config},
		Logger:         hclog.New(&hclog.LoggerOptions{Output: w.log, Level: hclog.Debug, JSONFormat: true}),
	})
	w.t.Cleanup(func() {
		if err := plugin.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

// serveBench does the same without the plugin SDK's, which is for tests alone.
func (w *world) serveBench(plugin *workloadplugin.Plugin) {
	plugin.SetLogger(hclog.NewNullLogger())
	listener, err := net.Listen("unix", filepath.Join(w.dir, "plugin.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer()
	workloadattestorv1.RegisterWorkloadAttestorServer(server, plugin)
	configv1.RegisterConfigServer(server, plugin)
	go func() { _ = server.Serve(listener) }() // ends with the benchmark
	w.t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.attestor.WorkloadAttestorClient, w.config.ConfigClient = workloadattestorv1.NewWorkloadAttestorClient(conn), configv1.NewConfigClient(conn)
}

func (w *world) hcl() string {
	return fmt.Sprintf(`
node_name = "fra-1"
cri_socket = %q
proc_root = %q
kubeconfig = %q
insecure_registries = [%q]
image_timeout = "5s"
verifiers {
  release-key { public_key_path = %q }
}
`, filepath.Join(w.dir, "cri.sock"), filepath.Join(w.dir, "proc"), filepath.Join(w.dir, "kubeconfig"), w.registry, filepath.Join(w.dir, "release.pub"))
}

func (w *world) configure(hcl string) {
	w.t.Helper()
	if _, err := w.config.Configure(w.t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: hcl,
	}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) attest(pid int32) ([]string, error) {
	w.t.Helper()
	answer, err := w.attestor.Attest(w.t.Context(), &workloadattestorv1.AttestRequest{Pid: pid})
	return answer.GetSelectorValues(), err
}

func (w *world) selectors() []string {
	return []string{
		"apparmor:unconfined", "capability:none", "container:main", "host-ipc:false", "host-net:false", "host-path:false", "host-pid:false",
		"image-config:" + w.pod.ImageID, "image-manifest:" + w.manifest, "no-new-privileges:true", "node:fra-1", "ns:payments", "pod-name:api-0",
		"pod-uid:" + podUID, "privileged:false", "read-only-root:true", "runtime:baseline", "runtime:restricted", "sa:api", "sandbox:runc",
		"seccomp:confined", "seccomp:runtime-default", "signed-by:release-key", "user:65532", "user-namespace:false",
	}
}

func without(selectors []string, prefixes ...string) []string {
	var out []string
	for _, s := range selectors {
		keep := true
		for _, p := range prefixes {
			keep = keep && !strings.HasPrefix(s, p)
		}
		if keep {
			out = append(out, s)
		}
	}
	return out
}
