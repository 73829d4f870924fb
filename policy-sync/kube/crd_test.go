package kube_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// instant is when the evidence of the tests' first verdict came in.
var instant = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func nodeTrust(name string) *v1alpha1.NodeTrust {
	return &v1alpha1.NodeTrust{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.NodeTrustSpec{
			Verdict: v1alpha1.VerdictTrusted, Reference: "prod", Tags: map[string]string{"country": "DE"},
			EKHash: strings.Repeat("ab", 32), AgentID: "spiffe://keelson.test/spire/agent/keelson_tpm/" + strings.Repeat("ab", 32),
			AttestedAt: metav1.NewMicroTime(instant), ValidUntil: metav1.NewMicroTime(instant.Add(time.Hour)),
		},
	}
}

// changed is one update of a NodeTrust and whether the API must take it.
type changed struct {
	from, to func(*v1alpha1.NodeTrustSpec)
	refusal  string // part of the API's message; empty when the update is fine
}

func testTransitions(t *testing.T, cases map[string]changed) {
	api := as(t, spire)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			o := nodeTrust(objectName(t))
			if tc.from != nil {
				tc.from(&o.Spec)
			}
			if err := api.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			before := o.DeepCopy()
			tc.to(&o.Spec)
			err := api.Update(t.Context(), o)
			if tc.refusal == "" {
				if err != nil {
					t.Fatalf("update refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.refusal) {
				t.Fatalf("update: got %v, want a refusal with %q", err, tc.refusal)
			}
			after := &v1alpha1.NodeTrust{}
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(before), after); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before.Spec, after.Spec); diff != "" {
				t.Errorf("a refused update changed the object (-before +after):\n%s", diff)
			}
		})
	}
}

func at(d time.Duration) metav1.MicroTime { return metav1.NewMicroTime(instant.Add(d)) }

func untrusted(s *v1alpha1.NodeTrustSpec) {
	s.Verdict, s.Reference = v1alpha1.VerdictUntrusted, ""
	s.Reasons = []v1alpha1.Reason{{Check: "kernel.cmdline", Reason: "kernel command line is …, reference set prod has …"}}
}

func TestThreat29_NodeTrustTakesNoLateWrite(t *testing.T) {
	testTransitions(t, map[string]changed{
		"if a later proof says untrusted, take it": {to: func(s *v1alpha1.NodeTrustSpec) { untrusted(s); s.AttestedAt = at(time.Second) }},
		"if a later proof says trusted again, take it": {from: untrusted, to: func(s *v1alpha1.NodeTrustSpec) {
			s.Verdict, s.Reasons, s.AttestedAt = v1alpha1.VerdictTrusted, nil, at(time.Microsecond)
		}},
		"if two proofs came in at the same instant, untrusted wins": {to: untrusted},
		"if the same trusted verdict is written twice, take it":     {to: func(s *v1alpha1.NodeTrustSpec) {}},
		"if trusted is retried over an untrusted of the same instant, refuse": {
			from: untrusted, to: func(s *v1alpha1.NodeTrustSpec) { s.Verdict = v1alpha1.VerdictTrusted }, refusal: "untrusted stands"},
		"if an older trusted comes late over untrusted, refuse": {
			from: untrusted, to: func(s *v1alpha1.NodeTrustSpec) {
				s.Verdict, s.AttestedAt = v1alpha1.VerdictTrusted, at(-time.Microsecond)
			}, refusal: "may not go back"},
		"if an older untrusted comes late over trusted, refuse": {
			to: func(s *v1alpha1.NodeTrustSpec) { untrusted(s); s.AttestedAt = at(-time.Second) }, refusal: "may not go back"},
		"if validUntil lies before attestedAt, refuse": {
			to: func(s *v1alpha1.NodeTrustSpec) { s.AttestedAt = at(2 * time.Hour) }, refusal: "validUntil must lie after"},
	})
}

func TestThreat20_NodeTrustKeepsItsEK(t *testing.T) {
	testTransitions(t, map[string]changed{
		"if another EK proves itself under the same node's name, refuse": {
			to: func(s *v1alpha1.NodeTrustSpec) {
				s.EKHash, s.AttestedAt = strings.Repeat("cd", 32), at(time.Minute)
			}, refusal: "ekHash is immutable"},
		"if another EK is untrusted under the same node's name, refuse": {
			to: func(s *v1alpha1.NodeTrustSpec) {
				untrusted(s)
				s.EKHash, s.AttestedAt = strings.Repeat("cd", 32), at(time.Minute)
			}, refusal: "ekHash is immutable"},
	})
}

func TestThreat30_NodeTrustKeepsTheHighestTagSerial(t *testing.T) {
	seven, six, eight := int64(7), int64(6), int64(8)
	from := func(s *v1alpha1.NodeTrustSpec) { s.TagSerial = &seven }
	testTransitions(t, map[string]changed{
		"if the serial rises, take it": {from: from, to: func(s *v1alpha1.NodeTrustSpec) { s.TagSerial = &eight }},
		"if the serial falls, refuse":  {from: from, to: func(s *v1alpha1.NodeTrustSpec) { s.TagSerial = &six }, refusal: "tagSerial may not go back"},
		"if the serial goes, refuse":   {from: from, to: func(s *v1alpha1.NodeTrustSpec) { s.TagSerial = nil }, refusal: "tagSerial may not go back"},
	})
}

func TestTrustPolicySchema(t *testing.T) {
	api := admin(t)
	peer := v1alpha1.Peer{Namespace: "shop", ServiceAccount: "frontend"}
	cases := map[string]struct {
		spec    v1alpha1.TrustPolicySpec
		refusal string
	}{
		"if it names a service account, take it": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "api"}}},
		"if it names a selector, take it": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}}}},
		"if it names no workloads, refuse": {spec: v1alpha1.TrustPolicySpec{}, refusal: "name a serviceAccount or a selector"},
		"if a rule has no peer, refuse": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Ingress: []v1alpha1.IngressRule{{From: []v1alpha1.Peer{}}}}, refusal: "from"},
		"if a port is out of range, refuse": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Ingress: []v1alpha1.IngressRule{{From: []v1alpha1.Peer{peer}, Ports: []int32{70000}}}}, refusal: "65535"},
		"if a digest is no sha256, refuse": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Require: v1alpha1.Requirements{Image: v1alpha1.ImageRequirement{Digests: []string{"latest"}}}}, refusal: "sha256"},
		"if the runtime requirement is unknown, refuse": {spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Require: v1alpha1.Requirements{Runtime: "lax"}}, refusal: "runtime"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			o := &v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: objectName(t)}, Spec: tc.spec}
			err := api.Create(t.Context(), o)
			if tc.refusal == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.refusal) {
				t.Fatalf("got %v, want a refusal with %q", err, tc.refusal)
			}
		})
	}
}
