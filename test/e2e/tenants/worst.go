package tenants

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

const namespace = "worst"

var (
	team = stage.Team{Namespace: namespace, Mode: v1alpha1.ModeEnforce, Accounts: []string{"worker", "clerk"}}
	// worker is whom nearly all of the policies are for; clerk would be attested if its team let policy-sync write.
	worker = stage.Pod{Namespace: namespace, Name: "worker", Account: "worker"}
	clerk  = stage.Pod{Namespace: namespace, Name: "clerk", Account: "clerk"}
)

// quota refuses what policy-sync writes for the team's policies.
const quota = `
apiVersion: v1
kind: ResourceQuota
metadata: {name: no-policies, namespace: worst}
spec: {hard: {count/authorizationpolicies.security.istio.io: "0", count/networkpolicies.crd.projectcalico.org: "0"}}
`

func policy(name string, w v1alpha1.Workloads, ingress ...v1alpha1.IngressRule) *v1alpha1.TrustPolicy {
	return &v1alpha1.TrustPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.TrustPolicySpec{Workloads: w, Require: v1alpha1.Requirements{Image: v1alpha1.ImageRequirement{VerifiedBy: []string{"release-key"}}}, Ingress: ingress},
	}
}

var itsAccount = v1alpha1.Workloads{ServiceAccount: "worker"}

