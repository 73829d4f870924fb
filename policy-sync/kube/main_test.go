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

	"github.com/keelson-project/keelson/charts"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
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
	documents, err := charts.CRDs()
	if err == nil {
		err = c.Apply(ctx, documents...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	real = c
	return m.Run()
}

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
