package plugintest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// spireServer is the account of SPIRE's server in these tests.
const spireServer = "spire-server"

// asServer gives an account what the chart gives that of SPIRE's server, less the verbs in without, waits until the API
// acts on it, and returns a kubeconfig of it.
func asServer(t testing.TB, without ...string) string {
	t.Helper()
	rendered := string(must2(os.ReadFile(filepath.Join("..", "charts", "testdata", "minimal.yaml")))(t))
	const name = "kind: ClusterRole\nmetadata:\n  name: keelson-spire-server\n"
	_, role, found := strings.Cut(rendered, name)
	if !found {
		t.Fatal("the chart has no role for SPIRE's server")
	}
	role, _, _ = strings.Cut(role, "\n---\n")
	for _, verb := range without {
		role = strings.ReplaceAll(role, ", "+verb, "")
	}
	check(t, kubernetes.Apply(t.Context(), []byte("apiVersion: rbac.authorization.k8s.io/v1\n"+name+role), []byte(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: keelson-spire-server},
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: keelson-spire-server}, subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: `+spireServer+`}]}`)))
	scheme := runtime.NewScheme()
	check(t, v1alpha1.AddToScheme(scheme))
	c := must2(client.New(must2(kubernetes.RESTConfigFor(spireServer))(t), client.Options{Scheme: scheme}))(t)
	eventuallyTrue(t, "the API acts on the role", func(ctx context.Context) bool {
		err := c.Create(ctx, &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: "trial"}}, client.DryRunAll)
		return apierrors.IsForbidden(err) == slices.Contains(without, "create")
	}, func() string { return "" })
	return must2(kubernetes.KubeconfigFor(spireServer))(t)
}

// byToken is a server that binds nodes by tokens alone.
func byToken(t testing.TB, ca *tpmtest.CA, reference []byte) serverOptions {
	t.Helper()
	return serverOptions{ca: ca, reference: reference, kubernetes: fmt.Sprintf("kubernetes {\n kubeconfig = %q\n node_binding = \"token\"\n token_audience = %q\n"+
		" token_service_accounts = [\"default/spire-agent\"]\n}\n", asServer(t), audience)}
}

func withToken(t testing.TB, token string) tamper {
	return inPayload(t, func(p *evidence.Payload) { p.Token = []byte(token) })
}

func TestThreat07_AMachineWithAnothersTPMIsNoSecondNode(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	for _, name := range []string{"own-1", "own-2"} {
		newNode(t, name)
	}
	mine, relaying := token(t, "spire-agent", audience, podOn(t, "spire-agent", "own-1")), token(t, "spire-agent", audience, podOn(t, "spire-agent", "own-2"))
	check(t, os.WriteFile(m.file("token"), []byte(mine), 0o600))
	m.serve(t, "token_path = \""+m.file("token")+"\"")
	options := byToken(t, ca, m.capture(t, "good"))
	s := newServer(t, options)
	eventually(t, m, s, "")
	before := nodeTrust(t, "own-1", trusted)

	_, err := attest(t, m, s, withToken(t, relaying))
	line := refused(t, s, err, audit.Unproved, "node.elsewhere")
	if !strings.Contains(line.Refusals[0].Reason, "bound to node own-1, the token names node own-2") || !strings.Contains(line.Refusals[0].Reason, "delete the NodeTrust of own-1") {
		t.Errorf("the reason does not say what to do: %s", line.Refusals[0].Reason)
	}
	noNodeTrust(t, "own-2")
	if after := nodeTrust(t, "own-1", trusted); after.EKHash != before.EKHash {
		t.Errorf("the good node's NodeTrust is now %+v", after)
	}
	_, err = attest(t, m, s, nil)
	check(t, err)

	t.Run("nor with the TPM's other EK, which the inventory lists under the machine", func(t *testing.T) {
		listed := options
		listed.inventory = map[string][]string{"own-1": m.ekHex}
		check(t, s.configure(t, listed))
		other := *m
		other.serve(t, "ek_template = \"L-1\"")
		_, err := attest(t, &other, s, withToken(t, relaying))
		refused(t, s, err, audit.Unproved, "node.elsewhere")
		noNodeTrust(t, "own-2")
	})
	t.Run("where the other node's verdict is not written yet", func(t *testing.T) {
		check(t, s.configure(t, options))
		check(t, kube(t).Delete(t.Context(), &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: "own-1"}}))
		asServer(t, "create", "update")
		defer asServer(t)
		_, err := attest(t, m, s, nil)
		check(t, err)
		noNodeTrust(t, "own-1")
		_, err = attest(t, m, s, withToken(t, relaying))
		refused(t, s, err, audit.Unproved, "node.elsewhere")
	})
	t.Run("until an administrator deletes the NodeTrust, for the machine was renamed", func(t *testing.T) {
		nodeTrust(t, "own-1", trusted)
		check(t, kube(t).Delete(t.Context(), &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: "own-1"}}))
		_, err := attest(t, m, s, withToken(t, relaying))
		check(t, err)
		nodeTrust(t, "own-2", trusted)
		_, err = attest(t, m, s, nil)
		refused(t, s, err, audit.Unproved, "node.elsewhere")
		noNodeTrust(t, "own-1")
	})
}

func TestThreat07_TwoTokensAtOnceBindAMachineOnce(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	var tokens []string
	for _, name := range []string{"race-1", "race-2"} {
		newNode(t, name)
		tokens = append(tokens, token(t, "spire-agent", audience, podOn(t, "spire-agent", name)))
	}
	s := newServer(t, byToken(t, ca, m.capture(t, "good")))
	var mu sync.Mutex
	accepted := map[int]int{}
	for round := 0; len(accepted) == 0 || round < 3; round++ {
		if round == 20 {
			t.Fatal("nobody was accepted in 20 rounds")
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if _, err := attest(t, m, s, withToken(t, tokens[i%2])); err == nil {
					mu.Lock()
					defer mu.Unlock()
					accepted[i%2]++
				}
			})
		}
		wg.Wait()
	}
	if len(accepted) != 1 {
		t.Fatalf("one TPM was accepted as both nodes: %v", accepted)
	}
	for i := range accepted {
		nodeTrust(t, fmt.Sprintf("race-%d", i+1), trusted)
		noNodeTrust(t, fmt.Sprintf("race-%d", 2-i))
	}
}

func TestThreat25_WithoutTheAPINoTokenIsReviewedAndNoPlaceHeld(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "review-1")
	check(t, os.WriteFile(m.file("token"), []byte(token(t, "spire-agent", audience, podOn(t, "spire-agent", "review-1"))), 0o600))
	m.serve(t, "token_path = \""+m.file("token")+"\"")
	s := newServer(t, byToken(t, ca, m.capture(t, "good")))
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := nodeTrust(t, "review-1", trusted)
	refusedInTime := func() {
		begun := time.Now()
		if _, err := attest(t, m, s, nil); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want Unavailable", err)
		}
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("a place was held for %s", took)
		}
		lines := s.audit(t)
		if last := lines[len(lines)-1]; last.Outcome != audit.Inconclusive || !strings.Contains(last.Error, "review the service-account token") {
			t.Errorf("audit line %+v", last)
		}
	}
	check(t, kubernetes.Freeze(refusedInTime))
	check(t, kubernetes.Outage(t.Context(), refusedInTime))
	if after := nodeTrust(t, "review-1", trusted); !after.AttestedAt.Equal(&before.AttestedAt) {
		t.Errorf("the verdict is now %+v", after)
	}
	_, err = attest(t, m, s, nil)
	check(t, err)
}
