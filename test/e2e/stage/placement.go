package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// placement is the admission policy that gives pods a node affinity.
const placement = "keelson-pod-node-affinity"

// ForcePods makes pods as they would be if nothing but their author said where they run: with the affinity that admission adds, an
// honest kubelet refuses a pod that was bound to it past the scheduler. What keeps such pods out must not rest on that.
func (s *Stage) ForcePods(ctx context.Context, pods ...Pod) (err error) {
	bindings := s.Kubernetes.AdmissionregistrationV1().MutatingAdmissionPolicyBindings()
	binding, err := bindings.Get(ctx, placement, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	if err := bindings.Delete(ctx, placement, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	again := binding.DeepCopy()
	again.ResourceVersion, again.UID = "", ""
	defer func() {
		if _, failed := bindings.Create(context.WithoutCancel(ctx), again, metav1.CreateOptions{}); failed != nil {
			err = errors.Join(err, fmt.Errorf("stage: %w", failed))
			return
		}
		err = errors.Join(err, s.untilPlacing(ctx, pods[0], true))
	}()
	if err := s.untilPlacing(ctx, pods[0], false); err != nil {
		return err
	}
	for _, p := range pods {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// untilPlacing waits until a pod that is created gets an affinity, or none any more: an API server takes a change of its admission
// policies a little later than it stores it.
func (s *Stage) untilPlacing(ctx context.Context, p Pod, want bool) error {
	return s.Until(ctx, 30*time.Second, fmt.Sprintf("pods get an affinity: %t", want), func(ctx context.Context) error {
		p.Name = "probe"
		object, err := s.object(p)
		if err != nil {
			return err
		}
		created, err := s.Kubernetes.CoreV1().Pods(p.Namespace).Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && (created.Spec.Affinity != nil) != want {
			err = errors.New("not yet")
		}
		return err
	})
}

// Rejected waits until a kubelet has refused to run a pod, and returns why.
func (s *Stage) Rejected(ctx context.Context, p Pod) (why string, err error) {
	err = s.Until(ctx, time.Minute, p.String()+" is refused by its kubelet", func(ctx context.Context) error {
		object, err := s.GetPod(ctx, p.Namespace, p.Name)
		if err != nil {
			return err
		}
		if object.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("it is %s", object.Status.Phase)
		}
		why = object.Status.Reason + ": " + object.Status.Message
		return nil
	})
	return why, err
}

// Waits waits until the scheduler has said why it places a pod nowhere, and returns that.
func (s *Stage) Waits(ctx context.Context, p Pod) (why string, err error) {
	err = s.Until(ctx, time.Minute, "the scheduler says why "+p.String()+" waits", func(ctx context.Context) error {
		object, err := s.GetPod(ctx, p.Namespace, p.Name)
		if err != nil {
			return err
		}
		if object.Spec.NodeName != "" {
			return fmt.Errorf("it was placed on %s", object.Spec.NodeName)
		}
		for _, c := range object.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				why = c.Message
				return nil
			}
		}
		return errors.New("it says nothing yet")
	})
	return why, err
}
