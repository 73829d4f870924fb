package mesh_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agentapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

const trustDomain = "keelson.test"

// gateway is this process's address on the pods' network: istiod's, and a kubelet's.
const gateway = "10.66.0.1"

// drain is the proxies'.
const drain = time.Second

func deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Minute)
}

// world is a mesh without nodes: a real API, SPIRE and istiod, and pods that are network namespaces on one bridge.
type world struct {
	t         *testing.T
	ctx       context.Context
	dir       string // of the servers
	roots     string // of the pods' files
	cluster   *cluster.Cluster
	client    kubernetes.Interface
	spire     *cluster.SpireServer
	agent     *cluster.SpireAgent
	sockets   string // the folder that the CSI driver of a cluster would mount
	agentID   *types.SPIFFEID
	authority *mesh.Authority
	image     node.Image
	sidecar   mesh.Sidecar
	plugin    mesh.Plugin
	paths     map[string]string
	echo      string
	pods      int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real istiod and Envoy, which -short leaves out")
	}
	if err := node.CanRun(); err != nil {
		t.Skip("pods need namespaces of their own: ", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx}
	w.files()
	w.network()
	w.cluster = cluster.ForTest(t, cluster.Options{IstioCRDs: true})
	w.dir = w.cluster.Dir()
	t.Cleanup(w.logs)
	var err error
	w.client, err = kubernetes.NewForConfig(w.cluster.RESTConfig())
	w.must(err)
	w.paths, err = parts.Ensure(ctx, t.Output(), "pilot-discovery", "istio-cni")
	w.must(err)
	built, err := parts.Commands(ctx, t.Output(), "test/cluster/mesh/echo")
	w.must(err)
	w.echo = filepath.Join(w.roots, "echo") // where those who are not root find it
	w.copy(built["test/cluster/mesh/echo"], w.echo)
	w.image, err = mesh.ProxyImage(ctx, t.Output())
	w.must(err)
	for path, content := range w.image.Files {
		w.write(filepath.Join(w.roots, "image", path), content, 0o755)
	}
	w.startSpire()
	w.startIstiod()
	w.preparePlugin()
	w.sidecar = mesh.Sidecar{TrustDomain: trustDomain, Image: "registry.test/proxy", Socket: filepath.Base(w.agent.Socket), Drain: drain}
	w.sockets = filepath.Dir(w.agent.Socket)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// logs keeps what every program said, for `go test -artifacts`.
func (w *world) logs() {
	if !w.t.Failed() {
		return
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	if err != nil {
		w.t.Error(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(w.t.ArtifactDir(), filepath.Base(file)), content, 0o600)
		}
		if err != nil {
			w.t.Error(err)
		}
	}
}

// files makes the file system of the pods' files, in the mount namespace of this process (TestMain). It holds whatever is
// mounted for them, and nothing of the machine's but SPIRE's socket, and goes by being unmounted: nobody ever removes files
// through a mount.
func (w *world) files() {
	dir, err := os.MkdirTemp("", "klsn-pods-")
	w.must(err)
	w.roots = dir
	w.t.Cleanup(func() {
		if err := os.Remove(dir); err != nil { // an empty folder, or an error
			w.t.Error(err)
		}
	})
	w.must(os.Chmod(dir, 0o755))
	w.must(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, "mode=0755"))
	w.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) copy(from, to string) {
	w.t.Helper()
	content, err := os.ReadFile(from)
	w.must(err)
	w.write(to, content, 0o755)
}

// network makes the bridge of the pods, in the network namespace of this process (TestMain).
func (w *world) network() {
	w.ip("link", "set", "lo", "up")
	w.ip("link", "add", "pods", "type", "bridge")
	w.ip("addr", "add", gateway+"/24", "dev", "pods")
	w.ip("link", "set", "pods", "up")
}

func (w *world) ip(args ...string) {
	w.t.Helper()
	system, err := parts.EnsureSystem(w.ctx, w.t.Output(), "ip")
	w.must(err)
	if out, err := exec.CommandContext(w.ctx, system["ip"], args...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (w *world) startSpire() {
	var err error
	w.spire, err = cluster.StartSpireServer(w.ctx, w.cluster.Group(), cluster.SpireServerOptions{
		Dir: filepath.Join(w.dir, "ss"), Log: w.t.Output(), TrustDomain: trustDomain,
		Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}},
	})
	w.must(err)
	token := w.joinToken()
	w.agentID = &types.SPIFFEID{TrustDomain: trustDomain, Path: "/spire/agent/join_token/" + token}
	w.agent, err = cluster.StartSpireAgent(w.ctx, w.cluster.Group(), cluster.SpireAgentOptions{
		Name: "spire-agent", Dir: filepath.Join(w.dir, "sa"), Server: w.spire, JoinToken: token,
		Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}, {Type: "WorkloadAttestor", Name: "unix"}},
	})
	w.must(err)
	w.until("the SPIRE agent serves", func() error {
		_, err := os.Stat(w.agent.Socket)
		return err
	})
}

