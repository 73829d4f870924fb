package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/conntrack"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/test/cluster"
)

func TestBadUseSaysWhatToDo(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for name, c := range map[string]struct{ args, want string }{
		"no node":                   {"", "--node is missing"},
		"an address that is none":   {"--node n --health here", `--health: "here" is neither`},
		"another that is none":      {"--node n --metrics 9", `--metrics: "9" is neither`},
		"a level that is none":      {"--node n --log-level loud", "log-level"},
		"an argument":               {"--node n more", "unknown command"},
		"a kubeconfig that is none": {"--node n --kubeconfig /does/not/exist", "/does/not/exist"},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(c.args, "kubeconfig") {
				if err := (conntrack.Table{}).Check(); err != nil {
					t.Skip("the kernel comes first, and lacks something here: ", err)
				}
			}
			cmd := command()
			cmd.SetArgs(strings.Fields(c.args))
			cmd.SetErr(io.Discard)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

// TestWithoutTheCapabilityItEndsAtOnce and says which one is missing.
func TestWithoutTheCapabilityItEndsAtOnce(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which has lost its rights, ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{}
		if err := unix.Capset(&header, &data[0]); err != nil {
			done <- err
			return
		}
		done <- run(context.Background(), options{node: "n", health: off, metrics: off}, slog.New(slog.DiscardHandler))
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want CAP_NET_ADMIN in it", err)
	}
}

// output is a log that is read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestTheWholeCommand runs it with its own rights on a real Kubernetes API with Calico's, on this machine's own table of
// connections: the revoked address is one that nobody has (TEST-NET-1).
func TestTheWholeCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_NET_ADMIN over this machine's table of connections")
	}
	c := cluster.ForTest(t, cluster.Options{Calico: true})
	kubeconfig := prepare(t, c)
	health, metrics := freeAddress(t), freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	var log output
	cmd := command()
	cmd.SetErr(&log)
	cmd.SetArgs([]string{"--node", "fra-1", "--kubeconfig", kubeconfig, "--health", health, "--metrics", metrics})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	sees(t, &log, "http://"+health+"/readyz", http.StatusServiceUnavailable, "policy-sync makes it")
	set := func(nets string) {
		apply(t, c, `{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: `+v1alpha1.RevokedSet+`}, spec: {nets: [`+nets+`]}}`)
	}
	set("")
	sees(t, &log, "http://"+health+"/readyz", http.StatusOK, "ok\n")
	sees(t, &log, "http://"+health+"/healthz", http.StatusOK, "ok\n")
	sees(t, &log, "http://"+metrics+"/metrics", http.StatusOK, "keelson_node_revoked_addresses 0\n", `keelson_node_condition{condition="api"} 0`, "go_goroutines")
	set("192.0.2.77/32, 0.0.0.0/0")
	sees(t, &log, "http://"+metrics+"/metrics", http.StatusOK, "keelson_node_revoked_addresses 1\n", `keelson_node_refused_addresses{reason="range"} 1`, `keelson_node_flows_cut_total{direction="from"} 0`)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, want := range []string{`"msg":"revoked addresses changed","addresses":1,"added":1,"removed":0,"refused":1`, `"msg":"swept"`, `"entry":"0.0.0.0/0","reason":"range"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, log.String())
		}
	}
}

// prepare makes the roles and the Node, and returns a kubeconfig of the command's own account.
func prepare(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	for _, o := range kube.NodeRBAC("keelson-node", "keelson-node") {
		document, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, c, string(document))
	}
	apply(t, c, `{apiVersion: v1, kind: Node, metadata: {name: fra-1}}`)
	objects, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	nodes := objects.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	status := fmt.Appendf(nil, `{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, ownAddress(t))
	if _, err := nodes.Patch(t.Context(), "fra-1", types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := c.KubeconfigFor("system:serviceaccount:keelson-node:keelson-node", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func apply(t *testing.T, c *cluster.Cluster, document string) {
	t.Helper()
	if err := c.Apply(t.Context(), []byte(document)); err != nil {
		t.Fatal(err)
	}
}

// ownAddress is one of this machine's.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := conntrack.Local()
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	return all[len(all)-1].String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
}

// sees waits for an answer with this code and these words.
func sees(t *testing.T, log *output, url string, code int, words ...string) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		response, err := http.Get(url)
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		last = fmt.Sprintf("%d\n%s", response.StatusCode, body)
		lacking := response.StatusCode != code
		for _, w := range words {
			lacking = lacking || !strings.Contains(string(body), w)
		}
		if !lacking {
			return
		}
	}
	t.Fatalf("%s does not answer %d with %q, but %s\nlog:\n%s", url, code, words, last, log)
}
