package policyapi_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/charts"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/guard"
	"github.com/keelson-project/keelson/test/cluster"
)

// real is one Kubernetes API for all tests of this package, with Keelson's definitions; nil with -short.
var real *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: every test here needs a real kube-apiserver, which -short leaves out")
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{Log: os.Stderr})
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

// guards installs the admission policies and waits until they are in force. What a test has to see without them, it sees before.
func guards(t *testing.T) {
	t.Helper()
	objects, err := guard.Objects(guard.Params{PolicySync: "system:serviceaccount:keelson-system:keelson-policy-sync",
		SPIREServers: []string{"system:serviceaccount:spire:spire-server"}})
	if err != nil {
		t.Fatal(err)
	}
	documents := make([][]byte, 0, len(objects))
	for _, o := range objects {
		document, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, document)
	}
	if err := real.Apply(t.Context(), documents...); err != nil {
		t.Fatal(err)
	}
	probe := policy(t, "probe", "workloads: {serviceAccount: api}\nnonsense: {}")
	waitFor(t, func() bool { return try(t, probe) != nil })
}

func policies(t *testing.T) dynamic.ResourceInterface {
	t.Helper()
	cfg := real.RESTConfig()
	cfg.QPS, cfg.Burst = 1000, 1000
	c, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c.Resource(v1alpha1.GroupVersion.WithResource("trustpolicies")).Namespace("default")
}

func definitionsClient(t *testing.T) dynamic.ResourceInterface {
	t.Helper()
	c, err := dynamic.NewForConfig(real.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return c.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute")
		}
	}
}

// policy is a TrustPolicy with a spec in YAML.
func policy(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	var of map[string]any
	if err := yaml.Unmarshal([]byte(spec), &of); err != nil {
		t.Fatalf("%v in\n%s", err, spec)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "TrustPolicy",
		"metadata": map[string]any{"name": name, "namespace": "default"}, "spec": of,
	}}
}

// try creates a policy without keeping it, as a client that asks for no strict validation.
func try(t *testing.T, o *unstructured.Unstructured) error {
	t.Helper()
	_, err := policies(t).Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationIgnore})
	if err != nil && !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		t.Fatalf("refused for another reason than what it says: %v", err)
	}
	return err
}

// refusal checks that an error is a refusal that has a sentence in it.
func refusal(err error, sentence string) error {
	switch {
	case err == nil:
		return errors.New("taken")
	case !strings.Contains(err.Error(), sentence):
		return fmt.Errorf("refused without %q: %w", sentence, err)
	}
	return nil
}
