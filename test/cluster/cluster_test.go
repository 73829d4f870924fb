package cluster_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/test/cluster"
)

func TestAClusterServesWhatItsUsersNeed(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{Calico: true, IstioCRDs: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	t.Run("the administrator writes Calico v3 and Istio objects", func(t *testing.T) {
		if err := c.Apply(ctx, []byte(vendorObjects)); err != nil {
			t.Error(err)
		}
	})
	t.Run("Calico's API server validates as in a real cluster", func(t *testing.T) {
		err := c.Apply(ctx, []byte(badPolicy))
		if err == nil || !strings.Contains(err.Error(), "failed to validate Field: Selector") {
			t.Errorf("a policy with a selector that does not parse: got %v, want a refusal that names the selector", err)
		}
	})
	t.Run("NodeRestriction stands: a kubelet may not write node-restriction labels", func(t *testing.T) { restricted(ctx, t, c) })
	t.Run("RBAC stands: a user without a role may do nothing", func(t *testing.T) {
		cfg, err := c.RESTConfigFor("alice", "developers")
		if err != nil {
			t.Fatal(err)
		}
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("list nodes: got %v, want forbidden", err)
		}
	})
}

func restricted(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	admin, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fra-1"}}
	if node, err = admin.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg, err := c.RESTConfigFor("system:node:fra-1", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	kubelet, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	node.Labels = map[string]string{"keelson.node-restriction.kubernetes.io/verdict": "trusted"}
	if _, err := kubelet.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("kubelet labels its own node: got %v, want forbidden", err)
	}
}

func TestACloseLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	if testing.Short() {
		t.Skip("needs a real kube-apiserver, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	empty(t)
}

func TestAStartThatFailsHalfwayLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	if testing.Short() {
		t.Skip("needs a real etcd, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{APIServerArgs: []string{"--no-such-flag"}})
	if err == nil {
		t.Error("an API server with an unknown flag started")
		_ = c.Close() // the test has failed already
	}
	empty(t)
}

func empty(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

const vendorObjects = `
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: keelson}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: keelson.default-deny}
spec: {tier: keelson, selector: "trust.keelson.io/attested == 'true'", types: [Ingress], ingress: [{action: Pass}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: default}
spec: {action: DENY, rules: [{from: [{source: {notPrincipals: [example.org/ns/shop/sa/frontend]}}]}]}
`

const badPolicy = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: default.bad}
spec: {tier: default, selector: "this is not a selector"}
`
