package istio_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func render(t *testing.T, in desired.Intents) map[string]string {
	t.Helper()
	in.Config = snapshot.Config{TrustDomain: "demo.example"}
	objects, err := istio.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range objects {
		if !snapshot.Owned(o) || !strings.HasPrefix(o.GetName(), "keelson.") {
			t.Errorf("%s %s is not known as ours", o.GetKind(), o.GetName())
		}
		data, err := yaml.Marshal(o.Object["spec"])
		if err != nil {
			t.Fatal(err)
		}
		out[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o.GetAnnotations()[istio.DryRunAnnotation] + string(data)
	}
	return out
}

func workload(flows ...desired.Flow) desired.Intents {
	return desired.Intents{
		Namespaces: []trustgraph.Namespace{{Name: "payments", Mode: v1alpha1.ModeEnforce}},
		Workloads:  []desired.Workload{{Namespace: "payments", Policy: "api", Mode: v1alpha1.ModeEnforce, Ingress: flows}},
	}
}

const selector = "selector:\n  matchLabels:\n    api.policy.trust.keelson.io/attested: \"true\"\n"

func TestDenials(t *testing.T) {
	front := desired.Flow{Namespace: "shop", ServiceAccount: "frontend"}
	cases := map[string]struct {
		flows []desired.Flow
		want  string
	}{
		"nobody may call": {nil, "action: DENY\nrules:\n- {}\n"},
		"one peer on every port": {[]desired.Flow{front}, `action: DENY
rules:
- from:
  - source:
      notPrincipals:
      - demo.example/ns/shop/sa/frontend
`},
		"the ports of several rules add up": {[]desired.Flow{with(front, 443), with(front, 80, 443)}, `action: DENY
rules:
- from:
  - source:
      notPrincipals:
      - demo.example/ns/shop/sa/frontend
- from:
  - source:
      principals:
      - demo.example/ns/shop/sa/frontend
  to:
  - operation:
      notPorts:
      - "80"
      - "443"
`},
		"one rule without ports frees the peer's ports": {[]desired.Flow{with(front, 443), front}, `action: DENY
rules:
- from:
  - source:
      notPrincipals:
      - demo.example/ns/shop/sa/frontend
`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want+selector, render(t, workload(c.flows...))["AuthorizationPolicy payments/keelson.api.deny"]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func with(f desired.Flow, ports ...int32) desired.Flow {
	f.Ports = ports
	return f
}

func TestAllowsNameMethodsAndPathsOncePerRule(t *testing.T) {
	f := desired.Flow{Namespace: "shop", ServiceAccount: "frontend", Ports: []int32{8443}, HTTP: []v1alpha1.HTTPRule{{Methods: []string{"POST"}, Paths: []string{"/charge"}}, {Methods: []string{"GET"}}}}
	narrowed := f
	narrowed.Tags = map[string][]string{"country": {"DE"}} // no principal can say that
	want := `rules:
- from:
  - source:
      principals:
      - demo.example/ns/shop/sa/frontend
  to:
  - operation:
      methods:
      - POST
      paths:
      - /charge
      ports:
      - "8443"
  - operation:
      methods:
      - GET
      ports:
      - "8443"
` + selector
	if diff := cmp.Diff(want, render(t, workload(f, narrowed))["AuthorizationPolicy payments/keelson.api.allow"]); diff != "" {
		t.Error(diff)
	}
}

func TestEnrolledNamespacesAreStrictAndAllowNothing(t *testing.T) {
	got := render(t, workload())
	if got["AuthorizationPolicy payments/keelson.allow-nothing"] != "{}\n" || got["PeerAuthentication payments/keelson.strict"] != "mtls:\n  mode: STRICT\n" {
		t.Errorf("%v", got)
	}
}

func TestAuditIsADryRunWithoutStrictTLS(t *testing.T) {
	in := workload()
	in.Namespaces[0].Mode, in.Workloads[0].Mode = v1alpha1.ModeAudit, v1alpha1.ModeAudit
	in.Revoked = []trustgraph.Revoked{{Address: "10.0.0.1"}}
	got := render(t, in)
	if len(got) != 3 {
		t.Errorf("%d objects: %v", len(got), got)
	}
	for name, text := range got {
		if !strings.HasPrefix(text, "true") {
			t.Errorf("%s is no dry run", name)
		}
	}
}

func TestRevokedAddressesAreDenied(t *testing.T) {
	in := workload()
	in.Revoked = []trustgraph.Revoked{{Address: "10.0.0.1"}, {Address: "2001:db8::1"}}
	want := `action: DENY
rules:
- from:
  - source:
      ipBlocks:
      - 10.0.0.1/32
      - 2001:db8::1/128
selector:
  matchLabels:
    trust.keelson.io/enforced: "true"
`
	if diff := cmp.Diff(want, render(t, in)["AuthorizationPolicy istio-system/keelson.revoked"]); diff != "" {
		t.Error(diff)
	}
}
