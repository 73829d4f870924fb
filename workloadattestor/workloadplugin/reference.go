package workloadplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/validation"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pod"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// AttestReference answers for references to a process (WorkloadPIDReference) and to a pod of this node (KubernetesObjectReference)
// of the SPIFFE Broker API. Every other reference is InvalidArgument, as SPIRE asks of a plugin that does not support it.
func (p *Plugin) AttestReference(ctx context.Context, req *workloadattestorv1.AttestReferenceRequest) (*workloadattestorv1.AttestReferenceResponse, error) {
	a := p.acquire()
	if a == nil {
		return nil, errNotConfigured
	}
	defer p.release(a)
	caller, err := a.brokerOf(ctx)
	if err != nil {
		return nil, err
	}
	var selectors []string
	var pid broker.WorkloadPIDReference
	var object broker.KubernetesObjectReference
	switch reference := req.GetReference(); {
	case reference.MessageIs(&pid):
		if err := reference.UnmarshalTo(&pid); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "workload attestor: reference: %v", err)
		}
		selectors, err = p.attestPID(ctx, a.attestor, pid.GetPid(), caller)
	case reference.MessageIs(&object):
		if err := reference.UnmarshalTo(&object); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "workload attestor: reference: %v", err)
		}
		selectors, err = p.attestObject(ctx, a.attestor, &object, caller)
	default:
		return nil, status.Errorf(codes.InvalidArgument, "workload attestor: reference type %.200q is not supported, want %s or %s",
			reference.GetTypeUrl(), pid.ProtoReflect().Descriptor().FullName(), object.ProtoReflect().Descriptor().FullName())
	}
	if err != nil {
		return nil, err
	}
	return &workloadattestorv1.AttestReferenceResponse{SelectorValues: selectors}, nil
}

func (p *Plugin) attestObject(ctx context.Context, a *attestor, object *broker.KubernetesObjectReference, caller string) ([]string, error) {
	ref, err := podReferenceOf(object)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "workload attestor: reference: %v", err)
	}
	if a.pods == nil {
		return nil, status.Error(codes.FailedPrecondition, "workload attestor: references to pods need kubeconfig or in_cluster: only the Kubernetes API knows all of a pod's containers")
	}
	return p.decide(ref.String(), caller, func() (outcome, error) { return a.attestPod(ctx, ref, a.mayRefer(caller)) })
}

// podReference names a pod by namespace and name, by UID, or by both.
type podReference struct{ namespace, name, uid string }

// maxUID bounds a UID. Kubernetes' are UUIDs; a pod that a file of the node makes has a hash in hexadecimal digits.
const maxUID = 64

// podReferenceOf reads a reference (spiffe, SPIFFE_Broker_API.md, "KubernetesObjectReference").
func podReferenceOf(object *broker.KubernetesObjectReference) (podReference, error) {
	kind, key := object.GetType(), object.GetKey()
	ref := podReference{namespace: key.GetNamespace(), name: key.GetName(), uid: object.GetUid()}
	switch {
	case kind.GetPlural() != "pods" || kind.GetGroup() != "core":
		return podReference{}, fmt.Errorf("objects of type %.63q in group %.253q are not supported, want pods in group core", kind.GetPlural(), kind.GetGroup())
	case key == nil && ref.uid == "":
		return podReference{}, errors.New("give the pod's namespace and name, its UID, or both")
	case len(ref.uid) > maxUID || strings.Trim(ref.uid, "0123456789abcdefABCDEF-") != "":
		return podReference{}, fmt.Errorf("%.80q is no UID of a pod", ref.uid)
	case key == nil:
		return ref, nil
	}
	problems := append(validation.ValidateNamespaceName(ref.namespace, false), validation.NameIsDNSSubdomain(ref.name, false)...)
	if len(problems) > 0 {
		return podReference{}, fmt.Errorf("namespace %.80q and name %.260q are no pod's: %s", ref.namespace, ref.name, problems[0])
	}
	return ref, nil
}

// String is the pod in words.
func (r podReference) String() string {
	switch {
	case r.name == "":
		return "pod with UID " + r.uid
	case r.uid == "":
		return "pod " + r.namespace + "/" + r.name
	default:
		return "pod " + r.namespace + "/" + r.name + " with UID " + r.uid
	}
}

