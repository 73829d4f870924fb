package plan_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// largest is a policy near every bound at once: 1,024 callers, most with a set of rules of their own, each with HTTP rules.
func largest() v1alpha1.TrustPolicy {
	r := rand.New(rand.NewPCG(1, 1))
	tp := snapshottest.API()
	tp.Spec.Ingress = nil
	for i := range 32 {
		rule := v1alpha1.IngressRule{Ports: []int32{int32(1000 + i)}}
		for j := range 2 {
			rule.HTTP = append(rule.HTTP, v1alpha1.HTTPRule{Methods: []string{"GET", "POST"}[:1+j%2], Paths: []string{fmt.Sprintf("/r/%d/%d", i, j), fmt.Sprintf("/s/%d/%d/*", i, j)}})
		}
		for _, n := range r.Perm(1024)[:64] {
			rule.From = append(rule.From, v1alpha1.Peer{Namespace: fmt.Sprintf("team-%d", n%5), ServiceAccount: fmt.Sprintf("caller-%d", n)})
		}
		tp.Spec.Ingress = append(tp.Spec.Ingress, rule)
	}
	return tp
}

func TestTheLargestPolicyIsWrittenInPieces(t *testing.T) {
	w := demo()
	w.Policies[0] = largest()
	r := mustMake(t, w.Snapshot)
	withinLimits(t, r)
	p, _ := r.Graph.Policy("payments", "api")
	if len(p.Problems) > 0 {
		t.Fatalf("%q", p.Problems)
	}
	denials := 0
	for _, o := range r.Objects {
		if o.GetKind() == "AuthorizationPolicy" && strings.HasPrefix(o.GetName(), "keelson.api.deny") {
			denials++
		}
	}
	if denials < 2 {
		t.Errorf("%d objects deny", denials)
	}
}

// BenchmarkRenderTheLargestPolicy is what one team's largest policy adds to a pass.
func BenchmarkRenderTheLargestPolicy(b *testing.B) {
	w := demo()
	w.Policies[0] = largest()
	in := mustMake(b, w.Snapshot).Intents
	for b.Loop() {
		if _, err := calico.Render(in); err != nil {
			b.Fatal(err)
		}
		if _, err := istio.Render(in); err != nil {
			b.Fatal(err)
		}
	}
}
