package guard_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/guard"
)

func TestEveryPolicyFailsClosedAndIsBound(t *testing.T) {
	bound, policies := map[string]bool{}, map[string]bool{}
	for _, o := range objects(t) {
		switch o := o.(type) {
		case *admissionv1.ValidatingAdmissionPolicy:
			policies[o.Name] = true
			if o.Spec.FailurePolicy == nil || *o.Spec.FailurePolicy != admissionv1.Fail {
				t.Errorf("%s does not fail closed", o.Name)
			}
			for _, v := range o.Spec.Validations {
				if v.Message == "" {
					t.Errorf("%s does not say why", o.Name)
				}
			}
		case *admissionv1.ValidatingAdmissionPolicyBinding:
			bound[o.Spec.PolicyName] = true
			if !slices.Equal(o.Spec.ValidationActions, []admissionv1.ValidationAction{admissionv1.Deny}) {
				t.Errorf("%s does not deny", o.Name)
			}
		case *admissionv1.MutatingAdmissionPolicy:
			policies[o.Name] = true
			// What helps the scheduler is no lock: without it a pod is made as its author wrote it, and is shut out.
			if o.Spec.FailurePolicy == nil || *o.Spec.FailurePolicy != admissionv1.Fail && o.Name != "keelson-pod-node-affinity" {
				t.Errorf("%s does not fail closed", o.Name)
			}
		case *admissionv1.MutatingAdmissionPolicyBinding:
			bound[o.Spec.PolicyName] = true
		default:
			t.Errorf("%T", o)
		}
	}
	for name := range policies {
		if !bound[name] {
			t.Errorf("%s has no binding", name)
		}
	}
	if len(policies) != len(bound) || len(policies) < 12 {
		t.Errorf("%d policies, %d bindings", len(policies), len(bound))
	}
}

func TestRenderingIsStable(t *testing.T) {
	text := func() string {
		out, err := json.Marshal(objects(t))
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if first, second := text(), text(); first != second {
		t.Error("two renderings differ")
	}
}

func TestWrongParams(t *testing.T) {
	cases := map[string]func(p *guard.Params){
		"no user of policy-sync":     func(p *guard.Params) { p.PolicySync = "" },
		"no SPIRE server":            func(p *guard.Params) { p.SPIREServers = nil },
		"a user that breaks out":     func(p *guard.Params) { p.PolicySync = `x" || true || "` },
		"an empty SPIRE server":      func(p *guard.Params) { p.SPIREServers = []string{""} },
		"an admin group with quote":  func(p *guard.Params) { p.Admins = []string{"a'b"} },
		"a kubelet group with quote": func(p *guard.Params) { p.Kubelets = []string{`a"b`} },
		"an empty Calico user":       func(p *guard.Params) { p.CalicoAPIServers = []string{""} },
		"a Calico user with a line":  func(p *guard.Params) { p.CalicoAPIServers = []string{"a\nb"} },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			p := params()
			change(&p)
			if _, err := guard.Objects(p); err == nil {
				t.Error("accepted")
			}
		})
	}
	p := params()
	p.Taint, p.Affinity = false, false
	out, err := guard.Objects(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range out {
		if m, ok := o.(metav1.Object); ok && (strings.Contains(m.GetName(), "taint") || strings.Contains(m.GetName(), "affinity")) {
			t.Errorf("%s although it is off", m.GetName())
		}
	}
}
