package workloadplugin_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/runtime/runtimetest"
)

// podRef refers to a pod; name "" leaves out the key.
func podRef(namespace, name, uid string) *broker.KubernetesObjectReference {
	ref := &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"}, Uid: uid}
	if name != "" {
		ref.Key = &broker.KubernetesObjectKey{Namespace: namespace, Name: name}
	}
	return ref
}

// ofPod are the selectors of a whole pod: all but the container's name.
func (w *world) ofPod() []string { return without(w.selectors(), "container:") }

// bare are the selectors of a pod of which nothing is known that holds for all containers.
func (w *world) bare() []string {
	return []string{"node:fra-1", "ns:payments", "pod-name:api-0", "pod-uid:" + podUID, "sa:api"}
}

// second adds a container "sidecar" to the pod, in the runtime and in the API's spec under the given list.
func (w *world) second(list string, change func(*runtimetest.Pod)) runtimetest.Pod {
	w.t.Helper()
	p := w.pod
	p.Container, p.ContainerID = "sidecar", strings.Repeat("c", 64)
	p.CgroupsPath = "/kubepods/pod" + podUID + "/" + p.ContainerID
	if change != nil {
		change(&p)
	}
	if err := w.runtime.Add(p); err != nil {
		w.t.Fatal(err)
	}
	more := `,{"name":"sidecar","securityContext":` + hardened + `}]`
	spec := strings.Replace(apiPod, `}]}}`, `}`+more+`}}`, 1)
	if list != "containers" {
		spec = strings.Replace(apiPod, `}]}}`, fmt.Sprintf(`}],%q:[%s}}`, list, more[1:]), 1)
	}
	w.api.Store(&spec)
	return p
}

func (w *world) inState(p runtimetest.Pod, state criv1.ContainerState) {
	w.t.Helper()
	container, sandbox, err := p.Answers()
	if err != nil {
		w.t.Fatal(err)
	}
	container.Status.State = state
	w.runtime.Put(container, sandbox)
}

func TestPodReferences(t *testing.T) {
	cases := map[string]struct {
		change func(w *world)
		want   func(w *world) []string
		reason string
	}{
		"one container": {func(*world) {}, (*world).ofPod, ""},
		"two alike":     {func(w *world) { w.second("containers", nil) }, (*world).ofPod, ""},
		"an init container that has ended": {func(w *world) {
			w.inState(w.second("initContainers", nil), criv1.ContainerState_CONTAINER_EXITED)
		}, (*world).ofPod, ""},
		"a sidecar of another image": {func(w *world) {
			w.second("containers", func(p *runtimetest.Pod) { p.ImageID, p.ImageRef = w.unsigned() })
		}, func(w *world) []string { return without(w.ofPod(), "image-", "signed-by:") }, "signed-by:release-key: container sidecar: "},
		"an ended init container of another image": {func(w *world) {
			w.inState(w.second("initContainers", func(p *runtimetest.Pod) { p.ImageID, p.ImageRef = w.unsigned() }), criv1.ContainerState_CONTAINER_EXITED)
		}, func(w *world) []string { return without(w.ofPod(), "image-", "signed-by:") }, ""},
		"an ephemeral container of another image": {func(w *world) {
			w.second("ephemeralContainers", func(p *runtimetest.Pod) { p.ImageID, p.ImageRef = w.unsigned() })
		}, func(w *world) []string { return without(w.ofPod(), "image-", "signed-by:") }, ""},
		"a privileged sidecar": {func(w *world) { w.second("containers", func(p *runtimetest.Pod) { p.Privileged = true }) },
			func(w *world) []string {
				return without(w.ofPod(), "privileged:", "runtime:")
			}, "runtime:baseline: container sidecar: "},
		"a sidecar with a folder of the node": {func(w *world) { w.second("containers", func(p *runtimetest.Pod) { p.HostPaths = []string{"/run"} }) },
			func(w *world) []string { return without(w.ofPod(), "host-path:", "runtime:") }, "runtime: container sidecar: "},
		"a container that has not started": {func(w *world) { w.runtime.Remove(w.second("containers", nil).ContainerID) },
			(*world).bare, "image: container sidecar has not started yet"},
		"a container that is being made": {func(w *world) { w.inState(w.second("containers", nil), criv1.ContainerState_CONTAINER_CREATED) },
			(*world).bare, "image: container sidecar has not started yet"},
		"one that is made anew": {func(w *world) {
			w.inState(w.pod, criv1.ContainerState_CONTAINER_EXITED)
			again := w.pod
			again.ContainerID = strings.Repeat("d", 64)
			w.inState(again, criv1.ContainerState_CONTAINER_CREATED)
		}, (*world).bare, "image: container main has not started yet"},
		"no container at all": {func(w *world) { w.runtime.Remove(idA) }, (*world).bare, "runtime: container main has not started yet"},
		"the registry is away": {func(w *world) { w.down.Store(true) },
			func(w *world) []string { return without(w.ofPod(), "image-", "signed-by:") }, "image: container main: "},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.change(w)
			w.allowed.Store(mayRefer, true)
			w.configure(w.hcl() + `allowed_brokers = ["` + ztunnel + `"]` + "\n")
			want := tc.want(w)
			slices.Sort(want)
			for kind, ref := range map[string]*broker.KubernetesObjectReference{
				"key": podRef("payments", "api-0", ""), "UID": podRef("", "", podUID), "both": podRef("payments", "api-0", podUID),
			} {
				got, err := w.refer(ref, ztunnel)
				if d := cmp.Diff(want, got); err != nil || d != "" {
					t.Errorf("%s: %v (-want +got)\n%s", kind, err, d)
				}
			}
			if !strings.Contains(w.log.String(), tc.reason) {
				t.Errorf("the log has no word of %q:\n%s", tc.reason, w.log)
			}
		})
	}
}

