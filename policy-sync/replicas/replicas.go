// Package replicas takes policy-sync's own replicas off machines that are proved bad.
//
// Whoever controls such a machine controls what runs on it: a replica there leads, or could, and its service account's token gives
// every trust label away. The scheduler keeps new replicas off (their affinity), and this package removes those that were there
// before. Every replica does it, not the one that leads alone, for that one may be the bad machine's.
//
//	proved bad ------> a moment in which a leader that is still itself closes what its machine loses
//	    | delete, with the grace period: it hands the lease over
//	still there -----> delete without: the API server takes no token of a pod that is gone, so its lease ends
package replicas

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Selector is the label of policy-sync's pods in its own namespace; the chart sets it.
const Selector, Name = "app.kubernetes.io/name", "keelson-policy-sync"

// Times between steps; the grace period is the pod's own.
const (
	// toClose is what a leader on the machine has to carry out its last decisions.
	toClose = 5 * time.Second
	// toEnd is how long beyond its grace period a pod may still be there.
	toEnd = 5 * time.Second
	// often is how often to look.
	often = time.Second
)

// Mover looks after the replicas. One goroutine runs it.
type Mover struct {
	// Reader may be a cache; Client deletes.
	Reader client.Reader
	Client client.Client
	// Namespace is policy-sync's own.
	Namespace string
	Log       *slog.Logger
	Now       func() time.Time

	bad map[string]time.Time // when a node was first seen as proved bad
}

// NeedLeaderElection is false: see the package.
func (m *Mover) NeedLeaderElection() bool { return false }

// Start looks until ctx ends.
func (m *Mover) Start(ctx context.Context) error {
	ticker := time.NewTicker(often)
	defer ticker.Stop()
	for {
		if err := m.Look(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("replicas on machines that are proved bad", "err", err)
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
	var pods corev1.PodList
	var nodes corev1.NodeList
	if err := errors.Join(m.Reader.List(ctx, &trusts),
		m.Reader.List(ctx, &pods, client.InNamespace(m.Namespace), client.MatchingLabels{Selector: Name}), m.Reader.List(ctx, &nodes)); err != nil {
		return fmt.Errorf("replicas: %w", err)
	}
	m.note(trusts.Items)
	if !m.refuge(pods.Items, nodes.Items) {
		return nil // there is nowhere else to run, and a policy-sync that runs nowhere closes nothing
	}
	var problems []error
	for i := range pods.Items {
		problems = append(problems, m.move(ctx, &pods.Items[i]))
	}
	return errors.Join(problems...)
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

// refuge tells whether there is a replica on a machine that is not proved bad, or a trusted machine for one. That a replica is ready
// is its own kubelet's word, which is not one of a bad machine.
func (m *Mover) refuge(pods []corev1.Pod, nodes []corev1.Node) bool {
	for i := range pods {
		if _, bad := m.bad[pods[i].Spec.NodeName]; !bad && pods[i].DeletionTimestamp == nil && ready(&pods[i]) {
			return true
		}
	}
	for i := range nodes {
		n := &nodes[i]
		if _, bad := m.bad[n.Name]; !bad && !n.Spec.Unschedulable && n.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted) {
			return true
		}
	}
	return false
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// move takes the step that is due for one replica, if any.
func (m *Mover) move(ctx context.Context, p *corev1.Pod) error {
	since, bad := m.bad[p.Spec.NodeName]
	if !bad {
		return nil
	}
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
	m.Log.Warn("a replica of policy-sync on a machine that is proved bad is moved away", "pod", p.Name, "node", p.Spec.NodeName, "step", step)
	return nil
}
