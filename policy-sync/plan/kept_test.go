package plan

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// TestWhatIsKeptOfObjectsIsBounded: by twice what the last plan looked at, and a little.
func TestWhatIsKeptOfObjectsIsBounded(t *testing.T) {
	k := new(kept)
	for round := range 20 {
		k.begin(snapshot.Config{TrustDomain: "example.org"})
		for i := range 600 {
			o := &unstructured.Unstructured{Object: map[string]any{"kind": "Tier", "metadata": map[string]any{"name": fmt.Sprint(round, i)}}}
			k.facts(o)
		}
		k.sweep(600)
		if len(k.objects) > 2*600+1000 {
			t.Fatalf("round %d: %s", round, k)
		}
	}
}

// TestAnotherConfigurationForgetsAll: nothing that was kept follows from the new one.
func TestAnotherConfigurationForgetsAll(t *testing.T) {
	k := new(kept)
	k.begin(snapshot.Config{TrustDomain: "example.org"})
	k.facts(&unstructured.Unstructured{Object: map[string]any{"kind": "Tier"}})
	k.begin(snapshot.Config{TrustDomain: "example.org"})
	if len(k.objects) != 1 {
		t.Error("the same configuration forgets")
	}
	if k.begin(snapshot.Config{TrustDomain: "example.com"}); len(k.objects) != 0 {
		t.Errorf("another configuration keeps %s", k)
	}
}