// largest is near every bound at once: 1,024 callers, most with rules of their own, each with HTTP rules. Each turn is another.
func largest(turn int) *v1alpha1.TrustPolicy {
	p := policy("largest", itsAccount)
	for i := range 32 {
		rule := v1alpha1.IngressRule{Ports: []int32{int32(1000 + i + 100*(turn%8))}} // #nosec G115 -- small
		for j := range 2 {
			rule.HTTP = append(rule.HTTP, v1alpha1.HTTPRule{
				Methods: []string{"GET", "POST"}[:1+j%2], Paths: []string{fmt.Sprintf("/r/%d/%d", i, j), fmt.Sprintf("/s/%d/%d/*", i, j)},
			})
		}
		for j := range 64 {
			n := (j*(2*i+1) + 37*i) % 1024
			rule.From = append(rule.From, v1alpha1.Peer{Namespace: fmt.Sprintf("team-%d", n%5), ServiceAccount: fmt.Sprintf("caller-%d", n)})
		}
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	return p
}

// slip selects every pod, and has more ports than a policy may have.
func slip() *v1alpha1.TrustPolicy {
	p := policy("slip", v1alpha1.Workloads{Selector: &metav1.LabelSelector{}})
	for i := range 9 {
		rule := v1alpha1.IngressRule{From: []v1alpha1.Peer{{ServiceAccount: "worker"}}}
		for j := range 32 {
			rule.Ports = append(rule.Ports, int32(2000+32*i+j)) // #nosec G115 -- small
		}
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	return p
}

// nobody lets in peers that do not exist.
func nobody() *v1alpha1.TrustPolicy {
	return policy("nobody", itsAccount, v1alpha1.IngressRule{From: []v1alpha1.Peer{{Namespace: "nowhere", ServiceAccount: "nobody"}}})
}

// plain has nothing wrong but its team's quota.
func plain() *v1alpha1.TrustPolicy {
	return policy("plain", v1alpha1.Workloads{ServiceAccount: "clerk"}, v1alpha1.IngressRule{From: []v1alpha1.Peer{{ServiceAccount: "worker"}}, Ports: []int32{stage.TCPPort}})
}

// many are policies that all select the same pods, or are gone the next moment.
func many() (out []*v1alpha1.TrustPolicy) {
	for i := range 20 {
		out = append(out, policy(fmt.Sprintf("many-%d", i), itsAccount, v1alpha1.IngressRule{
			From: []v1alpha1.Peer{{ServiceAccount: fmt.Sprintf("caller-%d", i)}}, Ports: []int32{int32(3000 + i)}, // #nosec G115 -- small
		}))
	}
	return out
}

// templates are refused by the API, each with a sentence.
func templates(ctx context.Context, s *stage.Stage, t *script.Script) {
	rule := func(h v1alpha1.HTTPRule) v1alpha1.IngressRule {
		return v1alpha1.IngressRule{From: []v1alpha1.Peer{{ServiceAccount: "worker"}}, HTTP: []v1alpha1.HTTPRule{h}}
	}
	for _, c := range []struct {
		what, want string
		rule       v1alpha1.IngressRule
	}{
		{"path /orders/{id}", "braces hold * or ** alone", rule(v1alpha1.HTTPRule{Paths: []string{"/orders/{id}"}})},
		{"method get", "an HTTP method is written in upper case", rule(v1alpha1.HTTPRule{Methods: []string{"get"}})},
		{"a peer by namespace/name", "it has no namespace before it", v1alpha1.IngressRule{From: []v1alpha1.Peer{{ServiceAccount: "bank/teller"}}}},
	} {
		err := s.Client.Create(ctx, policy("refused", itsAccount, c.rule))
		t.Expect(apierrors.IsInvalid(err) && contains(err, c.want), "the API refuses "+c.what+", and says why", "%v", err)
	}
}

// badPath is an object of Istio's that its definition takes and istiod does not.
const badPath = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad-path, namespace: street}
spec: {rules: [{to: [{operation: {paths: ["/orders/{id}"]}}]}]}
`

// istiodRefuses: where its validating webhook is in force, what policy-sync writes has to pass it as well.
func istiodRefuses(ctx context.Context, s *stage.Stage, t *script.Script) {
	err := s.Cluster.Apply(ctx, []byte(badPath))
	t.Expect(contains(err, "validation.istio.io"), "control: istiod's webhook refuses an AuthorizationPolicy for path /orders/{id}", "%v", err)
}

// harass does all that until the context ends, a turn a second, and returns how many turns there were.
func harass(ctx context.Context, s *stage.Stage) (turns int, err error) {
	for ; ctx.Err() == nil; turns++ {
		begun := time.Now()
		if err := turn(ctx, s, turns); err != nil && ctx.Err() == nil {
			return turns, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second - time.Since(begun)):
		}
	}
	return turns, nil
}

func turn(ctx context.Context, s *stage.Stage, n int) error {
	if err := write(ctx, s, largest(n)); err != nil {
		return err
	}
	switch n % 4 {
	case 0:
		return write(ctx, s, append(many(), nobody(), slip(), plain())...)
	case 2:
		for _, p := range append(many(), nobody()) {
			if err := s.Client.Delete(ctx, p); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("tenants: %w", err)
			}
		}
	}
	return nil
}

// write creates policies, or gives those that there are their spec.
func write(ctx context.Context, s *stage.Stage, policies ...*v1alpha1.TrustPolicy) error {
	for _, p := range policies {
		err := s.Client.Create(ctx, p.DeepCopy())
		if apierrors.IsAlreadyExists(err) {
			var live v1alpha1.TrustPolicy
			if err = s.Client.Get(ctx, client.ObjectKeyFromObject(p), &live); err == nil {
				before := live.DeepCopy()
				live.Spec = p.Spec
				err = s.Client.Patch(ctx, &live, client.MergeFrom(before))
			}
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("tenants: policy %s: %w", p.Name, err)
		}
	}
	return nil
}

// withheld expects that the team's own policies say what of them is not in force, and why.
func withheld(ctx context.Context, s *stage.Stage, t *script.Script) error {
	for _, c := range []struct{ name, condition, want string }{
		{"plain", v1alpha1.ConditionProgrammed, "quota"},
		{"slip", v1alpha1.ConditionAccepted, "distinct ports"},
	} {
		var text string
		err := s.Until(ctx, time.Minute, c.name+" says what is withheld", func(ctx context.Context) error {
			var p v1alpha1.TrustPolicy
			if err := s.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: c.name}, &p); err != nil {
				return err
			}
			for _, condition := range p.Status.Conditions {
				if condition.Type == c.condition {
					if text = condition.Message; condition.Status == metav1.ConditionFalse && contains(errors.New(text), c.want) {
						return nil
					}
					return fmt.Errorf("%s %s: %s", condition.Type, condition.Status, text)
				}
			}
			return errors.New("it says nothing")
		})
		t.Expect(err == nil, fmt.Sprintf("%s/%s says that it is not %s, and why", namespace, c.name, c.condition), "%s %v", text, err)
	}
	err := s.Unlabelled(ctx, clerk)
	t.Expect(err == nil, fmt.Sprintf("%s gets no label while the objects of its policy are refused", clerk), "%v %s", err, s.Why(ctx, clerk))
	return ctx.Err()
}
