package kube_test

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/charts"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/guard"
	"github.com/keelson-project/keelson/test/cluster"
)

// real is one Kubernetes API for all tests of this package, with Keelson's definitions; nil with -short.
var real *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: every test here needs a real kube-apiserver, which -short leaves out")
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{Log: os.Stderr, Calico: true, IstioCRDs: true})
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

// Users of the tests.
const (
	policySync = "system:serviceaccount:keelson-system:keelson-policy-sync"
	spire      = "system:serviceaccount:spire:spire-server"
	alice      = "alice" // an app team's: may do what she likes with namespaced objects, Nodes and Calico's objects
)

// install applies the definitions, the guards and rights, and waits until the guards are in force.
func install(ctx context.Context, c *cluster.Cluster) error {
	documents, err := charts.CRDs()
	if err != nil {
		return err
	}
	guards, err := guard.Objects(guard.Params{PolicySync: policySync, SPIREServers: []string{spire},
		CalicoAPIServers: []string{cluster.CalicoAPIServerUser}, Taint: true, Affinity: true})
	if err != nil {
		return err
	}
	for _, o := range guards {
		document, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		documents = append(documents, document)
	}
	return c.Apply(ctx, append(documents, []byte(rights))...)
}

// rights are wide on purpose: what is refused below is refused by the guards and by NodeRestriction, not by RBAC.
const rights = `
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {trust.keelson.io/mode: enforce}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: payments}
---
apiVersion: v1
kind: Namespace
metadata: {name: placing, labels: {trust.keelson.io/mode: enforce}}
---
apiVersion: v1
kind: Namespace
metadata: {name: watching, labels: {trust.keelson.io/mode: audit}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: everything}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everything}
subjects:
- {kind: User, name: alice}
- {kind: User, name: "system:serviceaccount:calico-system:calico-node"}
- {kind: User, name: "system:serviceaccount:spire:spire-server"}
- {kind: User, name: "system:serviceaccount:keelson-system:keelson-policy-sync"}
`

func admin(t *testing.T) client.Client {
	t.Helper()
	return clientFor(t, real.RESTConfig())
}

// as is a client of another user.
func as(t *testing.T, user string, groups ...string) client.Client {
	t.Helper()
	cfg, err := real.RESTConfigFor(user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, cfg)
}

func clientFor(t *testing.T, cfg *rest.Config) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(cfg, client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// objectName is a name that no other test uses.
func objectName(t *testing.T) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Name())) // never fails
	return fmt.Sprintf("t-%x", h.Sum64())
}
