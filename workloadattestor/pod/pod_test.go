package pod_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/workloadattestor/pod"
)

// api is the API, with one pod or an error.
type api struct {
	mu    sync.Mutex
	pod   *corev1.Pod
	err   error
	asked int
	more  map[string]string // other objects, by resource/name
}

func (a *api) Get(ctx context.Context, resource, _, name string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if more, ok := a.more[resource+"/"+name]; ok {
		return []byte(more), nil
	}
	a.asked++
	if resource != "pods" {
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, name, errors.New("no right"))
	}
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("asked without a deadline")
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.pod == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
	}
	return json.Marshal(a.pod)
}

func apiPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api-0", UID: "u1"},
		Spec:       corev1.PodSpec{NodeName: "fra-1", ServiceAccountName: "api"},
	}
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func lookup(a *api) (*pod.Lookup, *clock) {
	c := &clock{now: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)}
	return pod.New(pod.Config{Node: "fra-1", Pods: a, Fresh: time.Minute, Keep: time.Hour, Timeout: time.Second, Now: c.Now}), c
}

func TestServiceAccount(t *testing.T) {
	cases := map[string]struct {
		change func(*corev1.Pod)
		uid    string
		want   string // part of the error; empty: accepted
	}{
		"the pod that the runtime means":        {func(*corev1.Pod) {}, "u1", ""},
		"a pod of that name that was made anew": {func(p *corev1.Pod) { p.UID = "u2" }, "u1", "has UID u2"},
		"no UID from the runtime":               {func(p *corev1.Pod) { p.UID = "" }, "", "has UID"},
		"another node's pod":                    {func(p *corev1.Pod) { p.Spec.NodeName = "par-1" }, "u1", `is on node "par-1"`},
		"a pod that is not scheduled yet":       {func(p *corev1.Pod) { p.Spec.NodeName = "" }, "u1", `is on node ""`},
		"a pod without a service account":       {func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }, "u1", "no service account"},
		"an API that answers about another pod": {func(p *corev1.Pod) { p.Name = "api-1" }, "u1", "got payments/api-1"},
		"an API that answers about another ns":  {func(p *corev1.Pod) { p.Namespace = "x" }, "u1", "got x/api-0"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := apiPod()
			tc.change(p)
			l, _ := lookup(&api{pod: p})
			got, err := l.Facts(t.Context(), "payments", "api-0", tc.uid)
			if tc.want == "" && (err != nil || got.Account != "api") {
				t.Errorf("got %+v, %v", got, err)
			}
			if tc.want != "" && (err == nil || !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), tc.want) || got.Account != "") {
				t.Errorf("got %+v, error %v, want one with %q", got, err, tc.want)
			}
		})
	}
}

func TestThreat22_NoPodAndNoAPIMeanNoServiceAccount(t *testing.T) {
	l, _ := lookup(&api{})
	if got, err := l.Facts(t.Context(), "payments", "api-0", "u1"); !errors.Is(err, pod.ErrNotFound) || got.Account != "" {
		t.Errorf("no pod: got %+v, %v", got, err)
	}
	l, _ = lookup(&api{err: errors.New("connection refused")})
	if got, err := l.Facts(t.Context(), "payments", "api-0", "u1"); err == nil || errors.Is(err, pod.ErrNotFound) || got.Account != "" {
		t.Errorf("no API: got %+v, %v", got, err)
	}
}

func TestAnAnswerIsKeptForItsTimeAndNotLonger(t *testing.T) {
	a := &api{pod: apiPod()}
	l, c := lookup(a)
	ask := func(want string) {
		t.Helper()
		got, err := l.Facts(t.Context(), "payments", "api-0", "u1")
		if got.Account != want || (err == nil) != (want != "") {
			t.Errorf("got %+v, %v, want %q", got, err, want)
		}
	}
	ask("api")
	ask("api")
	if a.asked != 1 {
		t.Errorf("a fresh answer was asked for %d times", a.asked)
	}
	a.err = errors.New("connection refused")
	c.now = c.now.Add(59 * time.Minute)
	ask("api")
	c.now = c.now.Add(2 * time.Minute)
	ask("")
	a.err = nil
	ask("api")
	a.pod = nil // deleted
	c.now = c.now.Add(2 * time.Minute)
	ask("")
	a.err = errors.New("connection refused")
	ask("") // and what was known is forgotten
}

