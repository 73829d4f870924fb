package spoofing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// What follows may be written, and is reported. Where it widens access all the same, that is expected as a known limit, so that
// whoever closes it has to change this scenario.
func known(t *script.Script, widened bool, what, format string, args ...any) {
	t.Expect(widened, "KNOWN LIMIT, reported: "+what, format, args...)
}

// reported expects a finding of policy-sync's.
func reported(ctx context.Context, s *stage.Stage, t *script.Script, what string, words ...string) error {
	line, err := s.UntilFound(ctx, words...)
	if err != nil {
		return err
	}
	t.Expect(true, "policy-sync reports "+what, "%s", line)
	return nil
}

// written creates an object as the app team, calls play, and takes it away again.
func written(ctx context.Context, c client.Client, o client.Object, play func() error) error {
	if err := c.Create(ctx, o); err != nil {
		return fmt.Errorf("spoofing: %w", err)
	}
	err := play()
	if deleteErr := c.Delete(ctx, o); deleteErr != nil {
		err = errors.Join(err, fmt.Errorf("spoofing: %w", deleteErr))
	}
	return err
}

// charge is a call of the API.
func charge(ctx context.Context, s *stage.Stage, from stage.Pod, method, path string) (said.Try, error) {
	return s.Get(ctx, from, method, stage.API.URL(path))
}

// comes waits until a call of a pod succeeds, or no longer does; a proxy takes over new rules a little later than they are written.
func comes(ctx context.Context, s *stage.Stage, from stage.Pod, method string, served bool) (said.Try, error) {
	var try said.Try
	err := s.Until(ctx, 30*time.Second, fmt.Sprintf("%s /charge of %s is served: %t", method, from, served), func(ctx context.Context) (err error) {
		try, err = charge(ctx, s, from, method, "/charge")
		if err == nil && try.OK != served {
			err = fmt.Errorf("status %d %s", try.Status, try.Error)
		}
		return err
	})
	return try, err
}

const allow = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everybody, namespace: payments}
spec: {action: ALLOW, rules: [{}]}
`

// allowAll: Istio takes the union of ALLOW policies, so anybody's "allow everything" would open the API, were it not for our DENY. Calico
// is out of the way, or the API's proxy would not be asked.
func allowAll(ctx context.Context, s *stage.Stage, t *script.Script, alice client.Client) (err error) {
	opened, err := s.OpenL4(ctx, stage.Batch, stage.API)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close(ctx)) }()
	if err := written(ctx, alice, object(allow), func() error {
		if err := inForce(ctx, s, "everybody"); err != nil {
			return err
		}
		for _, c := range []struct {
			from         stage.Pod
			method, path string
		}{
			{stage.Batch, "POST", "/charge"}, // whom no TrustPolicy names
			{stage.Frontend, "GET", "/charge"},
			{stage.Frontend, "POST", "/other"},
		} {
			try, err := s.Answer(ctx, func(ctx context.Context) (said.Try, error) { return charge(ctx, s, c.from, c.method, c.path) })
			if err != nil {
				return err
			}
			t.Expect(stage.DeniedByProxy(try), fmt.Sprintf("an ALLOW of the team's own for everybody opens nothing, though L4 is open: %s %s of %s", c.method, c.path, c.from), "status %d %s", try.Status, try.Error)
		}
		if err := s.Control(ctx, t, "what the TrustPolicy allows is served", func(ctx context.Context) (said.Try, error) {
			return charge(ctx, s, stage.Frontend, "POST", "/charge")
		}); err != nil {
			return err
		}
		return reported(ctx, s, t, "it", "AuthorizationPolicy payments/everybody")
	}); err != nil {
		return err
	}
	return nil
}

// inForce waits until the API's proxy has an AuthorizationPolicy, as it says itself.
func inForce(ctx context.Context, s *stage.Stage, policy string) error {
	return s.Until(ctx, 30*time.Second, fmt.Sprintf("the proxy of %s has policy %s", stage.API, policy), func(ctx context.Context) error {
		tries, err := s.Probe(ctx, stage.API, stage.Probing{For: time.Millisecond, Every: time.Second, Timeout: 2 * time.Second, Contains: "policy[" + policy + "]"}, stage.Listeners)
		if err == nil && !tries[0].OK {
			err = errors.New(tries[0].Error)
		}
		return err
	})
}

const customPolicy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom, namespace: payments}
spec: {action: CUSTOM, provider: {name: nobody}, rules: [{}]}
`

