package kube_test

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// calicoNode is the account of Calico's node agent, whose credentials lie on every node. For once it has every right here.
const calicoNode = "system:serviceaccount:calico-system:calico-node"

func calicoObject(kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.projectcalico.org/v1", "kind": kind,
		"metadata": map[string]any{"name": name}, "spec": spec}}
}

// With the credentials of a bad node, enforcement is switched off nowhere; what calico-node does at its start works.
func TestANodesCalicoCredentialsSwitchNoEnforcementOff(t *testing.T) {
	inForce(t)
	node, someone := as(t, calicoNode), as(t, alice)
	felix, info := calicoObject("FelixConfiguration", "default", nil), calicoObject("ClusterInformation", "default", nil)
	for _, o := range []*unstructured.Unstructured{felix, info} {
		if err := client.IgnoreNotFound(admin(t).Delete(t.Context(), o.DeepCopy())); err != nil {
			t.Fatal(err)
		}
	}
	create := func(kind, name string, spec map[string]any) func(context.Context) error {
		return func(ctx context.Context) error {
			return node.Create(ctx, calicoObject(kind, name, spec), &client.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		}
	}
	testAttempts(t, map[string]attempt{
		"if it makes the default that polices other interfaces, refuse": {do: create("FelixConfiguration", "default", map[string]any{"interfacePrefix": "none"})},
		"if it makes another node's configuration, refuse":              {do: create("FelixConfiguration", "node.par-1", map[string]any{"reportingInterval": "0s"})},
		"if it makes a datastore that is not ready, refuse":             {do: create("ClusterInformation", "default", map[string]any{"datastoreReady": false})},
		"if it makes the default as at its start, let it be":            {do: create("FelixConfiguration", "default", map[string]any{"reportingInterval": "0s", "logSeverityScreen": "Info"}), allowed: true},
		"if it says that the datastore is ready, let it be":             {do: create("ClusterInformation", "default", map[string]any{"datastoreReady": true, "clusterGUID": "x"}), allowed: true},
	})
	for _, o := range []*unstructured.Unstructured{
		calicoObject("FelixConfiguration", "default", map[string]any{"interfacePrefix": "cali"}), calicoObject("ClusterInformation", "default", map[string]any{"datastoreReady": true}),
	} {
		if err := someone.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	testAttempts(t, map[string]attempt{
		"if it changes the prefix of pods' interfaces, refuse": {do: patchOf(node, felix, `{"spec":{"interfacePrefix":"none"}}`)},
		"if it takes a setting away, refuse":                   {do: patchOf(node, felix, `{"spec":{"interfacePrefix":null}}`)},
		"if it adds a setting, refuse":                         {do: patchOf(node, felix, `{"spec":{"defaultEndpointToHostAction":"Accept"}}`)},
		"if it sets what it sets at its start, let it be":      {do: patchOf(node, felix, `{"spec":{"reportingInterval":"0s"}}`), allowed: true},
		"if it closes the datastore, refuse":                   {do: patchOf(node, info, `{"spec":{"datastoreReady":false}}`)},
		"if it makes the datastore forget, refuse":             {do: patchOf(node, info, `{"spec":{"datastoreReady":null}}`)},
		"if it writes its version, let it be":                  {do: patchOf(node, info, `{"spec":{"calicoVersion":"v3.30.1"}}`), allowed: true},
		"if somebody with the rights sets Felix up, let it be": {do: patchOf(someone, felix, `{"spec":{"interfacePrefix":"cali,tap"}}`), allowed: true},
	})
	pool := calicoObject("IPPool", "default-ipv4-ippool", map[string]any{"cidr": "10.0.0.0/8"})
	wide := calicoObject("IPPool", "wide", map[string]any{"cidr": "0.0.0.0/0"})
	for _, o := range []*unstructured.Unstructured{pool, wide} {
		if err := client.IgnoreNotFound(admin(t).Delete(t.Context(), o.DeepCopy())); err != nil {
			t.Fatal(err)
		}
	}
	if err := someone.Create(t.Context(), pool.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	testAttempts(t, map[string]attempt{
		"if it makes a pool, refuse": {do: func(ctx context.Context) error {
			return node.Create(ctx, wide.DeepCopy(), &client.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		}},
		"if it widens a pool, refuse":                        {do: patchOf(node, pool, `{"spec":{"cidr":"0.0.0.0/0"}}`)},
		"if somebody with the rights changes one, let it be": {do: patchOf(someone, pool, `{"spec":{"natOutgoing":true}}`), allowed: true},
		"if somebody with the rights makes another, let it be": {do: func(ctx context.Context) error {
			return someone.Create(ctx, wide.DeepCopy(), &client.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		}, allowed: true},
	})
	testAttempts(t, map[string]attempt{
		"if somebody with the rights closes the datastore, let it be": {do: patchOf(someone, info, `{"spec":{"datastoreReady":false}}`), allowed: true},
	})
}
