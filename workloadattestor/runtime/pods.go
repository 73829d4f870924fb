package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrNoPod means that this node's runtime has no pod of that UID whose sandbox is ready.
var ErrNoPod = errors.New("no such pod is ready in this node's runtime")

// Pod is what the runtime says of a pod and of the containers in its sandbox.
type Pod struct {
	Namespace, Name, UID string
	SandboxID            string
	Containers           []Listed // sorted by ID
}

// Listed is a container in a pod's sandbox.
type Listed struct {
	ID, Name string // the name in the pod's spec
	State    criv1.ContainerState
}

// maxContainers bounds how many containers one pod is taken to have, those that ended among them. The API server refuses specs with
// far fewer, because of the size of an object.
const maxContainers = 512

// Pod asks about the pod with this UID: ErrNoPod when the runtime has none with a sandbox that is ready. An error that wraps a gRPC
// status came from a call; every other one is a refusal of what the runtime said.
func (c *Client) Pod(ctx context.Context, uid string) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.runtime.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{Filter: &criv1.PodSandboxFilter{
		State:         &criv1.PodSandboxStateValue{State: criv1.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{labelPodUID: uid},
	}})
	if err != nil {
		return Pod{}, fmt.Errorf("runtime: pod with UID %.128q: %w", uid, err)
	}
	pod, err := readySandbox(uid, answer.GetItems())
	if err != nil {
		return Pod{}, err
	}
	list, err := c.runtime.ListContainers(ctx, &criv1.ListContainersRequest{Filter: &criv1.ContainerFilter{PodSandboxId: pod.SandboxID}})
	if err != nil {
		return Pod{}, fmt.Errorf("runtime: containers of pod sandbox %s: %w", pod.SandboxID, err)
	}
	return pod, pod.add(list.GetContainers())
}

// readySandbox finds the pod's one sandbox that is ready. Answers that the filter should have left out are left out here.
func readySandbox(uid string, items []*criv1.PodSandbox) (Pod, error) {
	var out Pod
	for _, s := range items {
		m := s.GetMetadata()
		if s.GetState() != criv1.PodSandboxState_SANDBOX_READY || m.GetUid() != uid || s.GetLabels()[labelPodUID] != uid {
			continue
		}
		switch {
		case out.SandboxID != "":
			return Pod{}, fmt.Errorf("runtime: the pod with UID %.128q has two ready sandboxes, %.64s and %.64s: refused", uid, out.SandboxID, s.GetId())
		case s.GetId() == "" || m.GetNamespace() == "" || m.GetName() == "":
			return Pod{}, fmt.Errorf("runtime: the sandbox of the pod with UID %.128q has no ID, namespace or name: refused", uid)
		}
		out = Pod{Namespace: m.GetNamespace(), Name: m.GetName(), UID: uid, SandboxID: s.GetId()}
	}
	if out.SandboxID == "" {
		return Pod{}, fmt.Errorf("runtime: pod with UID %.128q: %w", uid, ErrNoPod)
	}
	return out, nil
}

func (p *Pod) add(items []*criv1.Container) error {
	for _, c := range items {
		if c.GetPodSandboxId() != p.SandboxID {
			continue
		}
		p.Containers = append(p.Containers, Listed{ID: c.GetId(), Name: c.GetLabels()[labelContainer], State: c.GetState()})
	}
	if len(p.Containers) > maxContainers {
		return fmt.Errorf("runtime: pod %s/%s has %d containers, the limit is %d: refused", p.Namespace, p.Name, len(p.Containers), maxContainers)
	}
	slices.SortFunc(p.Containers, func(a, b Listed) int { return cmp.Compare(a.ID, b.ID) })
	for i := range p.Containers {
		if i > 0 && p.Containers[i].ID == p.Containers[i-1].ID {
			return fmt.Errorf("runtime: pod %s/%s has container %.64s twice: refused", p.Namespace, p.Name, p.Containers[i].ID)
		}
	}
	return nil
}
