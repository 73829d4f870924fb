package lives

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

func podObject(phase, label string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": "books", "name": "shelf", "uid": "1", "labels": map[string]any{v1alpha1.PodAttestedLabel: label}},
		"status":   map[string]any{"phase": phase, "podIPs": []any{map[string]any{"ip": "10.1.0.7"}}},
	}}
}

func setObject(nets ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": v1alpha1.RevokedSet, "labels": map[string]any{v1alpha1.RevokedLabel: "true"}},
		"spec":     map[string]any{"nets": nets},
	}}
}

func TestWhatIsTakenFromAPodThatLivesIsALoss(t *testing.T) {
	type step func(w *Watch) error
	pod := func(phase, label string, gone bool) step {
		return func(w *Watch) error { return w.sawPod(podObject(phase, label), gone) }
	}
	set := func(nets ...any) step {
		return func(w *Watch) error { return w.sawSet(setObject(nets...), false) }
	}
	for name, c := range map[string]struct {
		steps []step
		want  []string
	}{
		"nothing":                              {[]step{pod("Running", "", false), pod("Running", "true", false), set()}, nil},
		"its label":                            {[]step{pod("Running", "true", false), pod("Running", "", false)}, []string{"the trust label"}},
		"its address, once while it lasts":     {[]step{pod("Running", "true", false), set("10.1.0.7/32"), set("10.1.0.7/32", "10.1.0.8/32")}, []string{"the address"}},
		"an address that was revoked before":   {[]step{set("10.1.0.0/24"), pod("Running", "true", false)}, []string{"the address"}},
		"its label, when it has ended":         {[]step{pod("Running", "true", false), pod("Succeeded", "", false)}, nil},
		"its address, when it is gone":         {[]step{pod("Running", "true", false), pod("Running", "true", true), set("10.1.0.7/32")}, nil},
		"the address of one that has no label": {[]step{pod("Running", "", false), set("10.1.0.7/32")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatch()
			for _, do := range c.steps {
				if err := do(w); err != nil {
					t.Fatal(err)
				}
			}
			lost, _, err := w.Losses(nil)
			if err != nil || len(lost) != len(c.want) {
				t.Fatalf("%v, %v, want %q", lost, err, c.want)
			}
			for i := range lost {
				if lost[i].What != c.want[i] {
					t.Errorf("%v, want %q", lost, c.want)
				}
			}
			if lost, _, _ := w.Losses(func(string, string) bool { return true }); len(lost) != 0 {
				t.Errorf("of excepted ones: %v", lost)
			}
		})
	}
}