// custom: a decision that is left to somebody else, whom the mesh does not know.
func custom(ctx context.Context, s *stage.Stage, t *script.Script, alice client.Client) (err error) {
	opened, err := s.OpenL4(ctx, stage.Batch, stage.API)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close(ctx)) }()
	if err := written(ctx, alice, object(customPolicy), func() error {
		if err := reported(ctx, s, t, "a CUSTOM policy of the team's own", "AuthorizationPolicy payments/custom"); err != nil {
			return err
		}
		// Istio denies everything where the provider is not known: that is how it is seen to have come.
		if _, err := comes(ctx, s, stage.Frontend, "POST", false); err != nil {
			return err
		}
		for _, c := range []struct {
			from   stage.Pod
			method string
		}{{stage.Batch, "POST"}, {stage.Frontend, "GET"}} {
			try, err := s.Answer(ctx, func(ctx context.Context) (said.Try, error) { return charge(ctx, s, c.from, c.method, "/charge") })
			if err != nil {
				return err
			}
			t.Expect(stage.DeniedByProxy(try), fmt.Sprintf("it opens nothing: %s by %s", c.method, c.from), "status %d %s", try.Status, try.Error)
		}
		return nil
	}); err != nil {
		return err
	}
	_, err = comes(ctx, s, stage.Frontend, "POST", true)
	return err
}

// withoutRules takes the filter out of proxies that asks what the rules say.
const withoutRules = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: without-rules, namespace: payments}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.rbac}}}}
    patch: {operation: REMOVE}
