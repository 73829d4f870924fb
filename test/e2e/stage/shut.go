package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Tainted tells whether a node bears the taint of those that are not trusted.
func Tainted(n *corev1.Node) bool {
	for _, taint := range n.Spec.Taints {
		if taint.Key == v1alpha1.UntrustedTaint && taint.Effect == corev1.TaintEffectNoSchedule {
			return true
		}
	}
	return false
}

// RefusedByAgent tells whether the SPIRE agent said no, as it does to whom no entry fits.
func RefusedByAgent(v said.SVID) bool { return !v.OK && v.Code == codes.PermissionDenied.String() }

// NoAgent tells whether no SPIRE agent serves: one that may not attest ends.
func NoAgent(v said.SVID) bool { return !v.OK && v.Code == codes.Unavailable.String() }

// Controls show, beside each thing that a pod must not have, that somebody else has it on the same node at the same moment: or else the
// pod might be without it because nothing works there.
type Controls struct {
	// Twin is attested: of the same account, on the same node. nil says that no pod there is, for the node itself is not trusted: then
	// no agent serves there.
	Twin *Pod
}

// ShutOut expects of a running pod that it has no identity, no trust label, and reaches nobody who is enrolled: not the ledger at
// L4, and not the API; and of the controls that they do.
func (s *Stage) ShutOut(ctx context.Context, t *script.Script, p Pod, c Controls) error {
	if err := s.noIdentity(ctx, t, p, c); err != nil {
		return err
	}
	object, err := s.GetPod(ctx, p.Namespace, p.Name)
	if err != nil {
		return err
	}
	t.Expect(object.Labels[v1alpha1.PodAttestedLabel] == "", p.String()+" has no trust label", "%v", s.Why(ctx, p))
	if err := s.waysAreOpen(ctx, t, object.Spec.NodeName); err != nil {
		return err
	}
	if p.Mesh {
		return s.noAnswer(ctx, t, p)
	}
	// By name first: its cluster DNS answers, so it is not the whole network that is closed to it.
	try, err := s.DialService(ctx, p, Ledger)
	if err != nil {
		return err
	}
	t.Expect(Dropped(try), fmt.Sprintf("%s does not reach the service of %s: its packets are dropped", p, Ledger), "%s: %s", try.Kind, try.Error)
	for _, target := range []struct {
		pod  Pod
		port int
	}{{Ledger, TCPPort}, {API, HTTPPort}} {
		address, err := s.Address(ctx, target.pod, target.port)
		if err != nil {
			return err
		}
		try, err := s.Dial(ctx, p, address)
		if err != nil {
			return err
		}
		t.Expect(Dropped(try), fmt.Sprintf("%s does not reach %s: its packets are dropped", p, target.pod), "%s: %s", try.Kind, try.Error)
	}
	return nil
}

// Dropped tells whether a try failed as one does whose packets are dropped on the way: a port that nobody listens at, a way that is not
// there, a name that is not known look otherwise.
func Dropped(t said.Try) bool { return !t.OK && t.Kind == said.Timeout }

// noIdentity: it is refused, by an agent that gives its twin one; or no agent serves, though its folder is there.
func (s *Stage) noIdentity(ctx context.Context, t *script.Script, p Pod, c Controls) error {
	var svid said.SVID
	// An agent that is slow to answer has said nothing.
	if err := s.Until(ctx, 30*time.Second, "the agent answers "+p.String(), func(ctx context.Context) (err error) {
		if svid, err = s.SVID(ctx, p); err == nil && svid.Code == codes.DeadlineExceeded.String() {
			err = errors.New(svid.Error)
		}
		return err
	}); err != nil {
		return err
	}
	if c.Twin == nil {
		t.Expect(NoAgent(svid), p.String()+" gets no identity: no agent may serve there", "%s%s: %s", svid.SPIFFEID, svid.Code, svid.Error)
		mounted, err := s.mounted(ctx, p, "/spire")
		if err != nil {
			return err
		}
		t.Expect(mounted, "control: the folder of the agent's socket is mounted in "+p.String(), "")
		return nil
	}
	t.Expect(RefusedByAgent(svid), p.String()+" gets no identity: the agent refuses it", "%s%s: %s", svid.SPIFFEID, svid.Code, svid.Error)
	var twin said.SVID
	if err := s.Until(ctx, 30*time.Second, c.Twin.String()+" gets its identity", func(ctx context.Context) (err error) {
		if twin, err = s.SVID(ctx, *c.Twin); err == nil && !twin.OK {
			err = errors.New(twin.Error)
		}
		return err
	}); err != nil {
		return err
	}
	t.Expect(twin.OK && twin.SPIFFEID == c.Twin.ID(), "control: "+c.Twin.String()+", of the same account on the same node, gets its", "%s%s", twin.SPIFFEID, twin.Error)
	return nil
}