// unsigned pushes an image that has no signature: its config and a reference to it.
func (w *world) unsigned() (config, reference string) {
	w.t.Helper()
	img, err1 := random.Image(64, 1)
	repo, err2 := name.NewRepository(w.registry+"/payments/other", name.Insecure)
	if err := errors.Join(err1, err2); err != nil {
		w.t.Fatal(err)
	}
	id, err1 := img.ConfigName()
	manifest, err2 := img.Digest()
	if err := errors.Join(err1, err2, remote.Write(repo.Tag("v1"), img)); err != nil {
		w.t.Fatal(err)
	}
	return id.String(), repo.Name() + "@" + manifest.String()
}

func TestPodReferencesThatAreRefused(t *testing.T) {
	const otherUID = "11111111-2222-3333-4444-666666666666"
	sandbox := func(w *world, change func(*criv1.PodSandbox)) []*criv1.PodSandbox {
		s := &criv1.PodSandbox{Id: strings.Repeat("e", 64), Metadata: &criv1.PodSandboxMetadata{Namespace: "payments", Name: "api-0", Uid: podUID},
			State: criv1.PodSandboxState_SANDBOX_READY, Labels: map[string]string{"io.kubernetes.pod.uid": podUID}}
		change(s)
		return []*criv1.PodSandbox{s}
	}
	cases := map[string]struct {
		change func(w *world)
		ref    *broker.KubernetesObjectReference
		code   codes.Code
		reason string
	}{
		"an unknown pod":                {nil, podRef("payments", "gone", ""), codes.NotFound, "the API has no such pod"},
		"an unknown UID":                {nil, podRef("", "", otherUID), codes.NotFound, "no such pod is ready"},
		"another UID than the pod's":    {nil, podRef("payments", "api-0", otherUID), codes.NotFound, "has UID " + podUID},
		"a UID of another pod's name":   {nil, podRef("payments", "gone", podUID), codes.NotFound, "the API has no such pod"},
		"a pod of another node":         {func(w *world) { w.spec2("fra-1", "par-1") }, podRef("payments", "api-0", ""), codes.NotFound, `is on node "par-1"`},
		"one by UID":                    {func(w *world) { w.spec2("fra-1", "par-1") }, podRef("", "", podUID), codes.NotFound, `is on node "par-1"`},
		"one that was made anew":        {func(w *world) { w.spec2(podUID, otherUID) }, podRef("", "", podUID), codes.NotFound, "has UID " + otherUID},
		"one that this runtime has not": {func(w *world) { w.spec2(podUID, otherUID) }, podRef("payments", "api-0", ""), codes.NotFound, "no such pod is ready"},
		"a pod without an account":      {func(w *world) { w.spec2(`"serviceAccountName":"api",`, "") }, podRef("payments", "api-0", ""), codes.NotFound, "no service account"},
		"an API that answers garbage":   {func(w *world) { other := "{"; w.api.Store(&other) }, podRef("payments", "api-0", ""), codes.Unavailable, "is no pod"},
		"a runtime that is away":        {func(w *world) { w.runtime.Fail(status.Error(codes.Unavailable, "away")) }, podRef("payments", "api-0", ""), codes.Unavailable, "away"},
		"a container not in the spec":   {func(w *world) { w.second("containers", nil); w.spec2("nothing", "nothing") }, podRef("payments", "api-0", ""), codes.PermissionDenied, "which its spec does not have"},
		"two sandboxes":                 {func(w *world) { w.runtime.List(sandbox(w, func(*criv1.PodSandbox) {}), nil) }, podRef("payments", "api-0", ""), codes.PermissionDenied, "two ready sandboxes"},
		"a container that is listed twice": {func(w *world) {
			w.runtime.List(nil, []*criv1.Container{{Id: idA, PodSandboxId: idB, State: criv1.ContainerState_CONTAINER_RUNNING, Labels: map[string]string{"io.kubernetes.container.name": "main"}}})
		}, podRef("payments", "api-0", ""), codes.PermissionDenied, "twice"},
		"another pod's container in the list": {func(w *world) {
			w.runtime.Remove(idA)
			other := w.pod
			other.UID, other.SandboxID, other.ContainerID = otherUID, strings.Repeat("e", 64), strings.Repeat("d", 64)
			if err := w.runtime.Add(other); err != nil {
				w.t.Fatal(err)
			}
			w.runtime.List(nil, []*criv1.Container{{Id: other.ContainerID, PodSandboxId: idB, State: criv1.ContainerState_CONTAINER_RUNNING, Labels: map[string]string{"io.kubernetes.container.name": "main"}}})
		}, podRef("payments", "api-0", ""), codes.PermissionDenied, "says elsewhere"},
		"a container that has gone meanwhile": {func(w *world) {
			w.runtime.List(nil, []*criv1.Container{{Id: strings.Repeat("d", 64), PodSandboxId: idB, State: criv1.ContainerState_CONTAINER_RUNNING, Labels: map[string]string{"io.kubernetes.container.name": "main"}}})
		}, podRef("payments", "api-0", ""), codes.Unavailable, "came or went"},
		"a deployment": {nil, &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "deployments", Group: "apps"}, Key: &broker.KubernetesObjectKey{Namespace: "payments", Name: "api"}},
			codes.InvalidArgument, "want pods in group core"},
		"pods of another group": {nil, &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "pods", Group: "metrics.k8s.io"}, Uid: podUID}, codes.InvalidArgument, "want pods in group core"},
		"no type":               {nil, &broker.KubernetesObjectReference{Uid: podUID}, codes.InvalidArgument, "want pods in group core"},
		"neither key nor UID":   {nil, podRef("", "", ""), codes.InvalidArgument, "its UID, or both"},
		"an empty key":          {nil, &broker.KubernetesObjectReference{Type: podRef("", "", "").Type, Key: &broker.KubernetesObjectKey{}, Uid: podUID}, codes.InvalidArgument, "are no pod's"},
		"no namespace":          {nil, podRef("", "api-0", ""), codes.InvalidArgument, "are no pod's"},
		"a name that is a path": {nil, podRef("payments", "../secrets/x", ""), codes.InvalidArgument, "are no pod's"},
		"a UID that is a label": {nil, podRef("", "", "a,b=c"), codes.InvalidArgument, "is no UID"},
		"a long UID":            {nil, podRef("", "", strings.Repeat("a", 65)), codes.InvalidArgument, "is no UID"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tc.change != nil {
				tc.change(w)
			}
			w.configure(w.hcl())
			got, err := w.refer(tc.ref)
			if status.Code(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.reason) || len(got) > 0 {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// spec2 has the API answer apiPod with one text replaced by another.
func (w *world) spec2(old, instead string) {
	other := strings.Replace(apiPod, old, instead, 1)
	w.api.Store(&other)
}

func TestPodReferencesNeedTheAPI(t *testing.T) {
	w := newWorld(t)
	w.configure(without1(w.hcl(), "kubeconfig"))
	if got, err := w.refer(podRef("payments", "api-0", "")); status.Code(err) != codes.FailedPrecondition || len(got) > 0 {
		t.Errorf("got %v, %v", got, err)
	}
}
