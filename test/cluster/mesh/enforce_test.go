package mesh_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apitypes "k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/test/cluster/mesh"
)

// mall is the pods of the test: a frontend that may call the API, somebody else of the same namespace, and a pod without proxy.
type mall struct {
	*world
	api, frontend, other, plain *pod
	base                        string // the API's Service
}

func TestIstioEnforcesWhatPolicySyncWritesWithIdentitiesOfSpire(t *testing.T) {
	w := newWorld(t)
	m := &mall{world: w}
	m.base = "http://" + m.service("payments") + ":8080"
	m.api = w.start("payments", "api")
	m.endpoint()
	m.frontend, m.other, m.plain = w.start("shop", "frontend"), w.start("shop", "other"), w.plain("shop", "plain")

	// The order matters: each part stands on what the one before has written.
	t.Run("without policies everybody reaches the API", m.open)
	t.Run("the proxies speak mutual TLS with certificates of SPIRE", m.identities)
	t.Run("STRICT shuts out who has no certificate", m.strict)
	t.Run("an enrolled namespace allows nothing", m.nothing)
	t.Run("a connection from before is cut when the drain is over", m.drained)
	t.Run("a TrustPolicy opens to the principal, method and path that it names, and no further", m.opens)
	t.Run("nobody else's ALLOW opens what Keelson denies", m.foreign)
	t.Run("a revoked address is shut out", m.revoked)
	t.Run("a lost trust label shuts the pod", m.unlabelled)
	t.Run("audit refuses nothing, and says what it would have", m.audited)
	t.Run("a proxy starts only where SPIRE's socket answers", m.socket)
	t.Run("a pod that no plugin has redirected does not start", m.validation)
}

// service makes the API's Service and returns its address.
func (m *mall) service(namespace string) string {
	m.namespace(namespace)
	m.apply(object(m.t, &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(namespace, "api"),
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "api"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}}},
	}))
	got, err := m.client.CoreV1().Services(namespace).Get(m.ctx, "api", metav1.GetOptions{})
	m.must(err)
	return got.Spec.ClusterIP
}

// endpoint makes the Service's EndpointSlice, as the endpoint controller would.
func (m *mall) endpoint() {
	namespace := m.api.spec.Namespace
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: meta(namespace, "api-1"),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{m.api.ip}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: m.api.spec.Name, UID: m.api.spec.UID},
		}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "api"}
	m.apply(object(m.t, slice))
}

