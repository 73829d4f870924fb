package plugintest_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func kube(t testing.TB) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	check(t, corev1.AddToScheme(s))
	check(t, v1alpha1.AddToScheme(s))
	return must2(client.New(kubernetes.RESTConfig(), client.Options{Scheme: s}))(t)
}

func newNode(t testing.TB, name string) *corev1.Node {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	check(t, kube(t).Create(t.Context(), n))
	return n
}

// nodeTrust waits for the node's verdict to satisfy want.
func nodeTrust(t testing.TB, name string, want func(v1alpha1.NodeTrustSpec) bool) v1alpha1.NodeTrustSpec {
	t.Helper()
	var nt v1alpha1.NodeTrust
	for range 300 { // a request that an API does not answer when it starts again ends after 10 s
		err := kube(t).Get(t.Context(), client.ObjectKey{Name: name}, &nt)
		if err == nil && want(nt.Spec) {
			return nt.Spec
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("NodeTrust %s did not become what was wanted; it is %+v", name, nt.Spec)
	return nt.Spec
}

// known waits for the node's trusted verdict, and until the plugin has heard that it is written: with the API away the plugin
// goes by what it knows.
func known(t testing.TB, name string) v1alpha1.NodeTrustSpec {
	t.Helper()
	spec := nodeTrust(t, name, trusted)
	time.Sleep(time.Second) // the API's answer comes a little after others can read what was written
	return spec
}

func noNodeTrust(t testing.TB, name string) {
	t.Helper()
	time.Sleep(300 * time.Millisecond) // longer than the queue needs for its first try
	var nt v1alpha1.NodeTrust
	if err := kube(t).Get(t.Context(), client.ObjectKey{Name: name}, &nt); !apierrors.IsNotFound(err) {
		t.Fatalf("NodeTrust %s exists: %+v (%v)", name, nt.Spec, err)
	}
}

// refused asserts a refusal by a check (or one whose id begins so), with its audit line, and returns that line.
func refused(t testing.TB, s *server, err error, outcome audit.Outcome, checkID string) audit.Entry {
	t.Helper()
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), checkID) {
		t.Fatalf("got error %v, want PermissionDenied by %s", err, checkID)
	}
	lines := s.audit(t)
	last := lines[len(lines)-1]
	if last.Outcome != outcome || !slices.ContainsFunc(last.Refusals, func(r refusal) bool { return strings.HasPrefix(r.Check, checkID) }) {
		t.Fatalf("audit line %+v, want outcome %s by %s", last, outcome, checkID)
	}
	return last
}

func trusted(s v1alpha1.NodeTrustSpec) bool   { return s.Verdict == v1alpha1.VerdictTrusted }
func untrusted(s v1alpha1.NodeTrustSpec) bool { return s.Verdict == v1alpha1.VerdictUntrusted }

func TestAGoodMachineIsTrustedAndCanAttestAgain(t *testing.T) {
	for _, template := range []string{"L-1", "L-2"} {
		t.Run("EK template "+template, func(t *testing.T) {
			ca := must2(tpmtest.NewCA())(t)
			m := newMachine(t, ca, "good", template).serve(t, "")
			name := "good-" + strings.ToLower(template)
			node := newNode(t, name)
			s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{name: m.ekHex}})
			attrs, err := attest(t, m, s, nil)
			check(t, err)
			if !attrs.CanReattest {
				t.Error("an agent must be able to attest again")
			}
			nt := nodeTrust(t, name, trusted)
			if want := "spiffe://example.org/spire/agent/keelson_tpm/" + nt.EKHash; attrs.SpiffeId != want || nt.AgentID != want {
				t.Errorf("agent ID %s, NodeTrust has %s, want %s", attrs.SpiffeId, nt.AgentID, want)
			}
			want := []string{"ek:sha256:" + nt.EKHash, "ima:clean", "node:" + name, "ref:good", "secureboot:false", "tpm:manufacturer:" + strings.ToLower(tpmtest.DefaultManufacturer)}
			if d := cmp.Diff(want, attrs.SelectorValues); d != "" {
				t.Errorf("selectors: %s", d)
			}
			if nt.NodeUID != string(node.UID) || nt.Reference != "good" || len(nt.Reasons) != 0 {
				t.Errorf("NodeTrust %+v does not describe node %s", nt, node.UID)
			}
			if _, err := attest(t, m, s, nil); err != nil {
				t.Errorf("second attestation: %v", err)
			}
			if n := len(s.audit(t)); n != 2 {
				t.Errorf("%d audit lines for 2 attestations", n)
			}
		})
	}
}

func TestATamperedCommandLineIsProvedBadAndNamed(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	golden := newMachine(t, ca, "good")
	evil := newMachine(t, ca, "cmdline").serve(t, "")
	newNode(t, "evil-1")
	s := newServer(t, serverOptions{ca: ca, reference: golden.capture(t, "good"), inventory: map[string][]string{"evil-1": evil.ekHex}})
	_, err := attest(t, evil, s, nil)
	refused(t, s, err, audit.Untrusted, "kernel.cmdline")
	nt := nodeTrust(t, "evil-1", untrusted)
	if !strings.Contains(nt.Reasons[0].Reason, "kernel command line is") {
		t.Errorf("the first reason is %q; want the kernel command line in a person's words", nt.Reasons[0].Reason)
	}
	if strings.Contains(err.Error(), "console") {
		t.Errorf("the agent learns reference values: %v", err)
	}
}

func TestLiveTamperingLowersTheVerdictAtTheNextAttestation(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "ima-payload-a").serve(t, "")
	newNode(t, "live-1")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"live-1": m.ekHex}})
	_, err := attest(t, m, s, nil)
	check(t, err)
	nodeTrust(t, "live-1", trusted)
	entry := tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil"))
	m.measure(t, entry)
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file")
	nt := nodeTrust(t, "live-1", untrusted)
	if !strings.Contains(nt.Reasons[0].Reason, "/usr/bin/backdoor") {
		t.Errorf("reason %q does not name the file", nt.Reasons[0].Reason)
	}
}
