package stage

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods are the pods of a namespace that a selector finds.
func (s *Stage) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	list, err := s.Kubernetes.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("stage: pods: %w", err)
	}
	return list.Items, nil
}

// KillContainer ends a container's process as kill -9 does, from outside of it; without a name, its first container. The kubelet
// starts it again.
func (s *Stage) KillContainer(ctx context.Context, p *corev1.Pod, name string) error {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != name && name != "" || c.State.Running == nil {
			continue
		}
		n := s.Node(p.Spec.NodeName)
		_, id, _ := strings.Cut(c.ContainerID, "://")
		pid, err := n.Runtime.PID(ctx, id)
		if err != nil {
			return err
		}
		return n.Run(ctx, "/bin/kill", "-9", fmt.Sprint(pid)) // in the node's PID namespace, where the runtime counts
	}
	return fmt.Errorf("stage: pod %s/%s has no container %q that runs", p.Namespace, p.Name, name)
}