// mounted looks at the mounts that a pod's container has.
func (s *Stage) mounted(ctx context.Context, p Pod, at string) (bool, error) {
	found, err := s.find(ctx, p.Namespace, p.Name, "main")
	if err != nil {
		return false, err
	}
	n := s.Node(found.node)
	pid, err := n.Runtime.PID(ctx, found.id)
	if err != nil {
		return false, err
	}
	return n.Run(ctx, "/bin/grep", "-q", " "+at+" ro,", fmt.Sprintf("/proc/%d/mountinfo", pid)) == nil, nil
}

// waysAreOpen: whoever is not enrolled goes from the one node to the other, and the ledger and the API answer those who may call them.
func (s *Stage) waysAreOpen(ctx context.Context, t *script.Script, node string) error {
	from, err := s.Stranger(ctx, node)
	if err != nil {
		return err
	}
	to, err := s.Stranger(ctx, Ledger.Node)
	if err != nil {
		return err
	}
	address, err := s.Address(ctx, to, TCPPort)
	if err != nil {
		return err
	}
	return errors.Join(
		s.Control(ctx, t, fmt.Sprintf("%s, which is not enrolled, reaches another on %s from there", from, to.Node), func(ctx context.Context) (said.Try, error) {
			return s.Dial(ctx, from, address)
		}),
		s.Control(ctx, t, fmt.Sprintf("%s reaches %s", Teller, Ledger), func(ctx context.Context) (said.Try, error) {
			return s.DialService(ctx, Teller, Ledger)
		}),
		s.Control(ctx, t, fmt.Sprintf("%s is served by %s", Frontend, API), func(ctx context.Context) (said.Try, error) {
			return s.Get(ctx, Frontend, "POST", API.URL("/charge"))
		}),
	)
}

// Control expects that something succeeds: not at once where the computer is busy, but it is to succeed, or what is denied beside it shows
// nothing.
func (s *Stage) Control(ctx context.Context, t *script.Script, what string, try func(context.Context) (said.Try, error)) error {
	var last said.Try
	err := s.Until(ctx, 30*time.Second, what, func(ctx context.Context) (err error) {
		if last, err = try(ctx); err == nil && !last.OK {
			err = errors.New(last.Error)
		}
		return err
	})
	t.Expect(err == nil, "control: "+what, "%s", last.Error)
	return ctx.Err() // that it did not succeed fails the scenario, which goes on
}

// Stranger is a pod of the namespace that is not enrolled, on a node, whatever the node's taints; it is made when it is first asked for.
func (s *Stage) Stranger(ctx context.Context, node string) (Pod, error) {
	p := Pod{Namespace: Passer.Namespace, Name: "stranger-" + node, Account: Passer.Account, Node: node, Force: true}
	if err := s.Create(ctx, p); err != nil && !apierrors.IsAlreadyExists(err) {
		return p, err
	}
	return p, s.PodReady(ctx, p.Namespace, p.Name, time.Minute)
}

// noAnswer: what such a pod sends goes by way of its own proxy, which answers for itself where the other end does not.
func (s *Stage) noAnswer(ctx context.Context, t *script.Script, p Pod) error {
	try, err := s.Get(ctx, p, "POST", API.URL("/charge"))
	if err != nil {
		return err
	}
	t.Expect(!try.OK && try.Kind != said.Unresolved && try.Answer.Name == "", fmt.Sprintf("%s is not served by %s", p, API), "%s: %s", try.Kind, try.Error)
	address, err := s.Address(ctx, Ledger, TCPPort)
	if err != nil {
		return err
	}
	if try, err = s.Dial(ctx, p, address); err != nil {
		return err
	}
	t.Expect(!try.OK, fmt.Sprintf("%s does not reach %s", p, Ledger), "%s: %s", try.Kind, try.Error)
	return nil
}

// Delete deletes pods and waits until they are gone.
func (s *Stage) Delete(ctx context.Context, pods ...Pod) error {
	for _, p := range pods {
		err := s.Kubernetes.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("stage: pod %s: %w", p, err)
		}
	}
	for _, p := range pods {
		if err := s.Until(ctx, time.Minute, p.String()+" is gone", func(ctx context.Context) error {
			_, err := s.GetPod(ctx, p.Namespace, p.Name)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New("it is still there"))
		}); err != nil {
			return err
		}
	}
	return nil
}
