package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
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

// ShutOut expects of a running pod that it has no identity, no trust label, and reaches nobody who is enrolled: not the ledger at
// L4, and not the API at L7.
func (s *Stage) ShutOut(ctx context.Context, t *script.Script, p Pod) error {
	svid, err := s.SVID(ctx, p)
	if err != nil {
		return err
	}
	t.Expect(!svid.OK, p.String()+" gets no identity", "%s%s", svid.SPIFFEID, svid.Error)
	object, err := s.GetPod(ctx, p.Namespace, p.Name)
	if err != nil {
		return err
	}
	t.Expect(object.Labels[v1alpha1.PodAttestedLabel] == "", p.String()+" has no trust label", "%v", s.Why(ctx, p))
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
		t.Expect(!try.OK, fmt.Sprintf("%s does not reach %s", p, target.pod), "%s", try.Error)
	}
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