func (w *world) joinToken() string {
	conn, err := w.spire.Dial()
	w.must(err)
	defer func() { _ = conn.Close() }() // the server ends with the test
	token, err := agentapi.NewAgentClient(conn).CreateJoinToken(w.ctx, &agentapi.CreateJoinTokenRequest{Ttl: 60})
	w.must(err)
	return token.Value
}

// startIstiod runs what IstiodObjects says a cluster should run: its program with the arguments, environment and files of the
// Deployment, as a user with the rights of its service account.
func (w *world) startIstiod() {
	var err error
	w.authority, err = mesh.NewAuthority()
	w.must(err)
	list, err := mesh.IstiodObjects(mesh.IstiodOptions{TrustDomain: trustDomain, Image: "registry.test/istiod", Authority: w.authority})
	w.must(err)
	cni, err := mesh.CNIObjects()
	w.must(err)
	w.must(w.cluster.ApplyObjects(w.ctx, append(list, cni...)...))

	var deployment appsv1.Deployment
	find(w.t, list, "Deployment", &deployment)
	var secret corev1.Secret
	find(w.t, list, "Secret", &secret)
	container := deployment.Spec.Template.Spec.Containers[0]
	dir := filepath.Join(w.dir, "istiod")
	for name, content := range secret.Data {
		w.write(filepath.Join(dir, container.VolumeMounts[0].MountPath, name), content, 0o600)
	}
	kubeconfig, err := w.cluster.KubeconfigFor("system:serviceaccount:istio-system:istiod", "system:serviceaccounts")
	w.must(err)
	env := environment(container.Env, map[string]string{
		"metadata.name": "istiod-0", "metadata.namespace": mesh.Namespace, "spec.serviceAccountName": "istiod",
	})
	begun := time.Now()
	p, err := w.cluster.Group().Start(cluster.Command{
		Name: "istiod", Path: w.paths["pilot-discovery"], Args: append(container.Args, "--kubeconfig="+kubeconfig), Env: env, Dir: dir,
	})
	w.must(err)
	url := fmt.Sprintf("http://127.0.0.1:%s%s", container.ReadinessProbe.HTTPGet.Port.String(), container.ReadinessProbe.HTTPGet.Path)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	w.must(p.Until(ctx, func(ctx context.Context) error { return ok(ctx, url) }))
	w.t.Logf("istiod is ready after %.1f s", time.Since(begun).Seconds())
}

func (w *world) preparePlugin() {
	path, err := w.cluster.KubeconfigFor("system:serviceaccount:istio-system:"+mesh.CNIAccount, "system:serviceaccounts")
	w.must(err)
	kubeconfig, err := os.ReadFile(path)
	w.must(err)
	w.plugin = mesh.Plugin{Dir: filepath.Join(w.dir, "cni")}
	w.must(w.plugin.Prepare(kubeconfig))
}

// register makes the SPIRE entry of a service account. In a cluster the selectors are Keelson's; here a group stands for a pod.
func (w *world) register(namespace, account string, gid int) {
	w.t.Helper()
	conn, err := w.spire.Dial()
	w.must(err)
	defer func() { _ = conn.Close() }()
	id := &types.SPIFFEID{TrustDomain: trustDomain, Path: "/ns/" + namespace + "/sa/" + account}
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(w.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId: id, ParentId: w.agentID, Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("gid:%d", gid)}},
	}}})
	w.must(err)
	if s := resp.Results[0].Status; s.Code != 0 {
		w.t.Fatalf("entry: %s", s.Message)
	}
}

func (w *world) namespace(name string) {
	w.t.Helper()
	w.apply(object(w.t, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}))
}

func (w *world) apply(list ...*unstructured.Unstructured) {
	w.t.Helper()
	w.must(w.cluster.ApplyObjects(w.ctx, list...))
}

func (w *world) write(path string, content []byte, mode os.FileMode) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path, content, mode))
	w.must(os.Chmod(path, mode))
}

func (w *world) until(what string, check func() error) {
	w.t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) || w.ctx.Err() != nil {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ok(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// environment resolves a container's environment as a kubelet does.
func environment(vars []corev1.EnvVar, fields map[string]string) []string {
	var env []string
	for _, v := range vars {
		value := v.Value
		if v.ValueFrom != nil {
			value = fields[v.ValueFrom.FieldRef.FieldPath]
		}
		env = append(env, v.Name+"="+value)
	}
	return env
}

func find(t *testing.T, list []*unstructured.Unstructured, kind string, into any) {
	t.Helper()
	i := slices.IndexFunc(list, func(o *unstructured.Unstructured) bool { return o.GetKind() == kind })
	if i < 0 {
		t.Fatalf("no %s", kind)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list[i].Object, into); err != nil {
		t.Fatal(err)
	}
}

func object(t *testing.T, o runtime.Object) *unstructured.Unstructured {
	t.Helper()
	content, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(content, &u.Object); err != nil {
		t.Fatal(err)
	}
	delete(u.Object, "status")
	return u
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}
