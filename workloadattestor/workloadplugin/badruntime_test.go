package workloadplugin_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestThreat22_ARuntimeThatIsAwaySlowOrLies: each has a clear error and no selector, or costs the family that it is about.
func TestThreat22_ARuntimeThatIsAwaySlowOrLies(t *testing.T) {
	answers := func(w *world, change func(*criv1.ContainerStatusResponse, *criv1.PodSandboxStatusResponse)) {
		container, sandbox, err := w.pod.Answers()
		if err != nil {
			w.t.Fatal(err)
		}
		change(container, sandbox)
		w.runtime.Put(container, sandbox)
	}
	status1 := func(change func(*criv1.ContainerStatus)) func(w *world) {
		return func(w *world) {
			answers(w, func(c *criv1.ContainerStatusResponse, _ *criv1.PodSandboxStatusResponse) { change(c.Status) })
		}
	}
	cases := map[string]struct {
		change  func(w *world)
		code    codes.Code
		want    string
		without []string // of the selectors, where there is no error
	}{
		"slow to tell of the container": {change: func(w *world) { w.runtime.Slow("ContainerStatus", time.Minute) }, code: codes.Unavailable, want: "DeadlineExceeded"},
		"slow to tell of the sandbox":   {change: func(w *world) { w.runtime.Slow("PodSandboxStatus", time.Minute) }, code: codes.Unavailable, want: "DeadlineExceeded"},
		"slow to tell of the image":     {change: func(w *world) { w.runtime.Slow("ImageStatus", time.Minute) }},
		"an answer of 17 MiB": {change: status1(func(s *criv1.ContainerStatus) {
			s.Annotations = map[string]string{"x": strings.Repeat("x", 17<<20)}
		}), code: codes.Unavailable, want: "larger than max"},
		"another container's ID": {change: func(w *world) {
			answers(w, func(c *criv1.ContainerStatusResponse, _ *criv1.PodSandboxStatusResponse) { c.Status.Id = idA + "0" })
			w.runtime.Remove(idA)
		}, code: codes.PermissionDenied, want: "got an answer about"},
		"no status": {change: func(w *world) {
			answers(w, func(c *criv1.ContainerStatusResponse, _ *criv1.PodSandboxStatusResponse) {
				c.Status = &criv1.ContainerStatus{Id: idA}
			})
		}, code: codes.Unavailable, want: "CONTAINER_CREATED"},
		"an unknown state":    {change: status1(func(s *criv1.ContainerStatus) { s.State = criv1.ContainerState_CONTAINER_UNKNOWN }), code: codes.Unavailable, want: "not known to run yet"},
		"a state of tomorrow": {change: status1(func(s *criv1.ContainerStatus) { s.State = 17 }), code: codes.Unavailable, want: "not known to run yet"},
		"information of the wrong form": {change: func(w *world) {
			answers(w, func(c *criv1.ContainerStatusResponse, _ *criv1.PodSandboxStatusResponse) {
				c.Info = map[string]string{"info": `{"sandboxID":"` + idB + `","runtimeSpec":[]}`}
			})
		}, code: codes.PermissionDenied, want: "verbose info"},
		"no image_id, and the reference alone": {change: func(w *world) { w.pod.ImageID = ""; _ = w.runtime.Add(w.pod) }},
		"no image at all": {change: func(w *world) { w.pod.ImageID, w.pod.ImageRef, w.pod.Image = "", "", ""; _ = w.runtime.Add(w.pod) },
			without: []string{"image-", "signed-by:"}},
		"an image_id that is none": {change: func(w *world) { w.pod.ImageID = "nginx@latest"; _ = w.runtime.Add(w.pod) }, without: []string{"image-", "signed-by:"}},
		"an image_id and another reference": {change: func(w *world) {
			w.pod.ImageID = "sha256:" + strings.Repeat("0", 64)
			_ = w.runtime.Add(w.pod)
		}, without: []string{"image-", "signed-by:"}},
		"two answers about the image": {change: func(w *world) {
			w.runtime.PutImageAs(w.pod.ImageID, &criv1.Image{Id: "sha256:" + strings.Repeat("0", 64)})
		}, without: []string{"image-", "signed-by:"}},
		"thousands of names of the image": {change: func(w *world) {
			w.runtime.PutImage(&criv1.Image{Id: w.pod.ImageID, RepoTags: slices.Repeat([]string{"evil.example/x:" + strings.Repeat("a", 100)}, 5000)})
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(w.hcl() + "cri_timeout = \"500ms\"\n")
			want := w.selectors()
			tc.change(w)
			got, err := w.attest(42)
			if tc.code != codes.OK {
				if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) || got != nil {
					t.Errorf("got %v, error %v, want %s with %q", got, err, tc.code, tc.want)
				}
				return
			}
			if d := cmp.Diff(without(want, tc.without...), got); err != nil || d != "" {
				t.Errorf("%v (-want +got)\n%s", err, d)
			}
		})
	}
}

// TestThreat22_ARuntimeThatComesBackIsFoundAgain: nothing has to be started again for it.
func TestThreat22_ARuntimeThatComesBackIsFoundAgain(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl() + "cri_timeout = \"500ms\"\n")
	w.stopRuntime()
	if got, err := w.attest(42); status.Code(err) != codes.Unavailable || got != nil {
		t.Errorf("away: got %v, %v", got, err)
	}
	pod := w.pod
	w.startRuntime()
	w.pod = pod
	if err := w.runtime.Add(pod); err != nil {
		t.Fatal(err)
	}
	var got []string
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && got == nil; time.Sleep(50 * time.Millisecond) {
		got, err = w.attest(42)
	}
	if d := cmp.Diff(w.selectors(), got); err != nil || d != "" {
		t.Errorf("back again: %v (-want +got)\n%s", err, d)
	}
}

// TestTheRuntimeIsNotAskedTwiceAboutAContainer: what it says is fixed, and whether the container runs the kernel says.
func TestTheRuntimeIsNotAskedTwiceAboutAContainer(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	want := w.selectors()
	for range 3 {
		if got, err := w.attest(42); err != nil || cmp.Diff(want, got) != "" {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	if asked := w.runtime.Asked(); len(asked) != 3 {
		t.Errorf("asked %v", asked)
	}
	// What went wrong is asked again, and another process has to be where the runtime made the container.
	w.process(43, "0::/user.slice/"+idA+"\n")
	if got, err := w.attest(43); status.Code(err) != codes.PermissionDenied || got != nil {
		t.Errorf("another cgroup: got %v, %v", got, err)
	}
	w.process(44, "0::/kubepods/x/"+idB+"\n")
	w.runtime.Fail(status.Error(codes.Unavailable, "down"))
	if got, err := w.attest(44); status.Code(err) != codes.Unavailable || got != nil {
		t.Errorf("a container that is not known: got %v, %v", got, err)
	}
}