func TestKnownUIDOfAnotherPodIsNotUsed(t *testing.T) {
	a := &api{pod: apiPod()}
	l, _ := lookup(a)
	if _, err := l.Facts(t.Context(), "payments", "api-0", "u1"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Facts(t.Context(), "shop", "api-0", "u1"); err == nil {
		t.Errorf("another namespace got %q", got)
	}
}

// anyPod is an API that has every pod.
type anyPod struct{}

func (anyPod) Get(_ context.Context, _, namespace, name string) ([]byte, error) {
	p := apiPod()
	p.Namespace, p.Name, p.UID = namespace, name, types.UID(name)
	return json.Marshal(p)
}

func TestManyPodsStayBounded(t *testing.T) {
	c := &clock{now: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)}
	l := pod.New(pod.Config{Node: "fra-1", Pods: anyPod{}, Fresh: time.Minute, Keep: time.Hour, Timeout: time.Second, Now: c.Now})
	for i := range 10000 {
		name := fmt.Sprint("p", i)
		if got, err := l.Facts(t.Context(), "payments", name, name); err != nil || got.Account != "api" {
			t.Fatalf("pod %d: %q, %v", i, got, err)
		}
	}
	if n := l.Known(); n > 4096 {
		t.Errorf("%d answers are kept", n)
	}
}

// TestPartsOfClaimsAreLookedUp: what a claim is decides whether a part of it is a path of the node.
func TestPartsOfClaimsAreLookedUp(t *testing.T) {
	const (
		claim  = `{"metadata":{"namespace":"payments","name":"data","uid":"c1"},"spec":{"volumeName":"pv"}}`
		volume = `{"metadata":{"name":"pv"},"spec":{"claimRef":{"namespace":"payments","name":"data","uid":"c1"},%s}}`
	)
	for name, tc := range map[string]struct {
		more             map[string]string
		refused, unknown string
	}{
		"a storage system's": {map[string]string{"persistentvolumeclaims/data": claim, "persistentvolumes/pv": fmt.Sprintf(volume, `"csi":{"driver":"d"}`)}, "", ""},
		"a folder of the node": {map[string]string{"persistentvolumeclaims/data": claim, "persistentvolumes/pv": fmt.Sprintf(volume, `"hostPath":{"path":"/etc"}`)},
			"/etc of the node", ""},
		"a disk of the node":       {map[string]string{"persistentvolumeclaims/data": claim, "persistentvolumes/pv": fmt.Sprintf(volume, `"local":{"path":"/d"}`)}, "local", ""},
		"no right to read claims":  {nil, "", "persistentvolumeclaim data cannot be read"},
		"no right to read volumes": {map[string]string{"persistentvolumeclaims/data": claim}, "", "persistentvolume pv cannot be read"},
		"no JSON":                  {map[string]string{"persistentvolumeclaims/data": "{"}, "", "cannot be read"},
		"another object":           {map[string]string{"persistentvolumeclaims/data": `{}`}, "", "does not exist yet"},
	} {
		t.Run(name, func(t *testing.T) {
			p := apiPod()
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
			p.Spec.Containers = []corev1.Container{{Name: "main", VolumeMounts: []corev1.VolumeMount{{Name: "v", SubPath: "x"}}}}
			l, _ := lookup(&api{pod: p, more: tc.more})
			got, err := l.Facts(t.Context(), "payments", "api-0", "u1")
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(got.Paths.Refused, " "); (text == "") != (tc.refused == "") || !strings.Contains(text, tc.refused) {
				t.Errorf("refused %q, want %q", text, tc.refused)
			}
			if text := strings.Join(got.Paths.Unknown, " "); (text == "") != (tc.unknown == "") || !strings.Contains(text, tc.unknown) {
				t.Errorf("unknown %q, want %q", text, tc.unknown)
			}
		})
	}
}