// becomes waits until a call from a pod is answered with a status, and says how long that took. Zero is a connection that is
// refused or cut.
func (m *mall) becomes(t *testing.T, p *pod, method, url string, status int) answer {
	t.Helper()
	begun := time.Now()
	for {
		a := p.call(t, method, url)
		if a.Status == status {
			t.Logf("%s: %s %s is answered with %d after %d ms", p.spec.Name, method, url, status, time.Since(begun).Milliseconds())
			return a
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("%s: %s %s: got %+v, want status %d", p.spec.Name, method, url, a, status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func is(t *testing.T, p *pod, method, url string, status int) answer {
	t.Helper()
	a := p.call(t, method, url)
	if a.Status != status {
		t.Errorf("%s: %s %s: got %+v, want status %d", p.spec.Name, method, url, a, status)
	}
	return a
}

const denied = "RBAC: access denied" // Envoy's words

func (m *mall) open(t *testing.T) {
	m.becomes(t, m.frontend, http.MethodGet, m.base+"/", 200)
	m.becomes(t, m.other, http.MethodGet, m.base+"/", 200)
	is(t, m.plain, http.MethodGet, "http://"+m.api.ip+":8080/", 200)
}

func (m *mall) identities(t *testing.T) {
	a := is(t, m.frontend, http.MethodPost, m.base+"/charge", 200)
	var s seen
	if err := json.Unmarshal([]byte(a.Body), &s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"URI=spiffe://" + trustDomain + "/ns/shop/sa/frontend", "By=spiffe://" + trustDomain + "/ns/payments/sa/api"} {
		if !strings.Contains(s.Peer, want) {
			t.Errorf("X-Forwarded-Client-Cert is %q, which lacks %s", s.Peer, want)
		}
	}
	t.Logf("the API saw %+v", s)
	out, err := m.plain.enter(m.ctx, nil, m.echo, "peer", m.api.ip+":8080").Output()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(m.spire.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, out, bundle, "spiffe://"+trustDomain+"/ns/payments/sa/api")
}

// verify checks that a chain stands under SPIRE's own authority, and whose it is.
func verify(t *testing.T, chain, bundle []byte, id string) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	block, rest := pem.Decode(chain)
	if block == nil {
		t.Fatal("the API's proxy showed no certificate")
	}
	between.AppendCertsFromPEM(rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Errorf("the certificate of the API's proxy is not SPIRE's: %v", err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		t.Errorf("the API's proxy is %v, want %s", leaf.URIs, id)
	}
	t.Logf("the API's proxy is %v, issuer %s", leaf.URIs, leaf.Issuer)
}

// intents is the mall as policy-sync sees it.
func intents(revoked []trustgraph.Revoked, flows ...desired.Flow) desired.Intents {
	in := desired.Intents{
		Config:     snapshot.Config{TrustDomain: trustDomain},
		Namespaces: []trustgraph.Namespace{{Name: "payments", Mode: v1alpha1.ModeEnforce}},
		Revoked:    revoked,
	}
	if len(flows) > 0 {
		in.Workloads = []desired.Workload{{Namespace: "payments", Policy: "api", Mode: v1alpha1.ModeEnforce, Ingress: flows}}
	}
	return in
}

// render writes what policy-sync would; only keeps the objects of these names.
func (m *mall) render(t *testing.T, in desired.Intents, only ...string) {
	t.Helper()
	rendered, err := istio.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	var list []*unstructured.Unstructured
	for i := range rendered {
		for _, name := range only {
			if rendered[i].GetName() == "keelson."+name {
				list = append(list, rendered[i].Unstructured)
			}
		}
	}
	if len(list) != len(only) {
		t.Fatalf("policy-sync renders %d of %v", len(list), only)
	}
	m.apply(list...)
}

func (m *mall) label(t *testing.T, value any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{v1alpha1.PolicyLabel("api"): value, v1alpha1.PodEnforcedLabel: value}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.CoreV1().Pods("payments").Patch(m.ctx, "api", apitypes.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (m *mall) strict(t *testing.T) {
	m.render(t, intents(nil), "strict")
	m.becomes(t, m.plain, http.MethodGet, "http://"+m.api.ip+":8080/", 0)
	is(t, m.frontend, http.MethodGet, m.base+"/", 200)
}

func (m *mall) nothing(t *testing.T) {
	m.render(t, intents(nil), "allow-nothing")
	m.refused(t, m.frontend, http.MethodPost, "/charge")
}

// drained: the proxy of the pod "other" has held a connection open since before there was any policy.
func (m *mall) drained(t *testing.T) {
	time.Sleep(drain + time.Second)
	if a := is(t, m.other, http.MethodPost, m.base+"/charge", 403); a.Body != denied {
		t.Errorf("refused with %q, want Envoy's %q", a.Body, denied)
	}
}

// refused waits until Envoy says no.
func (m *mall) refused(t *testing.T, p *pod, method, path string) {
	t.Helper()
	if a := m.becomes(t, p, method, m.base+path, 403); a.Body != denied {
		t.Errorf("%s %s: refused with %q, want Envoy's %q", method, path, a.Body, denied)
	}
}

// charge is the flow of the test's TrustPolicy.
var charge = desired.Flow{
	Namespace: "shop", ServiceAccount: "frontend", Ports: []int32{8080},
	HTTP: []v1alpha1.HTTPRule{{Methods: []string{http.MethodPost}, Paths: []string{"/charge"}}},
}

func (m *mall) opens(t *testing.T) {
	m.render(t, intents(nil, charge), "api.deny", "api.allow")
	m.label(t, v1alpha1.True)
	m.becomes(t, m.frontend, http.MethodPost, m.base+"/charge", 200)
	for name, c := range map[string]struct {
		from         *pod
		method, path string
	}{
		"another method":                           {m.frontend, http.MethodGet, "/charge"},
		"another path":                             {m.frontend, http.MethodPost, "/other"},
		"a path that only begins like it":          {m.frontend, http.MethodPost, "/charge/all"},
		"a path that is spelt otherwise":           {m.frontend, http.MethodPost, "/charge/../other"},
		"another principal of the same namespace":  {m.other, http.MethodPost, "/charge"},
		"another principal with another operation": {m.other, http.MethodGet, "/other"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := is(t, c.from, c.method, m.base+c.path, 403); a.Body != denied {
				t.Errorf("refused with %q, want Envoy's %q", a.Body, denied)
			}
		})
	}
	is(t, m.plain, http.MethodPost, "http://"+m.api.ip+":8080/charge", 0)
}

func (m *mall) foreign(t *testing.T) {
	policy := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "payments", "name": "everybody"},
		"spec":     map[string]any{"action": "ALLOW", "rules": []any{map[string]any{}}},
	}}
	m.apply(policy)
	m.enforces(t, "everybody") // an ALLOW of others widens neither whom our DENY lets in nor for what
	m.refused(t, m.frontend, http.MethodPost, "/other")
	m.refused(t, m.frontend, http.MethodGet, "/charge")
	is(t, m.frontend, http.MethodPost, m.base+"/charge", 200)
	if a := is(t, m.other, http.MethodPost, m.base+"/charge", 403); a.Body != denied {
		t.Errorf("refused with %q, want Envoy's %q", a.Body, denied)
	}
	if out, err := m.remove("payments", "everybody"); err != nil {
		t.Fatal(err, out)
	}
	m.refused(t, m.frontend, http.MethodPost, "/other")
}

// enforces waits until the API's proxy has an AuthorizationPolicy in force.
func (m *mall) enforces(t *testing.T, name string) {
	t.Helper()
	const inForce = "http://127.0.0.1:15000/config_dump?resource=dynamic_listeners&name_regex=virtualInbound"
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := m.api.enter(m.ctx, nil, m.echo, "call", http.MethodGet, inForce).Output()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "policy["+name+"]") {
			return
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("the API's proxy does not have AuthorizationPolicy %s", name)
		}
	}
}

