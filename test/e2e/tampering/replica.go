package tampering

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// policySync is the Deployment that the chart makes, and selector its pods.
const (
	policySync = "keelson-policy-sync"
	selector   = "app.kubernetes.io/name=" + policySync
)

// leaves is the time within which policy-sync has left a machine that is proved bad: a moment to close, its grace period, and a kubelet
// that takes its time.
const leaves = time.Minute

// host sees to it that a replica of policy-sync runs on the machine that is going to be tampered with.
func host(ctx context.Context, s *stage.Stage) (err error) {
	pods, err := s.Pods(ctx, stage.Namespace, selector)
	if err != nil || slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == node }) {
		return err
	}
	nodes, err := s.Kubernetes.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("tampering: %w", err)
	}
	if len(pods) == 0 {
		return errors.New("tampering: policy-sync has no pods")
	}
	cordon := func(ctx context.Context, unschedulable bool) (err error) {
		for _, n := range nodes.Items {
			if n.Name == node || n.Spec.Unschedulable {
				continue
			}
			_, e := s.Kubernetes.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, unschedulable), metav1.PatchOptions{})
			err = errors.Join(err, e)
		}
		return err
	}
	defer func() { err = errors.Join(err, cordon(context.WithoutCancel(ctx), false)) }()
	if err := cordon(ctx, true); err != nil {
		return fmt.Errorf("tampering: %w", err)
	}
	if err := s.Kubernetes.CoreV1().Pods(stage.Namespace).Delete(ctx, pods[0].Name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("tampering: %w", err)
	}
	return s.Until(ctx, time.Minute, "a replica of policy-sync runs on "+node, func(ctx context.Context) error {
		d, err := s.Kubernetes.AppsV1().Deployments(stage.Namespace).Get(ctx, policySync, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if st := d.Status; st.Replicas != *d.Spec.Replicas || st.AvailableReplicas != *d.Spec.Replicas {
			return fmt.Errorf("%d pods, %d available", st.Replicas, st.AvailableReplicas)
		}
		return nil
	})
}

// left waits until no replica of policy-sync is on the machine any more, and as many as before are ready elsewhere.
func left(ctx context.Context, s *stage.Stage, t *script.Script, verdict time.Time) error {
	if err := s.Until(ctx, leaves, "policy-sync has left "+node, func(ctx context.Context) error {
		pods, err := s.Pods(ctx, stage.Namespace, selector)
		if err != nil {
			return err
		}
		for i := range pods {
			if p := &pods[i]; p.Spec.NodeName == node {
				return fmt.Errorf("%s is there, deleted %v", p.Name, p.DeletionTimestamp)
			}
		}
		d, err := s.Kubernetes.AppsV1().Deployments(stage.Namespace).Get(ctx, policySync, metav1.GetOptions{})
		if err == nil && d.Status.AvailableReplicas != *d.Spec.Replicas {
			err = fmt.Errorf("%d of %d replicas are available", d.Status.AvailableReplicas, *d.Spec.Replicas)
		}
		return err
	}); err != nil {
		return err
	}
	t.Expect(true, "no replica of policy-sync is left on "+node+", and as many as before run elsewhere", "%.1f s after the verdict at the latest", time.Since(verdict).Seconds())
	return nil
}