// attestPod attests a pod as a whole: what is said of it is said of each of its containers. may refuses a broker the pod.
func (a *attestor) attestPod(ctx context.Context, ref podReference, may permission) (out outcome, err error) {
	var running runtime.Pod
	if ref.name == "" {
		if running, err = a.runtime.Pod(ctx, ref.uid); err != nil {
			return out, podError(err)
		}
		ref.namespace, ref.name = running.Namespace, running.Name
	}
	out.claims = workloadclaim.Claims{Node: a.node, Namespace: ref.namespace, PodName: ref.name}
	if err := may(ctx, ref.namespace, ref.name); err != nil {
		return out, err
	}
	facts, uid, err := a.pods.Find(ctx, ref.namespace, ref.name, ref.uid)
	if err != nil {
		return out, err
	}
	// It is asked once the API's object is known, so that no container can be in the object alone.
	if running, err = a.runtime.Pod(ctx, uid); err != nil {
		return out, podError(err)
	}
	if running.Namespace != ref.namespace || running.Name != ref.name {
		return out, refused(fmt.Errorf("the API calls the pod with UID %s %s/%s, the runtime %.63s/%.253s", uid, ref.namespace, ref.name, running.Namespace, running.Name))
	}
	out.claims.PodUID, out.claims.ServiceAccount, out.claims.RuntimeClass = uid, facts.Account, facts.RuntimeClass
	if err := out.spell(); err != nil {
		return out, err
	}
	if err := out.addContainers(ctx, a, running, facts); err != nil {
		return out, err
	}
	after, err := a.runtime.Pod(ctx, uid)
	if err != nil {
		return out, podError(err)
	}
	if after.SandboxID != running.SandboxID || !slices.Equal(after.Containers, running.Containers) {
		return out, fmt.Errorf("containers of pod %s/%s came, went or ended while it was looked at: ask again", ref.namespace, ref.name)
	}
	return out, nil
}

// podError tells what the runtime does not have, and a call that failed, from an answer that is refused.
func podError(err error) error {
	if errors.Is(err, runtime.ErrNoPod) {
		return err
	}
	return runtimeError(err)
}

// unstarted is a container of the spec that neither runs nor has ended, "" if there is none: nobody knows yet from what image it
// will be made. A container that the spec does not have is refused.
func unstarted(running runtime.Pod, facts pod.Facts) (string, error) {
	started := map[string]bool{}
	for _, c := range running.Containers {
		if !slices.Contains(facts.Containers, c.Name) {
			return "", fmt.Errorf("pod %s/%s runs container %.63q, which its spec does not have", running.Namespace, running.Name, c.Name)
		}
		if c.State == criv1.ContainerState_CONTAINER_RUNNING || c.State == criv1.ContainerState_CONTAINER_EXITED {
			started[c.Name] = true
		}
	}
	for _, c := range running.Containers { // one that is being made may be of another image than the one before it
		if c.State != criv1.ContainerState_CONTAINER_RUNNING && c.State != criv1.ContainerState_CONTAINER_EXITED {
			return c.Name, nil
		}
	}
	for _, name := range facts.Containers {
		if !started[name] {
			return name, nil
		}
	}
	return "", nil
}

// maxAtOnce bounds how many containers of one pod are looked at together.
const maxAtOnce = 4

// addContainers adds the selectors of image and runtime that every container of the pod has, those that have ended among them: an
// init container has had the pod's network and volumes. Until all have started there are none.
func (o *outcome) addContainers(ctx context.Context, a *attestor, running runtime.Pod, facts pod.Facts) error {
	missing, err := unstarted(running, facts)
	if err != nil {
		return refused(err)
	}
	if missing != "" {
		o.absent = append(o.absent, fmt.Sprintf("image: container %s has not started yet", missing), fmt.Sprintf("runtime: container %s has not started yet", missing))
		return nil
	}
	outcomes := make([]outcome, len(running.Containers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxAtOnce)
	for i, c := range running.Containers {
		group.Go(func() (err error) {
			outcomes[i], err = a.attestContainer(ctx, running, c, facts)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var shared []string
	for i, c := range outcomes {
		if i == 0 {
			shared = c.selectors
		}
		shared = slices.DeleteFunc(shared, func(s string) bool { return !slices.Contains(c.selectors, s) })
		for _, reason := range c.absent {
			proof, why, _ := strings.Cut(reason, ": ")
			o.absent = append(o.absent, fmt.Sprintf("%s: container %s: %s", proof, running.Containers[i].Name, why))
		}
	}
	o.selectors = append(o.selectors, shared...)
	slices.Sort(o.selectors)
	o.selectors = slices.Compact(o.selectors)
	return nil
}

// attestContainer makes the selectors of one container, as attest does for a process in it, but for its name and what only its
// cgroup knows. An error is about the whole pod.
func (a *attestor) attestContainer(ctx context.Context, of runtime.Pod, listed runtime.Listed, facts pod.Facts) (out outcome, err error) {
	container, err := a.runtime.Started(ctx, listed.ID)
	switch {
	case errors.Is(err, runtime.ErrUnknown), errors.Is(err, runtime.ErrNotYet):
		return out, fmt.Errorf("container %s came or went while its pod was looked at: %w", listed.Name, err)
	case err != nil:
		return out, runtimeError(err)
	case container.SandboxID != of.SandboxID || container.PodUID != of.UID || container.Name != listed.Name:
		return out, refused(fmt.Errorf("the runtime lists container %.63q in pod %s, and says elsewhere that it is %.63q in pod %.64q", listed.Name, of.UID, container.Name, container.PodUID))
	}
	out.claims = claimsOf(a.node, container)
	out.claims.Container = ""
	out.owner = image.Owner{Namespace: container.Namespace}
	mounted := a.own.foreign(container)
	out.addMounts(mounted)
	out.addPod(facts, container, mounted)
	out.addRunning(ctx, a, container)
	return out, out.spell()
}
