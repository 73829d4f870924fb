package stage

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// Until asks every 100 ms until check is content, and says what it wanted when it gives up.
func (s *Stage) Until(ctx context.Context, limit time.Duration, what string, check func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check(limited)
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			return fmt.Errorf("stage: not within %s: %s: %w", limit, what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// GetNode reads a Node.
func (s *Stage) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	return s.Kubernetes.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
}

// GetPod reads a Pod.
func (s *Stage) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return s.Kubernetes.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

// PodReady waits until a pod is ready.
func (s *Stage) PodReady(ctx context.Context, namespace, name string, limit time.Duration) error {
	return s.Until(ctx, limit, "pod "+namespace+"/"+name+" is ready", func(ctx context.Context) error {
		p, err := s.GetPod(ctx, namespace, name)
		if err != nil {
			return err
		}
		return ready(p)
	})
}

// PodRunning waits until a pod's container "main" runs, whether the pod is ready or not.
func (s *Stage) PodRunning(ctx context.Context, p Pod, limit time.Duration) error {
	return s.Until(ctx, limit, "pod "+p.String()+" runs", func(ctx context.Context) error {
		object, err := s.GetPod(ctx, p.Namespace, p.Name)
		if err != nil {
			return err
		}
		for _, c := range object.Status.ContainerStatuses {
			if c.Name == "main" && c.State.Running != nil {
				return nil
			}
		}
		return ready(object)
	})
}

// RestartAgent deletes the SPIRE agent's pod on a node; its DaemonSet makes another at once.
func (s *Stage) RestartAgent(ctx context.Context, node string) error {
	pods, err := s.Kubernetes.CoreV1().Pods("spire").List(ctx, metav1.ListOptions{LabelSelector: "app=spire-agent", FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	for _, p := range pods.Items {
		now := int64(0)
		if err := s.Kubernetes.CoreV1().Pods("spire").Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			return fmt.Errorf("stage: %w", err)
		}
	}
	return nil
}

// ready says why a pod is not.
func ready(p *corev1.Pod) error {
	var why []string
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			why = append(why, c.Message)
		}
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.State.Waiting != nil {
			why = append(why, c.Name+": "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		}
	}
	return fmt.Errorf("it is %s: %s", p.Status.Phase, strings.Join(why, "; "))
}

// Exec runs a program in a pod's container, by way of the node's runtime. Where the API does not answer, the container is the one that
// it was when it last did: what is played must be seen while the API is down.
func (s *Stage) Exec(ctx context.Context, namespace, name, container string, command ...string) (node.Result, error) {
	found, err := s.find(ctx, namespace, name, container)
	if err != nil {
		return node.Result{}, err
	}
	return s.Node(found.node).Runtime.Exec(ctx, found.id, command...)
}

// running is a container that runs.
type running struct{ node, id string }

func (s *Stage) find(ctx context.Context, namespace, name, container string) (running, error) {
	key := namespace + "/" + name + "/" + container
	asking, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	p, err := s.GetPod(asking, namespace, name)
	if err != nil {
		if known, ok := s.containers.Load(key); ok && !apierrors.IsNotFound(err) {
			return known.(running), nil
		}
		return running{}, err
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == container && c.ContainerID != "" {
			_, id, _ := strings.Cut(c.ContainerID, "://")
			found := running{p.Spec.NodeName, id}
			s.containers.Store(key, found)
			return found, nil
		}
	}
	return running{}, fmt.Errorf("stage: pod %s/%s has no container %s that runs", namespace, name, container)
}

// Debug adds a debug container to a pod, as kubectl debug does.
func (s *Stage) Debug(ctx context.Context, p Pod, image string) error {
	object, err := s.GetPod(ctx, p.Namespace, p.Name)
	if err != nil {
		return err
	}
	object.Spec.EphemeralContainers = append(object.Spec.EphemeralContainers, corev1.EphemeralContainer{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: image, Args: []string{"pause"}},
	})
	if _, err := s.Kubernetes.CoreV1().Pods(p.Namespace).UpdateEphemeralContainers(ctx, p.Name, object, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("stage: debug %s: %w", p, err)
	}
	return nil
}

// Unlabelled is an error while a pod has its trust label.
func (s *Stage) Unlabelled(ctx context.Context, p Pod) error {
	object, err := s.GetPod(ctx, p.Namespace, p.Name)
	if err == nil && object.Labels[v1alpha1.PodAttestedLabel] != "" {
		err = fmt.Errorf("%s has its trust label", p)
	}
	return err
}

// Revoked is Calico's set of revoked addresses.
func (s *Stage) Revoked(ctx context.Context) ([]string, error) {
	dynamicClient, err := dynamic.NewForConfig(s.Cluster.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("stage: %w", err)
	}
	sets := dynamicClient.Resource(schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworksets"})
	set, err := sets.Get(ctx, "keelson.revoked", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("stage: %w", err)
	}
	nets, _, err := unstructured.NestedStringSlice(set.Object, "spec", "nets")
	return nets, err
}

// JoinOnce lets a machine join unless it has.
func (s *Stage) JoinOnce(ctx context.Context, name string) error {
	if s.Node(name) == nil {
		if err := s.Join(ctx, name); err != nil {
			return err
		}
	}
	return s.Ready(ctx)
}

// Verdict waits until there is a verdict on a machine.
func (s *Stage) Verdict(ctx context.Context, name string, want v1alpha1.Verdict) error {
	return s.Until(ctx, time.Minute, fmt.Sprintf("the verdict on %s is %s", name, want), func(ctx context.Context) error {
		var trust v1alpha1.NodeTrust
		if err := s.Client.Get(ctx, client.ObjectKey{Name: name}, &trust); err != nil {
			return err
		}
		if trust.Spec.Verdict != want {
			return fmt.Errorf("it is %s", trust.Spec.Verdict)
		}
		return nil
	})
}