`

// envoyFilter: it can do anything with the namespace's own proxies; L4 is not theirs.
func envoyFilter(ctx context.Context, s *stage.Stage, t *script.Script, alice client.Client) error {
	if err := written(ctx, alice, object(withoutRules), func() error {
		if err := reported(ctx, s, t, "an EnvoyFilter of the team's own", "EnvoyFilter payments/without-rules"); err != nil {
			return err
		}
		try, err := comes(ctx, s, stage.Frontend, "GET", true)
		known(t, err == nil && try.OK, "an EnvoyFilter in the called namespace takes the rules out of its proxies: who is let through at L4 is served whatever it asks for", "status %d %v", try.Status, err)
		if try, err = charge(ctx, s, stage.Batch, "POST", "/charge"); err != nil {
			return err
		}
		t.Expect(!try.OK && try.Status != 403, "it opens nothing to callers that no TrustPolicy names: Calico does not let them through", "status %d %s", try.Status, try.Error)
		return nil
	}); err != nil {
		return err
	}
	_, err := comes(ctx, s, stage.Frontend, "GET", false)
	return err
}

// excluded: a pod whose author leads what comes in past its proxy.
func excluded(ctx context.Context, s *stage.Stage, t *script.Script, _ client.Client) error {
	pod := stage.Pod{
		Namespace: "payments", Name: "excluded", Account: "api", Node: "fra-2", Mesh: true, Labels: map[string]string{"app": "excluded"},
		Annotations: map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": fmt.Sprint(stage.HTTPPort)},
	}
	if err := s.CreateReady(ctx, pod); err != nil {
		return err
	}
	if err := s.Attested(ctx, pod); err != nil {
		return err
	}
	if err := reported(ctx, s, t, "a pod that leads traffic past its proxy", "pod "+pod.String(), "excludeInboundPorts"); err != nil {
		return err
	}
	address, err := s.Address(ctx, pod, stage.HTTPPort)
	if err != nil {
		return err
	}
	url := "http://" + address + "/other"
	var try said.Try
	err = s.Until(ctx, 20*time.Second, stage.Frontend.String()+" is served by it, in plain text", func(ctx context.Context) (err error) {
		if try, err = s.Get(ctx, stage.Frontend, "GET", url); err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		return err
	})
	known(t, err == nil && try.OK && try.Answer.Caller == "", "annotation excludeInboundPorts: who is let through at L4 is served whatever it asks for, in plain text", "status %d %v", try.Status, err)
	home, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return err
	}
	if try, err = s.Get(ctx, stage.Frontend, "GET", "http://"+home+"/other"); err != nil {
		return err
	}
	t.Expect(!try.OK, "control: without the annotation the same call is refused", "status %d %s", try.Status, try.Error)
	if try, err = s.Dial(ctx, stage.Passer, address); err != nil {
		return err
	}
	t.Expect(stage.Dropped(try), "it opens nothing to a stranger: Calico drops its packets", "%s: %s", try.Kind, try.Error)
	if try, err = s.Get(ctx, stage.Batch, "GET", url); err != nil {
		return err
	}
	t.Expect(!try.OK, "nor to an attested pod that no TrustPolicy names", "status %d %s", try.Status, try.Error)
	return s.Delete(ctx, pod)
}

// otherAuthorities: a certificate for the frontend's SPIFFE ID from the authority that signs istiod's own, shown to the API's proxy.
func otherAuthorities(ctx context.Context, s *stage.Stage, t *script.Script, _ client.Client) (err error) {
	opened, err := s.OpenL4(ctx, stage.Teller, stage.API)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close(ctx)) }()
	address, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return err
	}
	url := "https://" + address + "/charge"
	word, err := s.IstiodsWord(stage.Frontend)
	if err != nil {
		return err
	}
	try, err := s.Answer(ctx, func(ctx context.Context) (said.Try, error) {
		return s.GetAs(ctx, stage.Teller, string(word), "POST", url)
	})
	if err != nil {
		return err
	}
	t.Expect(try.Kind == said.TLS, "a certificate for "+stage.Frontend.ID()+" from istiod's authority is not believed", "%s: %s", try.Kind, try.Error)
	if try, err = s.Answer(ctx, func(ctx context.Context) (said.Try, error) { return s.GetAs(ctx, stage.Teller, "svid", "POST", url) }); err != nil {
		return err
	}
	t.Expect(stage.DeniedByProxy(try), "control: SPIRE's for "+stage.Teller.ID()+" is believed, and denied by name", "%s: %s", try.Kind, try.Error)
	return nil
}

// foreignEntry: whoever may write SPIRE's entries has somebody else get the API's identity.
func foreignEntry(ctx context.Context, s *stage.Stage, t *script.Script, _ client.Client) (err error) {
	const entry = "somebody-elses"
	command := func(args ...string) error {
		_, err := s.SPIREServer(ctx, append([]string{"entry"}, args...)...)
		return err
	}
	if _, err := s.UntilProgrammed(ctx, stage.API.Namespace, "api", metav1.ConditionTrue); err != nil {
		return err
	}
	// Policy-sync writes no node classes; whoever writes entries makes one.
	const class, every = "somebodys-class", "spiffe://" + stage.TrustDomain + "/somebody/every-machine"
	if err := command("create", "-entryID", class, "-node", "-spiffeID", every, "-selector", "keelson_tpm:ref:"+factory.Reference); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, command("delete", "-entryID", class)) }()
	if err := command("create", "-entryID", entry, "-parentID", every, "-spiffeID", stage.API.ID(),
		"-selector", "keelson:ns:"+stage.Passer.Namespace, "-selector", "keelson:sa:"+stage.Passer.Account); err != nil {
		return err
	}
	why, err := s.UntilProgrammed(ctx, stage.API.Namespace, "api", metav1.ConditionFalse)
	if err != nil {
		return errors.Join(err, command("delete", "-entryID", entry))
	}
	t.Expect(strings.Contains(why, entry) && strings.Contains(why, stage.API.ID()), "a foreign SPIRE entry for the API's identity: its policy is not called programmed, and says why", "%s", why)
	if err := s.Until(ctx, 30*time.Second, stage.Passer.String()+" gets the API's identity", func(ctx context.Context) error {
		svid, err := s.SVID(ctx, stage.Passer)
		if err == nil && svid.SPIFFEID != stage.API.ID() {
			err = fmt.Errorf("%s%s", svid.SPIFFEID, svid.Error)
		}
		return err
	}); err != nil {
		return errors.Join(err, command("delete", "-entryID", entry))
	}
	known(t, true, "whoever writes SPIRE's entries gives any identity to anybody on an attested node", "%s has %s", stage.Passer, stage.API.ID())
	for _, to := range []stage.Pod{stage.Ledger, stage.Mirror} {
		try, err := s.DialService(ctx, stage.Passer, to)
		if err != nil {
			return errors.Join(err, command("delete", "-entryID", entry))
		}
		t.Expect(stage.Dropped(try), fmt.Sprintf("with it %s still does not reach %s", stage.Passer, to), "%s: %s", try.Kind, try.Error)
	}
	if err := command("delete", "-entryID", entry); err != nil {
		return err
	}
	if _, err := s.UntilProgrammed(ctx, stage.API.Namespace, "api", metav1.ConditionTrue); err != nil {
		return err
	}
	return s.Until(ctx, time.Minute, stage.Passer.String()+" gets no identity any more", func(ctx context.Context) error {
		svid, err := s.SVID(ctx, stage.Passer)
		if err == nil && !stage.RefusedByAgent(svid) {
			err = fmt.Errorf("%s%s", svid.SPIFFEID, svid.Error)
		}
		return err
	})
}
