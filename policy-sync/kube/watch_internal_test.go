package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestAPanicInAWatchIsAChange: an object that breaks the comparison asks for a pass, and does not end the program.
func TestAPanicInAWatchIsAChange(t *testing.T) {
	triggers := 0
	h := handler(func(any) {}, func() { triggers++ }, nil)
	h.OnUpdate((*corev1.Node)(nil), (*corev1.Node)(nil))
	if triggers != 1 {
		t.Errorf("%d triggers", triggers)
	}
	same := &corev1.Node{}
	if h.OnUpdate(same, same.DeepCopy()); triggers != 1 {
		t.Error("a kubelet's sign of life asks for a pass")
	}
}
