package plan_test

import (
	"fmt"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// large is a cluster of 500 nodes, 100 namespaces with a policy each, and 10 000 pods.
func large() snapshot.Snapshot {
	s := snapshottest.Demo()
	s.Nodes, s.NodeTrusts, s.Pods, s.Policies, s.Namespaces = nil, nil, nil, nil, nil
	for i := range 500 {
		name := fmt.Sprintf("node-%d", i)
		s.Nodes = append(s.Nodes, snapshottest.Node(name, fmt.Sprintf("10.%d.%d.0/24", i/200, i%200)))
		s.NodeTrusts = append(s.NodeTrusts, snapshottest.Trust(name, "DE"))
	}
	for i := range 100 {
		ns := fmt.Sprintf("team-%d", i)
		s.Namespaces = append(s.Namespaces, snapshottest.Namespace(ns, v1alpha1.ModeEnforce))
		p := snapshottest.API()
		p.Namespace = ns
		p.Spec.Ingress[0].From[0].Namespace, p.Spec.Ingress[0].From[0].ServiceAccount = fmt.Sprintf("team-%d", (i+1)%100), "api"
		s.Policies = append(s.Policies, p)
		for j := range 100 {
			node := (i*100 + j) % 500
			s.Pods = append(s.Pods, snapshottest.Pod(ns, fmt.Sprintf("api-%d", j), "api", fmt.Sprintf("node-%d", node), fmt.Sprintf("10.%d.%d.%d", node/200, node%200, i+2)))
		}
	}
	snapshottest.Verify(&s)
	return s
}

func BenchmarkMake(b *testing.B) {
	s := large()
	for b.Loop() {
		mustMake(b, s)
	}
}

func BenchmarkMakeSteadyState(b *testing.B) {
	w := &world{Snapshot: large()}
	w.settle(b, nil)
	for b.Loop() {
		mustMake(b, w.Snapshot)
	}
}
