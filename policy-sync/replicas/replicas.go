// Package replicas takes policy-sync's own replicas off machines that are proved bad.
//
// Whoever controls such a machine controls what runs on it: a replica there leads, or could, and its service account's token gives
// every trust label away. The scheduler keeps new replicas off (their affinity), and this package removes those that were there
// before. Every replica does it, not the one that leads alone, for that one may be the bad machine's.
//
//	proved bad ------> a moment in which a leader that is still itself closes what its machine loses
//	    | delete, with the grace period: it hands the lease over
//	still there -----> delete without: the API server takes no token of a pod that is gone, so its lease ends
//
// It is no defence against a machine that uses the account's rights against this very mechanism (it may delete the other replicas as
// well); it is what an honest replica on a machine that turned bad needs, and what ends a careless thief's.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Times between steps; the grace period is the pod's own.
const (
	// toClose is what a leader on the machine has to carry out its last decisions.
	toClose = 5 * time.Second
	// toEnd is how long beyond its grace period a pod may still be there.
	toEnd = 5 * time.Second
	// often is how often to look.
	often = time.Second
)

// maxSaid bounds what is remembered as logged; beyond it things are said again.
const maxSaid = 256

// Mover looks after the replicas. One goroutine runs it.
type Mover struct {
	// Reader may be a cache; Client deletes.
	Reader client.Reader
	Client client.Client
	// Whoami is the user name that the API server knows policy-sync by. Replicas are the pods of its service account: that of a pod never
	// changes, where its labels do.
	Whoami func(ctx context.Context) (string, error)
	Log    *slog.Logger
	Now    func() time.Time

	namespace, account string
	bad                map[string]time.Time // when a node was first seen as proved bad
	said               map[string]bool      // what was logged
}

// accounts is how the user name of a service account begins (kubernetes, apiserver/pkg/authentication/serviceaccount).
const accounts = "system:serviceaccount:"

// NeedLeaderElection is false: see the package.
func (m *Mover) NeedLeaderElection() bool { return false }

// Start looks until ctx ends.
func (m *Mover) Start(ctx context.Context) error {
	ticker := time.NewTicker(often)
	defer ticker.Stop()
	for {
		if err := m.Look(ctx); err != nil && ctx.Err() == nil {
			m.once(err.Error(), "replicas on machines that are proved bad", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Look looks once, and takes the steps that are due.
func (m *Mover) Look(ctx context.Context) error {
	var trusts v1alpha1.NodeTrustList
	if err := m.Reader.List(ctx, &trusts); err != nil {
		return fmt.Errorf("replicas: %w", err)
	}
	if m.note(trusts.Items); len(m.bad) == 0 {
		m.said = nil // a next time is told anew
		return nil
	}
	if err := m.who(ctx); err != nil || m.namespace == "" {
		return err
	}
	var pods corev1.PodList
	if err := m.Reader.List(ctx, &pods, client.InNamespace(m.namespace)); err != nil {
		return fmt.Errorf("replicas: %w", err)
	}
	replicas := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.ServiceAccountName != m.account })
	refuge := m.refuge(replicas)
	var problems []error
	for i := range replicas {
		p := &replicas[i]
		since, bad := m.bad[p.Spec.NodeName]
		switch {
		case !bad:
		case refuge:
			problems = append(problems, m.move(ctx, p, since))
		default:
			m.once(string(p.UID), "a replica of policy-sync is on a machine that is proved bad and stays, for none is ready elsewhere", "pod", p.Name, "node", p.Spec.NodeName)
		}
	}
	return errors.Join(problems...)
}

// who finds out whose replicas to look for. Whoever runs policy-sync under another kind of user moves it as well.
func (m *Mover) who(ctx context.Context) error {
	if m.namespace != "" {
		return nil
	}
	name, err := m.Whoami(ctx)
	if err != nil {
		return fmt.Errorf("replicas: who policy-sync is: %w", err)
	}
	if rest, ok := strings.CutPrefix(name, accounts); ok {
		m.namespace, m.account, _ = strings.Cut(rest, ":")
		return nil
	}
	m.once(name, "policy-sync is no service account: its replicas are for its operator to move off machines that are proved bad", "user", name)
	return nil
}

// once logs a thing once.
func (m *Mover) once(key, text string, args ...any) {
	if len(m.said) >= maxSaid || m.said == nil {
		m.said = map[string]bool{}
	}
	if !m.said[key] {
		m.Log.Warn(text, args...)
	}
	m.said[key] = true
}

// note keeps since when each node is proved bad, by this replica's own clock.
func (m *Mover) note(trusts []v1alpha1.NodeTrust) {
	bad := map[string]time.Time{}
	for i := range trusts {
		if t := &trusts[i]; t.Spec.Verdict == v1alpha1.VerdictUntrusted {
			bad[t.Name] = m.Now()
			if since, ok := m.bad[t.Name]; ok {
				bad[t.Name] = since
			}
		}
	}
	m.bad = bad
}

// refuge tells whether there is a replica on a machine that is not proved bad, without which nothing would be closed any more. That it is
// ready is its own kubelet's word, which is not one of a bad machine.
func (m *Mover) refuge(replicas []corev1.Pod) bool {
	return slices.ContainsFunc(replicas, func(p corev1.Pod) bool {
		_, bad := m.bad[p.Spec.NodeName]
		return !bad && p.DeletionTimestamp == nil && ready(&p)
	})
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// move takes the step that is due for one replica on a machine that is proved bad since then, if any.
func (m *Mover) move(ctx context.Context, p *corev1.Pod, since time.Time) error {
	options := []client.DeleteOption{client.Preconditions{UID: &p.UID}}
	step := "deleted"
	switch {
	case p.DeletionTimestamp == nil && m.Now().Sub(since) < toClose:
		return nil
	case p.DeletionTimestamp == nil:
	case m.Now().Sub(p.DeletionTimestamp.Time) < toEnd: // the time at which its grace period ends
		return nil
	default:
		step = "deleted without grace: its kubelet does not say that it has ended"
		options = append(options, client.GracePeriodSeconds(0))
	}
	err := m.Client.Delete(ctx, p.DeepCopy(), options...)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another one by that name
	}
	if err != nil {
		return fmt.Errorf("replicas: pod %s on node %s, which is proved bad: %w", p.Name, p.Spec.NodeName, err)
	}
	m.once(string(p.UID)+step, "a replica of policy-sync on a machine that is proved bad is moved away", "pod", p.Name, "node", p.Spec.NodeName, "step", step)
	return nil
}