// remove deletes an AuthorizationPolicy.
func (m *mall) remove(namespace, name string) (string, error) {
	path := fmt.Sprintf("/apis/security.istio.io/v1/namespaces/%s/authorizationpolicies/%s", namespace, name)
	raw, err := m.client.CoreV1().RESTClient().Delete().AbsPath(path).DoRaw(m.ctx)
	return string(raw), err
}

func (m *mall) revoked(t *testing.T) {
	m.render(t, intents([]trustgraph.Revoked{{Address: m.frontend.ip, Reason: "the node of pod shop/frontend is proved bad"}}, charge), "revoked")
	m.refused(t, m.frontend, http.MethodPost, "/charge")
	if out, err := m.remove(mesh.Namespace, "keelson.revoked"); err != nil {
		t.Fatal(err, out)
	}
	m.becomes(t, m.frontend, http.MethodPost, m.base+"/charge", 200)
}

func (m *mall) unlabelled(t *testing.T) {
	m.label(t, nil)
	m.refused(t, m.frontend, http.MethodPost, "/charge")
}

func (m *mall) audited(t *testing.T) {
	in := intents(nil, charge)
	in.Namespaces[0].Mode, in.Workloads[0].Mode = v1alpha1.ModeAudit, v1alpha1.ModeAudit
	m.label(t, v1alpha1.True)
	m.render(t, in, "allow-nothing", "api.deny", "api.allow")
	m.becomes(t, m.other, http.MethodGet, m.base+"/anything", 200)
	out, err := m.api.enter(m.ctx, nil, m.echo, "call", http.MethodGet, "http://127.0.0.1:15000/stats?filter=shadow_denied").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "istio_dry_run_deny_.shadow_denied: 1") {
		t.Errorf("Envoy's statistics do not count the request as one that would have been denied: %s", out)
	}
}
